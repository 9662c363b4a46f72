"""Progress of long work on data: a bar on a terminal, a line now and then elsewhere (log files, batch systems)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

_EVERY_S = 30.0


def track(items: Iterable[T], what: str, total: int, detail: Callable[[], str] = lambda: "") -> Iterator[T]:
    """The items, with their progress on the standard error: a bar that goes away at the end, or lines.

    Args:
        items: What is worked through.
        what: Words before the number, such as "reading features".
        total: How many there are.
        detail: Words on the state of the work, beside the number a second.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _with_lines(items, what, total, detail)
        return
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, state="")
        begin = time.monotonic()
        for done, item in enumerate(items, start=1):
            progress.update(task, completed=done, state=_state(done, time.monotonic() - begin, detail()))
            yield item


def _with_lines(items: Iterable[T], what: str, total: int, detail: Callable[[], str]) -> Iterator[T]:
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
            state = _state(done, now - begin, detail())
            print(f"{what}: {done} of {total}, {state}, about {left:.0f} s left", file=sys.stderr, flush=True)
            told = now
    seconds = time.monotonic() - begin
    print(
        f"{what}: {done} of {total} in {seconds:.1f} s, {_state(done, seconds, detail())}", file=sys.stderr, flush=True
    )


def _state(done: int, seconds: float, detail: str) -> str:
    rate = f"{done / max(seconds, 1e-9):.3g} a second"
    return f"{rate}, {detail}" if detail else rate
