"""What a student may cost: budgets, limits beside them, and limits of metrics."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from nas_kd.settings.sizes import SizeText, parse_size
from nas_kd.settings.strict import Section


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
    def cost_limits(self) -> dict[str, float]:
        """Cost by which students may be ranked -> the most that one may have, in its unit, where that is limited."""
        limits = dict(self.limits)
        if LATENCY_FIGURE in limits:
            limits["predicted_latency_ms"] = limits.pop(LATENCY_FIGURE) / 1e6
        if "params" in limits:
            limits["parameters"] = limits.pop("params")
        return {**limits, self.cost_field: float(self.highest)}

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
