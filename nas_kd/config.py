"""The campaign file as typed, documented models, and its mistakes as sentences."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from torch import nn

from nas_kd.data import DataConfig, GeneratedConfig
from nas_kd.imports import call_function
from nas_kd.mistakes import choose, explain, fields
from nas_kd.objectives import FeatureTerm, ObjectiveConfig, ResponseTerm
from nas_kd.tasks import TASKS
from nas_kd.teachers import TeacherConfig
from nas_kd.training.fit import FitConfig
from nas_kd.training.gate_search import GateConfig, LocalConfig
from search_spaces import DERIVED_SPACES, SPACES, DeltaBlocksSpace, SearchSpace
from trials.knobs import ChoiceKnob, FloatKnob, parse_knobs


class ConfigError(ValueError):
    """The campaign file cannot be used; each line of the message is one mistake with its way out."""


_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_flops(value: Any) -> Any:
    """`12.5M` -> 12500000; numbers pass through. Suffixes k, M, G, T are powers of 1000.

    Raises:
        ValueError: the text is no number with such a suffix.
    """
    if not isinstance(value, str):
        return round(value) if isinstance(value, float) and value == value and abs(value) < 1e30 else value
    match = re.fullmatch(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?[0-9]+)?)\s*([kKmMgGtT]?)\s*", value)
    if match is None:
        raise ValueError(f"FLOPs must be a number such as 12.5M (suffixes k, M, G, T), but got {value!r}")
    return round(float(match[1]) * _SUFFIX[match[2].lower()])


Flops = Annotated[int, BeforeValidator(parse_flops), Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FlopsRange(_Section):
    """Budgets between two bounds, proposed on a logarithmic scale."""

    low: Flops
    high: Flops

    @model_validator(mode="after")
    def _ordered(self) -> FlopsRange:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, but low is {self.low} and high is {self.high}")
        return self


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class LatencyRange(_Section):
    """Budgets in milliseconds between two bounds, proposed on a logarithmic scale."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> LatencyRange:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, but low is {self.low} and high is {self.high}")
        return self


