"""What the labels of a table say of its classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nas_kd.data.sample import DataError
from nas_kd.data.spelling import first_of, is_whole, meant, unusable_name, with_spellings

_MISSING = {"nan", "none", "null", "na", "n/a"}  # as programs write a missing value


def unusable_label(label: str) -> str:
    """What is wrong with a label ("" if nothing)."""
    reason = unusable_name(label)
    return f"the label {reason}{' (is a quote not closed?)' if label else ''}" if reason else ""


def other_labels(rows: Iterable[tuple[str, str, str]], csv_path: Path) -> list[str]:
    """A sentence where clips of one content have different labels.

    Args:
        rows: Content of each row, by any identity, its label, and the name of its file.
        csv_path: The csv file.
    """
    first: dict[str, tuple[str, str]] = {}
    pairs = []
    for content, label, name in rows:
        known_label, known_name = first.setdefault(content, (label, name))
        if known_label != label:
            pairs.append(f"{known_name} is {known_label!r} and {name} {label!r}")
    if not pairs:
        return []
    return [
        f"warning: {len(pairs)} files of {csv_path.name} have the content of another with another label: "
        f"{first_of(pairs)}; mend or remove one of both"
    ]


def doubtful_labels(names: Sequence[str], csv_path: Path) -> list[str]:
    """Sentences on labels that may be meant as a number, or as no label.

    Args:
        names: Labels that are classes of their own.
        csv_path: The csv file.
    """
    sentences = []
    if any(map(_is_fraction, names)) and all(_is_fraction(name) or is_whole(name) for name in names):
        sentences.append(
            f"warning: labels of {csv_path.name} are numbers with fractions, each of which is taken as a class; to "
            "learn numbers, write a task of your own on data of your own (docs/extending.md)"
        )
    if missing := [name for name in names if meant(name) in _MISSING]:
        sentences.append(
            f"warning: {', '.join(map(repr, missing))} is a class of {csv_path.name}, but may stand for a missing "
            "label; remove such rows unless it is meant"
        )
    return sentences


def class_names(
    labels: Mapping[str, Iterable[str]],
    csv_path: Path,
    what: str,
    given: Sequence[str] | None = None,
    notes: list[str] | None = None,
) -> list[str]:
    """The classes by index: those given, or those of the training split in the order of `sort_labels`.

    Args:
        labels: Name of a split to the names of its classes, which may repeat.
        csv_path: The csv file.
        what: What several rows are called.
        given: All classes by index, where the campaign file lists them; some may have no row.
        notes: Gets a sentence where numbers in the csv are not the numbers of the classes.

    Raises:
        DataError: A split has a class that is not listed, or val or test one that the training split lacks.
    """
    found = set(labels["train"])
    if given is not None:
        unlisted = sort_labels({name for part in labels.values() for name in part} - set(given))
        if unlisted:
            raise DataError(
                f"data.classes must list every label of {csv_path}, but it lacks "
                f"{first_of(with_spellings(unlisted, given, 'it'))}; add them at the index that the teacher's outputs "
                "have"
            )
    names = sort_labels(found) if given is None else list(given)
    numbers = [float(name) for name in names] if all(map(is_whole, names)) else []
    if given is None and notes is not None and numbers and numbers != list(range(len(names))):
        notes.append(
            f"labels of {csv_path.name} are whole numbers but not 0 to {len(names) - 1}: {names[0]!r} is class 0 and "
            f"{names[-1]!r} class {len(names) - 1}; list all classes as data.classes where a teacher counts otherwise"
        )
    if given is None and notes is not None:
        notes += doubtful_labels(names, csv_path)
    absent = [name for name in names if name not in found]
    if absent and notes is not None:
        notes.append(f"{len(absent)} of {len(names)} classes have no training {what}: {first_of(absent)}")
    for split in ("val", "test"):
        unseen = sort_labels(set(labels[split]) - found)
        if unseen:
            shown = first_of(with_spellings(unseen, found, "train"))
            raise DataError(
                f"each class must have training {what}, but {csv_path} has {shown} in {split} only; add training "
                f"rows for them or remove the {split} rows"
                + ("" if not any(map(_is_fraction, unseen)) else ", or, to learn numbers, write a task of your own")
            )
    if len(names) < 2:
        raise DataError(f"{what} must be of at least 2 classes, but all in {csv_path} are {names[0]!r}; add others")
    return names


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Labels in the order of their classes: by value where all are whole numbers (2 before 10), else by text."""
    names = sorted(labels)
    return sorted(names, key=float) if all(map(is_whole, names)) else names


def _is_fraction(label: str) -> bool:
    """Whether a label is a number that is not whole."""
    return re.fullmatch(r"[+-]?[0-9]*\.[0-9]*[1-9][0-9]*([eE][+-]?[0-9]+)?", label) is not None
