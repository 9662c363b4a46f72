"""What long work calls: how far it is, and what it decided."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[float, str], None]
"""(share done from 0 to 1, a few words)."""

Note = Callable[[str], None]
"""(a sentence on a decision or a doubt)."""


def no_progress(fraction: float, message: str) -> None:
    """Shows nothing."""


def no_note(text: str) -> None:
    """Says nothing."""
