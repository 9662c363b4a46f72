"""Pareto fronts of plain arrays: non-dominated rows, hypervolume, and the knee.

Every function takes `points`, an `(n, m)` array with one row a candidate and one column an objective, and `directions`,
one of `"minimize"` or `"maximize"` a column. The rules are the same everywhere:

- *Dominance.* `a` dominates `b` when it is no worse in every objective and better in at least one.
- *Duplicates.* Equal rows do not dominate each other: all copies of a front point are on the front.
- *NaN.* A row with a NaN was not measured. It is never on the front and dominates nothing.
- *Infinity* is an ordinary value, larger or smaller than every number.

Two objectives are solved here with one numpy sort; three and more go to moocore.

References:
    Das, I. (1999). On characterizing the "knee" of the Pareto curve based on Normal-Boundary Intersection.
        Structural Optimization 18, 107-115.
    Zitzler, E. and Thiele, L. (1998). Multiobjective optimization using evolutionary algorithms: a comparative case
        study. PPSN V, 292-301.  (hypervolume)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas_kd.trials.dominance import finite_losses

Direction: TypeAlias = Literal["minimize", "maximize"]
Floats: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Indices: TypeAlias = NDArray[np.intp]

_PREFILTER_SAMPLE = 1024  # rows looked at to find a pivot that dominates most of a cloud
_PREFILTER_WORTHWHILE = 0.9  # a pivot that leaves a larger share of the rows of the sample ends the prefilter


def _as_costs(points: ArrayLike, directions: Sequence[Direction]) -> Floats:
    """Check the arguments and return `points` as `(n, m)` float64 where less is better in every column."""
    costs = np.asarray(points, dtype=np.float64)
    num_objectives = len(directions)
    if num_objectives == 0:
        raise ValueError("directions must name at least one objective, but it is empty; give 'minimize' or 'maximize'.")
    for direction in directions:
        if direction not in ("minimize", "maximize"):
            raise ValueError(f"a direction must be 'minimize' or 'maximize', but got {direction!r}; spell it out.")
    if costs.size == 0:
        return np.empty((0, num_objectives), dtype=np.float64)
    if costs.ndim != 2 or costs.shape[1] != num_objectives:
        raise ValueError(
            f"points must have shape (n, {num_objectives}), one column a direction, but got {costs.shape}; "
            "stack the objectives as columns."
        )
    if "maximize" in directions:
        costs = costs * np.where(np.array(directions) == "maximize", -1.0, 1.0)
    return costs


def _reference_costs(reference: ArrayLike, directions: Sequence[Direction]) -> Floats:
    values = np.asarray(reference, dtype=np.float64)
    if values.shape != (len(directions),) or not np.isfinite(values).all():
        raise ValueError(
            f"the reference point must be {len(directions)} finite numbers, one a direction, but got {values.tolist()};"
            " give the worst acceptable value of each objective."
        )
    return _as_costs(values[None, :], directions).reshape(-1)


def _sweep(x: Floats, y: Floats) -> tuple[Indices, Mask]:
    """Order by `x` and mark the front in that order. Both minimised, no NaN, shape `(n,)`, n >= 1.

    Rows of equal `x` form a group. A group reaches the front when its smallest `y` is below the smallest `y` of all
    groups before it; on the front are then its rows at that smallest `y`, so copies stay together.
    """
    order = np.argsort(x)
    x, y = x[order], y[order]
    lowest = np.minimum.accumulate(y)
    new_group = x[1:] != x[:-1]
    if new_group.all():  # every group has one row: skip the gather over groups
        on_front = np.empty(len(x), dtype=np.bool_)
        on_front[0] = True  # explicit, because nothing is below a first row at infinity
        np.less(lowest[1:], lowest[:-1], out=on_front[1:])
        return order, on_front
    group_end = np.flatnonzero(np.append(new_group, True))
    group_lowest = lowest[group_end]
    improves = np.ones(len(group_end), dtype=np.bool_)
    improves[1:] = group_lowest[1:] < group_lowest[:-1]
    sizes = np.diff(group_end, prepend=-1)
    return order, np.repeat(improves, sizes) & (y == np.repeat(group_lowest, sizes))


def _all_finite(costs: Floats) -> bool:
    """Whether no value is NaN or infinite. A sum passes both on and reads the array once; an overflow needs more."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = costs.sum()
    return bool(np.isfinite(total) or np.isfinite(costs).all())


