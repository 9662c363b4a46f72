"""The front of a run by its objectives: which trials are on it, what it covers, which one to pick."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np

from nas_kd.analysis.axes import FLOPS, PARAMETERS, Axis, default_ranking
from nas_kd.analysis.intervals import Uncertain, uncertainty
from nas_kd.analysis.pareto import Direction, Floats, hypervolume, hypervolume_contributions, knee, non_dominated
from nas_kd.analysis.statistics import Estimate, seed_estimate, seed_values
from nas_kd.analysis.text import in_percent
from nas_kd.trials.objectives import REFERENCE_MARGIN, Ranking
from nas_kd.trials.record import Evaluated, FrozenDict, Metric, Split, Stage, TrialRecord

TOLERANCE = 0.01  # of a metric in percent, one point; of another metric, this share of the best value

Placed: TypeAlias = tuple[TrialRecord, float, float]  # a trial with its first cost and its metric


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

    def cost(self, axis: Axis) -> int | None:
        """What the teacher costs on an axis; None where it is not known there, or only by a lower bound."""
        if axis.name == FLOPS.name:
            return None if self.uncounted else self.flops
        return self.params if axis.name == PARAMETERS.name else None

    def saving(self, cost: float | None, axis: Axis = FLOPS) -> float | None:
        """How many times cheaper a student of this cost is, where that is known."""
        own = self.cost(axis)
        return None if own is None or not cost else own / cost


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
    """The trials that keep all constraints and that no other one of these beats in all objectives.

    The objectives stand in the order of the charts: first those that the pick saves, such as costs (`axes`), and last
    the metric that students are judged by, the first one of the ranking.

    Attributes:
        records: the front by increasing first cost; copies of a point are all there, by trial number.
        ranking: what was compared.
        axes: of the objectives but the metric that is judged by.
        directions: of each objective.
        reference: worst corner of the box in which the hypervolume is measured.
        ideal: best corner of that box.
        split: the split whose metric was compared.
        stage: the stage whose metric was compared.
        tolerance: how much worse than the best a student may be that is picked for being cheaper, in the metric's unit;
            by default one point of a metric in percent, 1 % of the best value of another one.
        placed: all trials that could be compared, with their first cost and their metric, in the order they were given.
    """

    records: tuple[TrialRecord, ...]
    ranking: Ranking
    axes: tuple[Axis, ...]
    directions: tuple[Direction, ...]
    reference: tuple[float, ...]
    ideal: tuple[float, ...]
    split: Split = "val"
    stage: Stage = "retrained"
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
        reference: Sequence[float] | None = None,
        ranking: Ranking | None = None,
        tolerance: float | None = None,
    ) -> ParetoFront:
        """Build the front from complete trials that have all objectives.

        The default box is that of the campaign, which no trial changes; see `Ranking.range_of`. What lies beyond its
        worst corner counts nothing, and a metric above 1 makes the share more than 1. Where nothing bounds an
        objective, the trials do: a cost runs from 1.1 times that of the most expensive one to 0, a metric that is
        minimized from the worst value to 0. The teacher's cost would make nearly all of the box free to any student.

        Args:
            records: the trials; failed, stopped and unmeasured ones are ignored. Their primary metric is the one that
                students are judged by; see `judged`.
            split: the split to compare on. Selection belongs on `"val"`.
            stage: the stage to compare at.
            reference: instead of the default worst corner, to compare runs with each other.
            ranking: objectives and constraints; by default the metric of the records and the cost that the campaign
                counted.
            tolerance: of `pick`, in the metric's unit, at least 0.

        Raises:
            ValueError: the records do not share one primary metric, or the tolerance is no finite number of at least 0.
        """
        if tolerance is not None and not 0 <= tolerance < math.inf:
            raise ValueError(f"the tolerance of the pick must be a finite number of at least 0, but got {tolerance}")
        metric = shared_metric(records) or Metric(name="metric")
        ranking = ranking or default_ranking(records, metric)
        axes = tuple(Axis(objective, metric.percent) for objective in ranking.objectives[1:])
        measured = comparable(records, split, stage, axes)
        points = _points(measured, axes, split, stage)
        maximize = (*(axis.objective.maximize for axis in axes), ranking.objectives[0].maximize)
        directions: tuple[Direction, ...] = tuple("maximize" if each else "minimize" for each in maximize)
        worst, best = _box(points, axes, ranking)
        kept = np.array([ranking.keeps(record) for record, _, _ in measured], dtype=bool)
        on_front = kept.copy()
        on_front[kept] = non_dominated(points[kept], directions)
        front = [row for row, is_on in zip(measured, on_front, strict=True) if is_on]
        return cls(
            records=tuple(record for record, _, _ in sorted(front, key=lambda row: (row[1], row[0].number))),
            ranking=ranking,
            axes=axes,
            directions=directions,
            reference=worst if reference is None else tuple(reference),
            ideal=best,
            split=split,
            stage=stage,
            tolerance=tolerance,
            placed=tuple(measured),
        )

    @property
    def axis(self) -> Axis:
        """Of the first objective that the pick saves: the horizontal one of the charts."""
        return self.axes[0]

    @property
    def is_plane(self) -> bool:
        """Whether there are two objectives, so that the front is a line."""
        return len(self.axes) == 1

    @cached_property
    def points(self) -> Floats:
        """The objectives of each front record, those of `axes` and then the metric: shape `(k, m)`."""
        return _points(comparable(self.records, self.split, self.stage, self.axes), self.axes, self.split, self.stage)

    @cached_property
    def left_out(self) -> tuple[TrialRecord, ...]:
        """Comparable trials that do not keep the constraints."""
        return tuple(record for record, _, _ in self.placed if not self.ranking.keeps(record))

    def place_text(self, record: TrialRecord) -> str:
        """What a trial costs, in words: `12.3 M FLOPs, 1.2 k parameters`."""
        return ", ".join(axis.text(axis.of(record, self.split, self.stage)) for axis in self.axes)

    @property
    def numbers(self) -> frozenset[int]:
        """Trial numbers on the front."""
        return frozenset(record.number for record in self.records)

    def hypervolume_of(self, points: Floats) -> float:
        """Share of the box between `reference` and `ideal` that `(n, m)` points dominate, from 0 to 1 but for metrics
        above 1."""
        area = self._box_area
        return hypervolume(points, self.directions, self.reference) / area if area > 0 else 0.0

    @cached_property
    def hypervolume(self) -> float:
        """Share of the box between `reference` and `ideal` that the front dominates; see `hypervolume_of`."""
        return self.hypervolume_of(self.points)

    @cached_property
    def hypervolume_history(self) -> tuple[tuple[int, float], ...]:
        """(trial number, hypervolume so far) after each comparable trial, in order of the trials."""
        history = []
        so_far = np.empty((0, len(self.directions)))
        ordered = sorted(self.placed, key=lambda row: row[0].number)
        for (record, _, _), point in zip(ordered, _points(ordered, self.axes, self.split, self.stage), strict=True):
            if self.ranking.keeps(record):
                so_far = np.vstack([so_far, point])
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
        """The trial at the bend of a front of two objectives, with a cost on a logarithmic axis: doubling it weighs the
        same anywhere. None with three objectives.

        See `nas_kd.analysis.pareto.knee` for the definition and for short fronts.
        """
        if not self.is_plane:
            return None
        log_cost = self.axis.is_cost and bool((self.points[:, 0] > 0).all())
        row = knee(self.points, self.directions, log=(log_cost, False))
        return None if row is None else self.records[row]

    @cached_property
    def _gains(self) -> Floats:
        """The metric of each front record, as one of which more is better."""
        values: Floats = self.points[:, -1]
        return values if self.directions[-1] == "maximize" else -values

    @property
    def best(self) -> TrialRecord | None:
        """The trial with the best value; None for an empty front."""
        return self.records[int(np.argmax(self._gains))] if self.records else None

    def best_within(self, cost: float) -> TrialRecord | None:
        """The best trial among those within a limit of the first cost; of copies the first. None without one."""
        costs = self.points[:, 0]
        within = np.flatnonzero(costs >= cost if self.directions[0] == "maximize" else costs <= cost)
        return self.records[int(within[np.argmax(self._gains[within])])] if len(within) else None

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
        return TOLERANCE * abs(float(self._gains.max()))

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
        """The recommended trial: among those within `allowed_loss` of the best the cheapest one, by the first cost, of
        equally cheap ones by the next. None for an empty front."""
        if not self.records:
            return None
        allowed = np.flatnonzero(self._gains.max() - self._gains <= self.allowed_loss + 1e-12)
        signs = [-1.0 if direction == "maximize" else 1.0 for direction in self.directions[:-1]]
        costs = (self.points[allowed, :-1] * signs).tolist()
        return self.records[int(allowed[costs.index(min(costs))])]

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

    def num_trainings(self, record: TrialRecord) -> int:
        """Trainings that a trial's value is the mean of."""
        return max(1, len(seed_values(record, self.split, self.stage)))

    @property
    def _box_area(self) -> float:
        sides = np.abs(np.subtract(self.reference, self.ideal))
        return float(np.prod(sides))


