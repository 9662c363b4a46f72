"""What ranks the trials of a study: its objectives, two or three, and its constraints.

Everything that compares trials is derived from a `Ranking`: the directions of the study, proposals, early stopping,
the front, its hypervolume, the recommended student, the report and exports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nas_kd.trials.record import Metric, Split, Stage, TrialRecord

MOST_OBJECTIVES = 3
MEASURED_LATENCY = "latency_ms"
REFERENCE_MARGIN = 1.1  # of the box of hypervolumes, beyond the most expensive student that there may be
_UNKNOWN = 1.0  # excess of what was not measured: it is missed by as much as the limit is


@dataclass(frozen=True)
class CostKind:
    """A cost that students have, of which less is better.

    Attributes:
        field: of a record's `Cost`.
        unit: as written behind a number.
        noun: what is saved.
        known_before_training: whether it follows from the architecture alone.
    """

    field: str
    unit: str
    noun: str
    known_before_training: bool = True


COSTS: Mapping[str, CostKind] = {
    "flops": CostKind("flops", "FLOPs", "FLOPs"),
    "worst_frame_flops": CostKind("worst_frame_flops", "FLOPs", "FLOPs of the worst frame"),
    "parameters": CostKind("params", "parameters", "parameters"),
    "state_bytes": CostKind("state_bytes", "B", "state"),
    "predicted_latency_ms": CostKind("predicted_latency_ms", "ms", "predicted latency"),
    MEASURED_LATENCY: CostKind("latency_ms", "ms", "latency", known_before_training=False),
}


def _value(name: str, record: TrialRecord, split: Split, stage: Stage | None) -> float | None:
    kind = COSTS.get(name)
    if kind is None:
        return record.score(split, stage, name)
    found: float | None = None if record.cost is None else getattr(record.cost, kind.field)
    return found


class Objective(BaseModel):
    """One direction of the search.

    `name` is one of `COSTS`, or that of a metric of the task, whose value on the validation split counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    maximize: bool = False

    @property
    def cost(self) -> CostKind | None:
        """The cost that it is; None for a metric."""
        return COSTS.get(self.name)

    @property
    def known_before_training(self) -> bool:
        """Whether its value follows from the architecture alone."""
        return self.cost is not None and self.cost.known_before_training

    def of(self, record: TrialRecord, split: Split = "val", stage: Stage | None = None) -> float | None:
        """Its value in a record; None where it was not measured.

        Args:
            record: of the trial.
            split: of a metric.
            stage: of a metric; by default the last one that has it.
        """
        return _value(self.name, record, split, stage)

    def __str__(self) -> str:
        return f"{self.name} ({'maximize' if self.maximize else 'minimize'})"


