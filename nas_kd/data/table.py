"""The csv file that describes a folder of data: reading it, finding files inside the root, listing what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from nas_kd.data.sample import DataError

SPLITS = ("train", "val", "test")
LISTED = 10
"""How many names a message shows before it says how many more there are."""


class UnusableRowsError(DataError):
    """Rows of the csv that cannot be used, all of them in `problems`; the message shows the first few.

    Args:
        csv_path: The csv file.
        num_rows: Its rows.
        problems: (path, reason) of each unusable one.
        remedy: What the user can do.
    """

    def __init__(
        self,
        csv_path: Path,
        num_rows: int,
        problems: Sequence[tuple[str, str]],
        remedy: str = "mend them, or set on_error: skip to leave them out",
    ) -> None:
        self.problems = tuple(problems)
        shown = "; ".join(f"{printable(path)}: {reason}" for path, reason in problems[:LISTED])
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        super().__init__(
            f"every row of {csv_path} must be usable, but {len(problems)} of {num_rows} are not ({remedy}): "
            f"{shown}{more}"
        )


def read_csv(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line number and texts of each row; blank lines are no rows.

    Raises:
        DataError: The file cannot be read, lacks a column of `needed`, or has no row.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            columns = reader.fieldnames or []
            table = [
                (reader.line_num, {key: value.strip() for key, value in row.items() if isinstance(value, str)})
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"labels must be a readable csv file in UTF-8, but {path} gave: {getattr(error, 'strerror', None) or error}"
        ) from error
    absent = [name for name in needed if name not in columns]
    if absent:
        raise DataError(
            f"{path} must have the columns {','.join(needed)}, but it lacks {', '.join(absent)} "
            f"(its first line reads {','.join(columns) or 'nothing'})"
        )
    if not table:
        raise DataError(f"{path} must list at least one clip, but it has no row below its header")
    return table


def locate(root: Path, name: str) -> tuple[Path, str]:
    """The file that a cell of the csv names, and what is wrong with it ("" if nothing).

    Args:
        root: The folder that no path may leave, resolved.
        name: Text of the cell.
    """
    try:
        path = (root / name).resolve()
        if not name:
            return path, "the path is empty"
        if not path.is_relative_to(root):
            return path, "the path leaves the root"
        return path, "" if path.exists() else "no such file"
    except (OSError, ValueError) as error:  # a name that no file can have, a folder that may not be read
        return root, f"the path cannot be read ({getattr(error, 'strerror', None) or error})"


def printable(text: str) -> str:
    """Control characters escaped, so that a hostile name cannot break the message up."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