def comparable(
    records: Iterable[TrialRecord],
    split: Split = "val",
    stage: Stage = "retrained",
    axes: Sequence[Axis] = (FLOPS,),
) -> list[Placed]:
    """Complete records that have all objectives, with the first cost and the metric; others cannot be placed."""
    rows = []
    for record in records:
        costs, value = [axis.of(record, split, stage) for axis in axes], record.score(split, stage)
        if record.state == "complete" and value is not None and costs[0] is not None and None not in costs:
            rows.append((record, costs[0], value))
    return rows


def _points(rows: Sequence[Placed], axes: Sequence[Axis], split: Split, stage: Stage) -> Floats:
    """The objectives of comparable records: `(n, m)`."""
    values = [[*(axis.of(record, split, stage) for axis in axes), value] for record, _, value in rows]
    return np.array(values, dtype=np.float64).reshape(-1, len(axes) + 1)


def _box(points: Floats, axes: Sequence[Axis], ranking: Ranking) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The worst and the best corner; see `ParetoFront.from_records`."""
    corners = []
    for column, objective in enumerate((*(axis.objective for axis in axes), ranking.objectives[0])):
        values = points[:, column].tolist()
        margin = 1.0 if objective.cost is None else REFERENCE_MARGIN
        worst, best = ranking.range_of(objective) or (margin * max(values, default=0.0), min([0.0, *values]))
        if objective.maximize and values and max(values) <= 0:  # such as a log-likelihood
            worst = min(values)
        corners.append((worst, best))
    worst_corner, best_corner = zip(*corners, strict=True)
    return worst_corner, best_corner


def judged(records: Iterable[TrialRecord], ranking: Ranking) -> list[TrialRecord]:
    """Records whose primary metric is the one that the ranking judges by; what is known of another one is dropped."""
    objective, found = ranking.objectives[0], []
    for record in records:
        if record.metric.name == objective.name:
            found.append(record)
            continue
        metric = Metric(name=objective.name, maximize=objective.maximize, percent=record.metric.percent)
        unknown = dict.fromkeys(("low", "high", "majority", "chance"))
        evaluated = {split: each.model_copy(update=unknown) for split, each in record.evaluated.items()}
        found.append(record.model_copy(update={"metric": metric, "evaluated": FrozenDict(evaluated)}))
    return found
