"""Campaigns side by side: hypervolume in a box that all share, students at a budget, and how architectures differ.

Campaigns that differ in nothing but their seed are repeats and form one group. Differences are taken to the first
group: paired by seed where both groups have the same seeds, else Welch's; see `nas_kd.analysis.statistics`. As
everywhere, students are chosen on the validation split; the test split only tells how good the chosen ones are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nas_kd.analysis.axes import FLOPS, Axis, default_ranking
from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.intervals import trivial_level, uncertainty
from nas_kd.analysis.statistics import Estimate, estimate_mean, paired_difference, welch_difference
from nas_kd.analysis.text import metric_text
from nas_kd.trials.objectives import Ranking
from nas_kd.trials.record import Metric, Split, TrialRecord

NUM_COSTS = 4  # at which students are compared where campaigns have no budgets in common


@dataclass(frozen=True)
class Run:
    """A campaign that is compared.

    Attributes:
        name: of its folder.
        seed: of the campaign.
        settings: dotted path in the campaign file -> value, without seed, name and place.
        records: of its trials.
        budgets: of the campaign, on its first cost; empty where it draws them from a range, or limits another cost.
        teacher: what is known of its teacher; None if unknown.
        ranking: of the campaign; by default see `default_ranking`.
    """

    name: str
    seed: int
    settings: Mapping[str, Any]
    records: Sequence[TrialRecord]
    budgets: tuple[float, ...] = ()
    teacher: TeacherPoint | None = None
    ranking: Ranking | None = None


@dataclass(frozen=True)
class Group:
    """Campaigns that differ in their seed alone.

    Attributes:
        name: that of the only campaign, or that of the first with the number of seeds.
        runs: in the order given.
        fronts: of each.
        hypervolumes: of each front, in the box of the comparison.
    """

    name: str
    runs: tuple[Run, ...]
    fronts: tuple[ParetoFront, ...]
    hypervolumes: tuple[float, ...]

    def best_within(self, cost: float) -> list[TrialRecord | None]:
        """Of each campaign the student that is best on validation among those that cost no more; None without one."""
        return [front.best_within(cost) for front in self.fronts]


@dataclass(frozen=True)
class AtCost:
    """The students of a group within a cost.

    Attributes:
        cost: the limit, in the unit of the axis.
        records: the chosen student of each campaign that has one.
        val: their metric on validation; None without a student.
        test: on test; None where it was not measured.
        difference: of `test` to that of the first group; None for that group, and where it cannot be taken.
    """

    cost: float
    records: tuple[TrialRecord, ...]
    val: Estimate | None
    test: Estimate | None
    difference: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """Groups of campaigns with one metric.

    Attributes:
        groups: in the order in which their first campaigns were given; one where all differ in their seed alone.
        metric: the primary metric of all.
        axis: the first cost they are compared by.
        box: a front over all trials, whose box the hypervolumes share.
    """

    groups: tuple[Group, ...]
    metric: Metric
    axis: Axis
    box: ParetoFront

    @cached_property
    def costs(self) -> list[float]:
        """Costs at which students are compared: budgets in common, or a few from the cheapest to the dearest front."""
        budgets = [{float(budget) for run in group.runs for budget in run.budgets} for group in self.groups]
        common = set.intersection(*budgets)
        if common:
            return sorted(common)
        points = [front.points[:, 0] for group in self.groups for front in group.fronts if len(front.points)]
        low, high = max(x.min() for x in points), max(x.max() for x in points)
        if low <= 0:
            return [float(cost) for cost in np.linspace(low, high, NUM_COSTS)]
        return [float(cost) for cost in np.geomspace(low, high, NUM_COSTS)]

    def hypervolume(self, group: Group) -> Estimate:
        """Mean over the campaigns of a group, with its interval."""
        return estimate_mean(group.hypervolumes)

    def gain(self, group: Group) -> Estimate | None:
        """Difference of a group's hypervolume to that of the first group; None for the first."""
        first = self.groups[0]
        if group is first:
            return None
        return _difference(_by_seed(group, group.hypervolumes), _by_seed(first, first.hypervolumes))

    def at(self, cost: float) -> list[AtCost]:
        """The students of each group within a cost."""
        rows: list[AtCost] = []
        of_first: list[tuple[int, float]] = []
        for group in self.groups:
            chosen = group.best_within(cost)
            there = [(run, record) for run, record in zip(group.runs, chosen, strict=True) if record is not None]
            test = [(run.seed, value) for run, record in there if (value := _score(record, "test")) is not None]
            val = [value for _, record in there if (value := _score(record, "val")) is not None]
            if not rows:
                of_first = test
            difference = _difference(test, of_first) if rows and test and of_first else None
            rows.append(
                AtCost(
                    cost,
                    tuple(record for _, record in there),
                    estimate_mean(val) if val else None,
                    estimate_mean([value for _, value in test]) if test else None,
                    difference,
                )
            )
        return rows

    def setting_differences(self) -> dict[str, list[Any]]:
        """Dotted paths of the campaign files whose values are not those of all groups -> the value of each group."""
        return _what_differs([group.runs[0].settings for group in self.groups])

    def cautions(self) -> tuple[str, ...]:
        """Sentences on what may make one campaign look better than another beside what is compared."""
        sentences = []
        data = [name for name in self.setting_differences() if name.split(".")[0] in ("data", "task_options")]
        if data:
            sentences.append(
                f"The campaigns differ in {', '.join(data[:5])}{', …' if len(data) > 5 else ''}: their values can be "
                "compared only if these leave the clips of validation and test, and what the metric counts, the same."
            )
        ended = [sum(r.state == "complete" for r in run.records) for group in self.groups for run in group.runs]
        if min(ended) < max(ended):
            sentences.append(
                f"The campaigns have {min(ended)} to {max(ended)} complete trials: the best of more trials are better "
                "by chance too, and a hypervolume never falls with a further one."
            )
        return (*sentences, *self._at_chance())

    def _at_chance(self) -> list[str]:
        """A sentence where the best student of a campaign is not shown to beat a net that looks at nothing."""
        lost: dict[tuple[float, str], list[str]] = {}
        for group in self.groups:
            for run, front in zip(group.runs, group.fronts, strict=True):
                if front.best is None:
                    continue
                level = trivial_level(front.best.evaluated.get("val"), maximize=self.metric.maximize)
                own = uncertainty(front.best)
                if level is not None and own is not None and not own.beats(level[0], maximize=self.metric.maximize):
                    lost.setdefault(level, []).append(run.name)
        return [
            f"The best student of {', '.join(names[:5])}{', …' if len(names) > 5 else ''} is not shown to be better "
            f"than {words} ({metric_text(value, self.metric)}, validation): differences to it mean nothing."
            for (value, words), names in lost.items()
        ]

    def choice_differences(self, cost: float) -> dict[str, list[list[Any]]]:
        """Choices in which the groups' students within a cost differ -> of each group those of its campaigns.

        Campaigns without a student are left out, and choices that seeds of all groups make equally often.
        """
        of_groups = [
            [dict((record.arch or {}).get("choices") or {}) for record in group.best_within(cost) if record is not None]
            for group in self.groups
        ]
        differing = _what_differs([each for choices in of_groups for each in choices])
        found = {name: [[each.get(name) for each in choices] for choices in of_groups] for name in differing}
        if len(self.groups) == 1:
            return found
        return {name: values for name, values in found.items() if _are_others([each for each in values if each])}


