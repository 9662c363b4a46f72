"""What the rows of a table say of its groups, and of what its splits share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nas_kd.data.spelling import first_of, meant, spellings
from nas_kd.data.table import Row


def groups_of(rows: Iterable[Row], column: str | None) -> list[str] | None:
    """The group of each row, where the config names their column; of spellings of one name (`meant`), the first."""
    if column is None:
        return None
    first: dict[str, str] = {}
    return [first.setdefault(meant(row.group), row.group) for row in rows]


def groups_where_given(
    rows: Iterable[Row], column: str | None, table: Sequence[tuple[int, Mapping[str, str]]]
) -> list[str] | None:
    """The group of each row, where the table has the column that the config names."""
    return groups_of(rows, column if column in table[0][1] else None)


def unusable_group(entry: Mapping[str, str], column: str | None) -> str:
    """What is wrong with the group of a row ("" if nothing): an empty one would be the group of all such rows.

    Args:
        entry: Of the csv.
        column: Column of the groups; None without.
    """
    if column is None or entry.get(column) != "":
        return ""
    return f"its {column} is empty, but data.group names that column; give a clip of its own a value of its own"


def shared_groups(groups: Mapping[str, Iterable[str]], column: str, csv_path: Path) -> list[str]:
    """A sentence where splits of a csv share groups, such as windows of one recording: scores are then too good.

    Args:
        groups: Name of a split to the groups of its rows, which may repeat.
        column: Column of the groups.
        csv_path: The csv file.
    """
    found = {split: {meant(name): name for name in names} for split, names in groups.items()}
    sentences = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = [(found[one][key], found[other][key]) for key in sorted(found[one].keys() & found[other].keys())]
        both = [name if name == written else f"{name} as {written}" for name, written in shared]
        if both:
            sentences.append(
                f"warning: {len(both)} values of the column {column} of {csv_path.name} are in {one} and in {other}, "
                f"so scores may be too good: {first_of(both)}"
            )
    return sentences


def notes_on_groups(parts: Mapping[str, Sequence[Row]], column: str | None, csv_path: Path) -> list[str]:
    """Sentences where groups are taken as one although they are not written alike, and where splits share some.

    Args:
        parts: Name of a split to its rows.
        column: Column of the groups; None without, and there are no sentences.
        csv_path: The csv file.
    """
    if column is None:
        return []
    groups = {name: [row.group for row in part] for name, part in parts.items()}
    sentences = []
    if doubles := spellings(itertools.chain(*groups.values())):
        sentences.append(
            f"values of the column {column} of {csv_path.name} that differ in case, spaces, form of their letters or "
            f"of their number alone are taken as one group: {first_of(doubles)}"
        )
    return sentences + shared_groups(groups, column, csv_path)


def shared_contents(contents: Mapping[str, Mapping[str, str]], csv_path: Path) -> list[str]:
    """A sentence where splits of a csv share clips under other names: scores are then too good.

    Args:
        contents: Name of a split to the contents of its rows, by any identity, each with the name of a file.
        csv_path: The csv file.
    """
    sentences = []
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(contents[one].keys() & contents[other].keys(), key=contents[other].__getitem__)
        if both:
            pairs = [f"{contents[other][content]} is {contents[one][content]}" for content in both]
            sentences.append(
                f"warning: {len(both)} files of {csv_path.name} in {other} have the content of files in {one}, so "
                f"scores may be too good: {first_of(pairs)}"
            )
    return sentences
