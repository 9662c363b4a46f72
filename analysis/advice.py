"""The recommended student of a run, and the run in a few sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nas_kd.analysis.cost_axis import CostAxis
from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.statistics import group_by_arch
from nas_kd.analysis.text import count, difference_text, error_headline, metric_text, si
from nas_kd.trials.record import TrialRecord


@dataclass(frozen=True)
class Advice:
    """The recommended trial and its alternatives.

    Attributes:
        pick: the trial at the front's knee.
        sentence: which trial, what it reaches at what cost, and why.
        better: the best trial of the front, where that is another one.
        cheaper: the cheapest trial of the front, where that is another one.
        caveats: what the data do not support, one sentence each.
    """

    pick: TrialRecord
    sentence: str
    better: str | None
    cheaper: str | None
    caveats: tuple[str, ...]


def advise(front: ParetoFront, teacher: TeacherPoint | None = None) -> Advice | None:
    """Recommend a trial of the front; None for an empty front."""
    pick = front.knee
    if pick is None:
        return None
    # Copies of a point are one step of the front.
    steps: dict[tuple[float, float], TrialRecord] = {}
    for record, (cost, value) in zip(front.records, front.points.tolist(), strict=True):
        steps.setdefault((cost, value), record)
    points, trials = list(steps), list(steps.values())
    at = points.index(tuple(front.points[front.records.index(pick)].tolist()))
    reason = _reason(points, trials, at, front.axis)
    sentence = f"Pick trial {pick.number}: {_place(pick, points[at], front.axis)}, because {reason}."
    flops = pick.cost.flops if pick.cost is not None else 0
    if teacher is not None and flops > 0:
        sentence += f" {_against_teacher(pick, flops, points[at][1], teacher)}"
    last = len(points) - 1
    return Advice(
        pick=pick,
        sentence=sentence,
        better=f"trial {trials[last].number}, {_place(pick, points[last], front.axis)}" if at != last else None,
        cheaper=f"trial {trials[0].number}, {_place(pick, points[0], front.axis)}" if at != 0 else None,
        caveats=_caveats(front, trials, at),
    )


def _place(record: TrialRecord, point: tuple[float, float], axis: CostAxis) -> str:
    return f"{metric_text(point[1], record.metric)} at {axis.text(point[0])}"


def _reason(points: list[tuple[float, float]], trials: list[TrialRecord], at: int, axis: CostAxis) -> str:
    if len(points) == 1:
        return "no other complete trial is cheaper or better"
    if at == len(points) - 1:
        return "the front has no bend, so the best value decides"
    metric = trials[at].metric
    (cost, value), (next_cost, next_value) = points[at], points[at + 1]
    more = f"{next_cost / cost:.3g}× the {axis.noun}" if cost > 0 else f"{axis.text(next_cost)} more"
    gain = difference_text(next_value - value, metric)
    step_up = f"the next step up, trial {trials[at + 1].number}, costs {more} and is {gain} better"
    if at == 0:
        return f"the front bends there: {step_up}"
    less_cost, less_value = points[at - 1]
    saved = f"{1 - less_cost / cost:.0%}".replace("%", " %")
    return (
        f"the front bends there: {step_up}, and the next step down, trial {trials[at - 1].number}, "
        f"saves {saved} of the {axis.noun} but is {difference_text(value - less_value, metric)} worse"
    )


def _against_teacher(pick: TrialRecord, flops: int, value: float, teacher: TeacherPoint) -> str:
    gap = value - teacher.value
    better = (gap > 0) == pick.metric.maximize
    word = "better than" if better else "worse than"
    distance = "as good as" if gap == 0 else f"{difference_text(gap, pick.metric)} {word}"
    saving = teacher.saving(flops)
    if saving is None and teacher.flops is not None and teacher.uncounted:
        return (
            f"It is {distance} the teacher, which needs at least {teacher.flops:,} FLOPs (uncounted: "
            f"{', '.join(teacher.uncounted)})."
        )
    if saving is None:
        return f"It is {distance} the teacher, whose cost is not known."
    return f"It needs {saving:.3g}× fewer FLOPs than the teacher and is {distance} it."


def _caveats(front: ParetoFront, trials: list[TrialRecord], at: int) -> tuple[str, ...]:
    own = front.estimate(trials[at])
    if own is None or own.interval is None:
        return (
            f"The value of trial {trials[at].number} rests on one training run: it has no interval, and a small "
            "difference to its neighbours may be chance.",
        )
    found = []
    for neighbour in trials[max(0, at - 1) : at] + trials[at + 1 : at + 2]:
        other = front.estimate(neighbour)
        if other is not None and own.overlaps(other):
            found.append(
                f"The 95 % intervals of trials {trials[at].number} and {neighbour.number} overlap "
                f"(n = {own.num_values} and {other.num_values} seeds): take the cheaper one if in doubt."
            )
    return tuple(found)


def summarise(records: Sequence[TrialRecord], front: ParetoFront, teacher: TeacherPoint | None = None) -> list[str]:
    """The run in a few sentences: what happened to the trials, what the front spans, what it covers."""
    states = Counter(record.state for record in records)
    sentences = [
        f"{count(len(records), 'trial')}: {states['complete']} complete, {states['failed']} failed, "
        f"{states['stopped']} stopped early."
    ]
    reasons = Counter(error_headline(record.error) or "no error text" for record in records if record.state == "failed")
    if reasons:
        listed = "; ".join(f"{number} × {reason}" for reason, number in reasons.most_common(3))
        others = f"; and {count(len(reasons) - 3, 'other reason')}" if len(reasons) > 3 else ""
        sentences.append(f"Why trials failed: {listed}{others}.")
    architectures = group_by_arch(records)
    with_arch = sum(len(group) for group in architectures.values())
    if with_arch:
        unique = count(len(architectures), "unique architecture")
        sentences.append(f"{count(with_arch, 'trial')} chose an architecture: {unique}.")
    unplaced = states["complete"] - len(front.placed)
    if unplaced:
        sentences.append(
            f"{count(unplaced, 'complete trial')} without a {front.stage} validation value cannot be placed."
        )
    if front.records:
        sentences += _front_sentences(front)
    if teacher is not None:
        metric = records[0].metric if records else None
        value = metric_text(teacher.value, metric) if metric else f"{teacher.value:.4g}"
        cost = "; what it costs is not known" if teacher.flops is None else f" at {si(teacher.flops)} FLOPs"
        sentences.append(f"The teacher, {teacher.name}, reaches {value}{cost}.")
    return sentences


def _front_sentences(front: ParetoFront) -> list[str]:
    metric, axis = front.records[0].metric, front.axis
    first, last = front.points[0], front.points[-1]
    span = f"{metric_text(first[1], metric)} at {axis.text(first[0])}"
    if len(front.records) > 1:
        span = f"from {span} to {metric_text(last[1], metric)} at {axis.text(last[0])}"
    (worst_cost, worst), (best_cost, best) = front.reference, front.ideal
    return [
        f"The front has {len(front.records)} of {count(len(front.placed), 'comparable trial')}, {span}.",
        f"Hypervolume {front.hypervolume:.4f}: the share that the front covers of the box between the reference point "
        f"({axis.text(worst_cost)}, {metric_text(worst, metric)}) and the ideal ({axis.text(best_cost)}, "
        f"{metric_text(best, metric)}). Compare it only between runs with the same reference point.",
    ]
