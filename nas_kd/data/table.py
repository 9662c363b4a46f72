"""The csv or Parquet file that describes a folder of data: reading it, finding files inside the root, listing what is
wrong. What its rows say of classes and groups: `table_classes`, `table_groups`.
"""

from __future__ import annotations

import csv
import functools
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from nas_kd.data.files import encoding_of
from nas_kd.data.sample import DataError
from nas_kd.data.spelling import LISTED

SPLITS = ("train", "val", "test")


class Row(Protocol):
    """What is asked of a row."""

    @property
    def split(self) -> str: ...

    @property
    def group(self) -> str: ...


RowT = TypeVar("RowT", bound=Row)


class UnusableRowsError(DataError):
    """Rows of a csv or records that cannot be used, all of them in `problems`; the message shows the first few.

    Args:
        csv_path: The csv file, or the folder of the records.
        num_rows: Its rows.
        problems: (path, reason) of each unusable one.
        remedy: What the user can do.
        what: What a row is called.
    """

    def __init__(
        self,
        csv_path: Path,
        num_rows: int,
        problems: Sequence[tuple[str, str]],
        remedy: str = "mend them, or set on_error: skip to leave them out",
        what: str = "row",
    ) -> None:
        self.problems = tuple(problems)
        shown = "; ".join(f"{printable(path)}: {reason}" for path, reason in problems[:LISTED])
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        super().__init__(
            f"every {what} of {csv_path} must be usable, but {len(problems)} of {num_rows} are not ({remedy}): "
            f"{shown}{more}"
        )


def read_table(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """Number and texts of each row of a csv file or, where it is called .parquet, of a Parquet file.

    Args:
        path: The file.
        needed: Columns that are read.
        optional: Columns that are read where they are there.

    Returns:
        The line of each row in a csv file, of which blank lines are no rows, or its number from 1 in a Parquet file;
        and its text in each column that is read, empty where a cell is.

    Raises:
        DataError: The file cannot be read, lacks a column of `needed`, or has no row.
    """
    read = (*needed, *optional)
    columns, table = (_parquet if path.suffix.lower() == ".parquet" else _csv)(path, read)
    absent = [name for name in needed if name not in columns]
    if absent:
        raise DataError(
            f"{path} must have the columns {','.join(needed)}, but it lacks {', '.join(absent)} "
            f"(its first line reads {printable(','.join(columns))[:200] or 'nothing'}){_way_out(columns, absent)}"
        )
    twice = [name for name in read if columns.count(name) > 1]
    if twice:
        raise DataError(
            f"each column of {path} must have a name of its own, but {twice[0]!r} is there twice; rename one"
        )
    if not table:
        raise DataError(f"{path} must list at least one clip, but it has no row below its header")
    return table


def _csv(path: Path, needed: Sequence[str]) -> tuple[Sequence[str], list[tuple[int, dict[str, str]]]]:
    """Names of the columns, and the rows."""
    try:
        with path.open(newline="", encoding=encoding_of(path)) as file:
            reader = csv.reader(file, skipinitialspace=True)  # else quotes after a space belong to the value
            columns = [name.strip() for name in next(reader, [])]
            places = [(name, columns.index(name)) for name in needed if name in columns]
            table = []
            for cells in reader:
                # Where no column is there, the header is what is wrong.
                if places and len(cells) > len(columns) and any(cells[len(columns) :]):
                    raise DataError(
                        f"line {reader.line_num} of {path} has {len(cells)} cells, but its header has {len(columns)}; "
                        "put a value that has a comma into double quotes"
                    )
                if cells:
                    texts = [(name, cells[place].strip() if place < len(cells) else "") for name, place in places]
                    table.append((reader.line_num, dict(texts)))
            return columns, table
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(
            f"labels must be a readable csv file in UTF-8, but {path} gave: {getattr(error, 'strerror', None) or error}"
            f"{'; save it as CSV UTF-8, with commas' if isinstance(error, UnicodeError) else ''}"
        ) from error


def _parquet(path: Path, needed: Sequence[str]) -> tuple[Sequence[str], list[tuple[int, dict[str, str]]]]:
    """Names of the columns, and the rows."""
    import pyarrow as pa  # here: it takes a while that users of csv files need not wait
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
        wanted = [name for name in needed if name in columns]
        texts = [[_text(cell, path) for cell in column] for column in _columns(path, wanted)]
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"labels must be a readable csv or Parquet file, but {path} gave: "
            f"{getattr(error, 'strerror', None) or ' '.join(str(error).split())}"
        ) from error
    rows = zip(*texts, strict=True)
    return columns, [(number, dict(zip(wanted, row, strict=True))) for number, row in enumerate(rows, start=1)]


