"""What the shared search of a campaign left in its folder `search/`, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from nas_kd.analysis.axes import FLOPS, LATENCY, Axis
from nas_kd.trials.record import KnobValue

RESULT_NAME, GATES_NAME, LOSSES_NAME = "search.json", "gates.jsonl", "log.jsonl"

_SUM_TOLERANCE = 0.01  # probabilities may be rounded

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1.001, allow_inf_nan=False)]


class SearchFileError(ValueError):
    """A file of a search is damaged; the message is one sentence."""


class Variable(BaseModel):
    """A variable of the space, which a gate decides.

    Attributes:
        choices: in the order of the gate's probabilities.
        layers: how many layers compute something under each choice; None where choices remove no layer.
    """

    model_config = ConfigDict(frozen=True)

    choices: tuple[KnobValue, ...] = Field(min_length=1)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None

    @model_validator(mode="after")
    def _as_many_layers(self) -> Variable:
        if self.layers is not None and len(self.layers) != len(self.choices):
            raise ValueError(f"{len(self.choices)} choices have {len(self.layers)} numbers of layers")
        return self

    @property
    def is_depth(self) -> bool:
        """Whether the choices are numbers of layers, not operators."""
        return self.layers is not None and not all(isinstance(choice, str) for choice in self.choices)


class SearchedArch(BaseModel):
    """The architecture that was derived at a budget."""

    model_config = ConfigDict(frozen=True)

    choices: Mapping[str, KnobValue]


class SearchedBudget(BaseModel):
    """What the search found at one budget.

    Attributes:
        budget: in the unit of the search.
        arch: the derived architecture.
        arch_id: its content hash, as in the records of trials.
        cost: of the derived architecture.
        inherited: its metric on the gates' split with the weights of the supernet.
        expected_cost: under the probabilities of the gates.
        knobs: each combination of the space's knobs, with its `probability`.
        gates: gate -> probability of each choice, at the knobs of the derived architecture.
        effect: gate -> probability that its choice has an effect.
    """

    model_config = ConfigDict(frozen=True)

    budget: Positive
    arch: SearchedArch
    arch_id: str
    cost: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    inherited: Finite
    expected_cost: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    knobs: tuple[Mapping[str, KnobValue], ...]
    gates: Mapping[str, tuple[Probability, ...]]
    effect: Mapping[str, Probability]

    @model_validator(mode="after")
    def _knobs_have_probabilities(self) -> SearchedBudget:
        shares = [combination.get("probability") for combination in self.knobs]
        if not all(isinstance(share, int | float) and 0 <= share <= 1.001 for share in shares):
            raise ValueError("each combination of knobs needs a probability between 0 and 1")
        return self

    def knob_probabilities(self) -> dict[str, dict[KnobValue, float]]:
        """Knob -> value -> probability, over all combinations; knobs with one value are left out."""
        found: dict[str, dict[KnobValue, float]] = {}
        for combination in self.knobs:
            share = float(combination["probability"])
            for name, value in combination.items():
                if name != "probability":
                    values = found.setdefault(name, {})
                    values[value] = values.get(value, 0.0) + share
        return {name: values for name, values in found.items() if len(values) > 1}


class SearchResult(BaseModel):
    """The file `search.json`.

    Attributes:
        cost_unit: of budgets and costs.
        variables: name -> variable, in the order of the net.
        budgets: ascending.
    """

    model_config = ConfigDict(frozen=True)

    cost_unit: Literal["FLOPs", "ns"]
    variables: Mapping[str, Variable]
    budgets: tuple[SearchedBudget, ...] = Field(min_length=1)

    @property
    def axis(self) -> Axis:
        """How costs are written: FLOPs, or milliseconds."""
        return LATENCY if self.cost_unit == "ns" else FLOPS

    def scaled(self, cost: float) -> float:
        """A cost of the search in the unit of `axis`."""
        return cost * 1e-6 if self.cost_unit == "ns" else cost

    @model_validator(mode="after")
    def _gates_fit_the_variables(self) -> SearchResult:
        budgets = [entry.budget for entry in self.budgets]
        if budgets != sorted(set(budgets)):
            raise ValueError("budgets must ascend")
        for entry in self.budgets:
            _check_gates(entry.gates, self.variables)
            if missing := self.variables.keys() - entry.effect.keys():
                raise ValueError(f"the probability of an effect is missing for {sorted(missing)[0]!r}")
        return self


class GatesAfterEpoch(BaseModel):
    """A line of `gates.jsonl`.

    Attributes:
        epoch: from 1.
        budget: a knot, in the unit of the search.
        gates: gate -> probability of each choice, the mean over combinations of knobs.
    """

    model_config = ConfigDict(frozen=True)

    epoch: int = Field(ge=1)
    budget: Positive
    gates: Mapping[str, tuple[Probability, ...]]


@dataclass(frozen=True)
class Search:
    """A shared search.

    Attributes:
        result: probabilities, costs and derived architectures at each budget.
        history: epoch -> budget of a knot -> gates after that epoch; empty where they were not kept.
        losses: epoch -> mean of each term; empty where they were not kept.
        problems: a sentence for each file beside `search.json` that could not be read.
    """

    result: SearchResult
    history: Mapping[int, Mapping[float, GatesAfterEpoch]] = field(default_factory=dict)
    losses: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_search(folder: Path | str) -> Search | None:
    """Read `search/` of a run.

    Args:
        folder: the folder `search`.

    Returns:
        None where the campaign has no shared search, or has not finished it.

    Raises:
        SearchFileError: `search.json` is damaged.
    """
    folder = Path(folder)
    if not (folder / RESULT_NAME).is_file():
        return None
    try:
        result = SearchResult.model_validate_json((folder / RESULT_NAME).read_bytes())
    except (ValidationError, OSError) as error:
        raise SearchFileError(_sentence(folder / RESULT_NAME, error)) from None
    problems: list[str] = []
    history: dict[int, dict[float, GatesAfterEpoch]] = {}
    losses: dict[int, dict[str, float]] = {}
    try:
        history = _history(folder / GATES_NAME, result)
    except (ValueError, OSError) as error:
        problems.append(_sentence(folder / GATES_NAME, error))
    try:
        losses = _losses(folder / LOSSES_NAME)
    except (ValueError, OSError) as error:
        problems.append(_sentence(folder / LOSSES_NAME, error))
    return Search(result, history, losses, tuple(problems))


def _history(path: Path, result: SearchResult) -> dict[int, dict[float, GatesAfterEpoch]]:
    found: dict[int, dict[float, GatesAfterEpoch]] = {}
    for line in _lines(path):
        read = GatesAfterEpoch.model_validate_json(line)
        _check_gates(read.gates, result.variables)
        found.setdefault(read.epoch, {})[read.budget] = read  # of an epoch that was run twice, the last
    return found


def _losses(path: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    reader = TypeAdapter(dict[str, Finite])
    for line in _lines(path):
        read = json.loads(line)
        if not isinstance(read, dict):
            raise ValueError("each line must be a JSON object")
        read.pop("stage", None)
        terms = reader.validate_python(read)
        if "epoch" not in terms:
            raise ValueError("a line has no epoch")
        found[int(terms.pop("epoch"))] = terms
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a file; none where it does not exist. An interrupted search may leave a part of the last line."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines[:-1] if line.strip()]


def _check_gates(gates: Mapping[str, tuple[float, ...]], variables: Mapping[str, Variable]) -> None:
    """Raise `ValueError` where the probabilities are not those of the variables."""
    if gates.keys() != variables.keys():
        raise ValueError(f"gates and variables differ in {sorted(gates.keys() ^ variables.keys())[0]!r}")
    for name, shares in gates.items():
        if len(shares) != len(variables[name].choices) or abs(sum(shares) - 1) > _SUM_TOLERANCE:
            raise ValueError(f"gate {name!r} needs one probability a choice, with a sum of 1")


def _sentence(path: Path, error: Exception) -> str:
    """What is wrong with a file, in one sentence."""
    reason = str(error)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg']}" if place else first["msg"]
    reason = " ".join(reason.split())
    return f"{path} cannot be shown ({reason[:300]}); it is damaged or of another version of nas_kd, so search anew"
