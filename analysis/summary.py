"""A run in a few sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nas_kd.analysis.axes import constraint_text
from nas_kd.analysis.failures import failure_groups
from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.statistics import group_by_arch
from nas_kd.analysis.text import count, metric_text, si
from nas_kd.trials.record import TrialRecord


@dataclass(frozen=True)
class RunProgress:
    """How far a campaign is.

    Attributes:
        planned: trials that it is to have.
        running: trials that have begun and not ended.
        is_driven: whether a process works on it now; None where that is not known.
        stage: what it does before its first trial, in words; empty once trials have begun.
    """

    planned: int
    running: int = 0
    is_driven: bool | None = None
    stage: str = ""


def progress_sentence(records: Sequence[TrialRecord], progress: RunProgress | None) -> str:
    """What is done and left of a campaign that has not ended; empty for one that has, or where it is not known."""
    if progress is None or (len(records) >= progress.planned and not progress.running):
        return ""
    words = {True: "is running", False: "was interrupted", None: "is not complete"}[progress.is_driven]
    words = f"This campaign {words}: {len(records)} of {count(progress.planned, 'trial')} ended"
    left = progress.planned - len(records)
    if progress.running and progress.is_driven is not False:
        words += f", {progress.running} running"
        left -= progress.running
    words += f", {max(left, 0)} left"
    if progress.stage and not records:
        words += f" ({progress.stage})"
    way = "Report again for newer results" if progress.is_driven else "The same `nas-kd search` resumes it"
    return f"{words}. {way}."


def trials_sentence(records: Sequence[TrialRecord]) -> str:
    """`30 trials: 22 complete, 3 failed, 5 stopped early. They began on 2026-11-27, from 05:10 to 07:42 UTC.`"""
    states = Counter(record.state for record in records)
    words = (
        f"{count(len(records), 'trial')}: {states['complete']} complete, {states['failed']} failed, "
        f"{states['stopped']} stopped early."
    )
    begun = sorted(record.started_at for record in records if record.started_at)
    if not begun:
        return words
    (day, first), (last_day, last) = (_day_and_time(text) for text in (begun[0], begun[-1]))
    last = last if last_day == day else f"{last_day}, {last}"
    when = f"{day}, {first}" if first == last else f"{day}, from {first} to {last}"
    return f"{words} {'They' if len(begun) > 1 else 'It'} began on {when} UTC."


def _day_and_time(text: str) -> tuple[str, str]:
    """`2026-11-27` and `05:10` of a time in ISO 8601."""
    day, _, clock = text.partition("T")
    return day, clock[:5]


def summarise(records: Sequence[TrialRecord], front: ParetoFront, teacher: TeacherPoint | None = None) -> list[str]:
    """The run in a few sentences: why trials failed, what the front spans, what it covers, what the teacher reaches."""
    sentences = []
    reasons = failure_groups(records)
    if reasons:
        listed = "; ".join(f"{len(group)} × {reason}" for reason, group in reasons[:3])
        others = f"; and {count(len(reasons) - 3, 'other reason')}" if len(reasons) > 3 else ""
        sentences.append(f"Why trials failed: {listed}{others}.")
    architectures = group_by_arch(records)
    with_arch = sum(len(group) for group in architectures.values())
    if with_arch:
        unique = count(len(architectures), "unique architecture")
        sentences.append(f"{count(with_arch, 'trial')} chose an architecture: {unique}.")
    unplaced = sum(record.state == "complete" for record in records) - len(front.placed)
    if unplaced:
        sentences.append(
            f"{count(unplaced, 'complete trial')} without a {front.stage} validation value cannot be placed."
        )
    if front.ranking.constraints:
        sentences.append(constraint_sentence(front))
    if front.records:
        sentences += _front_sentences(front)
    if teacher is not None:
        metric = records[0].metric if records else None
        value = metric_text(teacher.value, metric) if metric else f"{teacher.value:.4g}"
        cost = "; what it costs is not known" if teacher.flops is None else f" at {si(teacher.flops)} FLOPs"
        sentences.append(f"The teacher, {teacher.name}, reaches {value}{cost}.")
    return sentences


def constraint_sentence(front: ParetoFront) -> str:
    """What students must keep, and how many do not."""
    percent = front.placed[0][0].metric.percent if front.placed else ()
    limits = " and ".join(constraint_text(each, percent) for each in front.ranking.constraints)
    beyond, number = len(front.left_out), len(front.placed)
    ending = "all of them do" if not beyond else f"{beyond} of {count(number, 'comparable trial')} do not"
    return f"Students must keep {limits}; {ending if number else 'none has been measured yet'}."


def _front_sentences(front: ParetoFront) -> list[str]:
    metric, first, last = front.records[0].metric, front.records[0], front.records[-1]

    def place(record: TrialRecord) -> str:
        return f"{metric_text(record.score(front.split, front.stage), metric)} at {front.place_text(record)}"

    def corner(values: tuple[float, ...]) -> str:
        costs = [axis.text(value) for axis, value in zip(front.axes, values, strict=False)]
        return ", ".join([*costs, metric_text(values[-1], metric)])

    span = place(first) if len(front.records) == 1 else f"from {place(first)} to {place(last)}"
    return [
        f"The front has {len(front.records)} of {count(len(front.placed), 'comparable trial')}, {span}.",
        f"Hypervolume {front.hypervolume:.4f}: the share that the front covers of the box between the reference point "
        f"({corner(front.reference)}) and the ideal ({corner(front.ideal)}). Compare it only between runs with the "
        "same reference point.",
    ]
