"""Ranking metrics where items have several classes: average precision, and the global one of YouTube-8M.

Shape legend: N items, C classes, K predictions kept of each item.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating[Any]]
Hits = npt.NDArray[np.bool_]


def average_precision(scores: Scores, hits: Hits, positives: int) -> float:
    """Sum over positives of the precision at their rank, over their number; not interpolated.

    AP = Σ_k (R_k − R_{k−1}) · P_k over the distinct scores in descending order, with P_k precision and R_k recall of
    what scores at least the k-th. So equal scores are one step and their order cannot matter; where all differ this is
    `peek_ap_at_n` of youtube-8m's average_precision_calculator.py, which breaks ties at random.

    Args:
        scores: (M,), higher is more confident; NaN counts as the least confident.
        hits: (M,), whether each is right.
        positives: all that there was to find, those that `scores` lacks included; ≥ the number of hits.

    Returns:
        In [0, 1].

    Raises:
        ValueError: there is no positive.
    """
    if positives < 1:
        raise ValueError(f"average precision needs at least one positive, but there are {positives}")
    if len(scores) == 0:
        return 0.0
    # sklearn.metrics.average_precision_score, the reference in the tests, refuses NaN, and counts the positives among
    # the scores alone; the metrics of YouTube-8M keep the K best predictions of an item and count all positives.
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of each run of equal scores
    found = np.cumsum(hits[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / positives)


def global_average_precision(scores: Scores, hits: Hits, positives: int) -> float:
    """GAP@K of YouTube-8M (Abu-El-Haija et al., arXiv 1609.08675; `calculate_gap` of its eval_util.py).

    The K most confident predictions of all items are pooled and ranked together. What there was to find are all
    positives of all items. They are not capped at K an item, so an item with more than K classes lowers the best score
    that can be reached; in YouTube-8M it has 3 on average.

    Args:
        scores: (N, K), the highest of each item.
        hits: (N, K), whether the item has that class.
        positives: classes of all items together.

    Raises:
        ValueError: there is no positive.
    """
    return average_precision(scores.reshape(-1), hits.reshape(-1), positives)


def constant_global_average_precision(positives: npt.NDArray[np.int64], num_items: int, num_kept: int) -> float | None:
    """GAP@K of a net that gives every item the frequencies of the classes.

    Args:
        positives: (C,), items that have each class.
        num_items: N.
        num_kept: K.

    Returns:
        None where no item has a class.
    """
    if not positives.any():
        return None
    kept = np.sort(positives)[::-1][:num_kept]
    last = np.append(kept[1:] != kept[:-1], True)  # of each run of equal scores, where each class is given N times
    right = np.cumsum(kept)[last]
    precision = right / (num_items * (np.flatnonzero(last) + 1))
    return float((np.diff(right, prepend=0) * precision).sum() / positives.sum())


def resampled_global_average_precision(
    scores: Scores, hits: Hits, positives: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """GAP@K of items that count several times, or not at all.

    Args:
        scores: (N, K), the highest of each item.
        hits: (N, K), whether the item has that class.
        positives: (N,), classes of each item.
        weights: (R, N), how often each item counts.

    Returns:
        (R,); NaN without a positive.
    """
    flat = scores.reshape(-1)
    order = np.argsort(-flat, kind="stable")
    last = np.append(flat[order][1:] != flat[order][:-1], True)  # of each run of equal scores
    item, right = order // scores.shape[1], hits.reshape(-1)[order]
    values = []
    for row in weights:
        found, rank = np.cumsum(row[item] * right)[last], np.cumsum(row[item])[last]
        precision = np.divide(found, rank, out=np.zeros_like(found), where=rank > 0)
        total = float(row @ positives)
        values.append(float((np.diff(found, prepend=0) * precision).sum()) / total if total else np.nan)
    return np.asarray(values)


def mean_average_precision(scores: Scores, labels: Hits) -> float:
    """Mean over classes with a positive of the average precision over all items.

    Args:
        scores: (N, C).
        labels: (N, C), whether each item has each class.

    Raises:
        ValueError: no class has a positive.
    """
    positives = labels.sum(axis=0)
    values = [average_precision(scores[:, c], labels[:, c], int(positives[c])) for c in np.flatnonzero(positives)]
    return _mean(values)


def mean_average_precision_of_top(
    scores: Scores, classes: npt.NDArray[np.int64], hits: Hits, positives: npt.NDArray[np.int64]
) -> float:
    """The same from the K most confident predictions of each item alone, as YouTube-8M's evaluation computes it.

    A positive that is not among them counts as not found. Deviation: classes without a positive are no part of the
    mean; there they count as 0.

    Args:
        scores: (N, K).
        classes: (N, K), which class each is of.
        hits: (N, K), whether the item has it.
        positives: (C,), items of each class.

    Raises:
        ValueError: no class has a positive.
    """
    order = np.argsort(classes, axis=None, kind="stable")
    starts = np.searchsorted(classes.reshape(-1)[order], np.arange(len(positives) + 1))
    flat_scores, flat_hits = scores.reshape(-1)[order], hits.reshape(-1)[order]
    values = []
    for c in np.flatnonzero(positives):
        mine = slice(starts[c], starts[c + 1])
        values.append(average_precision(flat_scores[mine], flat_hits[mine], int(positives[c])))
    return _mean(values)


def _mean(values: list[float]) -> float:
    if not values:
        raise ValueError("mean average precision needs a class with a positive, but there is none")
    return sum(values) / len(values)
