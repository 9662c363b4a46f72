"""Non-dominated ranks, as the search itself needs them; `analysis.pareto` is the place for fronts of results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def to_losses(values: Sequence[Sequence[float]], maximize: Sequence[bool]) -> npt.NDArray[np.float64]:
    """Turn objective values into losses: less is better in every column."""
    signs = np.where(np.asarray(maximize, dtype=bool), -1.0, 1.0)
    return np.asarray(values, dtype=np.float64).reshape(-1, len(maximize)) * signs


def non_dominated_ranks(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Peel fronts off: rank 0 is dominated by nobody, rank 1 by rank 0 only, and so on.

    Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, section III-A. Here in numpy,
    O(n^2 m) for each front, since a rung holds hundreds of trials at most.

    Args:
        losses: `n x m`, less is better, no NaN. Equal rows have equal ranks.

    Returns:
        `n` ranks.
    """
    ranks = np.full(len(losses), -1, dtype=np.int64)
    no_worse = np.all(losses[:, None, :] <= losses[None, :, :], axis=-1)
    dominates = np.logical_and(no_worse, ~no_worse.T)  # no worse, and not equal
    rank = 0
    while (left := ranks < 0).any():
        dominated = dominates[left].any(axis=0)
        ranks[left & ~dominated] = rank
        rank += 1
    return ranks


def front(values: Sequence[Sequence[float]], maximize: Sequence[bool]) -> list[int]:
    """Positions of the values that nobody dominates, in their order."""
    if not values:
        return []
    return [int(i) for i in np.flatnonzero(non_dominated_ranks(to_losses(values, maximize)) == 0)]
