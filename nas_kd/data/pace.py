"""How fast batches are read beside how fast a training uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

WARM_UP = 2
"""Batches at the start that do not count."""
COUNTED = 8
"""Batches after them over which is averaged."""
_NOTABLE = 0.1  # share of the time that a training waits for batches
_HIDDEN = 0.95  # share of the time of reading beyond which a training waits for all of it


@dataclass(frozen=True)
class Pace:
    """Of the first batches of a training.

    Attributes:
        read_per_s: items a second that are read where nothing waits.
        step_s: seconds of a training step, without waiting for its batch.
        batch_size: items of a step.
        waiting: share of the time that the training waited for batches, in [0, 1].
        is_ahead: whether batches are read while a step runs.
    """

    read_per_s: float
    step_s: float
    batch_size: int
    waiting: float
    is_ahead: bool

    def describe(self, hint: str) -> str:
        """One sentence.

        Args:
            hint: What to do where reading is the bottleneck.
        """
        used = self.batch_size / max(self.step_s, 1e-9)
        text = (
            f"reading: {self.read_per_s:,.0f} items a second; a training step of {self.batch_size} items takes "
            f"{self.step_s * 1e3:.3g} ms, so it uses {used:,.0f} items a second"
        )
        keeps_up = self.is_ahead and self.read_per_s >= used
        if self.waiting < _NOTABLE:
            # What was read before the training began hides it for a while.
            is_slow = self.is_ahead and self.read_per_s < (1 - _NOTABLE) * used
            return f"{text}, which reading does not keep up with: {hint}" if is_slow else text
        waits = f"waits for data for {self.waiting:.0%} of the time"
        if keeps_up:
            return f"{text}; it {waits} all the same, since batches take unequally long or the machine does other work"
        return f"{text}, and {waits}: {hint}"


class PaceMeter:
    """Adds up the first batches of a training, then reports once.

    Args:
        report: Gets the result.
        readers: Threads or processes that read.
    """

    def __init__(self, report: Callable[[Pace], None], readers: int) -> None:
        self._report = report
        self._readers = readers
        self._seen = 0
        self._items = 0
        self._read_s = self._wait_s = self._step_s = 0.0

    @property
    def is_done(self) -> bool:
        """Whether it has reported."""
        return self._seen == WARM_UP + COUNTED

    def add(self, items: int, read_s: float, wait_s: float, step_s: float) -> None:
        """Add one batch.

        Args:
            items: In the batch.
            read_s: Seconds that reading took, where it was read.
            wait_s: Seconds that the training waited for it.
            step_s: Seconds from then until the training asked for the next one.
        """
        if self.is_done:
            return
        self._seen += 1
        if self._seen > WARM_UP:
            self._items += items
            self._read_s += read_s
            self._wait_s += wait_s
            self._step_s += step_s
        if self.is_done:
            self._report(
                Pace(
                    read_per_s=self._readers * self._items / max(self._read_s, 1e-9),
                    step_s=self._step_s / COUNTED,
                    batch_size=round(self._items / COUNTED),
                    waiting=self._wait_s / max(self._wait_s + self._step_s, 1e-9),
                    is_ahead=self._wait_s < _HIDDEN * self._read_s,
                )
            )
