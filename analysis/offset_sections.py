"""The section of the report on streaming students as plain data, which `templates/report.html` lays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nas_kd.analysis.cells import Cell, Table, number_cell, saving_cell, score_cell, trial_cell
from nas_kd.analysis.figures import metric_label
from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.offset_figures import offsets_chart, splits_with_offsets
from nas_kd.analysis.offsets import (
    SPLITS,
    at_offset,
    drift,
    gap_to_teacher,
    mean_of_delta_frames,
    offsets_of,
    secondary_names,
    streaming_students,
    teacher_drift,
    teacher_scores,
)
from nas_kd.analysis.page import Chart, chart
from nas_kd.analysis.statistics import Estimate
from nas_kd.analysis.text import MISSING, bytes_text, in_percent, metric_text, ms_text, si, signed_text
from nas_kd.trials.record import Metric, Split, TrialRecord

_SPLIT_TITLES: dict[Split, str] = {"val": "validation", "test": "test *"}
_MAX_SECONDARY = 6


@dataclass(frozen=True)
class OffsetsOfSplit:
    """The primary metric per offset from the key frame, on one split."""

    title: str
    chart: Chart
    table: Table


@dataclass(frozen=True)
class StreamingSection:
    """Cost and drift of the front's streaming students.

    Attributes:
        costs: of their frames; None where no streaming student is on the front.
        metric: name of the primary metric.
        splits: on which it was measured per offset.
        drift: sentences on how far the recommended trial drifts.
        without_teacher: whether there is a teacher that was not measured per offset.
    """

    costs: Table | None = None
    metric: str = ""
    splits: tuple[OffsetsOfSplit, ...] = ()
    drift: tuple[str, ...] = ()
    without_teacher: bool = False


def streaming_section(front: ParetoFront, teacher: TeacherPoint | None, picture: bytes | None) -> StreamingSection:
    """Cost and drift of the front's streaming students.

    Args:
        front: its streaming students are shown.
        teacher: stands beside them where known.
        picture: `offsets.png`, for readers without scripts; None where nothing was measured per offset.
    """
    if not streaming_students(front):
        return StreamingSection()
    splits = splits_with_offsets(front)
    measured = []
    for split in splits:
        caption = "Values after the key frame, one line a front trial"
        caption += ", on the validation split." if split == "val" else ", on the test split *."
        drawn = chart(
            f"offsets-{split}",
            offsets_chart(front, split, teacher=teacher),
            caption,
            fallback_png=picture if split == splits[0] else None,
            is_sized=True,
        )
        measured.append(OffsetsOfSplit(_SPLIT_TITLES[split], drawn, offsets_table(front, split, teacher)))
    return StreamingSection(
        costs=cost_table(front, teacher),
        metric=front.records[0].metric.name,
        splits=tuple(measured),
        drift=tuple(drift_sentences(front, teacher)),
        without_teacher=teacher is not None and not any(teacher_rows(front, split, teacher, []) for split in splits),
    )


def cost_table(front: ParetoFront, teacher: TeacherPoint | None) -> Table:
    """Cost of the frames and size of the state of each streaming student on the front; latencies where measured."""
    costs = [(record, record.cost) for record in streaming_students(front) if record.cost is not None]
    with_latency = any(cost.keyframe_latency_ms is not None or cost.delta_latency_ms is not None for _, cost in costs)
    rows = []
    for record, cost in costs:
        flops = [cost.flops, cost.keyframe_flops, cost.delta_flops, cost.worst_frame_flops]
        row = [
            trial_cell(record, front),
            number_cell(str(cost.keyframe_interval)),
            *(number_cell(si(value, trim=False)) for value in flops),
            saving_cell(teacher, cost.flops),
            number_cell(bytes_text(cost.state_bytes)),
        ]
        if with_latency:
            latencies = [cost.latency_ms, cost.keyframe_latency_ms, cost.delta_latency_ms]
            row += [number_cell(MISSING if value is None else ms_text(value)) for value in latencies]
        rows.append(row)
    headers = [
        "trial",
        "key-frame interval K",
        "amortised FLOPs per frame",
        "key frame, FLOPs",
        "delta frame, FLOPs",
        "worst frame, FLOPs",
        "teacher's FLOPs / amortised",
        "state of a stream",
    ]
    if with_latency:
        headers += ["latency amortised, ms", "key frame, ms", "delta frame, ms"]
    return Table(headers, rows)


def drift_sentences(front: ParetoFront, teacher: TeacherPoint | None = None) -> list[str]:
    """How far the recommended trial drifts from its key frame, and what it reaches without that frame.

    The frames at the last offset are others than the key frames. Where the teacher was measured on both, the student is
    compared with it there.
    """
    pick = front.pick
    if pick is None or pick.cost is None:
        return []
    last = (pick.cost.keyframe_interval or 0) - 1
    found = []
    for split in SPLITS:
        change = drift(pick, split, front.stage)
        if change is None:
            continue
        text = (
            f"From offset 0 to offset {last}, the {metric_label(pick.metric, split)} of trial {pick.number} changes by "
        )
        text += _points(change.mean, pick.metric)
        text += _interval_note(change, pick.metric)
        own = teacher_drift(pick, teacher, split) if teacher is not None else None
        gap = gap_to_teacher(pick, teacher, last, split, front.stage) if teacher is not None else None
        if own is not None and gap is not None:
            text += (
                f", that of the teacher on the same frames by {_points(own, pick.metric)}: at offset {last} the "
                f"student differs from the teacher by {_points(gap.mean, pick.metric)}"
                f"{_interval_note(gap, pick.metric)}"
            )
        later = mean_of_delta_frames(pick, split, front.stage)
        if later is not None:
            text += f"; its mean without key frames is {metric_text(later, pick.metric)}"
        found.append(f"{text}.")
    return found


def _interval_note(estimate: Estimate, metric: Metric) -> str:
    if estimate.interval is None:
        return ""
    low, high = (signed_text(end, metric) for end in estimate.interval)
    return f" (95 % interval {low} to {high} over {estimate.num_values} seeds)"


def _points(value: float, metric: Metric) -> str:
    unit = " points" if in_percent(metric) and abs(value) <= 1 else ""
    return f"{signed_text(value, metric)}{unit}"


def offsets_table(front: ParetoFront, split: Split, teacher: TeacherPoint | None) -> Table:
    """The primary metric of each streaming student on the front at each offset from the key frame, with its drift."""
    shown = streaming_students(front)
    metric = shown[0].metric
    offsets = offsets_of(shown, front.stage)
    rows = [] if teacher is None else teacher_rows(front, split, teacher, offsets)
    for record in shown:
        rows.append(
            [
                trial_cell(record, front),
                score_cell(record, front, split, metric),
                *(_offset_cell(record, front, split, offset, teacher) for offset in offsets),
                _drift_cell(record, front, split),
            ]
        )
    unit = ", points" if in_percent(metric) else ""
    return Table(["trial", "mean", *(f"offset {offset}" for offset in offsets), f"drift{unit}"], rows)


def teacher_rows(front: ParetoFront, split: Split, teacher: TeacherPoint, offsets: Sequence[int]) -> list[list[Cell]]:
    """The teacher on the frames of the front's students, a row for each interval between key frames that they have."""
    rows = {}
    for record in streaming_students(front):
        scores = teacher_scores(record, teacher, split)
        if record.cost is None or not scores:
            continue
        change = teacher_drift(record, teacher, split)
        rows[record.cost.keyframe_interval] = [
            Cell("teacher", note=f"same frames, K = {record.cost.keyframe_interval}"),
            number_cell(metric_text(teacher.score_beside(record, split), record.metric)),
            *(number_cell(metric_text(scores.get(offset), record.metric)) for offset in offsets),
            number_cell(MISSING if change is None else signed_text(change, record.metric)),
        ]
    return list(rows.values())


