"""Expected hypervolume improvement of a loss and one or more costs, in closed form for independent guesses.

Emmerich, Deutz and Klinkenberg, "Hypervolume-based expected improvement", 2011; here as a sum over the cells between
the costs of the front's members. A new trial of loss L and costs C gains, in a cell where the front is at `level`, the
volume `(overlap of [C, inf) with the cell) * max(level - L, 0)`. The overlap is the product over the costs of
`max(right - C, 0) - max(left - C, 0)`, so all factors are shortfalls, and their expectations are closed for a cost that
is known as well as for one that is predicted. With one cost, cells are the strips of the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas_kd.trials.dominance import on_front

Floats = npt.NDArray[np.float64]

_MOST_AT_ONCE = 4_000_000  # numbers of an intermediate array


@dataclass(frozen=True)
class Cells:
    """The volume that losses and costs leave to improve on, cut at the costs of the front.

    Attributes:
        left: of each cost `s_d`, where the cells begin along it; the first begins at minus infinity.
        right: of each cost `s_d`, where they end; the last ends at the reference's cost.
        level: `s_1 x ... x s_d`, the lowest loss that is reached at the costs of a cell, or else the reference's.
    """

    left: tuple[Floats, ...]
    right: tuple[Floats, ...]
    level: Floats


def cells(losses: Floats, costs: Floats, reference: Sequence[float]) -> Cells:
    """The cells of a set of points, dominated ones included.

    Args:
        losses: `n`, less is better.
        costs: `n x d`, less is better.
        reference: A loss and `d` costs; nothing counts that is not below all of them.
    """
    corner = np.asarray(reference, dtype=np.float64)
    inside = (losses < corner[0]) & (costs < corner[1:]).all(axis=1)
    inside[inside] = on_front(np.column_stack([losses, costs])[inside])  # the others only cut cells
    losses, costs = losses[inside], costs[inside]
    edges = [np.unique(column) for column in costs.T]
    level = np.full([1 + len(each) for each in edges], corner[0])
    places = tuple(1 + np.searchsorted(each, column) for each, column in zip(edges, costs.T, strict=True))
    np.minimum.at(level, places, losses)
    for dimension in range(level.ndim):
        level = np.minimum.accumulate(level, axis=dimension)
    left = tuple(np.concatenate([[-np.inf], each]) for each in edges)
    right = tuple(np.concatenate([each, [worst]]) for each, worst in zip(edges, corner[1:], strict=True))
    return Cells(left, right, level)


def known_overlap(costs: Floats, left: Floats, right: Floats) -> Floats:
    """Which width of each cell along a cost a trial of a known one covers: `n x s`."""
    return np.asarray(np.maximum(right - np.maximum(costs[:, None], left), 0.0))


def expected_improvement(shortfall: Floats, levels: npt.NDArray[np.intp], overlaps: Sequence[Floats]) -> Floats:
    """The expected gain of hypervolume.

    Args:
        shortfall: `n x l`, expectation of `max(level - loss, 0)` at each distinct level.
        levels: `s_1 x ... x s_d`, which of the levels a cell has.
        overlaps: of each cost `n x s_d`, expectation of the width of a cell that is at the trial's cost or above.

    Returns:
        `n`, in units of loss times costs.
    """
    gains = np.zeros(len(shortfall))
    step = max(1, _MOST_AT_ONCE // max(levels.size, 1))
    for start in range(0, len(gains), step):
        rows = slice(start, start + step)
        volume = shortfall[rows][:, levels]  # n x s_1 x ... x s_d
        for overlap in reversed(overlaps):
            volume = np.einsum("n...s,ns->n...", volume, overlap[rows])
        gains[rows] = volume
    return gains
