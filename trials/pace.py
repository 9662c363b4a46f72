"""How long the rest of a campaign takes, from the trials that have ended.

Trials are not alike: an architecture of four times the FLOPs may train four times as long, and the first trials of a
campaign are often its cheapest. So each trial has a `work`, a number that its training time grows with, where that is
known before it runs; and a trial takes `base + rate * work` seconds, with both at least 0, by least squares that keep
the rate small where few trials tell of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nas_kd.trials.record import KnobValue, TrialRecord

Work = Callable[[Mapping[str, KnobValue]], float | None]
"""Knobs of a trial -> what its time grows with, in any unit; None where that is not known, as of a few knobs alone."""
_DOUBT = 0.2  # of the rate, in relative variance of the work: two trials that hardly differ say little of others
_LEAST_SHARE = 0.1  # of a running trial that must be done before its pace says how long it takes


@dataclass(frozen=True)
class Underway:
    """A trial that runs.

    Attributes:
        work: of the trial.
        elapsed_s: since it began, in seconds.
        share: how much of it is done, from 0 to 1; None where it does not say.
        share_before: how much of it was done when it began, as of one that goes on from a checkpoint.
    """

    work: float | None
    elapsed_s: float
    share: float | None = None
    share_before: float = 0.0


class Pace:
    """What is known of the time of trials. It keeps sums, so that a trial more costs nothing."""

    def __init__(self) -> None:
        self._num = 0  # of all trials that ended, and their seconds
        self._seconds = 0.0
        self._fitted = _Sums()  # complete trials of known work, which the line is fitted to
        self._known = _Sums()  # all trials of known work, those that were stopped early among them

    def add(self, seconds: float, work: float | None = None, *, complete: bool = True) -> None:
        """Take in a trial that ended."""
        self._num += 1
        self._seconds += seconds
        if work is not None:
            self._known.add(work, seconds)
            if complete:
                self._fitted.add(work, seconds)

    def seconds(self, work: float | None) -> float | None:
        """Seconds that a trial takes on average, those that are stopped early included; None before any has ended."""
        if not self._num:
            return None
        line = self._fitted.line() if work is not None else None
        if line is None or work is None:
            return self._seconds / self._num
        base, rate = line
        expected = base * self._known.num + rate * self._known.work
        return (base + rate * work) * (self._known.seconds / expected if expected > 0 else 1.0)


class _Sums:
    """Sums over trials, from which a line follows."""

    def __init__(self) -> None:
        self.num, self.work, self.seconds, self._squares, self._products = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, work: float, seconds: float) -> None:
        self.num += 1
        self.work += work
        self.seconds += seconds
        self._squares += work * work
        self._products += work * seconds

    def line(self) -> tuple[float, float] | None:
        """Seconds without work, and seconds for a unit of it; None without two amounts of work."""
        spread = self.num * self._squares - self.work**2
        if spread <= 1e-9 * self.num * self._squares:
            return None
        rate = (self.num * self._products - self.work * self.seconds) / (spread + _DOUBT / self.num * self.work**2)
        rate = min(max(rate, 0.0), self._products / self._squares)  # the latter with nothing beside the work
        return max((self.seconds - rate * self.work) / self.num, 0.0), rate


def ended_pace(records: Sequence[TrialRecord], works: Mapping[int, float]) -> Pace:
    """The pace of trials that have ended.

    Args:
        records: of the trials; those without a time are left out.
        works: number of a trial -> its work, where known.
    """
    pace = Pace()
    for record in records:
        if "total" in record.durations_s:
            pace.add(record.durations_s["total"], works.get(record.number), complete=record.state == "complete")
    return pace


def time_left(
    pace: Pace,
    running: Sequence[Underway],
    queued: Sequence[float],
    num_others: int,
    *,
    mean_work: float | None,
    at_once: int,
) -> float | None:
    """Seconds until the last trial of a campaign ends; None where nothing is known of how long a trial takes.

    Args:
        pace: of the trials that have ended.
        running: those that run. The further one is, the more its own pace counts.
        queued: work of each trial that has not begun, as far as known.
        num_others: how many trials have not begun beside those.
        mean_work: of all trials whose work is known: what the others are taken to have.
        at_once: how many run at a time.
    """
    own = [_own_seconds(each) for each in running]
    told = [seconds for seconds in own if seconds is not None]

    def seconds_of(work: float | None) -> float | None:
        by_pace = pace.seconds(mean_work if work is None else work)
        return by_pace if by_pace is not None else (sum(told) / len(told) if told else None)

    other = seconds_of(None)
    if other is None:
        return None
    left = []
    for each, seconds in zip(running, own, strict=True):
        expected = seconds_of(each.work) or 0.0
        if each.share is None:
            left.append(max(expected - each.elapsed_s, 0.0))
        else:
            by_itself = expected if seconds is None else seconds
            left.append((1 - each.share) * (each.share * by_itself + (1 - each.share) * expected))
    waiting = sum(seconds_of(work) or 0.0 for work in queued) + num_others * other
    return max([(sum(left) + waiting) / at_once, *left])


def _own_seconds(trial: Underway) -> float | None:
    """How long a running trial takes by its own pace; None where too little of it is done."""
    done = 0.0 if trial.share is None else trial.share - trial.share_before
    return trial.elapsed_s / done if done >= _LEAST_SHARE else None
