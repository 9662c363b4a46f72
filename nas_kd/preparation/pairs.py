"""Which modules a campaign compares, and which it leaves out, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nas_kd.objectives import DistillationLoss

Pairs = dict[str, list[tuple[str, str]]]
"""Term of the objective -> (module of the teacher, module of the student) each."""

_LISTED = 6  # pairs in a sentence
_NAMED_LAYERS = 4  # of those that are left out for one reason


def keep_pairs(pairs: Pairs, section: str, objective: DistillationLoss) -> None:
    """Add the pairs of an objective to those that are known, each once.

    Args:
        pairs: of a campaign, changed in place.
        section: of the campaign file that the objective is.
        objective: built for a student or a supernet.
    """
    for term, found in objective.pairs.items():
        known = pairs.setdefault(f"{section}.{term}", [])
        known += [(teacher, student) for student, teacher in found if (teacher, student) not in known]


def describe_left_out_terms(section: str, objective: DistillationLoss) -> list[str]:
    """A sentence for each value that a term of an objective does not add, since it finds nothing to compare.

    Args:
        section: of the campaign file that the objective is.
        objective: built for a student or a supernet.
    """
    return [
        f"{section}.{name} is left out, since {reason}; name modules at {section}.{key} to have it"
        for name, (reason, key) in objective.left_out.items()
    ]


def describe_left_out_layers(left_out: Mapping[str, str]) -> list[str]:
    """The layers that a space leaves as they are, in one line a reason.

    Args:
        left_out: layer -> why.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        shown = ", ".join(names[:_NAMED_LAYERS]) + (f", … ({len(names)})" if len(names) > _NAMED_LAYERS else "")
        lines.append(f"layers left out: {shown}: {reason}")
    return lines


def describe_pairs(pairs: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """A sentence for each set of pairs, with the terms that have it.

    Args:
        pairs: of a campaign.
    """
    terms: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for term, found in pairs.items():
        terms.setdefault(tuple(found), []).append(term)
    sentences = []
    for found, names in terms.items():
        listed = ", ".join(f"{teacher} -> {student}" for teacher, student in found[:_LISTED])
        more = f", … ({len(found)} pairs)" if len(found) > _LISTED else ""
        sentences.append(f"{' and '.join(names)}: module of the teacher -> of the student: {listed}{more}")
    return sentences
