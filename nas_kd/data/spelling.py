"""Names of classes and groups: what can be one, and which of several may be meant as one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

LISTED = 10
"""How many names a message shows before it says how many more there are."""

_JOINERS = "\u200c\u200d"  # invisible, but parts of words in Persian, Hindi and others


def unusable_name(name: str) -> str:
    """What is wrong with the name of a class ("" if nothing)."""
    if not name:
        return "is empty"
    if not name.translate(dict.fromkeys(map(ord, _JOINERS))).isprintable():
        return f"{name[:50]!r} holds a line break or another invisible character"
    return ""


def meant(name: str) -> str:
    """What names that may be meant as one have in common: no case, spaces or form of letters, a number's value."""
    visible = name.translate(dict.fromkeys(map(ord, _JOINERS)))
    text = " ".join(unicodedata.normalize("NFKC", visible).casefold().split())
    if not is_whole(text):
        return text
    # By its digits: as floats, two long numbers such as 9007199254740993 and 9007199254740992 would be one.
    whole = text.partition(".")[0]
    digits = whole.lstrip("+-").lstrip("0") or "0"
    return f"-{digits}" if whole.startswith("-") and digits != "0" else digits


def spellings(names: Iterable[str]) -> list[str]:
    """Names of which several may be meant as one, written side by side."""
    alike: dict[str, dict[str, None]] = {}
    for name in names:
        alike.setdefault(meant(name), {})[name] = None
    return [" and ".join(map(ascii, several)) for several in alike.values() if len(several) > 1]


def with_spellings(names: Iterable[str], known: Iterable[str], where: str) -> list[str]:
    """Names in quotes, with a hint in brackets where one of the known names may be meant.

    Args:
        names: That are not known.
        known: Other names.
        where: Who has those.
    """
    others = {meant(other): other for other in known}
    return [f"{name!r}{_hint(others.get(meant(name)), where)}" for name in names]


def foreign_labels(labels: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """What is wrong with each label that is none of a student's classes.

    Args:
        labels: Of some data.
        names: Of the student's classes.
    """
    foreign = sorted(set(labels).difference(names))
    shown = with_spellings(foreign, names, "the student")
    return {
        name: f"its label {text} is none of the student's classes" for name, text in zip(foreign, shown, strict=True)
    }


def _hint(other: str | None, where: str) -> str:
    return "" if other is None else f" ({where} has {other!r}: write both alike if one class is meant)"


def notes_on_names(lists: Iterable[Sequence[str]], data: str) -> list[str]:
    """A sentence where classes of some data may be meant as one.

    Args:
        lists: Names of classes, such as those of clips and those of boxes.
        data: Name of the data.
    """
    doubles = list(dict.fromkeys(pair for names in lists for pair in spellings(names)))
    if not doubles:
        return []
    return [
        f"warning: classes of {data} that differ in case, spaces, form of their letters or of their number alone are "
        f"classes of their own: {first_of(doubles)}; write them alike unless that is meant"
    ]


def unfit_names(names: Sequence[str]) -> str:
    """What is wrong with a list of names, of which one is unusable or there twice ("" if nothing)."""
    if reasons := [reason for name in names if (reason := unusable_name(name))]:
        return f"one {reasons[0]}"
    twice = [name for name, number in Counter(names).items() if number > 1]
    return f"{twice[0]!r} is listed {names.count(twice[0])} times" if twice else ""


def first_of(names: Sequence[str]) -> str:
    """The first names, and dots where there are more."""
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


def is_whole(label: str) -> bool:
    """Whether a label is a whole number, also as tables write it: 7, -1, 07, 7.0."""
    return re.fullmatch(r"[+-]?[0-9]+(\.0*)?", label) is not None