class Constraint(BaseModel):
    """What a student must keep: a lower or an upper limit of a metric on the validation split, or of a cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.min is None) == (self.max is None):
            raise ValueError(f"a constraint has either `min` or `max`, but that of {self.name} has {self._limits()}")
        if self.name in COSTS and self.max is not None and self.max <= 0:
            raise ValueError(f"a constraint on {self.name} must have a `max` above 0, but it is {self.max:g}")
        return self

    def _limits(self) -> str:
        return "neither" if self.min is None else f"min {self.min:g} and max {self.max:g}"

    def excess(self, value: float | None) -> float:
        """How far a value is beyond the limit, as a share of it (as it is, for a limit of zero); at most 0 within it.

        What was not measured, or is no number, is beyond it.
        """
        if value is None or not math.isfinite(value):
            return _UNKNOWN
        limit = self.limit
        beyond = value - limit if self.min is None else limit - value
        return beyond / (abs(limit) or 1.0)

    @property
    def limit(self) -> float:
        """The number that must be kept."""
        limit = self.max if self.min is None else self.min
        assert limit is not None, "one of the two is given"
        return limit

    def of(self, record: TrialRecord) -> float | None:
        """The value in a record that the limit is for; None where it was not measured."""
        return _value(self.name, record, "val", None)

    def __str__(self) -> str:
        return f"{self.name} {'at most' if self.min is None else 'at least'} {self.limit:g}"


@dataclass(frozen=True)
class Ranking:
    """What ranks the trials of a study.

    Attributes:
        objectives: two or three. The first one is a metric: students are judged by it, and recommended for being
            cheaper by the others, in their order.
        constraints: which students must keep to be on the front.
        limits: cost -> the most that the campaign lets a student have, in its unit, where it says so.

    Raises:
        ValueError: there are too few or too many objectives, one is there twice, or the first is no metric.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        names = [objective.name for objective in self.objectives]
        listed = ", ".join(map(str, self.objectives)) or "none"
        if not 2 <= len(names) <= MOST_OBJECTIVES:
            raise ValueError(f"objectives: there are two or three, but got {listed}; name a metric and a cost or two")
        if len(set(names)) < len(names):
            raise ValueError(f"objectives: each is named once, but got {listed}")
        if self.objectives[0].cost is not None:
            raise ValueError(
                f"objectives: one must be a metric of the task, but got {listed}; costs alone need no training"
            )
        limited = [(each.name, each.min is None) for each in self.constraints]
        if len(set(limited)) < len(limited):
            raise ValueError(f"constraints: each limit is named once, but got {', '.join(map(str, self.constraints))}")

    @classmethod
    def of(
        cls,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        limits: Mapping[str, float] = MappingProxyType({}),
    ) -> Ranking:
        """The ranking of objectives in any order: the first metric among them comes first."""
        ordered = tuple(objectives)
        metric = next((each for each in ordered if each.cost is None), None)
        if metric is not None:
            ordered = (metric, *(each for each in ordered if each is not metric))
        return cls(ordered, tuple(constraints), dict(limits))

    @classmethod
    def default(cls, metric: Metric) -> Ranking:
        """The primary metric, and `flops` to be minimized."""
        return cls((Objective(name=metric.name, maximize=metric.maximize), Objective(name="flops")))

    @property
    def ranked(self) -> tuple[Objective | Constraint, ...]:
        """The objectives, and the constraints on something else, each name once."""
        known = {each.name for each in self.objectives}
        limited = {each.name: each for each in self.constraints if each.name not in known}
        return (*self.objectives, *limited.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a trial must tell to be ranked, each once."""
        return tuple(each.name for each in self.ranked)

    @property
    def maximize(self) -> tuple[bool, ...]:
        """The direction of each objective."""
        return tuple(objective.maximize for objective in self.objectives)

    def values(self, record: TrialRecord) -> tuple[float, ...]:
        """The values of a complete record, in the order of the objectives.

        Raises:
            ValueError: The record lacks one, or holds one that is not finite.
        """
        found = []
        for objective in self.objectives:
            value = objective.of(record)
            if value is None:
                raise ValueError(
                    f"trial {record.number}: a complete trial must carry the objective {objective.name!r}, but has none"
                )
            if not math.isfinite(value):
                raise ValueError(
                    f"trial {record.number}: the objective {objective.name!r} must be finite, but is {value}"
                )
            found.append(float(value))
        return tuple(found)

    def excesses(self, record: TrialRecord) -> tuple[float, ...]:
        """How far a record is beyond each constraint; see `Constraint.excess`."""
        return tuple(constraint.excess(constraint.of(record)) for constraint in self.constraints)

    def range_of(self, objective: Objective) -> tuple[float, float] | None:
        """The worst and the best value of an objective that a hypervolume counts between.

        It depends on no trial, so that one box holds for all of a campaign, and a trial that another one beats changes
        no hypervolume. Of a cost it runs from 1.1 times the most that the campaign allows, so that a student at its
        limit counts, to 0; of a metric that is maximized, from 0 to 1. None where nothing bounds it: of a cost without
        a limit, and of a metric that is minimized.
        """
        if objective.cost is None:
            return (0.0, 1.0) if objective.maximize else None
        most = [each.max for each in self.constraints if each.name == objective.name and each.max is not None]
        most += [self.limits[objective.name]] if objective.name in self.limits else []
        return (REFERENCE_MARGIN * min(most), 0.0) if most else None

    def total_excess(self, values: Mapping[str, float]) -> float:
        """How far these values, by name, are beyond all constraints; 0 where they keep them all."""
        return sum(max(0.0, each.excess(values.get(each.name))) for each in self.constraints)

    def keeps(self, record: TrialRecord) -> bool:
        """Whether a record keeps all constraints."""
        return all(excess <= 0 for excess in self.excesses(record))

    def __str__(self) -> str:
        words = ", ".join(map(str, self.objectives))
        return words + (f"; {', '.join(map(str, self.constraints))}" if self.constraints else "")
