"""Expected hypervolume improvement in two dimensions, in closed form for independent losses.

Emmerich, Deutz and Klinkenberg, "Hypervolume-based expected improvement", 2011; here as a sum over the vertical strips
between the costs of the front's members. A new trial of loss L and cost C gains, in the strip [left, right) where the
front is at `level`, the area `(overlap of [C, inf) with the strip) * max(level - L, 0)`. The overlap is
`max(right - C, 0) - max(left - C, 0)`, so both factors are shortfalls, and their expectations are closed for a cost
that is known as well as for one that is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Strips:
    """The area that two losses leave to improve on, cut at the costs of the front.

    Attributes:
        left: `s`, where each strip begins; that of the first is minus infinity.
        right: `s`, where it ends; that of the last is the reference's cost.
        level: `s`, the lowest loss that is reached at the costs of the strip; of the first the reference's loss.
    """

    left: Floats
    right: Floats
    level: Floats


def strips(losses: Floats, costs: Floats, reference: tuple[float, float]) -> Strips:
    """The strips of a set of points, dominated ones included.

    Args:
        losses: `n`, less is better.
        costs: `n`, less is better.
        reference: A loss and a cost; nothing counts that is not below both.
    """
    inside = (losses < reference[0]) & (costs < reference[1])
    losses, costs = losses[inside], costs[inside]
    order = np.lexsort((losses, costs))
    losses, costs = losses[order], costs[order]
    lowest = np.minimum.accumulate(np.concatenate([[reference[0]], losses]))
    on_front = losses < lowest[:-1]
    left = np.concatenate([[-np.inf], costs[on_front]])
    return Strips(
        left=left,
        right=np.concatenate([left[1:], [reference[1]]]),
        level=np.concatenate([[reference[0]], losses[on_front]]),
    )


def known_overlap(costs: Floats, parts: Strips) -> Floats:
    """Which width of each strip a trial of a known cost covers: `n x s`."""
    return np.asarray(np.maximum(parts.right - np.maximum(costs[:, None], parts.left), 0.0))


def expected_improvement(shortfall: Floats, overlap: Floats) -> Floats:
    """The expected gain of hypervolume.

    Args:
        shortfall: `n x s`, expectation of `max(level - loss, 0)`.
        overlap: `n x s`, expectation of the width of the strip that is at the trial's cost or above.

    Returns:
        `n`, in units of loss times cost.
    """
    return np.asarray((shortfall * overlap).sum(axis=1))
