"""How far a metric may be from what other clips and other trainings would give.

Two sources are known: the interval over the items of a split (`TrialRecord.evaluated`), and the spread over trainings
with different seeds (`TrialRecord.repeats`). They are independent, so the distances from the value to the ends of both
intervals are added in quadrature, on either side (method of variance estimates recovery).

References:
    Zou, G. Y. and Donner, A. (2008). Construction of confidence limits about effect measures: a general approach.
        Statistics in Medicine 27(10), 1693-1702.  (MOVER)
    Blom, G. (1958). Statistical estimates and transformed beta variables. Wiley.  (expected largest of N normal values)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from nas_kd.analysis.statistics import seed_estimate
from nas_kd.analysis.text import count
from nas_kd.trials.record import Evaluated, Split, Stage, TrialRecord

Z_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Uncertain:
    """A value with its 95 % interval.

    Attributes:
        value: of the metric.
        low: lower end.
        high: upper end.
        num_items: items that it was measured on; None where the interval does not cover them.
        num_seeds: trainings that it is the mean of; None where the interval does not cover them.
        views: of each item, whose outputs were averaged.
        num_groups: groups that the items come from; None where they are independent.
    """

    value: float
    low: float
    high: float
    num_items: int | None = None
    num_seeds: int | None = None
    views: int = 1
    num_groups: int | None = None

    @property
    def standard_error(self) -> float:
        """Half of the interval over 1.96."""
        return (self.high - self.low) / (2 * Z_95)

    @property
    def basis(self) -> str:
        """What it rests on, in words: `384 clips and 3 seeds`."""
        parts = []
        if self.num_items is not None:
            of_each = f" in {self.views} views each" if self.views > 1 else ""
            of_groups = "" if self.num_groups is None else f" of {count(self.num_groups, 'group')}"
            parts.append(count(self.num_items, "clip") + of_groups + of_each)
        if self.num_seeds is not None:
            parts.append(count(self.num_seeds, "seed"))
        return " and ".join(parts)

    def beats(self, level: float, *, maximize: bool) -> bool:
        """Whether the whole interval is on the better side of a level."""
        return self.low > level if maximize else self.high < level

    def minus(self, other: Uncertain) -> tuple[float, float]:
        """The 95 % interval of the difference, as of independent samples.

        Students that are measured on the same clips vary together, so their true interval is narrower.
        """
        difference = self.value - other.value
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return difference - below, difference + above

    def is_apart_from(self, other: Uncertain) -> bool:
        """Whether the interval of the difference leaves out zero."""
        low, high = self.minus(other)
        return low > 0 or high < 0


def uncertainty(record: TrialRecord, split: Split = "val", stage: Stage = "retrained") -> Uncertain | None:
    """The primary metric with the interval over items and seeds, as far as they are known; None where neither is."""
    value = record.score(split, stage)
    if value is None:
        return None
    items = record.evaluated.get(split) if stage == "retrained" else None
    of_items = None if items is None or items.low is None or items.high is None else (items.low, items.high)
    seeds = seed_estimate(record, split, stage)
    of_seeds = None if seeds is None else seeds.interval
    known = [interval for interval in (of_items, of_seeds) if interval is not None]
    if not known:
        return None
    rests = items if of_items is not None else None
    return Uncertain(
        value=value,
        low=value - math.hypot(*(value - low for low, _ in known)),
        high=value + math.hypot(*(high - value for _, high in known)),
        num_items=None if rests is None else rests.num_items,
        num_groups=None if rests is None else rests.num_groups,
        views=1 if rests is None else rests.views,
        num_seeds=seeds.num_values if seeds is not None and of_seeds is not None else None,
    )


def trivial_level(evaluated: Evaluated | None, *, maximize: bool) -> tuple[float, str] | None:
    """The primary metric of the better of two nets that look at nothing, and what that net does.

    None where neither is known.
    """
    if evaluated is None:
        return None
    known = [
        (value, words)
        for value, words in (
            (evaluated.majority, "always giving the most frequent answer"),
            (evaluated.chance, "guessing"),
        )
        if value is not None
    ]
    if not known:
        return None
    return max(known) if maximize else min(known)


def optimism_of_the_best(number: int, standard_error: float) -> float:
    """By how much the best of so many equally good students is expected to look better than it is.

    Args:
        number: of students, at least 1.
        standard_error: of the value of one.
    """
    if number < 2:
        return 0.0
    return standard_error * NormalDist().inv_cdf((number - 0.375) / (number + 0.25))
