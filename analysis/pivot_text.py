"""A table of ablations printed on a terminal, as markdown, and as CSV."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nas_kd.analysis.pivot import Key, PivotCell, PivotTable, assignments, value_text
from nas_kd.analysis.statistics import Estimate
from nas_kd.analysis.table import write_csv
from nas_kd.analysis.text import MISSING, in_percent

MOST_DECIMALS = 6  # smaller intervals are printed with four significant digits
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&])")


def pivot_rich(table: PivotTable) -> Group:
    """The table for a terminal, with its differences and notes. Text of knobs is shown as it is, without markup."""
    parts: list[Table | Padding | Text] = []
    for title, differences in _parts(table):
        grid = Table()
        for name in table.rows:
            grid.add_column(Text(_plain(name)))
        for header in _headers(table):
            grid.add_column(Text(header), justify="right")
        for line in _lines(table, differences=differences):
            grid.add_row(*(Text(text) for text in line))
        parts += [Text(title, style="bold"), grid]
    parts += [Padding(Text(_plain(note)), (0, 0, 0, 1)) for note in table.notes]
    return Group(*parts)


def pivot_markdown(table: PivotTable) -> str:
    """The table in GitHub's markdown, with its differences and notes; text of knobs is escaped."""
    lines: list[str] = []
    for title, differences in _parts(table):
        names = [_plain(name) for name in table.rows]
        lines += [f"**{escape_markdown(title)}**", ""]
        lines.append(markdown_line([*names, *_headers(table)]))
        lines.append("|" + "---|" * len(names) + "---:|" * len(table.column_keys))
        lines += [markdown_line(line) for line in _lines(table, differences=differences)]
        lines.append("")
    lines += [f"- {escape_markdown(note)}" for note in table.notes]
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Text that shows as it is in a cell of a table: on one line, and nothing of it is markup or HTML."""
    return _SPECIAL.sub(r"\\\1", _plain(text))


def pivot_lines(table: PivotTable) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, headers, lines) of each table to show: the means, and with a baseline the differences."""
    headers = [*map(_plain, table.rows), *_headers(table)]
    return [(title, headers, _lines(table, differences=differences)) for title, differences in _parts(table)]


def pivot_frame(table: PivotTable) -> pd.DataFrame:
    """One row a cell that was measured, numbers in the metric's own unit: shares, not percent.

    Columns: `knobs.NAME` for those of rows and columns, `metric`, `split`, `stage`, `n`, `mean`, `std`, `low` and
    `high` (of the 95 % interval), `flops`, `trials` (numbers, separated by spaces), `values` (a JSON list); with a
    baseline also `difference`, `difference_low`, `difference_high`, `pairing` (paired, unpaired, baseline or none).
    """
    keys = product(table.row_keys, table.column_keys)
    return pd.DataFrame([_record(table, table.cells[key]) for key in keys if key in table.cells])


def write_pivot(table: PivotTable, folder: Path | str) -> tuple[Path, Path]:
    """Write `table.md` and `table.csv`.

    Returns:
        Both paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text, values = folder / "table.md", folder / "table.csv"
    text.write_text(pivot_markdown(table), encoding="utf-8", errors="backslashreplace")
    write_csv(pivot_frame(table), values)
    return text, values


def _record(table: PivotTable, cell: PivotCell) -> dict[str, object]:
    knobs = zip((*table.rows, *table.columns), (*cell.row, *cell.column), strict=True)
    known = cell.estimate
    record: dict[str, object] = {
        _spelt(f"knobs.{name}"): _spelt(value) if isinstance(value, str) else value for name, value in knobs
    }
    record |= {"metric": table.metric.name, "split": table.split, "stage": table.stage}
    record |= {"n": known.num_values, "mean": known.mean, "std": known.std, "low": known.low, "high": known.high}
    record |= {"flops": cell.flops, "trials": " ".join(map(str, cell.trials))}
    record["values"] = json.dumps(cell.values)
    if table.against:
        difference = cell.difference
        record |= {
            "difference": difference.mean if difference else None,
            "difference_low": difference.low if difference else None,
            "difference_high": difference.high if difference else None,
            "pairing": "baseline" if cell.is_baseline else cell.pairing,
        }
    return record


def _parts(table: PivotTable) -> list[tuple[str, bool]]:
    """Titles of the tables to show, and whether each is of differences."""
    unit = ", in %" if _in_percent(table) else ""
    better = "" if table.metric.maximize else "; less is better"
    what = _plain(f"{table.metric.name} on {table.split}, {table.stage} student{unit}{better}")
    if not table.against:
        return [(what, False)]
    points = ", in points" if unit else ""
    return [(what, False), (_plain(f"difference of {table.metric.name} to {assignments(table.against)}{points}"), True)]


def _in_percent(table: PivotTable) -> bool:
    return in_percent(table.metric) and all(abs(v) <= 1 for cell in table.cells.values() for v in cell.values)


def _headers(table: PivotTable) -> list[str]:
    if not table.columns:
        return [_plain(table.metric.name)]
    return [_plain(assignments(dict(zip(table.columns, key, strict=True)))) for key in table.column_keys]


def _lines(table: PivotTable, *, differences: bool) -> list[list[str]]:
    percent = _in_percent(table)
    vary = len({cell.estimate.num_values for cell in table.cells.values()}) > 1

    def shown(row: Key, column: Key) -> str:
        cell = table.cells.get((row, column))
        if cell is None:
            return MISSING
        if not differences:
            number = f" (n = {cell.estimate.num_values})" if vary else ""
            return _estimate(cell.estimate, percent, sign="") + number
        if cell.is_baseline:
            return "baseline"
        if cell.difference is None:
            return MISSING
        return _estimate(cell.difference, percent, sign="+") + ("*" if cell.pairing == "unpaired" else "")

    return [
        [*(_plain(value_text(value)) for value in row), *(shown(row, column) for column in table.column_keys)]
        for row in table.row_keys
    ]


def _estimate(estimate: Estimate, percent: bool, *, sign: str) -> str:
    """`73.10 ± 0.42`: hundredths of a percent, or as many decimals as two digits of the interval have."""
    scale = 100 if percent else 1
    low, high = estimate.interval or (0.0, 0.0)
    half = (high - low) / 2 * scale
    decimals = -1
    if percent:
        decimals = 2
    elif half > 0:
        decimals = 1 - math.floor(math.log10(half))
    style = f".{decimals}f" if 0 <= decimals <= MOST_DECIMALS else ".4g"
    text = f"{estimate.mean * scale:{sign}{style}}"
    if estimate.interval is not None:
        text += f" ± {half:{style}}"
    return text.replace("-", "−") if "e" not in text else text


def _plain(text: str) -> str:
    """Text on one line: what does not print becomes a space, and what UTF-8 cannot hold is spelt out."""
    return "".join(letter if letter.isprintable() else " " for letter in _spelt(text))


def _spelt(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def markdown_line(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"
