"""Statistics over repeated runs: intervals over seeds, differences, and rank correlation of stages.

One run has no interval, and neither have two: Student's would be 25 standard errors wide. Rank correlations need five
pairs: of four values 2 of 24 orders agree or disagree in full, so no agreement is unlikely to be chance. What the data
do not determine is None, never zero.

References:
    Student (1908). The probable error of a mean. Biometrika 6(1), 1-25.
    Welch, B. L. (1947). The generalization of "Student's" problem when several different population variances are
        involved. Biometrika 34(1-2), 28-35.
    Kendall, M. G. (1945). The treatment of ties in ranking problems. Biometrika 33(3), 239-251.  (tau-b)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nas_kd.trials.record import Split, Stage, TrialRecord

MIN_VALUES = 3  # of an interval of a mean
MIN_PAIRS = 5  # of a rank correlation
STAGE_PAIRS: tuple[tuple[Stage, Stage], ...] = (("gated", "derived"), ("derived", "retrained"), ("gated", "retrained"))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and what is known about it.

    Attributes:
        mean: in the unit of the values.
        num_values: how many values it rests on.
        std: sample standard deviation (n - 1); None for a single value.
        low: lower end of the confidence interval of the mean; None for fewer than `MIN_VALUES` values.
        high: upper end; None for fewer than `MIN_VALUES` values.
        confidence: nominal coverage of the interval.
    """

    mean: float
    num_values: int
    std: float | None
    low: float | None
    high: float | None
    confidence: float = 0.95

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), or None where there are fewer than `MIN_VALUES` values."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def overlaps(self, other: Estimate) -> bool | None:
        """Whether both intervals share a value; None where either has none."""
        if self.interval is None or other.interval is None:
            return None
        return self.interval[0] <= other.interval[1] and other.interval[0] <= self.interval[1]


def estimate_mean(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean with Student's interval over independent repeats, `mean ± t(n - 1) · s / sqrt(n)`, from three values on.

    Args:
        values: one finite value a seed, at least one.
        confidence: coverage, in (0, 1).

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
    mean = float(sample.mean())
    if len(sample) < MIN_VALUES:
        std = float(sample.std(ddof=1)) if len(sample) > 1 else None
        return Estimate(mean, len(sample), std, None, None, confidence)
    std = float(sample.std(ddof=1))
    half = _student_quantile(confidence, len(sample) - 1) * std / math.sqrt(len(sample))
    return Estimate(mean, len(sample), std, mean - half, mean + half, confidence)


@lru_cache(maxsize=1000)
def _student_quantile(confidence: float, degrees: int) -> float:
    """Half the width of Student's two-sided interval in standard errors. A report asks for a few thousands of times."""
    from scipy import stats  # 0.7 s, which the front of a campaign does without

    return float(stats.t.ppf((1 + confidence) / 2, degrees))


def paired_difference(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean of `first - second` with an interval, pairing values of the same seed: what both share cancels.

    Args:
        first: one value a seed.
        second: one value a seed, in the same order of seeds.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: the lengths differ, or `estimate_mean` refuses the differences.
    """
    if len(first) != len(second):
        raise ValueError(
            f"paired values must come from the same seeds, but got {len(first)} and {len(second)}; "
            "compare only the seeds that both have."
        )
    return estimate_mean([a - b for a, b in zip(first, second, strict=True)], confidence=confidence)


def welch_difference(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """mean(first) − mean(second) of independent samples, with Welch's interval; none where either has too few values.

    `num_values` is the smaller of both numbers, `std` is None.

    Args:
        first: finite values, at least one.
        second: the other sample, finite values, at least one.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: `estimate_mean` refuses either sample.
    """
    a, b = estimate_mean(first, confidence=confidence), estimate_mean(second, confidence=confidence)
    mean, number = a.mean - b.mean, min(a.num_values, b.num_values)
    if number < MIN_VALUES:
        return Estimate(mean, number, None, None, None, confidence)
    from scipy import stats  # 0.7 s, which the front of a campaign does without

    with _nearly_equal_values_allowed():
        low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(confidence)
    return Estimate(mean, number, None, float(low), float(high), confidence)


@contextmanager
def _nearly_equal_values_allowed() -> Iterator[None]:
    """Without scipy's warning on samples that hardly vary: it is on the p-value, which is not used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Precision loss occurred", category=RuntimeWarning)
        yield


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two rankings, in [-1, 1]; None where fewer than two values, or equal ones, leave no ranking.

    Fewer than `MIN_PAIRS` pairs say nothing about the agreement of other pairs.

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
    from scipy import stats  # 0.7 s, which the front of a campaign does without

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
