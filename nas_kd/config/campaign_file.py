"""`CampaignConfig`: all sections of a campaign file, with the checks across sections."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from nas_kd.config.budget import BudgetConfig, ConstraintConfig, parse_flops
from nas_kd.config.grid import Cell, Value, distinct, multiply, values_of
from nas_kd.config.paths import read_path, set_path, split_path
from nas_kd.config.sections import EarlyStoppingConfig, EvaluationConfig, RetrainConfig, SearchConfig
from nas_kd.config.space import SpaceConfig
from nas_kd.data import DataConfig, GeneratedConfig
from nas_kd.inputs import check_space_name, input_type_of_file
from nas_kd.objectives import ObjectiveConfig
from nas_kd.search_spaces import derived_spaces
from nas_kd.settings.mistakes import choose, explain, fields
from nas_kd.settings.normalize import NormalizeConfig
from nas_kd.settings.strict import Section
from nas_kd.tasks import find_task, task_config
from nas_kd.teachers import TeacherConfig
from nas_kd.trials.knobs import ChoiceKnob, FloatKnob, describe, parse_knobs
from nas_kd.trials.objectives import COSTS, MEASURED_LATENCY, Constraint, Objective, Ranking
from nas_kd.trials.passwords import masked
from nas_kd.trials.record import Metric
from nas_kd.trials.resources import Resources


class ConfigError(ValueError):
    """The campaign file cannot be used; each line of the message is one mistake with its way out.

    Examples:
        >>> try:
        ...     config = nas_kd.load_config("demo.yaml", ["trial=20"])
        ... except nas_kd.ConfigError as error:
        ...     print("trials" in str(error))
        True
    """


LATENCY_OBJECTIVE = "predicted_latency_ms"

TEACHER_SECTIONS = ("task", "task_options", "seed", "data", "normalize", "teacher")
"""What decides the teacher of a campaign and its outputs."""


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with what it lacks from `defaults`, section by section; a space or teacher that it names is its own."""
    merged = dict(given)
    for key, default in defaults.items():
        own = merged.get(key)
        if own is None:
            merged[key] = default
        elif key == "budget":
            if isinstance(own, Mapping) and own.get("max_flops") is None and own.get("max_latency_ms") is None:
                merged[key] = {**own, **default}  # limits alone are no budget
        elif isinstance(default, Mapping) and isinstance(own, Mapping):
            merged[key] = _merged(default, own)
    return merged


def _boundary_values(path: str, definition: Mapping[str, Any]) -> list[Any]:
    """The values of a knob that a section must accept: all of a choice, the bounds of a range and one between them."""
    knob = parse_knobs({path: definition})[path]
    if isinstance(knob, ChoiceKnob):
        return list(knob.values)
    between = [knob.low + 0.381966 * (knob.high - knob.low)] if isinstance(knob, FloatKnob) else []  # no whole number
    return [knob.low, knob.high, *between]


def _with_kind_of_search(given: dict[str, Any]) -> dict[str, Any]:
    """`given`, with a search a trial where trials differ in what a shared search fixes and the file does not say."""
    search, knobs = given.get("search") or {}, given.get("knobs") or {}
    if not isinstance(search, Mapping) or not isinstance(knobs, Mapping) or search.get("shared") is not None:
        return given
    varies = bool(given.get("grid")) or any(str(path).startswith("search.") for path in knobs)
    return {**given, "search": {**search, "shared": False}} if varies else given


VARIED_SECTIONS = ("objective", "search", "retrain")  # into which the dotted paths of knobs lead


