"""Knobs: the hyperparameters that the study proposes, as typed definitions that a campaign file can hold.

A space may be widened or changed between two runs of one study. Optuna alone forbids that for categorical choices;
see `nas_kd.trials.ledger` for the way out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from nas_kd.trials.record import KnobValue


class _Knob(BaseModel):
    """A hyperparameter that the study proposes.

    Attributes:
        default: the value that trials from before this knob existed ran with. Without it the sampler cannot learn from
            them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: KnobValue | None = None

    def distribution(self) -> BaseDistribution:
        """The definition of the knob for Optuna's samplers."""
        raise NotImplementedError

    def contains(self, value: object) -> bool:
        """Whether `value` may be proposed by this knob."""
        distribution = self.distribution()
        try:
            internal = distribution.to_internal_repr(value)
        except (ValueError, TypeError):
            return False
        return bool(distribution._contains(internal))

    def _check_default(self) -> None:
        if self.default is not None and not self.contains(self.default):
            raise ValueError(f"`default` must be a value of the knob, but got {self.default!r}")


class ChoiceKnob(_Knob):
    """One of a list, without order.

    Attributes:
        values: that may be proposed.
    """

    type: Literal["choice"] = "choice"
    values: tuple[KnobValue, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> ChoiceKnob:
        for index, value in enumerate(self.values):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"`values` must be finite, but got {value}")
            # `==` and not identity: a study cannot tell 1 from True or from 1.0.
            if value in self.values[:index]:
                raise ValueError(f"`values` must be distinct, but got {value!r} twice in {list(self.values)}")
        self._check_default()
        return self

    def distribution(self) -> CategoricalDistribution:
        """The definition of the knob for Optuna's samplers."""
        return CategoricalDistribution(list(self.values))


class IntKnob(_Knob):
    """A whole number between two bounds, both included.

    Attributes:
        low: the smallest one.
        high: the largest one.
        step: between neighbours, counted from `low`.
        log: whether it is proposed on a logarithmic scale.
    """

    type: Literal["int"] = "int"
    low: int
    high: int
    step: int = Field(default=1, ge=1)
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntKnob:
        _check_bounds(self.low, self.high, lowest_log=1 if self.log else None)
        if self.log and self.step != 1:
            raise ValueError(f"`step` must be 1 where `log` is true, but got {self.step}; drop one of the two")
        if (self.high - self.low) % self.step:
            raise ValueError(
                f"`high - low` must be a multiple of `step`, but got low={self.low}, high={self.high}, "
                f"step={self.step}; use high={self.high - (self.high - self.low) % self.step}"
            )
        self._check_default()
        return self

    def distribution(self) -> IntDistribution:
        """The definition of the knob for Optuna's samplers."""
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def contains(self, value: object) -> bool:
        """Whether `value` may be proposed by this knob."""
        return isinstance(value, int) and not isinstance(value, bool) and super().contains(value)


class FloatKnob(_Knob):
    """A real number between two bounds, both included.

    Attributes:
        low: the smallest one.
        high: the largest one.
        log: whether it is proposed on a logarithmic scale.
    """

    type: Literal["float"] = "float"
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> FloatKnob:
        _check_bounds(self.low, self.high, lowest_log=0.0 if self.log else None)
        self._check_default()
        return self

    def distribution(self) -> FloatDistribution:
        """The definition of the knob for Optuna's samplers."""
        return FloatDistribution(self.low, self.high, log=self.log)

    def contains(self, value: object) -> bool:
        """Whether `value` may be proposed by this knob."""
        return isinstance(value, int | float) and not isinstance(value, bool) and super().contains(value)


def _check_bounds(low: float, high: float, *, lowest_log: float | None) -> None:
    if low > high:
        raise ValueError(f"`low <= high` must hold, but got low={low}, high={high}")
    if lowest_log is not None and not (low >= lowest_log and low > 0):
        raise ValueError(f"`low` must be positive where `log` is true, but got low={low}")


Knob = Annotated[ChoiceKnob | IntKnob | FloatKnob, Field(discriminator="type")]
KnobSpace = Mapping[str, ChoiceKnob | IntKnob | FloatKnob]

_SPACE: TypeAdapter[dict[str, ChoiceKnob | IntKnob | FloatKnob]] = TypeAdapter(dict[str, Knob])


def parse_knobs(data: Mapping[str, Any]) -> dict[str, ChoiceKnob | IntKnob | FloatKnob]:
    """Read a space from plain data, as a campaign file holds it.

    Args:
        data: Name to definition: `{"type": "choice", "values": [...]}`, `{"type": "int", "low": 1, "high": 9}` with
            optional `step` or `log`, or `{"type": "float", "low": 0.1, "high": 1.0}` with optional `log`.

    Raises:
        ValueError: One sentence on the first definition that is wrong.
    """
    try:
        return _SPACE.validate_python(dict(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = [str(part) for part in first["loc"]]
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"knob {'.'.join(path)}: {message}") from error


def to_distributions(space: KnobSpace) -> dict[str, BaseDistribution]:
    """The definitions of all knobs for Optuna's samplers."""
    return {name: knob.distribution() for name, knob in space.items()}


def check_values(values: Mapping[str, KnobValue], space: KnobSpace) -> None:
    """Check values, which may leave knobs out, against the space.

    Raises:
        ValueError: One sentence on the first value that the space does not hold.
    """
    for name, value in values.items():
        if name not in space:
            raise ValueError(f"unknown knob {name!r}; choose from {', '.join(space)}")
        if not space[name].contains(value):
            raise ValueError(f"knob {name!r} cannot be {value!r}; its definition is {describe(space[name])}")


def describe(knob: ChoiceKnob | IntKnob | FloatKnob) -> str:
    """A knob in a few words, for messages."""
    if isinstance(knob, ChoiceKnob):
        return f"one of {', '.join(map(str, knob.values))}"
    words = f"{knob.type} from {knob.low} to {knob.high}"
    if isinstance(knob, IntKnob) and knob.step != 1:
        words += f" in steps of {knob.step}"
    return words + (" on a log scale" if knob.log else "")