def compare(runs: Sequence[Run]) -> Comparison:
    """Put campaigns side by side.

    Args:
        runs: two or more, with one primary metric.

    Raises:
        ValueError: fewer than two campaigns, metrics that differ, or a campaign without a trained student.
    """
    if len(runs) < 2:
        raise ValueError(f"a comparison needs two campaigns or more, but got {len(runs)}; name their folders")
    metrics: dict[str, Metric] = {}
    for run in runs:
        trained = [record for record in run.records if record.state == "complete" and _score(record, "val") is not None]
        if not trained:
            raise ValueError(
                f"{run.name} has no complete trial with a trained student yet; leave it out, or let it run"
            )
        metrics[run.name] = trained[0].metric
    metric = metrics[runs[0].name]
    for name, other in metrics.items():
        if not other.is_same_as(metric):
            raise ValueError(
                f"compared campaigns must have one metric, but {runs[0].name} has {metric.name} and {name} has "
                f"{other.name}; compare those of one task"
            )
    rankings = {run.name: run.ranking or default_ranking(run.records, metric) for run in runs}
    shared = rankings[runs[0].name].objectives
    if any(ranking.objectives != shared for ranking in rankings.values()):
        shared = (shared[0], FLOPS.objective)  # which every student has
    box = ParetoFront.from_records([record for run in runs for record in run.records], ranking=Ranking(shared))
    grouped: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        settings = repr(sorted(run.settings.items()))
        repeated = 0  # a run with the settings and the seed of another one is no repeat of it, and has its own group
        while any(other.seed == run.seed for other in grouped.get((settings, repeated), ())):
            repeated += 1
        grouped.setdefault((settings, repeated), []).append(run)
    groups = []
    for members in grouped.values():
        fronts = tuple(
            ParetoFront.from_records(run.records, ranking=Ranking(shared, rankings[run.name].constraints))
            for run in members
        )
        hypervolumes = tuple(box.hypervolume_of(front.points) for front in fronts)
        name = members[0].name if len(members) == 1 else f"{members[0].name} ({len(members)} seeds)"
        groups.append(Group(name, tuple(members), fronts, hypervolumes))
    return Comparison(tuple(groups), metric, box.axis, box)


def _what_differs(mappings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Names whose values are not the same in all -> the value in each, None where it has none."""
    names = dict.fromkeys(name for each in mappings for name in each)
    values = {name: [each.get(name) for each in mappings] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _are_others(lists: Sequence[Sequence[Any]]) -> bool:
    """Whether any of the lists, of which none is empty, holds other values than the first, or in other shares."""
    first = lists[0]
    return any(
        first.count(value) * len(other) != other.count(value) * len(first)
        for other in lists[1:]
        for value in (*first, *other)
    )


def _score(record: TrialRecord, split: Split) -> float | None:
    return record.score(split, "retrained")


def _by_seed(group: Group, values: Sequence[float]) -> list[tuple[int, float]]:
    return [(run.seed, value) for run, value in zip(group.runs, values, strict=True)]


def _difference(values: Sequence[tuple[int, float]], others: Sequence[tuple[int, float]]) -> Estimate:
    """Of means: paired where the seeds are the same, each once."""
    seeds, other_seeds = [seed for seed, _ in values], [seed for seed, _ in others]
    if len(set(seeds)) == len(seeds) and sorted(seeds) == sorted(other_seeds):
        return paired_difference([value for _, value in sorted(values)], [value for _, value in sorted(others)])
    return welch_difference([value for _, value in values], [value for _, value in others])