class BudgetConfig(_Section):
    """What a student may cost, in FLOPs or in milliseconds.

    Attributes:
        max_flops: FLOPs a clip, or amortised a frame for students with key frames: one number, several to choose from
            (each is tried once before the sampler decides), or a range `{low: …, high: …}`.
        max_latency_ms: likewise the amortised latency of a frame, predicted by a table that is measured on the
            machine and with the threads of the campaign; for space `delta_blocks`.
    """

    max_flops: Annotated[
        Annotated[FlopsRange, Tag("range")] | Annotated[tuple[Flops, ...], BeforeValidator(_listed), Tag("list")],
        Discriminator(lambda value: "range" if isinstance(value, dict | FlopsRange) else "list"),
    ] = (2_000_000, 3_000_000, 5_000_000, 8_000_000)
    max_latency_ms: (
        Annotated[
            Annotated[LatencyRange, Tag("range")]
            | Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_listed), Tag("list")],
            Discriminator(lambda value: "range" if isinstance(value, dict | LatencyRange) else "list"),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one(self) -> BudgetConfig:
        if not self.options:
            raise ValueError(f"{self.knob} must name at least one budget, but the list is empty")
        return self

    @model_validator(mode="before")
    @classmethod
    def _not_both(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("max_latency_ms") is not None:
            if value.get("max_flops") not in (None, [], ()):
                raise ValueError("a budget is max_flops or max_latency_ms, but both are given; drop one")
            return {**value, "max_flops": ()}
        return value

    @property
    def knob(self) -> str:
        """The knob that the study proposes."""
        return "max_flops" if self.max_latency_ms is None else "max_latency_ms"

    @property
    def options(self) -> FlopsRange | LatencyRange | tuple[int, ...] | tuple[float, ...]:
        """Budgets to choose from, or the range."""
        return self.max_flops if self.max_latency_ms is None else self.max_latency_ms

    @property
    def lowest(self) -> float:
        """The tightest budget that can be proposed."""
        options = self.options
        return options.low if isinstance(options, FlopsRange | LatencyRange) else min(options)

    def cost(self, value: float) -> int:
        """A value of the knob in the units of its cost table: FLOPs, or nanoseconds."""
        return int(value) if self.max_latency_ms is None else int(value * 1e6)

    def text(self, cost: float) -> str:
        """A cost for people."""
        return f"{cost:,.0f} FLOPs" if self.max_latency_ms is None else f"{cost / 1e6:.3g} ms"


class SpaceConfig(BaseModel):
    """The search space: a name of `search_spaces.SPACES` or `DERIVED_SPACES`, or `module:function`; the other keys are
    its settings."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "clip_cell"

    @model_validator(mode="after")
    def _fits(self) -> SpaceConfig:
        known = {**SPACES, **DERIVED_SPACES}
        if self.name not in known and ":" not in self.name:
            raise ValueError(
                f"unknown space {self.name!r}; choose from {', '.join(known)}, or give your own as module:function"
            )
        try:
            if self.name in SPACES:
                SPACES[self.name](self._settings(2))
            elif self.is_derived:
                DERIVED_SPACES[self.name].model_validate(self.model_extra or {})
        except ValidationError as error:  # as one sentence: pydantic would merge its keys with those of this model
            raise ValueError("; ".join(explain(error, self.model_extra or {}))) from error
        return self

    @property
    def is_derived(self) -> bool:
        """Whether the space is derived from the teacher."""
        return self.name in DERIVED_SPACES

    def _settings(self, num_outputs: int) -> dict[str, Any]:
        return {"num_classes": num_outputs, **(self.model_extra or {})}

    def build(self, num_outputs: int) -> SearchSpace:
        """The space for so many outputs, where it needs no teacher.

        Raises:
            ValueError: the settings do not fit.
        """
        settings = self._settings(num_outputs)
        if self.name in SPACES:
            return SPACES[self.name](settings)
        space = call_function(self.name, settings, purpose="space.name")
        if not isinstance(space, SearchSpace):
            raise ValueError(f"space.name {self.name!r} must return a SearchSpace, but returns {type(space).__name__}")
        return space

    def derive(self, teacher: nn.Module, frame_size: tuple[int, int], identity: Mapping[str, Any]) -> DeltaBlocksSpace:
        """The space of a teacher's own layers.

        Args:
            teacher: frames -> maps.
            frame_size: (H, W).
            identity: what tells this teacher from others.

        Raises:
            ValueError: no layer of the teacher is eligible, or a pattern matches none.
        """
        settings = DERIVED_SPACES[self.name].model_validate(self.model_extra or {})
        return DeltaBlocksSpace(settings, teacher, frame_size, identity)


class SearchConfig(FitConfig):
    """The gate search of a trial: how weights train, the `gates`, and the `objective` of the search.

    The search has an objective of its own: its candidates learn fast from maps, which a student that trains alone needs
    less (docs/objectives.md). `local` is how a search over delta layers begins.
    """

    epochs: int = Field(default=8, ge=1)
    batch_size: int = Field(default=8, ge=1)
    lr: float = Field(default=5e-3, gt=0)
    gates: GateConfig = GateConfig()
    local: LocalConfig = LocalConfig()
    objective: ObjectiveConfig = ObjectiveConfig(response=ResponseTerm(weight=1.0), feature=FeatureTerm(weight=10.0))


class RetrainConfig(FitConfig):
    """Training of the derived student.

    Attributes:
        init: `inherit` the supernet's weights, or start `fresh`.
        num_seeds: trainings with different seeds; the report gives the interval over them, the first one is exported.
    """

    lr: float = Field(default=5e-3, gt=0)
    init: Literal["inherit", "fresh"] = "inherit"
    num_seeds: int = Field(default=1, ge=1)


class NormalizeConfig(_Section):
    """(clip / 255 − mean) / std, for each of R, G, B."""

    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        0.225,
        0.225,
        0.225,
    )


class EarlyStoppingConfig(_Section):
    """Stops trials whose (accuracy, FLOPs) after a rung of retraining are in the worse part by non-dominated rank.

    Attributes:
        rungs: epochs of the retraining at which trials are compared, ascending.
        reduction_factor: above 1; 3 continues about a third.
    """

    rungs: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    reduction_factor: float = Field(default=3.0, gt=1)

    @model_validator(mode="after")
    def _ascending(self) -> EarlyStoppingConfig:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs must ascend without repetition, but are {list(self.rungs)}")
        return self


class ResourceConfig(_Section):
    """What a trial gets.

    Attributes:
        executor: `ray` for parallel trials, also on a cluster; `inline` runs one after the other in this process.
        cpus_per_trial: CPU cores, which are also its threads.
        gpus_per_trial: GPUs; a fraction shares one between trials.
        max_concurrent: at most so many trials at once; null for as many as fit.
        address: of a running Ray cluster; without it a local one is started.
        max_failures: how often a trial whose process dies is started again.
    """

    executor: Literal["ray", "inline"] = "ray"
    cpus_per_trial: int = Field(default=1, ge=1)
    gpus_per_trial: float = Field(default=0.0, ge=0)
    max_concurrent: int | None = Field(default=None, ge=1)
    address: str | None = None
    max_failures: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _one_after_the_other(self) -> ResourceConfig:
        if self.executor == "inline" and self.max_concurrent not in (None, 1):
            raise ValueError(f"max_concurrent must be 1 or null with executor inline, but is {self.max_concurrent}")
        return self


TEACHER_SECTIONS = ("task", "task_options", "seed", "data", "normalize", "teacher")
"""What decides the teacher of a campaign and its outputs."""

_DELTA_ONLY = {"feature": {"weight": 0.0}, "response": {"weight": 0.0}, "delta": {"weight": 1.0}}
FRAMEWISE_DEFAULTS: Mapping[str, Any] = {
    "teacher": {"model": "framenet"},
    "space": {"name": "delta_blocks"},
    "budget": {"max_flops": ["4M", "6M", "8M"]},
    "objective": _DELTA_ONLY,
    "search": {"objective": {**_DELTA_ONLY, "delta": {"weight": 1.0, "active_share": 1.0}}},
}
"""Defaults of campaigns whose task looks at single frames; what the file says goes before."""


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with what it lacks from `defaults`, section by section; a space or teacher that it names is its own."""
    merged = dict(given)
    for key, default in defaults.items():
        own = merged.get(key)
        if own is None:
            merged[key] = default
        elif key != "budget" and isinstance(default, Mapping) and isinstance(own, Mapping):
            merged[key] = _merged(default, own)
    return merged


def _extremes(path: str, definition: Mapping[str, Any]) -> list[Any]:
    """The values of a knob that a section must accept: all of a choice, the bounds of a range and one between them."""
    knob = parse_knobs({path: definition})[path]
    if isinstance(knob, ChoiceKnob):
        return list(knob.values)
    between = [knob.low + 0.381966 * (knob.high - knob.low)] if isinstance(knob, FloatKnob) else []  # no whole number
    return [knob.low, knob.high, *between]


class CampaignConfig(_Section):
    """A campaign file.

    Attributes:
        name: of the run's folder under `runs`.
        runs: where run folders are.
        seed: of everything random.
        task: what the students are trained for.
        task_options: of the task (docs/tasks.md).
        trials: how many trials the campaign has in all; failed ones count.
        sampler: which Optuna sampler proposes the knobs.
        storage: URL of a database for the ledger (postgresql://…); without it the ledger is in the run's folder.
        knobs: what the study varies besides the budget and the space's own knobs (those with several values): dotted
            paths into `objective`, `search` and `retrain`, each with a definition such as
            `{type: float, low: 0.1, high: 3, log: true}`.
    """

    name: str = Field(default="campaign", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runs: Path = Path("runs")
    seed: int = Field(default=0, ge=0)
    task: str = "classification"
    task_options: dict[str, Any] = Field(default_factory=dict)
    trials: int = Field(default=12, ge=1)
    sampler: str = "tpe"
    storage: str | None = None
    data: DataConfig = GeneratedConfig()
    normalize: NormalizeConfig = NormalizeConfig()
    teacher: TeacherConfig = TeacherConfig()
    space: SpaceConfig = SpaceConfig()
    budget: BudgetConfig = BudgetConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    search: SearchConfig = SearchConfig()
    retrain: RetrainConfig = RetrainConfig()
    knobs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    early_stopping: EarlyStoppingConfig | None = None
    resources: ResourceConfig = ResourceConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_depend(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("data"), dict) and "source" not in value["data"]:
            value = {**value, "data": {"source": "generated", **value["data"]}}
        task = value.get("task")
        return _merged(FRAMEWISE_DEFAULTS, value) if task in TASKS and TASKS[task].framewise else value

    @model_validator(mode="after")
    def _fits(self) -> CampaignConfig:
        if self.task not in TASKS:
            raise ValueError(f"task: {self.task!r} is unknown; choose from {', '.join(TASKS)}")
        try:
            TASKS[self.task].options.model_validate(self.task_options)
        except ValidationError as error:
            raise ValueError(
                "; ".join(f"task_options: {line}" for line in explain(error, self.task_options))
            ) from error
        if self.budget.max_latency_ms is not None and not self.space.is_derived:
            raise ValueError(
                f"budget.max_latency_ms: only {', '.join(DERIVED_SPACES)} has a latency table, but the space is "
                f"{self.space.name!r}; give max_flops"
            )
        if self.space.is_derived and not TASKS[self.task].framewise:
            frames = ", ".join(name for name, task in TASKS.items() if task.framewise)
            raise ValueError(f"space.name: {self.space.name!r} needs a task that looks at single frames: {frames}")
        if TASKS[self.task].framewise and self.space.name in SPACES:
            raise ValueError(
                f"space.name: {self.space.name!r} makes students of whole clips, but task {self.task!r} looks at "
                f"single frames; choose {', '.join(DERIVED_SPACES)}, or give your own as module:function"
            )
        if self.early_stopping and self.early_stopping.rungs[-1] > self.retrain.epochs:
            raise ValueError(
                f"early_stopping.rungs: a rung is an epoch of the retraining, at most retrain.epochs = "
                f"{self.retrain.epochs}, but one is {self.early_stopping.rungs[-1]}"
            )
        for path in self.knobs:
            if path == "search.gates.split_share":
                raise ValueError(
                    f"knobs.{path}: all trials share the splits, so it cannot vary; set it in search.gates"
                )
            section = path.split(".")[0]
            if section not in ("objective", "search", "retrain") or path == section:
                raise ValueError(
                    f"knobs.{path}: a knob must be a dotted path into objective, search or retrain, such as "
                    "objective.response.weight; budgets and the space's knobs vary by listing several values there"
                )
            node: Any = self
            for part in path.split("."):
                if not isinstance(node, BaseModel) or part not in type(node).model_fields:
                    raise ValueError(f"knobs.{path}: there is no {part!r}; {choose(part, fields(node))}")
                node = getattr(node, part)
            for value in _extremes(path, self.knobs[path]):
                self._accepts({path: value})
        weights = {path: _extremes(path, d) for path, d in self.knobs.items() if path.endswith(".weight")}
        for values in product(*({min(v), max(v)} for v in weights.values())):  # terms may all be off together
            self._accepts(dict(zip(weights, values, strict=True)))
        return self

    def _accepts(self, proposal: Mapping[str, Any]) -> None:
        """Raise where the sections do not take values that knobs may propose together."""
        for section in {path.partition(".")[0] for path in proposal}:
            content = getattr(self, section).model_dump(mode="json")
            own = {path: value for path, value in proposal.items() if path.startswith(f"{section}.")}
            for path, value in own.items():
                set_path(content, path.partition(".")[2], value)
            try:
                type(getattr(self, section)).model_validate(content)
            except ValidationError as error:
                values = " with ".join(f"{path} = {value!r}" for path, value in own.items())
                if len(own) == 1:
                    (path, value), *_ = own.items()
                    raise ValueError(f"knobs.{path} may not propose {value!r}: {explain(error, content)[0]}") from error
                raise ValueError(f"knobs may not propose {values}: {explain(error, content)[0]}") from error

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.runs / self.name

    def with_knobs(self, knobs: Mapping[str, Any]) -> CampaignConfig:
        """This config with the values of the dotted knobs filled in; other knobs are left to the trial.

        Raises:
            ConfigError: a value does not fit.
        """
        data = self.model_dump(mode="json")
        for path, value in knobs.items():
            if "." in path:
                set_path(data, path, value)
        return validate(data, source="knobs")

    def digest(self, *sections: str) -> str:
        """A short hash of some sections; of all that influences a trial's result if none is named."""
        names = sections or (*TEACHER_SECTIONS, "space", "objective", "search", "retrain")
        chosen = {name: self.model_dump(mode="json")[name] for name in names}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> CampaignConfig:
    """Read a campaign file.

    Args:
        path: YAML; None for the defaults.
        overrides: `dotted.path=value`, the value in YAML.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong; a line for each mistake.
    """
    source = str(path) if path else "the default campaign"
    data: Any = {}
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such campaign file")
        try:
            data = yaml.safe_load(path.read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: a campaign file holds keys and values, but this one is a {type(data).__name__}")
        data.setdefault("name", path.stem)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes dotted.path=value, but got {override!r}")
        try:
            set_path(data, key, yaml.safe_load(text))
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {override}: {' '.join(str(error).split())}") from error
    return validate(data, source=source)


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set `data["a"]["b"]` for the path `a.b`, with the sections on the way made where they are missing."""
    *parents, last = path.split(".")
    for part in parents:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ValueError(f"{part!r} on the way of {path!r} holds a value and no section")
    data[last] = value


def validate(data: Mapping[str, Any], *, source: str) -> CampaignConfig:
    """The config of these values.

    Raises:
        ConfigError: a key or value is wrong.
    """
    try:
        return CampaignConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in explain(error, data))) from error
