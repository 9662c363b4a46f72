"""The front of a run in cost and primary metric: which trials are on it, what it covers, which one to pick."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np

from nas_kd.analysis.cost_axis import FLOPS, CostAxis, cost_axis
from nas_kd.analysis.pareto import Direction, Floats, hypervolume, hypervolume_contributions, knee, non_dominated
from nas_kd.analysis.statistics import Estimate, seed_estimate
from nas_kd.analysis.text import in_percent
from nas_kd.analysis.uncertainty import Uncertain, uncertainty
from nas_kd.trials.record import Evaluated, FrozenDict, Metric, Split, Stage, TrialRecord

REFERENCE_MARGIN = 1.1
TOLERANCE = 0.01  # of a metric in percent, one point; of another metric, this share of the best value

Placed: TypeAlias = tuple[TrialRecord, float, float]  # a trial with its cost and its metric


@dataclass(frozen=True)
class TeacherPoint:
    """The teacher beside its students.

    Attributes:
        name: what to call it.
        flops: cost in the students' unit (per clip, or amortised per frame); one multiply-accumulate is one FLOP. None
            where it is not known, as of maps that were computed before.
        value: the primary metric on the validation split.
        test: the primary metric on the test split, where known.
        params: number of parameters, where known.
        secondary: further metrics by `split/name`, such as `val/temporal_consistency`, where known.
        by_interval: interval between key frames, in frames -> `split/name` and, at each offset from the key frame,
            `split/name@offset` -> value: the metrics as students with this interval are measured, on the same frames.
        evaluated: what the primary metric on a split rests on, where known.
        uncounted: operators whose work `flops` misses; with any of them it is a lower bound, and no ratio is given.
    """

    name: str
    flops: int | None
    value: float
    test: float | None = None
    params: int | None = None
    secondary: Mapping[str, float] = field(default_factory=FrozenDict, hash=False)
    by_interval: Mapping[int, Mapping[str, float]] = field(default_factory=FrozenDict, hash=False)
    evaluated: Mapping[Split, Evaluated] = field(default_factory=FrozenDict, hash=False)
    uncounted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "secondary", FrozenDict(self.secondary))
        frozen = {interval: FrozenDict(values) for interval, values in self.by_interval.items()}
        object.__setattr__(self, "by_interval", FrozenDict(frozen))
        object.__setattr__(self, "evaluated", FrozenDict(self.evaluated))

    def score(self, split: Split) -> float | None:
        """The primary metric on a split over all frames, or None where it is not known."""
        return self.value if split == "val" else self.test

    def score_beside(self, record: TrialRecord, split: Split) -> float | None:
        """The primary metric as the student's was measured: for one with key frames the mean over the same offsets.

        None where it was not measured so.
        """
        interval = record.cost.keyframe_interval if record.cost is not None else None
        if interval is None:
            return self.score(split)
        return self.by_interval.get(interval, {}).get(f"{split}/{record.metric.name}")

    def uncertainty(self, split: Split) -> Uncertain | None:
        """The primary metric over all frames with its interval over items; None where that is not known."""
        value, evaluated = self.score(split), self.evaluated.get(split)
        if value is None or evaluated is None or evaluated.low is None or evaluated.high is None:
            return None
        number, groups = evaluated.num_items, evaluated.num_groups
        return Uncertain(value, evaluated.low, evaluated.high, number, views=evaluated.views, num_groups=groups)

    def level(self, records: Iterable[TrialRecord], split: Split) -> float | None:
        """The one value that all of these students may be compared with; None where their intervals differ."""
        values = {self.score_beside(record, split) for record in records}
        return next(iter(values)) if len(values) == 1 else None

    def cost(self, axis: CostAxis) -> int | None:
        """What the teacher costs on an axis; None where its latency is asked for, or only a lower bound is known."""
        return self.flops if axis.is_flops and not self.uncounted else None

    def saving(self, flops: float) -> float | None:
        """How many times cheaper a student of so many FLOPs is, where that is known."""
        if self.flops is None or self.uncounted or not flops:
            return None
        return self.flops / flops


def shared_metric(records: Iterable[TrialRecord]) -> Metric | None:
    """The primary metric that all records share; None without records.

    Raises:
        ValueError: the records disagree, so their values cannot be compared.
    """
    found = {(record.metric.name, record.metric.maximize): record.metric for record in records}
    if len(found) > 1:
        names = ", ".join(sorted(f"{name} ({'max' if maximize else 'min'})" for name, maximize in found))
        raise ValueError(f"records must share one primary metric, but got {names}; analyse them separately.")
    return next(iter(found.values()), None)


@dataclass(frozen=True)
class ParetoFront:
    """The trials that no other complete trial beats in both cost and the primary metric.

    Attributes:
        records: the front by increasing cost; copies of a point are all there, by trial number.
        directions: the cost is minimised; the direction of the metric is that of its record.
        reference: worst corner (cost, metric) of the box in which the hypervolume is measured.
        ideal: best corner (cost, metric) of that box.
        split: the split whose metric was compared.
        stage: the stage whose metric was compared.
        axis: which cost was compared: FLOPs or latency.
        tolerance: how much worse than the best a student may be that is picked for being cheaper, in the metric's unit;
            by default one point of a metric in percent, 1 % of the best value of another one.
        placed: all trials that could be compared, with their cost and their metric, in the order they were given.
    """

    records: tuple[TrialRecord, ...]
    directions: tuple[Direction, Direction]
    reference: tuple[float, float]
    ideal: tuple[float, float]
    split: Split = "val"
    stage: Stage = "retrained"
    axis: CostAxis = FLOPS
    tolerance: float | None = None
    placed: tuple[Placed, ...] = field(default=(), repr=False)
    _intervals: dict[int, Uncertain | None] = field(default_factory=dict, repr=False, compare=False)
    _estimates: dict[tuple[int, Split, str], Estimate | None] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_records(
        cls,
        records: Sequence[TrialRecord],
        split: Split = "val",
        stage: Stage = "retrained",
        *,
        reference: tuple[float, float] | None = None,
        axis: CostAxis | None = None,
        tolerance: float | None = None,
    ) -> ParetoFront:
        """Build the front of cost against the primary metric, from complete trials that have both.

        The default box runs from 1.1 times the cost of the most expensive comparable trial and the metric's worst value
        to zero cost and the metric's best value. The margin lets the most expensive trial count; the teacher's cost
        would make nearly all of the box free to any student. Worst and best are 0 and 1, widened where a trial lies
        outside; for a minimised metric they are the worst value of this run and 0.

        Args:
            records: the trials; failed, stopped and unmeasured ones are ignored.
            split: the split to compare on. Selection belongs on `"val"`.
            stage: the stage to compare at.
            reference: (cost, metric) instead of the default worst corner, to compare runs with each other.
            axis: which cost to compare; by default the one that the campaign counted.
            tolerance: of `pick`, in the metric's unit, at least 0.

        Raises:
            ValueError: the records do not share one primary metric, or the tolerance is negative or no number.
        """
        if tolerance is not None and not tolerance >= 0:
            raise ValueError(f"the tolerance of the pick must be at least 0, but got {tolerance}")
        metric = shared_metric(records)
        maximize = metric is None or metric.maximize
        axis = cost_axis(records) if axis is None else axis
        measured = comparable(records, split, stage, axis)
        values = [value for _, _, value in measured]
        highest = max((cost for _, cost, _ in measured), default=0)
        worst, best = (min([0.0, *values]), max([1.0, *values])) if maximize else (max(values, default=0.0), 0.0)
        front_directions: tuple[Direction, Direction] = ("minimize", "maximize" if maximize else "minimize")
        on_front = non_dominated([(cost, value) for _, cost, value in measured], front_directions)
        front = [row for row, is_on in zip(measured, on_front, strict=True) if is_on]
        return cls(
            records=tuple(record for record, _, _ in sorted(front, key=lambda row: (row[1], row[0].number))),
            directions=front_directions,
            reference=reference or (REFERENCE_MARGIN * highest, worst),
            ideal=(0.0, best if maximize else min([best, *values])),
            split=split,
            stage=stage,
            axis=axis,
            tolerance=tolerance,
            placed=tuple(measured),
        )

    @cached_property
    def points(self) -> Floats:
        """(cost, metric) of each front record, shape `(k, 2)`."""
        rows = [(cost, value) for _, cost, value in comparable(self.records, self.split, self.stage, self.axis)]
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    @property
    def numbers(self) -> frozenset[int]:
        """Trial numbers on the front."""
        return frozenset(record.number for record in self.records)

    def hypervolume_of(self, points: Floats) -> float:
        """Share in [0, 1] of the box between `reference` and `ideal` that `(n, 2)` points dominate."""
        area = self._box_area
        return hypervolume(points, self.directions, self.reference) / area if area > 0 else 0.0

    @cached_property
    def hypervolume(self) -> float:
        """Share in [0, 1] of the box between `reference` and `ideal` that the front dominates."""
        return self.hypervolume_of(self.points)

    @cached_property
    def hypervolume_history(self) -> tuple[tuple[int, float], ...]:
        """(trial number, hypervolume so far) after each comparable trial, in order of the trials."""
        history = []
        so_far = np.empty((0, 2))
        for record, cost, value in sorted(self.placed, key=lambda row: row[0].number):
            so_far = np.vstack([so_far, (cost, value)])
            so_far = so_far[non_dominated(so_far, self.directions)]  # what is dominated now never counts again
            history.append((record.number, self.hypervolume_of(so_far)))
        return tuple(history)

    @cached_property
    def contributions(self) -> dict[int, float]:
        """Trial number → share of the box that only this trial dominates; zero for a trial with a copy."""
        area = self._box_area
        lost = hypervolume_contributions(self.points, self.directions, self.reference)
        return {
            record.number: float(value / area) if area > 0 else 0.0
            for record, value in zip(self.records, lost, strict=True)
        }

    @cached_property
    def knee(self) -> TrialRecord | None:
        """The trial at the front's bend, with the cost on a logarithmic axis: doubling it weighs the same anywhere.

        See `nas_kd.analysis.pareto.knee` for the definition and for short fronts.
        """
        log_cost = bool((self.points[:, 0] > 0).all())
        row = knee(self.points, self.directions, log=(log_cost, False))
        return None if row is None else self.records[row]

    @property
    def best(self) -> TrialRecord | None:
        """The trial with the best value; None for an empty front."""
        return self.best_within(math.inf)

    def best_within(self, cost: float) -> TrialRecord | None:
        """The best trial among those that cost no more; of copies the first. None where each costs more."""
        costs = self.points[:, 0].tolist()
        within = [value for value in costs if value <= cost]
        return self.records[costs.index(within[-1])] if within else None  # on a front, what costs more is better

    @cached_property
    def best_interval(self) -> Uncertain | None:
        """The best value with its 95 % interval over items and seeds; None where that is not known."""
        return None if self.best is None else self.interval(self.best)

    @property
    def tolerance_value(self) -> float:
        """The tolerance in the metric's unit."""
        if self.tolerance is not None:
            return self.tolerance
        if self.best is None or in_percent(self.best.metric):
            return TOLERANCE
        return TOLERANCE * abs(float(self.points[-1, 1]))

    @property
    def is_allowed_by_error(self) -> bool:
        """Whether one standard error of the best is more than the tolerance."""
        return self.best_interval is not None and self.best_interval.standard_error > self.tolerance_value

    @property
    def allowed_loss(self) -> float:
        """How much worse than the best the pick may be, in the metric's unit."""
        if self.best_interval is None:
            return self.tolerance_value
        return max(self.tolerance_value, self.best_interval.standard_error)

    @cached_property
    def pick(self) -> TrialRecord | None:
        """The recommended trial: the cheapest one within `allowed_loss` of the best. None for an empty front."""
        if not self.records:
            return None
        losses = np.abs(self.points[:, 1] - self.points[-1, 1])
        return self.records[int(np.argmax(losses <= self.allowed_loss + 1e-12))]

    def estimate(self, record: TrialRecord, split: Split | None = None, name: str | None = None) -> Estimate | None:
        """`seed_estimate` at the front's stage, by default of the primary metric on its split; computed once."""
        key = (record.number, split or self.split, name or record.metric.name)
        if key not in self._estimates:
            self._estimates[key] = seed_estimate(record, key[1], self.stage, key[2])
        return self._estimates[key]

    def interval(self, record: TrialRecord) -> Uncertain | None:
        """`uncertainty` of a trial's value at the front's stage and on its split; computed once."""
        if record.number not in self._intervals:
            self._intervals[record.number] = uncertainty(record, self.split, self.stage)
        return self._intervals[record.number]

    @property
    def _box_area(self) -> float:
        sides = np.abs(np.subtract(self.reference, self.ideal))
        return float(np.prod(sides))


def comparable(
    records: Iterable[TrialRecord], split: Split = "val", stage: Stage = "retrained", axis: CostAxis = FLOPS
) -> list[Placed]:
    """Complete records with their cost and primary metric; the others cannot be placed against each other."""
    rows = []
    for record in records:
        cost, value = axis.of(record), record.score(split, stage)
        if record.state == "complete" and cost is not None and value is not None:
            rows.append((record, cost, value))
    return rows
