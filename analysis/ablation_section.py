"""The section of the report on a grid: the table of the ablation, as `nas-kd table` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas_kd.analysis.cells import Cell, Table, number_cell
from nas_kd.analysis.pivot import pivot
from nas_kd.analysis.pivot_text import pivot_lines
from nas_kd.trials.record import Split, TrialRecord


@dataclass(frozen=True)
class AblationSection:
    """Means over trainings by the values of the grid's knobs.

    Attributes:
        title: what is shown.
        table: one row for each combination of the row knobs.
        notes: what a reader must know beside the numbers.
    """

    title: str
    table: Table
    notes: tuple[str, ...]


def ablation_section(records: Sequence[TrialRecord]) -> AblationSection | None:
    """The table of the trained students by the knobs that vary; None where nothing was measured or varies."""
    for split in ("test", "val"):
        made = _section(records, split)
        if made is not None:
            return made
    return None


def _section(records: Sequence[TrialRecord], split: Split) -> AblationSection | None:
    complete = [record for record in records if record.state == "complete"]
    measured = [record for record in complete if record.score(split, "retrained") is not None]
    if len(measured) < 2:
        return None
    try:
        made = pivot(records, metric=f"{split}/{measured[0].metric.name}")
    except ValueError:  # no knob varies
        return None
    (title, headers, lines), *_ = pivot_lines(made)
    knobs = len(made.rows)
    rows = [[Cell(text) for text in line[:knobs]] + [number_cell(text) for text in line[knobs:]] for line in lines]
    return AblationSection(title, Table(headers, rows), made.notes)
