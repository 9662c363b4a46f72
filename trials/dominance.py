"""Non-dominated ranks for samplers and schedulers; `nas_kd.analysis.pareto` has the fronts of results."""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
import numpy.typing as npt


def to_losses(values: Sequence[Sequence[float]], maximize: Sequence[bool]) -> npt.NDArray[np.float64]:
    """Turn objective values into losses: less is better in every column."""
    signs = np.where(np.asarray(maximize, dtype=bool), -1.0, 1.0)
    return np.asarray(values, dtype=np.float64).reshape(-1, len(maximize)) * signs


def finite_losses(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Losses in the same order without infinities, which moocore cannot compare: each column becomes its ranks.

    Args:
        losses: `n x m`, no NaN. Without an infinity they are returned as they are.
    """
    if np.isfinite(losses).all():
        return losses
    ranks = [np.unique(column, return_inverse=True)[1] for column in losses.T]
    return np.column_stack(ranks).astype(np.float64)


def non_dominated_ranks(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Peel fronts off: rank 0 is dominated by nobody, rank 1 by rank 0 only, and so on.

    Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, section III-A.

    Args:
        losses: `n x m`, less is better. Infinity is an ordinary value, worse or better than every number.

    Returns:
        `n` ranks. Equal rows have equal ranks. Rows with a NaN come after all others, on one last rank.
    """
    ranks = np.zeros(len(losses), dtype=np.int64)
    missing = np.isnan(losses).any(axis=1)
    measured = losses[~missing]
    if len(measured) == 0:
        return ranks
    if losses.shape[1] == 1:
        ranks[~missing] = np.unique(measured[:, 0], return_inverse=True)[1]
    else:
        ranks[~missing] = moocore.pareto_rank(finite_losses(measured))
    ranks[missing] = ranks.max() + 1
    return ranks


def constrained_ranks(losses: npt.NDArray[np.float64], excesses: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Ranks of those within all constraints, then those beyond them by how far they are beyond.

    Args:
        losses: `n x m`, less is better.
        excesses: `n`, how far each is beyond the constraints; at most 0 within them.
    """
    beyond = np.maximum(np.asarray(excesses, dtype=np.float64), 0.0)
    kept = beyond == 0
    ranks = np.zeros(len(losses), dtype=np.int64)
    ranks[kept] = non_dominated_ranks(losses[kept])
    first = ranks[kept].max() + 1 if kept.any() else 0
    ranks[~kept] = first + np.unique(beyond[~kept], return_inverse=True)[1]
    return ranks


def on_front(losses: npt.NDArray[np.float64], excesses: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.bool_]:
    """Which rows nobody dominates: those of rank 0, without the other ranks.

    Args:
        losses: `n x m`, as in `non_dominated_ranks`.
        excesses: How far each is beyond the constraints. Where none is within them, those least beyond are the front.
    """
    if len(losses) == 0:
        return np.zeros(0, dtype=np.bool_)
    if excesses is not None:
        kept = excesses <= 0
        if not kept.any():
            return np.asarray(excesses == excesses.min())
        chosen = kept.copy()
        chosen[kept] = on_front(losses[kept])
        return np.asarray(chosen)
    measured = np.asarray(~np.isnan(losses).any(axis=1))
    if not measured.any():
        return np.ones(len(losses), dtype=np.bool_)
    chosen = measured.copy()
    rows = finite_losses(losses[measured])
    single = rows.shape[1] == 1
    chosen[measured] = rows[:, 0] == rows.min() if single else moocore.is_nondominated(rows, keep_weakly=True)
    return np.asarray(chosen)


def front(
    values: Sequence[Sequence[float]], maximize: Sequence[bool], excesses: Sequence[float] | None = None
) -> list[int]:
    """Positions of the values that nobody dominates, in their order.

    Args:
        values: One row each.
        maximize: Direction of each column.
        excesses: See `on_front`.
    """
    beyond = None if excesses is None else np.asarray(excesses, dtype=np.float64)
    return [int(i) for i in np.flatnonzero(on_front(to_losses(values, maximize), beyond))]


class GrowingFront:
    """The front of trials that come one after the other: each is compared with the members alone.

    Args:
        maximize: Direction of each value.
    """

    def __init__(self, maximize: Sequence[bool]) -> None:
        self._maximize = maximize
        self.numbers: list[int] = []
        self._losses = to_losses([], maximize)

    def add(self, number: int, values: Sequence[float]) -> None:
        """Take in a trial; its values are finite."""
        losses = to_losses([values], self._maximize)
        no_worse = self._losses <= losses
        if (no_worse.all(axis=1) & (self._losses < losses).any(axis=1)).any():
            return
        kept = np.asarray(~((self._losses >= losses).all(axis=1) & ~no_worse.all(axis=1)))
        self.numbers = [*(each for each, stays in zip(self.numbers, kept, strict=True) if stays), number]
        self._losses = np.concatenate([self._losses[kept], losses])