def _way_out(columns: Sequence[str], absent: Sequence[str]) -> str:
    """What may be wrong with a header that lacks columns; "" if nothing is known."""
    if any("\0" in name for name in columns):
        return "; it looks like UTF-16, save it as CSV UTF-8"
    if len(columns) == 1 and (marks := [mark for mark in (";", "\t", "|") if mark in columns[0]]):
        return f"; separate columns by commas, not by {marks[0]!r}"
    if {name.lower() for name in columns} >= set(absent):
        return "; write their names in lower case"
    return ""


def _text(cell: object, path: Path) -> str:
    """Text of a cell of a Parquet file; "" of a missing one.

    Raises:
        DataError: It is neither text nor a number.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bytes):
        return cell.decode(errors="replace").strip()
    if not isinstance(cell, str | int | float):
        raise DataError(
            f"the cells of {path} must be text or numbers, but one is a {type(cell).__name__}, {str(cell)[:50]}; write "
            "its value as text (several classes of one item as a;b, see the source features)"
        )
    return str(cell).strip()


def _columns(path: Path, names: Sequence[str]) -> list[list[object]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(names))
    return [table.column(name).to_pylist() for name in names]


def labelled_rows(
    path: Path, columns: Sequence[str], split: str | None, optional: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """The rows of one split of a csv that a student is measured on, or all rows of one without the column `split`.

    Args:
        path: The csv file.
        columns: That are needed beside `split`.
        split: Which rows are read; None reads all, as those of `test`.
        optional: As for `read_table`.

    Raises:
        DataError: The csv cannot be used, or has no such row.
    """
    table = read_table(path, columns if split is None else (*columns, "split"), optional)
    rows = [(line, {**entry, "split": split or "test"}) for line, entry in table if entry.get("split") == split]
    if not rows:
        raise DataError(f"{path} must have rows with split={split}, but it has none")
    return rows


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
            return path, "the path leaves the root; set data.root to a folder above both, or copy the file"
        if path.is_file() or path.is_dir():
            return path, ""
        # A pipe would be waited for without end.
        return path, "it is neither a file nor a folder" if path.exists() else f"no such file{_hint(root, name)}"
    except (OSError, ValueError) as error:  # a name that no file can have, a folder that may not be read
        return root, f"the path cannot be read ({getattr(error, 'strerror', None) or error})"
    except RuntimeError:  # of Python before 3.13
        return root, "the path cannot be read (its links lead in a circle)"


def _hint(root: Path, name: str) -> str:
    """What may be wrong with a path that leads nowhere; "" if nothing is known."""
    if "://" in name:
        return ", as addresses are not fetched; download it and name the file"
    if "\\" in name:
        return "; write / between folders, not \\, and paths relative to data.root"
    if name.startswith("~"):
        return "; write paths relative to data.root"
    if (root / name).is_symlink():
        return ", as the link leads nowhere"
    found = _names_in((root / name).parent).get(_alike(Path(name).name), "")
    return f", but there is {printable(found)} (names must agree in each character)" if found else ""


@functools.lru_cache(maxsize=16)
def _names_in(folder: Path) -> Mapping[str, str]:
    """The files of a folder by what names that are alike have in common, also without their extension."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return {}
    return {**{_alike(Path(name).stem): name for name in names}, **{_alike(name): name for name in names}}


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def unknown_split(split: str) -> str:
    """What is wrong with a split that is none of `SPLITS`."""
    return f"unknown split {split!r}; choose from {', '.join(SPLITS)}"


def by_split(rows: Iterable[RowT], csv_path: Path, num_problems: int, what: str) -> dict[str, list[RowT]]:
    """The usable rows of each split.

    Args:
        rows: Usable rows; their order is kept.
        csv_path: The csv file.
        num_problems: How many of its rows are unusable.
        what: What one row is called.

    Raises:
        DataError: There is none for training or none for the test.
    """
    parts: dict[str, list[RowT]] = {name: [] for name in SPLITS}
    for row in rows:
        parts[row.split].append(row)
    for name in ("train", "test"):
        if not parts[name]:
            raise DataError(
                f"the split {name!r} must hold at least one usable {what}, but {csv_path} gives it none "
                f"({num_problems} rows are unusable); add rows with split={name}"
            )
    return parts


def printable(text: str) -> str:
    """Control characters escaped, so that a hostile name cannot break the message up."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
