"""The Pareto functions against slow, obvious twins over ties, copies, NaN, infinity, empty and single."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from nas_kd.analysis.pareto import (
    Direction,
    hypervolume,
    hypervolume_contributions,
    knee,
    non_dominated,
)
from nas_kd.trials.dominance import non_dominated_ranks, to_losses

Points = NDArray[np.float64]
CHEAP_AND_GOOD: tuple[Direction, Direction] = ("minimize", "maximize")
COORDINATES = st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.0, 0.5, math.inf, -math.inf, math.nan])  # few values: many ties
FINITE = st.sampled_from([0.0, 0.25, 1.0, 2.0, 3.0, 5.0])
DIRECTIONS: list[Direction] = ["minimize", "maximize"]


def clouds(num_objectives: int, coordinate: st.SearchStrategy[float] = COORDINATES) -> st.SearchStrategy[Points]:
    rows = st.lists(st.lists(coordinate, min_size=num_objectives, max_size=num_objectives), max_size=12)
    return rows.map(lambda values: np.array(values, dtype=float).reshape(-1, num_objectives))


def directions_of(num_objectives: int) -> st.SearchStrategy[list[Direction]]:
    return st.lists(st.sampled_from(DIRECTIONS), min_size=num_objectives, max_size=num_objectives)


def dominates(a: Sequence[float], b: Sequence[float], directions: Sequence[Direction]) -> bool:
    if any(math.isnan(value) for value in (*a, *b)):
        return False
    pairs = [(x, y) if d == "minimize" else (-x, -y) for x, y, d in zip(a, b, directions, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def slow_non_dominated(points: Points, directions: Sequence[Direction]) -> list[bool]:
    return [
        not any(math.isnan(value) for value in row) and not any(dominates(other, row, directions) for other in points)
        for row in points
    ]


def slow_rank(points: Points, directions: Sequence[Direction]) -> list[int]:
    ranks = [-1] * len(points)
    for rank in itertools.count():
        left = [row for row in range(len(points)) if ranks[row] < 0]
        front = [row for row, on in zip(left, slow_non_dominated(points[left], directions), strict=True) if on]
        for row in front or left:  # only NaN rows are left
            ranks[row] = rank
        if not front:
            return ranks
    raise AssertionError("unreachable")


def slow_hypervolume(points: Points, reference: Sequence[float]) -> float:
    """Sum the cells of the grid through all coordinates that some point (minimised) covers."""
    axes = [sorted({*points[:, axis], value}) for axis, value in enumerate(reference)]
    total = 0.0
    for cell in itertools.product(*(itertools.pairwise(axis) for axis in axes)):
        low, high = zip(*cell, strict=True)
        if all(h <= r for h, r in zip(high, reference, strict=True)) and any((p <= low).all() for p in points):
            total += math.prod(h - lo for lo, h in cell)
    return total


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
@given(data=st.data())
def test_front_and_rank_agree_with_the_definition(num_objectives: int, data: st.DataObject) -> None:
    points = data.draw(clouds(num_objectives))
    directions = data.draw(directions_of(num_objectives))
    assert non_dominated(points, directions).tolist() == slow_non_dominated(points, directions)
    losses = to_losses(points, [direction == "maximize" for direction in directions])
    assert non_dominated_ranks(losses).tolist() == slow_rank(points, directions)


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
@given(data=st.data())
@settings(max_examples=60)
def test_hypervolume_agrees_with_counting_cells(num_objectives: int, data: st.DataObject) -> None:
    points = data.draw(clouds(num_objectives, FINITE))
    reference = data.draw(st.lists(FINITE, min_size=num_objectives, max_size=num_objectives))
    directions = data.draw(directions_of(num_objectives))
    signs = np.where(np.array(directions) == "maximize", -1.0, 1.0)
    expected = slow_hypervolume(points, reference)
    assert hypervolume(points * signs, directions, reference * signs) == pytest.approx(expected)

    contributions = hypervolume_contributions(points * signs, directions, reference * signs)
    front = non_dominated(points * signs, directions)
    for row, contribution in enumerate(contributions):
        others = front.copy()
        others[row] = False
        lost = expected - slow_hypervolume(points[others], reference) if front[row] else 0.0
        assert contribution == pytest.approx(lost, abs=1e-12)


@pytest.mark.parametrize("shape", ["cloud", "front", "ties", "line", "skewed", "with NaN", "infinite"])
@pytest.mark.parametrize("num_objectives", [2, 3])
def test_prefilter_changes_no_answer(shape: str, num_objectives: int) -> None:
    """Above the prefilter's threshold the front is the same as moocore's over all measured rows."""
    rng = np.random.default_rng(7)
    points = rng.random((20_000, num_objectives))
    if shape == "front":
        points = -points / np.linalg.norm(points, axis=1, keepdims=True)
    elif shape == "ties":
        points = np.floor(points * 50)
    elif shape == "line":
        points = np.repeat(points[:, :1], num_objectives, axis=1)
    elif shape == "skewed":
        points = points ** np.arange(1, num_objectives + 1) * 10.0 ** np.arange(0, 9 * num_objectives, 9)
    elif shape == "with NaN":
        points[rng.random(points.shape) < 0.4] = np.nan
    elif shape == "infinite":
        points[rng.random(points.shape) < 0.3] = np.inf
    measured = ~np.isnan(points).any(axis=1)
    expected = np.zeros(len(points), dtype=bool)
    finite = np.minimum(points[measured], 1e30)  # moocore crashes on infinity
    expected[measured] = moocore.is_nondominated(finite, keep_weakly=True)
    assert expected.any()
    np.testing.assert_array_equal(non_dominated(points, ["minimize"] * num_objectives), expected)


def test_front_of_a_column_of_nan_is_empty_at_any_size() -> None:
    assert not non_dominated(np.full((10_000, 2), np.nan), CHEAP_AND_GOOD).any()


def test_copies_of_a_front_point_are_all_on_the_front() -> None:
    points = [[1, 0.5], [1, 0.5], [2, 0.9], [2, 0.4], [3, 0.9]]
    assert non_dominated(points, CHEAP_AND_GOOD).tolist() == [True, True, True, False, False]


def test_nothing_in_nothing_out() -> None:
    empties: list[ArrayLike] = [[], np.empty((0, 2))]
    for empty in empties:
        assert non_dominated(empty, CHEAP_AND_GOOD).shape == (0,)
        assert non_dominated_ranks(to_losses(empty, [False, True])).shape == (0,)
        assert hypervolume(empty, CHEAP_AND_GOOD, (1, 0)) == 0.0
        assert hypervolume_contributions(empty, CHEAP_AND_GOOD, (1, 0)).shape == (0,)
        assert knee(empty, CHEAP_AND_GOOD) is None


def test_hypervolume_of_the_infinitely_good_is_infinite_and_copies_do_not_hurt() -> None:
    assert hypervolume([[-math.inf, 0.5], [-math.inf, 0.5]], CHEAP_AND_GOOD, (1, 0)) == math.inf
    assert hypervolume([[0.5, math.inf], [0.5, math.inf]], CHEAP_AND_GOOD, (1, 0)) == math.inf
    assert hypervolume([[-math.inf, 0.5, 0.0]], ("minimize", "maximize", "minimize"), (1, 0, 1)) == math.inf
    assert hypervolume([[math.inf, 0.5], [math.nan, 0.9]], CHEAP_AND_GOOD, (1, 0)) == 0.0


def test_contribution_of_an_infinite_point_is_refused() -> None:
    with pytest.raises(ValueError, match="finite points"):
        hypervolume_contributions([[-math.inf, 0.5]], CHEAP_AND_GOOD, (1, 0))


@pytest.mark.parametrize(
    ("points", "directions", "match"),
    [
        ([[1, 2, 3]], CHEAP_AND_GOOD, r"shape \(n, 2\).*\(1, 3\)"),
        ([1, 2], CHEAP_AND_GOOD, "shape"),
        ([[1, 2]], ("min", "max"), "'min'"),
        ([[1, 2]], (), "at least one objective"),
    ],
)
def test_wrong_arguments_say_what_to_do(points: object, directions: tuple[Direction, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        non_dominated(points, directions)  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", [(1.0,), (1.0, math.nan), (math.inf, 0.0)])
def test_reference_must_be_finite_and_complete(reference: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="reference point must be 2 finite numbers"):
        hypervolume([[1, 2]], CHEAP_AND_GOOD, reference)


def test_knee_is_the_farthest_from_the_chord() -> None:
    # Scaled: (0, 0), (0.1, 0.8), (0.5, 0.9), (1, 1); distances above the chord 0.7, 0.4 over sqrt(2).
    points = [[0, 0.0], [10, 0.8], [50, 0.9], [100, 1.0], [60, 0.1]]
    assert knee(points, CHEAP_AND_GOOD) == 1


def test_knee_on_a_log_axis_moves_to_the_bend_in_orders_of_magnitude() -> None:
    points = [[1e6, 0.0], [1e7, 0.3], [1e8, 0.9], [1e9, 1.0]]
    assert knee(points, CHEAP_AND_GOOD) == 2  # linear: 0.09 of the width for 0.9 of the height
    assert knee([[1e6, 0.0], [3e6, 0.45], [3e8, 0.8], [1e9, 1.0]], CHEAP_AND_GOOD) == 2
    assert knee([[1e6, 0.0], [3e6, 0.45], [3e8, 0.8], [1e9, 1.0]], CHEAP_AND_GOOD, log=(True, False)) == 1


def test_knee_of_short_and_straight_fronts() -> None:
    assert knee([[5, 0.5]], CHEAP_AND_GOOD) == 0
    assert knee([[1, 0.5], [9, 0.6]], CHEAP_AND_GOOD) == 1  # no bend: best in the last objective
    assert knee([[0, 0.0], [1, 0.5], [2, 1.0]], CHEAP_AND_GOOD) == 2
    assert knee([[0, 0.0], [1, 0.1], [2, 1.0]], CHEAP_AND_GOOD) == 2  # bends inwards: behind the chord
    assert knee([[math.nan, 1.0]], CHEAP_AND_GOOD) is None


@given(points=clouds(2, FINITE), scale=st.floats(0.1, 100), shift=st.floats(-5, 5))
def test_knee_is_on_the_front_and_ignores_units(points: Points, scale: float, shift: float) -> None:
    row = knee(points, CHEAP_AND_GOOD)
    assert (row is None) == (len(points) == 0)
    if row is not None:
        assert non_dominated(points, CHEAP_AND_GOOD)[row]
        moved = knee(points * scale + shift, CHEAP_AND_GOOD)
        assert moved is not None
        # Two rows may lie equally far from the chord; rounding may then swap them, but never change the distance.
        assert chord_distance(points, moved) == pytest.approx(chord_distance(points, row), abs=1e-6)


def chord_distance(points: Points, row: int) -> float:
    front = points[non_dominated(points, CHEAP_AND_GOOD)]
    span = np.where(np.ptp(front, axis=0) > 0, np.ptp(front, axis=0), 1.0)
    cheap, good = (points[row] - front.min(axis=0)) / span
    return float(good - cheap)


def test_knee_refuses_what_it_cannot_scale() -> None:
    with pytest.raises(ValueError, match="logarithmic axis needs values > 0"):
        knee([[0.0, 0.5], [1.0, 0.9]], CHEAP_AND_GOOD, log=(True, False))
    with pytest.raises(ValueError, match="finite"):
        knee([[-math.inf, 0.5]], CHEAP_AND_GOOD)
    with pytest.raises(ValueError, match="two objectives"):
        knee([[1.0]], ["minimize"])
