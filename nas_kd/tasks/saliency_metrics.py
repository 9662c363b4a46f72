"""Five metrics of how well a saliency map predicts where people look.

Definitions of Bylinskii, Judd, Oliva, Torralba and Durand, What do different evaluation metrics tell us about saliency
models? (TPAMI 2019, arXiv 1604.03605), section 4, in the form of the code of the MIT saliency benchmark. Deviations are
named at each function. All of them

- take maps of float32 or float64, of any shape as long as both have the same: pixels that do not count are left out
  before;
- have a value for a constant map, that of a map which knows nothing, and take a map for constant where its values
  differ by less than float32 can tell (1e-6 of the largest), such as one that was upsampled from a constant one;
- give NaN for a map that holds NaN or infinity.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_ROUNDING = 1e-6  # of the largest magnitude: a few roundings of float32


def auc_judd(saliency: Tensor, fixations: Tensor) -> float:
    """Area under the ROC curve of telling fixated pixels from all others, after Judd et al. (ICCV 2009).

    Thresholds are the values at fixated pixels. At each, the rate of true positives is the share of fixated pixels that
    reach it, and that of false positives the share of the others that do; trapezoids join (0, 0), the thresholds, and
    (1, 1). So an unfixated value counts as if it were equal to the next fixated value below it, and equal values count
    by half.

    Deviation: equal values share one threshold; the benchmark's code breaks ties by random noise instead, which has the
    same expectation to the order of one over the number of fixated pixels.

    Args:
        saliency: float, finite.
        fixations: bool, of the same shape; whether a pixel is fixated.

    Returns:
        In [0, 1]; 0.5 where the map is constant, or where all pixels or none are fixated.
    """
    if not _is_finite(saliency):
        return math.nan
    fixated, others = (saliency[chosen].cpu().numpy() for chosen in (fixations, ~fixations))
    if not fixated.size or not others.size or _is_constant(saliency):
        return 0.5
    thresholds, times = np.unique(fixated, return_counts=True)  # ascending
    below = np.searchsorted(np.sort(others), thresholds) / others.size  # numpy sorts several times as fast as torch
    hits = 1 - (times.cumsum() - times) / fixated.size
    # From (1, 1) down to (0, 0).
    return float(np.trapezoid(np.concatenate([[1.0], hits, [0.0]]), np.concatenate([[0.0], below, [1.0]])))


def auc_shuffled(saliency: Tensor, fixations: Tensor, other: Tensor) -> float:
    """AUC of telling the fixated pixels of an image from those of other images, after Zhang et al. (JoV 2008).

    What all images share, such as a preference for the centre, wins nothing: a map of it has 0.5.

    It is the probability that a fixated pixel has a higher value than one that is fixated in another image, plus half
    of the probability that both are equal. The benchmark's code, after Borji et al. (TIP 2013), estimates it from
    random splits, each with as many pixels of other images as there are fixated ones. Deviations: this is the mean
    over all splits, without their noise, so that no seed and no number of splits is needed; a pixel that several other
    images fixate counts as often; and thresholds are all values, not every tenth.

    Args:
        saliency: float, finite.
        fixations: bool, of the same shape; whether a pixel is fixated.
        other: of the same shape, at least 0; by how many other images each pixel is fixated, or whether by any.

    Returns:
        In [0, 1]; 0.5 where the map is constant, or one of the two sets of pixels is empty.
    """
    if not _is_finite(saliency):
        return math.nan
    chosen = other > 0
    fixated, others, times = (x.cpu().numpy() for x in (saliency[fixations], saliency[chosen], other[chosen]))
    if not fixated.size or not others.size or _is_constant(saliency):
        return 0.5
    from sklearn.metrics import roc_auc_score  # here: it costs a second that users of other tasks need not wait

    is_fixated = np.repeat([True, False], [fixated.size, others.size])
    weights = np.concatenate([np.ones(fixated.size), times.astype(np.float64)])
    return float(roc_auc_score(is_fixated, np.concatenate([fixated, others]), sample_weight=weights))


def nss(saliency: Tensor, fixations: Tensor) -> float:
    """Normalised scanpath saliency (Peters et al., Vision Research 2005).

    The mean value at fixated pixels of the map shifted and scaled to mean 0 and standard deviation 1, with P − 1 in the
    denominator of P pixels, as in the benchmark's code.

    Args:
        saliency: float, finite.
        fixations: bool, of the same shape; whether a pixel is fixated.

    Returns:
        0 is chance; 0 too where the map is constant, or no pixel is fixated.
    """
    if not _is_finite(saliency):
        return math.nan
    if _is_constant(saliency) or not bool(fixations.any()):
        return 0.0
    values = saliency.double()
    return float((values[fixations].mean() - values.mean()) / values.std())


def similarity(saliency: Tensor, density: Tensor) -> float:
    """Similarity, the intersection of two histograms: the sum over pixels of the lesser of two distributions.

    Each map is scaled to the range [0, 1], then to the sum 1; a constant map is the uniform distribution.

    Args:
        saliency: float, finite.
        density: float, of the same shape; how much each pixel is looked at.

    Returns:
        In [0, 1]; 1 for equal distributions.
    """
    if not _is_finite(saliency):
        return math.nan
    return float(torch.minimum(_distribution(saliency), _distribution(density)).sum())


def correlation(saliency: Tensor, density: Tensor) -> float:
    """Pearson's linear correlation of two maps, CC.

    Args:
        saliency: float, finite.
        density: float, of the same shape; how much each pixel is looked at.

    Returns:
        In [−1, 1]; 0 where one of the maps is constant.
    """
    if not _is_finite(saliency):
        return math.nan
    if _is_constant(saliency) or _is_constant(density):
        return 0.0
    first, second = (values.double() - values.double().mean() for values in (saliency, density))
    return float((first * second).sum() / (first.square().sum() * second.square().sum()).sqrt())


def _is_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _is_constant(values: Tensor) -> bool:
    """Whether finite values differ by no more than rounding; no values are constant."""
    if not values.numel():
        return True
    low, high = (float(value) for value in values.double().aminmax())
    return high - low <= _ROUNDING * max(abs(low), abs(high))


def _distribution(values: Tensor) -> Tensor:
    if _is_constant(values):
        return torch.full(values.shape, 1 / max(values.numel(), 1), dtype=torch.float64, device=values.device)
    raised = values.double() - values.double().min()
    return raised / raised.sum()  # scaling to [0, 1] before would cancel out
