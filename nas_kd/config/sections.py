"""The sections of a campaign file, each a typed, documented model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from torch import nn

from nas_kd.data import DataInfo
from nas_kd.data.framing import Cut, evaluation_cuts
from nas_kd.objectives import ObjectiveConfig
from nas_kd.search_spaces import SPACES, DataShape, SearchSpace
from nas_kd.settings.imports import call_function, import_function
from nas_kd.settings.mistakes import explain
from nas_kd.settings.normalize import NormalizeConfig as NormalizeConfig
from nas_kd.settings.sizes import SizeText, parse_size
from nas_kd.settings.strict import Section as Section  # all sections are found here
from nas_kd.training.fit import FitConfig, TrainingConfig
from nas_kd.training.gate_search import GateConfig, LocalConfig


def parse_flops(value: Any) -> Any:
    """`12.5M` -> 12500000, see `parse_size`."""
    return parse_size(value, "FLOPs", "12.5M")


LATENCY_FIGURE = "latency_ns"  # of a latency that is a limit, among the figures

Flops = Annotated[int, BeforeValidator(parse_flops, json_schema_input_type=SizeText), Field(gt=0)]


class BudgetRange(Section):
    """Budgets between two bounds, proposed on a logarithmic scale: in milliseconds, where nothing else is said.

    Attributes:
        low: the tightest budget.
        high: the loosest one.
    """

    low: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, but low is {self.low} and high is {self.high}")
        return self


class FlopsRange(BudgetRange):
    """The same in FLOPs."""

    low: Flops
    high: Flops


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Latency = Annotated[float, Field(gt=0)]
_OneOrMoreFlops = BeforeValidator(_listed, json_schema_input_type=SizeText | tuple[SizeText, ...])
_OneOrMoreLatencies = BeforeValidator(_listed, json_schema_input_type=Latency | tuple[Latency, ...])


_RANGE_OR_LIST = Discriminator(lambda value: "range" if isinstance(value, dict | BudgetRange) else "list")


def _count(what: str) -> BeforeValidator:
    return BeforeValidator(lambda value: parse_size(value, what, "200k"), json_schema_input_type=SizeText)


Params = Annotated[int, _count("parameters"), Field(gt=0)]
Bytes = Annotated[int, _count("bytes"), Field(gt=0)]


class BudgetConfig(Section):
    """What a student may cost: the budget, in FLOPs or in milliseconds, and limits beside it.

    Of `max_flops` and `max_latency_ms` one is the budget, which may have several values, and the other one, where it is
    given too, a limit, which is one number. Where both are one number, `max_flops` is the budget.

    Attributes:
        max_flops: FLOPs a clip, or amortised a frame for students with key frames: one number, several to choose from
            (each is tried once before the sampler decides), or a range `{low: …, high: …}`.
        max_latency_ms: amortised latency of a frame, in the same three forms, predicted by a table measured on the
            machine and with the threads of the campaign; for space `delta_blocks`.
        max_params: a limit of the parameters of a student.
        max_worst_frame_flops: a limit of the FLOPs of the most expensive frame of a student with key frames.
        max_state_bytes: a limit of what such a student keeps between frames.
    """

    max_flops: Annotated[
        Annotated[FlopsRange, Tag("range")] | Annotated[tuple[Flops, ...], _OneOrMoreFlops, Tag("list")],
        _RANGE_OR_LIST,
    ] = (2_000_000, 3_000_000, 5_000_000, 8_000_000)
    max_latency_ms: (
        Annotated[
            Annotated[BudgetRange, Tag("range")] | Annotated[tuple[Latency, ...], _OneOrMoreLatencies, Tag("list")],
            _RANGE_OR_LIST,
        ]
        | None
    ) = None
    max_params: Params | None = None
    max_worst_frame_flops: Flops | None = None
    max_state_bytes: Bytes | None = None

    @model_validator(mode="after")
    def _one_budget(self) -> BudgetConfig:
        if not self.options:
            raise ValueError(f"{self.knob} must name at least one budget, but the list is empty")
        if self.max_flops and self.max_latency_ms is not None:
            other = self.max_flops if self.is_latency else self.max_latency_ms
            if not isinstance(other, tuple) or len(other) != 1:
                raise ValueError(
                    "of max_flops and max_latency_ms one is the budget and the other one a limit, which is one number, "
                    "but both have several values; give one of them as one number"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _no_default_beside_latency(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("max_latency_ms") is not None and value.get("max_flops") is None:
            return {**value, "max_flops": ()}
        return value

    @property
    def is_latency(self) -> bool:
        """Whether the budget is one of latency, and not of FLOPs."""
        if self.max_latency_ms is None:
            return False
        if not self.max_flops:
            return True
        is_one = isinstance(self.max_latency_ms, tuple) and len(self.max_latency_ms) == 1
        return not is_one and isinstance(self.max_flops, tuple) and len(self.max_flops) == 1

    @property
    def limits(self) -> dict[str, float]:
        """Figure -> most: what is limited beside the budget, in the units of the tables."""
        limits: dict[str, float] = {}
        if self.is_latency and isinstance(self.max_flops, tuple) and self.max_flops:
            limits["flops"] = self.max_flops[0]
        if not self.is_latency and isinstance(self.max_latency_ms, tuple):
            limits[LATENCY_FIGURE] = self.max_latency_ms[0] * 1e6
        for figure in ("params", "worst_frame_flops", "state_bytes"):
            most = getattr(self, f"max_{figure}")
            if most is not None:
                limits[figure] = most
        return limits

    @property
    def knob(self) -> str:
        """The knob that the study proposes."""
        return "max_latency_ms" if self.is_latency else "max_flops"

    @property
    def cost_field(self) -> str:
        """The cost that the budget limits, which is an objective where the file names none."""
        return "predicted_latency_ms" if self.is_latency else "flops"

    @property
    def options(self) -> BudgetRange | tuple[float, ...]:
        """Budgets to choose from, or the range."""
        if not self.is_latency:
            return self.max_flops
        assert self.max_latency_ms is not None, "it is the budget"
        return self.max_latency_ms

    @property
    def lowest(self) -> float:
        """The tightest budget that can be proposed."""
        options = self.options
        return options.low if isinstance(options, BudgetRange) else min(options)

    @property
    def highest(self) -> float:
        """The loosest budget that can be proposed."""
        options = self.options
        return options.high if isinstance(options, BudgetRange) else max(options)

    def cost(self, value: float) -> int:
        """A value of the knob in the units of its cost table: FLOPs, or nanoseconds."""
        return int(value * 1e6) if self.is_latency else int(value)

    def text(self, cost: float) -> str:
        """A cost for people."""
        return f"{cost / 1e6:.3g} ms" if self.is_latency else f"{cost:,.0f} FLOPs"


_GIVEN = ("num_classes",)  # by the task


class SpaceConfig(BaseModel):
    """The search space: a name of the registry, or `module:function`; the other keys are its settings.

    Attributes:
        name: a space of the package, or your own as `module:function`, which returns a `SearchSpace`.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "clip_cell"

    @model_validator(mode="after")
    def _fits(self) -> SpaceConfig:
        if self.name not in SPACES and ":" not in self.name:
            raise ValueError(
                f"unknown space {self.name!r}; choose from {', '.join(SPACES)}, or give your own as module:function"
            )
        try:
            if self.name in SPACES:
                SPACES[self.name].check(self.model_extra or {})
        except ValidationError as error:  # as one sentence: pydantic would merge its keys with those of this model
            raise ValueError(
                "; ".join(explain(error, SPACES[self.name].settings, self.model_extra or {}, _GIVEN))
            ) from error
        return self

    @property
    def is_own(self) -> bool:
        """Whether the space is a function of the user's."""
        return self.name not in SPACES

    @property
    def is_derived(self) -> bool:
        """Whether the space is derived from the teacher."""
        return not self.is_own and SPACES[self.name].derived

    @property
    def own_operators(self) -> list[str]:
        """The user's operators that the settings of a space of the package name, as `module:function`."""
        return [] if self.is_own else SPACES[self.name].own_operators(self.model_extra or {})

    def build(self, num_outputs: int, given_by_data: Mapping[str, Any] = MappingProxyType({})) -> SearchSpace:
        """The space for what the data are, where it needs no teacher.

        Args:
            num_outputs: channels that the task needs.
            given_by_data: settings that follow from the data, of `nas_kd.inputs.space_settings`.

        Raises:
            ValueError: the settings do not fit.
        """
        settings = self.model_extra or {}
        if self.name in SPACES:
            entry = SPACES[self.name]
            try:
                given = entry.from_data(DataShape(num_outputs, **given_by_data))
                return entry.make({**given, **settings}, operators=self._operators())
            except ValidationError as error:
                raise ValueError(
                    "; ".join(f"space: {line}" for line in explain(error, entry.settings, settings, _GIVEN))
                ) from error
        given = {"num_classes": num_outputs, **given_by_data}
        given.pop("frames", None)  # spaces of users have defaults of their own
        space = call_function(self.name, {**given, **settings}, purpose="space.name")
        if not isinstance(space, SearchSpace):
            raise ValueError(f"space.name {self.name!r} must return a SearchSpace, but returns {type(space).__name__}")
        return space

    def derive(self, teacher: nn.Module, frame_size: tuple[int, int], identity: Mapping[str, Any]) -> SearchSpace:
        """The space of a teacher's own layers.

        Args:
            teacher: frames -> maps.
            frame_size: (H, W).
            identity: identifies this teacher among others.

        Raises:
            ValueError: no layer of the teacher is eligible, or a pattern matches none.
        """
        settings, operators = self.model_extra or {}, self._operators()
        return SPACES[self.name].make(settings, teacher, frame_size, identity, operators=operators)

    def _operators(self) -> dict[str, Callable[..., Any]]:
        """Functions of the user's operators that the settings name."""
        entry = SPACES[self.name]
        return {name: import_function(name, purpose=f"space.{entry.operators}") for name in self.own_operators}


