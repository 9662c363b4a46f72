"""Failed trials by what went wrong.

Equal failures differ in what they name: numbers, hashes, addresses, quoted values, paths. Trials are grouped by the
error without these, and each group is called by the error of its first trial.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nas_kd.analysis.text import error_headline
from nas_kd.trials.record import TrialRecord

NO_TEXT = "no error text"

_VARYING = (
    re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`"),  # quoted values
    re.compile(r"(?:[A-Za-z]:)?(?:[\w.~-]*[/\\])+[\w.~-]*"),  # paths
    re.compile(r"\b0x[0-9a-fA-F]+\b"),  # addresses
    re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{6,}\b"),  # hashes
    re.compile(r"[-+]?\d[\d.,_]*(?:[eE][-+]?\d+)?"),  # numbers
)


def failure_kind(headline: str) -> str:
    """An error in one line with everything that varies between equal failures replaced by `…`."""
    for pattern in _VARYING:
        headline = pattern.sub("…", headline)
    return headline


def failure_groups(records: Sequence[TrialRecord]) -> list[tuple[str, list[TrialRecord]]]:
    """(what went wrong, the trials) for each kind of failure, the most frequent first."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.state == "failed":
            groups.setdefault(failure_kind(error_headline(record.error)), []).append(record)
    ranked = sorted(groups.values(), key=lambda group: -len(group))
    return [(error_headline(group[0].error) or NO_TEXT, group) for group in ranked]
