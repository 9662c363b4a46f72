from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_kd.trials import Constraint, Objective, Ranking, RungScheduler, should_stop
from nas_kd.trials.dominance import front, non_dominated_ranks, to_losses

RANKING = Ranking((Objective(name="accuracy", maximize=True), Objective(name="flops")))
# Few distinct values, so that ties and duplicates are common.
POINTS = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.0, -math.inf, math.inf])] * 2), min_size=1, max_size=12)


def slow_ranks(points: list[tuple[float, ...]]) -> list[int]:
    """Peel fronts one comparison at a time; less is better."""
    ranks: dict[int, int] = {}
    rank = 0
    while len(ranks) < len(points):
        left = [i for i in range(len(points)) if i not in ranks]
        for i in left:
            dominators = [
                j
                for j in left
                if all(a <= b for a, b in zip(points[j], points[i], strict=True)) and points[j] != points[i]
            ]
            if not dominators:
                ranks[i] = rank
        rank += 1
    return [ranks[i] for i in range(len(points))]


@given(POINTS)
def test_ranks_equal_the_slow_twin(points: list[tuple[float, ...]]) -> None:
    assert non_dominated_ranks(np.array(points)).tolist() == slow_ranks(points)


def test_ranks_by_hand() -> None:
    points = [(0.9, 10.0), (0.5, 20.0), (0.5, 5.0), (0.4, 30.0), (0.9, 10.0)]  # accuracy up, flops down
    assert non_dominated_ranks(to_losses(points, [True, False])).tolist() == [0, 1, 0, 2, 0]
    assert front(points, [True, False]) == [0, 2, 4]
    assert front([], [True, False]) == []


def slow_should_stop(values: tuple[float, ...], others: list[tuple[float, ...]], factor: float) -> bool:
    if any(not math.isfinite(value) for value in values):
        return True
    finite = [other for other in others if all(math.isfinite(value) for value in other)]
    losses = [(-accuracy, flops) for accuracy, flops in [values, *finite]]
    ranks = slow_ranks(losses)
    better = sum(1 for rank in ranks if rank < ranks[0])
    return better / (1 + len(others)) >= 1 / factor


@given(POINTS, st.sampled_from([1.5, 2.0, 4.0]))
def test_decision_equals_the_slow_twin(points: list[tuple[float, float]], factor: float) -> None:
    decision = should_stop(points[0], points[1:], [True, False], reduction_factor=factor)
    assert decision == slow_should_stop(points[0], points[1:], factor)


def test_front_goes_on_however_large_and_cheap_students_are_not_stopped() -> None:
    trade_off = [(0.1 * i, 10.0 * i) for i in range(1, 9)]
    for i, values in enumerate(trade_off):
        others = trade_off[:i] + trade_off[i + 1 :]
        assert not should_stop(values, others, [True, False], reduction_factor=4)


def test_dominated_part_is_stopped() -> None:
    others = [(0.9, 10.0), (0.8, 5.0), (0.1, 90.0), (0.2, 80.0), (0.3, 70.0)]
    assert should_stop((0.5, 50.0), others, [True, False], reduction_factor=3)  # two of six are better
    assert not should_stop((0.5, 50.0), others, [True, False], reduction_factor=2)  # half of six would be three
    assert should_stop((math.nan, 1.0), [], [True, False], reduction_factor=3)
    assert not should_stop((0.1, 1.0), [], [True, False], reduction_factor=3)


def test_a_rung_is_judged_once_at_its_first_report() -> None:
    scheduler = RungScheduler(rungs=(2, 4), reduction_factor=2)
    good = {step: {"accuracy": 0.9, "flops": 1.0} for step in range(1, 5)}
    bad = {"accuracy": 0.1, "flops": 9.0}
    assert not scheduler.decide(1, 1, {0: good, 1: {1: bad}}, RANKING)  # before the first rung
    assert scheduler.decide(1, 2, {0: good, 1: {1: bad, 2: bad}}, RANKING)
    assert scheduler.decide(1, 3, {0: good, 1: {3: bad}}, RANKING)  # skipped over the rung, and judged there
    assert not scheduler.decide(1, 3, {0: good, 1: {2: bad, 3: bad}}, RANKING)  # judged at 2 already
    assert not scheduler.decide(1, 2, {0: {1: good[1]}, 1: {2: bad}}, RANKING)  # the other has not reached it


def test_a_rung_compares_its_first_reports() -> None:
    scheduler = RungScheduler(rungs=(1,), reduction_factor=2)
    reports = {0: {1: {"accuracy": 0.1, "flops": 2.0}, 9: {"accuracy": 0.9, "flops": 2.0}}}
    assert not scheduler.decide(1, 1, {**reports, 1: {1: {"accuracy": 0.2, "flops": 2.0}}}, RANKING)


@pytest.mark.parametrize("rungs", [(), (0, 1), (2, 1), (1, 1)])
def test_rungs_must_ascend(rungs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`rungs` must be ascending"):
        RungScheduler(rungs=rungs)


def test_reduction_factor_must_be_above_1() -> None:
    with pytest.raises(ValueError, match="`reduction_factor` must be above 1, but got 1"):
        RungScheduler(rungs=(1,), reduction_factor=1.0)


def test_who_keeps_the_constraints_goes_before_who_does_not_and_the_others_by_how_far_they_are_off() -> None:
    ranking = Ranking(RANKING.objectives, (Constraint(name="f1", min=0.5),))
    scheduler = RungScheduler(rungs=(1,), reduction_factor=2)
    far = {1: {"accuracy": 0.9, "flops": 1.0, "f1": 0.1}}  # nobody dominates it, but it is furthest from f1 0.5
    near = {1: {"accuracy": 0.2, "flops": 9.0, "f1": 0.4}}
    kept = {1: {"accuracy": 0.1, "flops": 9.0, "f1": 0.6}}
    assert scheduler.decide(0, 1, {0: far, 1: near, 2: kept}, ranking)
    assert not scheduler.decide(1, 1, {0: far, 1: near, 2: kept}, ranking)
    assert not scheduler.decide(2, 1, {0: far, 1: near, 2: kept}, ranking)
    assert not scheduler.decide(0, 1, {0: far, 1: near, 2: kept}, RANKING)
    old = {1: {"accuracy": 0.95, "flops": 0.5}}  # from before there was a constraint: f1 is not known
    assert scheduler.decide(0, 1, {0: old, 1: near, 2: kept}, ranking)