def _pivot(columns: Sequence[Floats]) -> Floats | None:
    """A row that dominates many of `columns`, m arrays of shape `(n,)`, as `(m,)`; None where a sample shows none.

    It is the row of a strided sample with the lowest sum of ranks, so units and infinities do not matter.
    """
    sample = np.column_stack([column[:: len(column) // _PREFILTER_SAMPLE] for column in columns])
    sample = sample[~np.isnan(sample).any(axis=1)]
    if len(sample) == 0:
        return None
    pivot: Floats = sample[np.argsort(np.argsort(sample, axis=0), axis=0).sum(axis=1).argmin()]
    share_left = 1.0 - (sample > pivot).all(axis=1).mean()
    return pivot if share_left <= _PREFILTER_WORTHWHILE else None


def _survivors(costs: Floats) -> Indices | None:
    """Rows of `(n, m)` costs, in order, that a few pivots do not strictly dominate: all of the front, no NaN.

    A pivot removes most rows of a cloud in one pass of comparisons, far cheaper than a sort; where it removes few, that
    is all. None for all rows, so that a caller need not copy them.
    """
    columns = [costs[:, column] for column in range(costs.shape[1])]
    rows: Indices | None = None
    while len(columns[0]) > _PREFILTER_SAMPLE:
        pivot = _pivot(columns)
        if pivot is None:
            break
        dominated = columns[0] > pivot[0]  # False for NaN
        for column, value in zip(columns[1:], pivot[1:], strict=True):
            dominated &= column > value
        kept = np.flatnonzero(~dominated)
        if len(kept) == len(dominated):
            break
        rows = kept if rows is None else rows[kept]
        columns = [column[kept] for column in columns]
    if all(_all_finite(column) for column in columns):
        return rows
    missing = np.isnan(columns[0])
    for column in columns[1:]:
        missing |= np.isnan(column)
    if missing.any():
        rows = np.flatnonzero(~missing) if rows is None else rows[~missing]
    return rows


def _chosen(costs: Floats, rows: Indices | None) -> Floats:
    """The rows of `(n, m)` costs; None chooses all of them and copies nothing."""
    return costs if rows is None else costs[rows]


def _front_2d(costs: Floats) -> Indices:
    """Rows of the front of `(n, 2)` costs, by increasing first objective, copies adjacent."""
    rows = _survivors(costs)
    kept = _chosen(costs, rows)
    if len(kept) == 0:
        return np.empty(0, dtype=np.intp)
    order, on_front = _sweep(kept[:, 0], kept[:, 1])
    chosen = order[on_front]
    return chosen if rows is None else rows[chosen]


def _area(costs: Floats, corner: Floats) -> float:
    """Hypervolume of `(n, 2)` costs without NaN: the integral over the first objective of how far the lowest second one
    so far is below the corner. The front itself is not needed for it.
    """
    if np.isneginf(costs.min(initial=np.inf)):  # a row at -inf that is beyond the corner must not count
        costs = costs[(costs < corner).all(axis=1)]
        return math.inf if np.isneginf(costs).any() else _area(costs, corner)
    x = costs[:, 0]
    order = np.argsort(x)
    x = x[order]
    x = x[: np.searchsorted(x, corner[0])]
    heights = corner[1] - np.minimum.accumulate(costs[order[: len(x)], 1])
    return float(np.dot(np.diff(x, append=corner[0]), np.maximum(heights, 0.0)))


def non_dominated(points: ArrayLike, directions: Sequence[Direction]) -> Mask:
    """Mark the rows that no other row dominates.

    Args:
        points: objective values, shape `(n, m)`. NaN rows are never on the front; all copies of a front row are.
        directions: `"minimize"` or `"maximize"` for each of the `m` columns.

    Returns:
        Boolean mask, shape `(n,)`.

    Raises:
        ValueError: the shapes disagree or a direction is unknown.
    """
    costs = _as_costs(points, directions)
    mask = np.zeros(len(costs), dtype=np.bool_)
    if costs.shape[1] == 2:
        mask[_front_2d(costs)] = True
        return mask
    rows = _survivors(costs)
    kept = _chosen(costs, rows)
    if len(kept) == 0:
        return mask
    if costs.shape[1] == 1:
        on_front = kept[:, 0] == kept.min()
    else:
        on_front = moocore.is_nondominated(finite_losses(kept), keep_weakly=True)
    if rows is None:
        return np.asarray(on_front)
    mask[rows] = on_front
    return mask


def hypervolume(points: ArrayLike, directions: Sequence[Direction], reference: ArrayLike) -> float:
    """Volume that the points dominate and the reference bounds (Zitzler and Thiele 1998).

    Args:
        points: objective values, shape `(n, m)`. Rows with NaN and rows that are not better than the reference in every
            objective add nothing.
        directions: `"minimize"` or `"maximize"` for each of the `m` columns.
        reference: the worst corner, shape `(m,)`, finite, in the units of `points`.

    Returns:
        The volume, in the product of the objectives' units; 0.0 for no points, infinity for an infinitely good one.

    Raises:
        ValueError: the shapes disagree, a direction is unknown, or the reference is not finite.
    """
    costs = _as_costs(points, directions)
    corner = _reference_costs(reference, directions)
    kept = _chosen(costs, _survivors(costs))
    if costs.shape[1] == 2:
        return _area(kept, corner)
    inside = np.ones(len(kept), dtype=np.bool_)
    for column, worst in enumerate(corner):
        inside &= kept[:, column] < worst
    if not inside.all():
        kept = kept[inside]
    if len(kept) == 0:
        return 0.0
    if np.isneginf(kept.min()):
        return math.inf
    if costs.shape[1] == 1:
        return float(corner[0] - kept.min())
    # moocore sorts by the last objective too; on rows in that order it takes half the time for long fronts.
    return float(moocore.hypervolume(kept[np.argsort(kept[:, -1])], ref=corner))


def hypervolume_contributions(points: ArrayLike, directions: Sequence[Direction], reference: ArrayLike) -> Floats:
    """Hypervolume that the front would lose with each row, the rest of the front staying.

    Args:
        points: objective values, shape `(n, m)`; values on the front must be finite.
        directions: `"minimize"` or `"maximize"` for each of the `m` columns.
        reference: the worst corner, shape `(m,)`, finite.

    Returns:
        Contributions, shape `(n,)`. Zero for a row off the front, beyond the reference, or with a copy: without it
        nothing is lost.

    Raises:
        ValueError: the shapes disagree, a direction is unknown, or a front point or the reference is not finite.
    """
    costs = _as_costs(points, directions)
    corner = _reference_costs(reference, directions)
    contributions = np.zeros(len(costs))
    inside = np.flatnonzero(non_dominated(points, directions) & (costs < corner).all(axis=1))
    if len(inside) == 0:
        return contributions
    front, index, counts = np.unique(costs[inside], axis=0, return_index=True, return_counts=True)
    if not np.isfinite(front).all():
        raise ValueError("a contribution needs finite points, but the front holds an infinite value; drop that row.")
    if front.shape[1] == 2:  # np.unique sorts by the first objective, so along the front
        lost = np.diff(front[:, 0], append=corner[0]) * -np.diff(front[:, 1], prepend=corner[1])
    elif front.shape[1] == 1:
        lost = corner - front[:, 0]
    else:
        lost = moocore.hv_contributions(front, ref=corner)
    contributions[inside[index]] = np.where(counts == 1, lost, 0.0)
    return contributions


def knee(points: ArrayLike, directions: Sequence[Direction], *, log: Sequence[bool] = (False, False)) -> int | None:
    """Row at which the front bends most: farthest from the chord between the extremes (Das 1999, in two objectives).

    The axes are scaled to [0, 1] over the front, after a logarithm where asked for, so that units do not matter. The
    distance counts towards the better side only; a point behind the chord is no knee.

    Args:
        points: objective values, shape `(n, 2)`; dominated and NaN rows are ignored.
        directions: `"minimize"` or `"maximize"` for both columns.
        log: for which columns to measure on a logarithmic axis (FLOPs usually are); those values must be > 0.

    Returns:
        The row, the first of its copies. None without any point on the front. The row itself for a front of one. For a
        front of two, or one that bends nowhere, every extreme is at distance zero: the row that is best in the *last*
        objective.

    Raises:
        ValueError: there are not two objectives, or a front value is infinite, or not positive on a logarithmic axis.
    """
    if len(directions) != 2 or len(log) != 2:
        raise ValueError(f"a knee needs two objectives, but got {len(directions)} directions and {len(log)} log flags.")
    costs = _as_costs(points, directions)
    rows = np.flatnonzero(non_dominated(points, directions))
    if len(rows) == 0:
        return None
    front = costs[rows]
    for column, on_log_axis in enumerate(log):
        if on_log_axis:
            sign = -1.0 if directions[column] == "maximize" else 1.0
            values = sign * front[:, column]
            if (values <= 0).any():
                raise ValueError(
                    f"a logarithmic axis needs values > 0, but objective {column} has {values.min():g}; set its log "
                    "flag to False."
                )
            front[:, column] = sign * np.log(values)
    if not np.isfinite(front).all():
        raise ValueError("a knee needs finite points, but the front holds an infinite value; drop that row.")
    low, span = front.min(axis=0), np.ptp(front, axis=0)
    scaled = (front - low) / np.where(span > 0, span, 1.0)
    # After scaling the chord is the line x + y = 1, so the distance to it is (1 - x - y) / sqrt(2).
    distance = (1.0 - scaled.sum(axis=1)) / math.sqrt(2.0)
    if distance.max() > 1e-9:
        return int(rows[np.argmax(distance)])
    return int(rows[np.argmin(front[:, -1])])
