"""How sure a metric is: intervals over the items of a split, and the values that say nothing of a net.

References:
    Wilson, E. B. (1927). Probable inference, the law of succession, and statistical inference. JASA 22(158), 209-212.
    Efron, B. (1979). Bootstrap methods: another look at the jackknife. Annals of Statistics 7(1), 1-26.
    Korn, E. L. and Graubard, B. I. (1998). Confidence intervals for proportions with small expected number of positive
        counts estimated from survey data. Survey Methodology 24(2), 193-201.  (effective sample size)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
NUM_RESAMPLES = 400
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ItemScores:
    """What the primary metric of an evaluation is made of, item by item.

    Attributes:
        num_items: N, in the order in which a task got them.
        resample: (R, N) how often each item counts -> (R,) the metric; NaN where it is not defined.
        is_share: whether the metric is the share of items that are right.
        majority: the metric of a net that always gives the most frequent answer; None where that is not known.
        chance: the metric of a net that guesses; None where that is not known.
    """

    num_items: int
    resample: Callable[[Weights], Weights]
    is_share: bool = False
    majority: float | None = None
    chance: float | None = None
    span: tuple[float, float] = (-math.inf, math.inf)


def mean_of_items(values: Sequence[float], counted: Sequence[bool] | None = None) -> Callable[[Weights], Weights]:
    """`resample` of a metric that is a mean over items.

    Args:
        values: of each item.
        counted: which of them count; all of them without it.
    """
    value = np.asarray(values, dtype=np.float64)
    used = np.ones(len(value)) if counted is None else np.asarray(counted, dtype=np.float64)

    def resample(weights: Weights) -> Weights:
        counts: Weights = weights @ used
        with np.errstate(invalid="ignore", divide="ignore"):
            result: Weights = (weights @ (value * used)) / counts
        return result

    return resample


def interval_over_items(
    scores: Sequence[ItemScores], groups: Sequence[str] | None = None, *, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the metric over items, or of its mean where nets of several seeds were evaluated on them.

    Wilson's interval for a share of items, with an effective number of items where they come in groups; else the
    percentile bootstrap over n items, or over n groups. Its distances from the value are multiplied by
    √(n / (n − 1)) · t / z, with the quantiles of Student's t of n − 1 degrees of freedom and of the normal
    distribution: of few items the bootstrap alone is too narrow (2.7 times where there are 3).

    Args:
        scores: one entry a net, all of the same items.
        groups: group of each item, such as the recording that it was cut from; None where items are independent.
        seed: of the bootstrap.

    Returns:
        (low, high), or None where fewer than two items or groups allow no statement.
    """
    num_items = scores[0].num_items
    member = np.arange(num_items)
    if groups is not None:
        member = np.unique(np.asarray(groups), return_inverse=True)[1]
    num_groups = int(member.max()) + 1
    if all(score.is_share for score in scores) and (groups is None or num_groups > 1):
        return _share_interval(scores, member)
    if num_groups < 2:
        return None
    drawn = np.random.default_rng(seed).integers(num_groups, size=(NUM_RESAMPLES, num_groups))
    counts = np.zeros((NUM_RESAMPLES, num_groups))
    np.add.at(counts, (np.arange(NUM_RESAMPLES)[:, None], drawn), 1)
    counts = np.concatenate([np.ones((1, num_groups)), counts])  # the first are the items as they are
    value, *others = np.mean([score.resample(counts[:, member]) for score in scores], axis=0)
    values = np.asarray(others)[np.isfinite(others)]
    if len(values) < NUM_RESAMPLES / 2:
        return None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    wider = math.sqrt(num_groups / (num_groups - 1)) * _t_quantile(num_groups - 1) / _Z
    least, most = scores[0].span
    low, high = min(low, value - wider * (value - low)), max(high, value + wider * (high - value))
    return max(float(low), least), min(float(high), most)


def _share_interval(scores: Sequence[ItemScores], member: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Wilson's interval of a share; items of a group count as the number of independent items with equal variance."""
    num_items, num_groups = len(member), int(member.max()) + 1
    right = np.mean([score.resample(np.eye(num_items)) for score in scores], axis=0)
    share = float(right.mean())
    effective = float(num_items)
    if num_groups < num_items:
        deviations = np.bincount(member, weights=right - share)
        variance = num_groups / (num_groups - 1) * float(deviations @ deviations) / num_items**2
        if share in (0.0, 1.0):
            effective = float(num_groups)
        elif variance > 0:
            effective = min(share * (1 - share) / variance, effective)
        # Few groups say little about their variance.
        effective *= (_t_quantile(num_items - 1) / _t_quantile(num_groups - 1)) ** 2
    return wilson_interval(share, effective)


def wilson_interval(share: float, number: float) -> tuple[float, float]:
    """Wilson's interval of a share of `number` independent items, at 95 %.

    Args:
        share: in [0, 1].
        number: of items, > 0.
    """
    z = _Z
    centre = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _t_quantile(freedom: int) -> float:
    """The distance from the mean within which Student's t lies with 95 % probability."""
    from scipy.special import stdtrit  # here: it costs time that users of exported students need not wait

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
