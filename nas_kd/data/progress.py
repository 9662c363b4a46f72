"""Progress of long work on data: a bar on a terminal, a line now and then elsewhere (log files, batch systems)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

_EVERY_S = 30.0


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with their progress on the standard error: a bar that goes away at the end, or lines.

    Args:
        items: What is worked through.
        what: Words before the number, such as "reading features".
        total: How many there are.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _with_lines(items, what, total)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total)


def _with_lines(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items; a line at the start, at the end, and every half a minute."""
    begin = told = time.monotonic()
    print(f"{what}: {total} to do", file=sys.stderr, flush=True)
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - told > _EVERY_S and done < total:
            left = (now - begin) / done * (total - done)
            print(f"{what}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            told = now
    print(f"{what}: {done} of {total} in {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)
