"""The front and the trials in further formats: pictures for papers, Markdown and LaTeX tables, Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Literal, get_args

import pandas as pd
from matplotlib.figure import Figure

from nas_kd.analysis.cells import Cell, Table
from nas_kd.analysis.figures import printable, write_picture
from nas_kd.analysis.pivot_text import markdown_line

ReportFormat = Literal["svg", "pdf", "parquet", "markdown", "latex"]

_MAX_CELL = 200  # characters
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "λ": r"$\lambda$",
    "…": r"\dots{}",
}


def check_formats(formats: Sequence[str]) -> None:
    """Refuse a format that there is not.

    Raises:
        ValueError: it names the formats that there are.
    """
    for name in formats:
        if name not in get_args(ReportFormat):
            raise ValueError(
                f"further formats of a report are {', '.join(get_args(ReportFormat))}, but got {name!r}; HTML, CSV and "
                "PNG are always written"
            )


def write_formats(
    formats: Sequence[str],
    folder: Path,
    *,
    figure: Figure,
    trials: pd.DataFrame,
    front: Table | None,
    commands: Sequence[str],
) -> tuple[Path, ...]:
    """Write `front.svg`, `front.pdf`, `front.md`, `front.tex`, `trials.parquet`, those of them that are asked for.

    Args:
        formats: names of `ReportFormat`.
        folder: of the report.
        figure: of the front.
        trials: the table of all trials.
        front: that of the front, as the page shows it; None where there is no front, which has no table then.
        commands: by which each row of it is reproduced, below the table in Markdown.

    Returns:
        The paths, in the order of the names.
    """
    paths = []
    for name in dict.fromkeys(formats):
        if name in ("svg", "pdf"):
            path = folder / f"front.{name}"
            write_picture(figure, path)
        elif name == "parquet":
            path = folder / "trials.parquet"
            write_parquet(trials, path)
        elif front is None:
            continue
        elif name == "markdown":
            path = folder / "front.md"
            path.write_text(
                table_markdown(front) + _commands_markdown(commands), encoding="utf-8", errors="backslashreplace"
            )
        else:
            path = folder / "front.tex"
            path.write_text(table_latex(front), encoding="utf-8", errors="backslashreplace")
        paths.append(path)
    return tuple(paths)


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet; a column of several types, as of a knob that changed its type, becomes text."""
    kept = table.copy()
    for name in kept.columns:
        values = kept[name].dropna()
        if kept[name].dtype == object and len({type(value) for value in values}) > 1:
            kept[name] = [None if pd.isna(value) else str(value) for value in kept[name]]
    kept.columns = [str(name) for name in kept.columns]
    kept.to_parquet(path, index=False)


def table_markdown(table: Table) -> str:
    """A table of the page in Markdown, numbers to the right, small print in parentheses."""
    lines = [markdown_line(table.headers)]
    lines.append("|" + "|".join("---:" if table.is_number(i) else "---" for i in range(len(table.headers))) + "|")
    lines += [markdown_line([_text(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines) + "\n"


def _commands_markdown(commands: Sequence[str]) -> str:
    """Commands as a block of code; nothing without any."""
    if not commands:
        return ""
    return "\nRun a trial again, and compare it with its record:\n\n" + indent("\n".join(commands), "    ") + "\n"


def table_latex(table: Table) -> str:
    """A table of the page in LaTeX, for the package booktabs."""
    columns = "".join("r" if table.is_number(i) else "l" for i in range(len(table.headers)))
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_line(table.headers),
        r"\midrule",
        *(_latex_line([_text(cell) for cell in row]) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _text(cell: Cell) -> str:
    words = [
        cell.text if cell.trial is None else str(cell.trial),
        cell.badge or "",
        f"({cell.note})" if cell.note else "",
    ]
    return printable(" ".join(word for word in words if word), _MAX_CELL)


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(char, char) for char in cell) for cell in cells) + r" \\"
