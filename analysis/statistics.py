"""What repeated runs can and cannot say: intervals over seeds, paired differences, rank correlation of stages.

One run gives no interval. Functions here say None for what the data cannot tell, never zero.

References:
    Student (1908). The probable error of a mean. Biometrika 6(1), 1-25.
    Efron, B. and Tibshirani, R. (1993). An Introduction to the Bootstrap. Chapman and Hall, chapter 13 (percentile
        interval).
    Kendall, M. G. (1945). The treatment of ties in ranking problems. Biometrika 33(3), 239-251.  (tau-b)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats

from trials.record import Split, Stage, TrialRecord

IntervalMethod: TypeAlias = Literal["t", "bootstrap"]

_BOOTSTRAP_SAMPLES = 10_000
STAGE_PAIRS: tuple[tuple[Stage, Stage], ...] = (("gated", "derived"), ("derived", "retrained"), ("gated", "retrained"))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and what is known about it.

    Attributes:
        mean: in the unit of the values.
        num_values: how many values it rests on.
        std: sample standard deviation (n - 1); None for a single value.
        low: lower end of the confidence interval of the mean; None for a single value.
        high: upper end; None for a single value.
        confidence: nominal coverage of the interval.
        method: how the interval was computed.
    """

    mean: float
    num_values: int
    std: float | None
    low: float | None
    high: float | None
    confidence: float = 0.95
    method: IntervalMethod = "t"

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), or None where one value gives no interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def overlaps(self, other: Estimate) -> bool | None:
        """Whether both intervals share a value; None where either has none."""
        if self.interval is None or other.interval is None:
            return None
        return self.interval[0] <= other.interval[1] and other.interval[0] <= self.interval[1]


def estimate_mean(
    values: Sequence[float],
    *,
    confidence: float = 0.95,
    method: IntervalMethod = "t",
    seed: int = 0,
) -> Estimate:
    """Mean with a confidence interval over independent repeats.

    `"t"` is Student's interval, `mean ± t(n - 1) · s / sqrt(n)`, right for few, roughly normal values. `"bootstrap"` is
    the percentile interval over resampled means; it needs no normality but is too narrow for fewer than about ten
    values.

    Args:
        values: one finite value a seed, at least one.
        confidence: coverage, in (0, 1).
        method: the interval.
        seed: of the bootstrap's resampling; `"t"` ignores it.

    Raises:
        ValueError: no values, a value that is not finite, or a confidence out of range.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(
            f"a mean needs at least one value, all finite, but got {sample.tolist()}; drop failed repeats."
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), but got {confidence}; 0.95 is usual.")
    num_values, mean = len(sample), float(sample.mean())
    if num_values == 1:
        return Estimate(mean, 1, None, None, None, confidence, method)
    std = float(sample.std(ddof=1))
    if method == "t":
        half = float(stats.t.ppf((1 + confidence) / 2, num_values - 1)) * std / math.sqrt(num_values)
        return Estimate(mean, num_values, std, mean - half, mean + half, confidence, method)
    resampled = np.random.default_rng(seed).choice(sample, size=(_BOOTSTRAP_SAMPLES, num_values)).mean(axis=1)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(mean, num_values, std, float(low), float(high), confidence, method)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = 0.95,
    method: IntervalMethod = "t",
    seed: int = 0,
) -> Estimate:
    """Mean of `first - second` with an interval, pairing values of the same seed: what both share cancels.

    Args:
        first: one value a seed.
        second: one value a seed, in the same order of seeds.
        confidence: coverage, in (0, 1).
        method: the interval, see `estimate_mean`.
        seed: of the bootstrap's resampling.

    Raises:
        ValueError: the lengths differ, or `estimate_mean` refuses the differences.
    """
    if len(first) != len(second):
        raise ValueError(
            f"paired values must come from the same seeds, but got {len(first)} and {len(second)}; "
            "compare only the seeds that both have."
        )
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return estimate_mean(differences, confidence=confidence, method=method, seed=seed)


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two rankings, in [-1, 1]; None where fewer than two values, or equal ones, leave no ranking.

    Attributes:
        kendall: tau-b, which allows for ties.
        spearman: rho.
        num_pairs: how many pairs of values both rest on.
    """

    kendall: float | None
    spearman: float | None
    num_pairs: int


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> RankCorrelation:
    """Kendall's tau-b and Spearman's rho of paired values.

    Args:
        x: values of one ranking; pairs with a NaN on either side are left out.
        y: values of the other ranking, paired with `x`.

    Raises:
        ValueError: the lengths differ.
    """
    if len(x) != len(y):
        raise ValueError(f"rankings must pair up, but got {len(x)} and {len(y)} values; give one pair a trial.")
    pairs = np.column_stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    if any(len(np.unique(column)) < 2 for column in pairs.T):
        return RankCorrelation(None, None, len(pairs))
    kendall = float(stats.kendalltau(pairs[:, 0], pairs[:, 1], variant="b").statistic)
    spearman = float(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
    return RankCorrelation(kendall, spearman, len(pairs))


def stage_correlations(
    records: Iterable[TrialRecord], split: Split = "val"
) -> dict[tuple[Stage, Stage], RankCorrelation]:
    """How well each stage's ranking of the trials predicts a later one, over complete trials measured at both.

    A low value from gated to retrained means that the search ranks students by something that training does not keep.
    """
    complete = [record for record in records if record.state == "complete"]
    result = {}
    for earlier, later in STAGE_PAIRS:
        pairs = [(record.score(split, earlier), record.score(split, later)) for record in complete]
        measured = [(a, b) for a, b in pairs if a is not None and b is not None]
        result[earlier, later] = rank_correlation([a for a, _ in measured], [b for _, b in measured])
    return result


def seed_values(
    record: TrialRecord, split: Split = "val", stage: Stage = "retrained", name: str | None = None
) -> tuple[float, ...]:
    """The metric `name`, by default the primary one, of each repeat of a trial; empty where it was not repeated."""
    return tuple(record.repeats.get(f"{stage}/{split}/{name or record.metric.name}", ()))


def seed_estimate(
    record: TrialRecord, split: Split = "val", stage: Stage = "retrained", name: str | None = None
) -> Estimate | None:
    """Mean and interval of the metric `name`, by default the primary one, over the trial's repeats.

    None without a finite repeat.
    """
    values = [value for value in seed_values(record, split, stage, name) if math.isfinite(value)]
    return estimate_mean(values) if values else None


def group_by_arch(records: Iterable[TrialRecord]) -> dict[str, tuple[TrialRecord, ...]]:
    """Records by architecture, in the order in which each was first seen; records without one are left out.

    Trials of one group may still differ in knobs and seed: they are repeats only where everything but the seed agrees.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        if record.arch_id is not None:
            groups.setdefault(record.arch_id, []).append(record)
    return {arch_id: tuple(group) for arch_id, group in groups.items()}