class SearchConfig(FitConfig):
    """The gate search of a trial: how weights train, the `gates`, and the `objective` of the search.

    The search has an objective of its own: its candidates learn fast from maps, which a student that trains alone needs
    less (docs/objectives.md). `local` is how a search over delta layers begins.

    Attributes:
        shared: one search for all budgets and knobs of the campaign, before its trials, which then are architectures
            (docs/search.md). false, the default of campaigns with a grid or with knobs of the search: each trial
            searches for its own budget.
        paths: architectures that a step of the shared search trains, on the same batch.
        candidates: architectures at each budget whose inherited weights are compared before the best one is trained.
        finish: share of the epochs, the last ones, in which the gates are fixed and only the candidates of all budgets
            train: their weights then serve few architectures, and comparing them says more.
    """

    epochs: int = Field(default=16, ge=1)
    batch_size: int = Field(default=8, ge=1)
    lr: float = Field(default=5e-3, gt=0)
    gates: GateConfig = GateConfig()
    local: LocalConfig = LocalConfig()
    shared: bool = True
    paths: int = Field(default=2, ge=1)
    candidates: int = Field(default=4, ge=1)
    finish: float = Field(default=0.5, ge=0, lt=1)
    objective: ObjectiveConfig = ObjectiveConfig.of(response=1.0, feature=10.0)

    @model_validator(mode="after")
    def _all_gates_learn(self) -> SearchConfig:
        self.objective.check_search()
        return self