class CampaignConfig(Section):
    """A campaign file.

    Attributes:
        name: of the run's folder under `runs`.
        runs: where run folders are.
        seed: of everything random.
        task: what the students are trained for.
        task_options: of the task (docs/tasks.md).
        trials: how many trials the campaign has in all; failed ones count. With a grid as many as it has cells, where
            the file does not say.
        sampler: which Optuna sampler proposes the knobs.
        storage: URL of a database for the ledger (postgresql://…); without it the ledger is in the run's folder.
        data: clips or features, with their labels and splits.
        normalize: how bytes become numbers.
        teacher: the model that students learn from.
        space: the architectures that students may have.
        budget: what a student may cost.
        objectives: two or three, what students are ranked by: metrics of the task on validation, and costs. Costs are
            `flops`, `worst_frame_flops`, `parameters`, `state_bytes`, `predicted_latency_ms` and `latency_ms`. By
            default the main metric of the task and the cost of the budget.
        constraints: metric of the task, or `latency_ms` -> its limit, `{min: …}` or `{max: …}`. Only students that keep
            all of them are on the front. Limits of other costs are those of `budget`.
        objective: the loss of the derived student's training.
        search: the search by gradient.
        retrain: training of the derived student.
        evaluation: how nets are evaluated.
        early_stopping: which trials end before their last epoch; without it none does.
        resources: where trials run, and with what.
        trackers: which of `tensorboard`, `mlflow` and `wandb` show the trials; by default `tensorboard`, where it is
            installed.
        knobs: what the study varies besides the budget and the space's own knobs (those with several values): dotted
            paths into `objective`, `search` and `retrain`, each with a definition such as
            `{type: float, low: 0.1, high: 3, log: true}`.
        grid: combinations that are all tried, before the sampler proposes anything: blocks of knobs with a value or a
            list of values each, which are multiplied out. A dotted path need not be among `knobs`; its values in the
            grid join those of a choice. What a block leaves out has the value of the config.
        rehearse: whether everything is done once on a few items before anything is trained.

    Examples:
        >>> config = nas_kd.load_config("demo.yaml")
        >>> config.task, config.space.name
        ('classification', 'clip_cell')
    """

    name: str = Field(default="campaign", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runs: Path = Path("runs")
    seed: int = Field(default=0, ge=0, lt=2**63)
    task: str = "classification"
    task_options: dict[str, Any] = Field(default_factory=dict)
    trials: int = Field(default=12, ge=1)
    sampler: str = "known_cost"
    storage: str | None = None
    data: DataConfig = GeneratedConfig()
    normalize: NormalizeConfig = NormalizeConfig()
    teacher: TeacherConfig = TeacherConfig()
    space: SpaceConfig = SpaceConfig()
    budget: BudgetConfig = BudgetConfig()
    objectives: tuple[str, ...] | None = None
    constraints: dict[str, ConstraintConfig] = Field(default_factory=dict)
    objective: ObjectiveConfig = ObjectiveConfig()
    search: SearchConfig = SearchConfig()
    retrain: RetrainConfig = RetrainConfig()
    knobs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    grid: tuple[dict[str, Any], ...] = ()
    evaluation: EvaluationConfig = EvaluationConfig()
    early_stopping: EarlyStoppingConfig | None = None
    rehearse: bool = True
    resources: Resources = Resources()
    trackers: tuple[str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_depend(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("data"), dict) and "source" not in value["data"]:
            value = {**value, "data": {"source": "generated", **value["data"]}}
        task, data = value.get("task"), value.get("data")
        try:
            known = find_task(task) if isinstance(task, str) else None
        except ValueError:  # said below
            known = None
        own = _merged(known.defaults, value) if known is not None else value
        return _with_kind_of_search(_merged(input_type_of_file(known, data).defaults, own))

    @model_validator(mode="wrap")
    @classmethod
    def _with_grid(cls, value: Any, read: ModelWrapValidatorHandler[CampaignConfig]) -> CampaignConfig:
        """Read the file, and with a grid read it again with the knobs and the number of trials that the grid gives."""
        config = read(value)
        if not config.grid or not isinstance(value, dict):
            return config
        for path in config.knobs:
            config._check_path(path, f"knobs.{path}")
        return read({**value, **config._of_grid()})

    @model_validator(mode="after")
    def _fits(self) -> CampaignConfig:
        task_config(self.task, self.task_options)
        if self.budget.max_latency_ms is not None and not self.space.is_derived:
            raise ValueError(
                f"budget.max_latency_ms: only {', '.join(derived_spaces())} has a latency table, but the space is "
                f"{self.space.name!r}; give max_flops"
            )
        check_space_name(self.space.name, self.task)
        self._check_ranking()
        if self.early_stopping and self.early_stopping.rungs[-1] > self.retrain.epochs:
            raise ValueError(
                f"early_stopping.rungs: a rung is an epoch of the retraining, at most retrain.epochs = "
                f"{self.retrain.epochs}, but one is {self.early_stopping.rungs[-1]}"
            )
        for path in self.knobs:
            self._check_path(path, f"knobs.{path}")
        if self.grid and self.trials <= len(self.cells):  # nothing else is ever proposed
            return self
        for path in self.knobs:
            for value in _boundary_values(path, self.knobs[path]):
                self._accepts({path: value})
        weights = {path: _boundary_values(path, d) for path, d in self.knobs.items() if path.endswith(".weight")}
        for values in product(*({min(v), max(v)} for v in weights.values())):  # terms may all be off together
            self._accepts(dict(zip(weights, values, strict=True)))
        return self

    @property
    def metric(self) -> Metric:
        """The main metric of the task."""
        task = find_task(self.task)
        return Metric(name=task.metric, maximize=task.maximize, percent=task.percent)

    @property
    def ranking(self) -> Ranking:
        """What ranks the trials.

        Raises:
            ValueError: objectives or constraints do not go together.
        """
        task = find_task(self.task)
        names = self.objectives or (task.metric, self.budget.cost_field)
        return Ranking.of(
            [Objective(name=name, maximize=name not in COSTS and task.maximizes(name)) for name in names],
            [Constraint(name=name, min=limit.min, max=limit.max) for name, limit in self.constraints.items()],
            self.budget.cost_limits,
        )

    def _check_ranking(self) -> None:
        """Raise where objectives or constraints cannot be told before the campaign."""
        ranking = self.ranking
        for name in ranking.names:
            # A metric may have any name, so what is close to a cost is taken for one that was misspelt.
            close = {"params": "parameters", "latency": "latency_ms", "predicted_latency": "predicted_latency_ms"}
            if name in close or name.lower() in COSTS.keys() - {name}:
                raise ValueError(
                    f"objectives, constraints: there is no cost {name!r}; costs are {', '.join(COSTS)}, so name "
                    f"{close.get(name, name.lower())}"
                )
        for constraint in ranking.constraints:
            if constraint.name in COSTS and constraint.name != MEASURED_LATENCY:
                raise ValueError(
                    f"constraints.{constraint.name}: what is known of a student before it is trained is limited by the "
                    "budget (max_flops, max_params, max_worst_frame_flops, max_state_bytes, max_latency_ms), so that "
                    "no other is proposed; give it there"
                )
            if constraint.name in COSTS and constraint.max is None:
                raise ValueError(f"constraints.{constraint.name}: less of a cost is better; give max and not min")
        if LATENCY_OBJECTIVE in ranking.names and self.budget.max_latency_ms is None:
            raise ValueError(
                f"objectives: {LATENCY_OBJECTIVE} is what the latency table of a budget says, but budget has no "
                f"max_latency_ms; give it, or name {MEASURED_LATENCY}, which each trial measures"
            )

    def _check_path(self, path: str, where: str) -> None:
        """Raise where trials cannot vary what stands at this path of the file."""
        if path == "search.gates.split_share":
            raise ValueError(f"{where}: all trials share the splits, so it cannot vary; set it in search.gates")
        if path == "retrain.weights":
            raise ValueError(f"{where}: all trials start from one file, so it cannot vary; set it in retrain")
        section = path.split(".")[0]
        if section not in VARIED_SECTIONS or path == section:
            raise ValueError(
                f"{where}: a knob must be a dotted path into objective, search or retrain, such as "
                "objective.response.weight; budgets and the space's knobs vary by listing several values there"
            )
        node: Any = self
        for part in split_path(path):
            if not isinstance(node, BaseModel) or part not in fields(node):
                raise ValueError(f"{where}: there is no {part!r}; {choose(part, fields(node))}")
            node = getattr(node, part)

    @property
    def cells(self) -> list[Cell]:
        """The cells of the grid, in order, each once, with all dotted knobs; the rest is as the grid has it.

        Raises:
            ValueError: the grid or a value of it cannot be used.
        """
        blocks, accepted = multiply(self.grid), dict[tuple[Any, ...], Any]()
        paths = dict.fromkeys([*(name for block in blocks for name in block if "." in name), *self.knobs])
        cells = []
        for block in blocks:
            own = {path: block.get(path, read_path(self, path)) for path in paths}
            for path, value in own.items():
                if path not in block and not isinstance(value, Value):
                    raise ValueError(
                        f"grid: a block leaves out {path}, and the config's value, {value!r}, is no text or number; "
                        "name the knob in every block"
                    )
            key = tuple((type(value), value) for value in own.values())
            if key not in accepted:  # as the sections read them: a weight of 1 and of 1.0 are one
                accepted[key] = self._accepts(own, "grid")
            cell: Cell = {**block, **accepted[key]}
            if "max_flops" in cell:
                try:
                    cell["max_flops"] = parse_flops(cell["max_flops"])
                except ValueError as error:
                    raise ValueError(f"grid: max_flops: {error}") from error
            cells.append(cell)
        return distinct(cells)

    def _of_grid(self) -> dict[str, Any]:
        """`knobs` with the dotted paths of the grid, and `trials`: its cells where the file gives no number.

        Raises:
            ValueError: the grid cannot be used.
        """
        for path in dict.fromkeys(name for block in self.grid for name in block if "." in name):
            self._check_path(path, f"grid: {path}")
        cells, knobs = self.cells, dict(self.knobs)
        for path in (name for name in cells[0] if "." in name):
            definition = knobs.get(path, {"type": "choice"})
            values = definition.get("values", ())
            if definition.get("type") == "choice" and isinstance(values, list | tuple):  # else it is refused below
                knobs[path] = {**definition, "values": values_of(path, cells, values)}
            knob = parse_knobs({path: knobs[path]})[path]
            for cell in cells:
                if not knob.contains(cell[path]):
                    raise ValueError(
                        f"grid: {path} is {cell[path]!r} in a cell, but its knob is {describe(knob)}; widen the knob, "
                        "or give every block of the grid a value that it has"
                    )
        trials = self.trials if "trials" in self.model_fields_set else len(cells)
        if trials < len(cells):
            raise ValueError(
                f"trials: each of the {len(cells)} cells of the grid is a trial, but trials is {trials}; raise it, or "
                "leave it out"
            )
        return {"knobs": knobs, "trials": trials}

    def _accepts(self, proposal: Mapping[str, Any], source: str = "knobs") -> dict[str, Any]:
        """Raise where the sections do not take values that knobs may propose together.

        Returns:
            The values as the sections read them.
        """
        read: dict[str, Any] = {}
        for section in {path.partition(".")[0] for path in proposal}:
            kind = type(getattr(self, section))
            content = getattr(self, section).model_dump(mode="json")
            own = {path: value for path, value in proposal.items() if path.startswith(f"{section}.")}
            for path, value in own.items():
                set_path(content, path.partition(".")[2], value)
            try:
                model = kind.model_validate(content)
            except ValidationError as error:
                values = " with ".join(f"{path} = {value!r}" for path, value in own.items())
                reason = explain(error, kind, content)[0]
                if len(own) == 1 and source == "knobs":
                    (path, value), *_ = own.items()
                    raise ValueError(f"knobs.{path} may not propose {value!r}: {reason}") from error
                raise ValueError(f"{source} may not propose {values}: {reason}") from error
            read |= {path: read_path(model, path.partition(".")[2]) for path in own}
        return {path: read[path] for path in proposal}

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.runs / self.name

    def with_knobs(self, knobs: Mapping[str, Any]) -> CampaignConfig:
        """This config with the values of the dotted knobs filled in; other knobs are left to the trial.

        Raises:
            ConfigError: a value does not fit.
        """
        # The blocks of a grid leave out what is filled in here, and its knobs may fit in its cells alone.
        data = self.model_dump(mode="json", exclude={"grid", "knobs"} if self.grid else None)
        for path, value in knobs.items():
            if path.startswith(tuple(f"{section}." for section in VARIED_SECTIONS)):
                set_path(data, path, value)
        return validate(data, source="knobs")

    def digest(self, *sections: str) -> str:
        """A short hash of some sections; of all that influences a trial's result if none is named."""
        names = sections or (*TEACHER_SECTIONS, "space", "objective", "search", "retrain")
        content = {**self.model_dump(mode="json"), "data": self.data.content}
        chosen = {name: content[name] for name in names}
        if not sections and not self.search.shared and self.budget.limits:  # by which a search of its own derives
            chosen["limits"] = self.budget.limits
        return _short_hash(chosen)

    @property
    def teacher_content(self) -> dict[str, Any]:
        """What decides the teacher, as JSON values; how its outputs are kept does not."""
        content = {**self.model_dump(mode="json"), "data": self.data.content}
        del content["teacher"]["cache"]
        return {name: content[name] for name in TEACHER_SECTIONS}

    @property
    def teacher_digest(self) -> str:
        """A short hash of what decides the teacher."""
        return _short_hash(self.teacher_content)


def _short_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def validate(data: Mapping[str, Any], *, source: str) -> CampaignConfig:
    """The config of these values.

    Raises:
        ConfigError: a key or value is wrong.
    """
    try:
        return CampaignConfig.model_validate(dict(data))
    except ValidationError as error:
        lines = [masked(f"{source}: {line}") for line in explain(error, CampaignConfig, data)]
        raise ConfigError("\n".join(lines)) from None  # pydantic's own text holds the values
