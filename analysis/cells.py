"""Tables of the report as plain data, which `templates/macros.html` turns into markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.latencies import Latency
from nas_kd.analysis.statistics import Estimate
from nas_kd.analysis.text import MISSING, metric_text, ms_text, range_text
from nas_kd.trials.record import Metric, Split, TrialRecord


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: shown in the cell.
        note: below it in small print.
        badge: a word in a frame behind it.
        trial: number of a trial, linked to its row in the table of all trials, in place of a text.
        is_number: whether it is right-aligned.
        is_code: whether the text is printed as code.
        sort_key: what the column is sorted by, where that is not the text; empty for what is missing.
    """

    text: str = ""
    note: str | None = None
    badge: str | None = None
    trial: int | None = None
    is_number: bool = False
    is_code: bool = False
    sort_key: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A table in a frame that scrolls sideways.

    Attributes:
        headers: one a column.
        rows: cells, one a column.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def is_number(self, column: int) -> bool:
        """Whether a column is one of numbers, so that its header is right-aligned too."""
        return bool(self.rows) and self.rows[0][column].is_number


def badge(record: TrialRecord, front: ParetoFront) -> str | None:
    """`pick` or `front` where the trial is that, else None."""
    if front.pick is not None and record.number == front.pick.number:
        return "pick"
    return "front" if record.number in front.numbers else None


def trial_cell(record: TrialRecord, front: ParetoFront) -> Cell:
    """The link to a front trial, with a badge for the recommended one."""
    return Cell(trial=record.number, badge="pick" if record is front.pick else None)


def number_cell(text: str) -> Cell:
    """A right-aligned cell."""
    return Cell(text, is_number=True)


def latency_cell(latency: Latency | None) -> Cell:
    """`4.1 (3.9 – 4.4)`, in ms; of a stream with the latencies of both kinds of frames as a note."""
    if latency is None:
        return number_cell(MISSING)
    note = None
    if latency.keyframe_ms is not None and latency.delta_ms is not None:
        note = f"key {ms_text(latency.keyframe_ms)}, delta {ms_text(latency.delta_ms)}"
    return Cell(f"{ms_text(latency.ms)} ({latency.text})", note=note, is_number=True)


def score_cell(record: TrialRecord, front: ParetoFront, split: Split, metric: Metric) -> Cell:
    """A metric of a trial at the front's stage, with its interval below where the trial was repeated."""
    value = record.metrics.get(front.stage, {}).get(split, {}).get(metric.name)
    estimate = front.estimate(record, split, metric.name)
    note = None if estimate is None or estimate.interval is None else interval_text(estimate, metric)
    return Cell(metric_text(value, metric), note=note, is_number=True)


def interval_text(estimate: Estimate | None, metric: Metric) -> str:
    """The interval over seeds and their number: `92.1 – 93.4 % (n = 3)`, `none (n = 1)`."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return f"none (n = {estimate.num_values})" if estimate else "none (n = 1)"
    number = f"(n\u00a0=\u00a0{estimate.num_values})"  # stays in one line of a narrow cell
    return f"{range_text(estimate.low, estimate.high, metric)} {number}"


def saving_cell(teacher: TeacherPoint | None, flops: float) -> Cell:
    """How many times cheaper than its teacher a student is."""
    saving = teacher.saving(flops) if teacher else None
    return number_cell(MISSING if saving is None else f"{saving:.3g}×")