class RetrainConfig(TrainingConfig):
    """Training of the derived student.

    Attributes:
        init: `inherit` the supernet's weights, or start `fresh`, which is the default with `weights`.
        weights: a file, safetensors or a checkpoint of `torch.save`, that students start from where its tensors have
            the name and the shape of theirs.
        num_seeds: trainings with different seeds; the report shows the interval over them, and the weights of the best
            one on the validation split are exported.
    """

    lr: float = Field(default=5e-3, gt=0)
    init: Literal["inherit", "fresh"] = "inherit"
    weights: Path | None = None
    num_seeds: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _fresh_with_weights(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("weights") is not None and value.get("init") is None:
            return {**value, "init": "fresh"}
        return value

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.weights is not None and self.init == "inherit":
            raise ValueError(
                "weights start students from a file, and init: inherit from the search; set init: fresh, or leave "
                "weights out"
            )
        return self


class EvaluationConfig(Section):
    """How nets are evaluated.

    Attributes:
        batch_size: items of a batch in evaluation (of frame-wise tasks, clips, and frames that a net sees at once), and
            inputs of the teacher at once where its outputs are cached. null: as `retrain.batch_size`, at most 64, of
            frame-wise tasks 8.
        clips: windows in time of each item, whose logits are averaged; of teacher and students alike.
        window: their length, in shares of the stored clip; 1: each clip spans all of it, with other frames.
        crops: windows of the frame of each, 1 (the middle) or 3 (along the longer side).
    """

    batch_size: int | None = Field(default=None, ge=1)
    clips: int = Field(default=1, ge=1)
    window: float = Field(default=1.0, gt=0, le=1)
    crops: Literal[1, 3] = 1

    @property
    def views(self) -> int:
        """How many views of each item are averaged."""
        return self.clips * self.crops

    @property
    def is_plain(self) -> bool:
        """Whether nets see one view of each item: frames from all of it, and the middle."""
        return self.views == 1 and self.window == 1

    def cuts(self, info: DataInfo) -> tuple[Cut, ...]:
        """The parts of each clip that nets are evaluated on; empty where they see one view, as without these keys.

        Args:
            info: of the data.

        Raises:
            DataError: too little of a clip is stored.
        """
        if self.is_plain or not info.height:
            return ()
        return evaluation_cuts(info.stored, info.seen, clips=self.clips, window=self.window, crops=self.crops)


class ConstraintConfig(Section):
    """A limit that students must keep to be on the front; one of the two.

    Attributes:
        min: the least value.
        max: the largest value.
    """

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.min is None) == (self.max is None):
            raise ValueError("a constraint has either min or max, such as {min: 0.8}; give one of them")
        return self


class EarlyStoppingConfig(Section):
    """Stops trials that after a rung of retraining are in the worse part by the objectives, by non-dominated rank.

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
