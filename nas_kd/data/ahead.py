"""Work done ahead of its use by threads, with a bound on how far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Iterable[T], threads: int, most: int) -> Iterator[R]:
    """`map` in threads; results come in the order of the items, and an error where its item's result would.

    Args:
        function: Applied to each item.
        items: Taken by the thread that iterates.
        threads: How many.
        most: Results that are made or wait at a time, so that they take bounded memory.
    """
    waiting: deque[Future[R]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in source:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