def _offset_cell(
    record: TrialRecord, front: ParetoFront, split: Split, offset: int, teacher: TeacherPoint | None
) -> Cell:
    """The value at an offset; below it the difference to the teacher on the same frames, else the interval."""
    cell = score_cell(record, front, split, at_offset(record.metric, offset))
    gap = None if teacher is None else gap_to_teacher(record, teacher, offset, split, front.stage)
    if gap is None:
        return cell
    note = f"{signed_text(gap.mean, record.metric)} to teacher"
    if gap.interval is not None:
        low, high = (signed_text(end, record.metric) for end in gap.interval)
        note += f" ({low} to {high}, n = {gap.num_values})"
    return replace(cell, note=note)


def _drift_cell(record: TrialRecord, front: ParetoFront, split: Split) -> Cell:
    change = drift(record, split, front.stage)
    if change is None:
        return number_cell(MISSING)
    text = signed_text(change.mean, record.metric)
    if change.interval is None:
        return number_cell(text)
    low, high = (signed_text(end, record.metric) for end in change.interval)
    return Cell(text, note=f"{low} to {high} (n = {change.num_values})", is_number=True)


@dataclass(frozen=True)
class Secondary:
    """Further metrics, and how many of them are not shown."""

    table: Table
    left_out: str


def secondary(front: ParetoFront, teacher: TeacherPoint | None) -> Secondary | None:
    """Further metrics of the teacher and the front on both splits; None without any."""
    names = secondary_names(front, teacher)
    if not names:
        return None
    percent = front.records[0].metric.percent if front.records else ()
    shown = [Metric(name=name, percent=percent) for name in names[:_MAX_SECONDARY]]
    columns = [(metric, split) for metric in shown for split in SPLITS]
    rows: list[list[Cell]] = []
    if teacher is not None:
        values = [(teacher.secondary.get(f"{split}/{metric.name}"), metric) for metric, split in columns]
        rows.append([Cell("teacher"), *(number_cell(metric_text(value, metric)) for value, metric in values)])
    for record in front.records:
        rows.append([trial_cell(record, front), *(score_cell(record, front, s, metric) for metric, s in columns)])
    headers = ["trial", *(f"{metric.name}, {_SPLIT_TITLES[split]}" for metric, split in columns)]
    left_out = ""
    if len(names) > len(shown):
        left_out = f" Shown: {len(shown)} of {len(names)} metrics; the trials' records hold them all."
    return Secondary(Table(headers, rows), left_out)
