"""The budget knapsack against brute force, and on tables where brute force is out of reach."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from nas_kd.search_spaces import CostTable, CostTerm, InfeasibleBudgetError, knapsack
from nas_kd.search_spaces.knapsack import cost_range, most_expensive_within, most_probable

Scores = dict[str, list[float]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[CostTable, Scores, int, int]:
    """Small tables with coupled terms, repeated values, forbidden choices and free gates; any band around the range."""
    names = [f"v{i}" for i in range(draw(st.integers(1, 5)))]
    variables = {name: tuple(range(draw(st.integers(1, 4)))) for name in names}
    scale = draw(st.sampled_from([1, 6, 1000]))
    terms = []
    for i in range(draw(st.integers(0, 5))):
        read = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))
        shape = tuple(len(variables[name]) for name in read)
        flops = draw(st.lists(st.integers(0, 40), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        terms.append(CostTerm(f"t{i}", read, np.array(flops, dtype=np.int64).reshape(shape) * scale))
    score = st.one_of(st.floats(-5, 5), st.sampled_from([0.0, 1.0, -np.inf]))
    scores = {n: draw(st.lists(score, min_size=len(v), max_size=len(v))) for n, v in variables.items()}
    table = CostTable(variables, tuple(terms), draw(st.integers(0, 20)))
    least, most = cost_range(table)
    high = draw(st.integers(least - 2, most + 2))
    return table, scores, high - draw(st.sampled_from([0, 1, 5, 100, 10**6])), high


def brute_force(table: CostTable, scores: Scores, low: int, high: int) -> float:
    best = -np.inf
    for choice in product(*table.variables.values()):
        if low <= table.cost(dict(zip(table.variables, choice, strict=True))) <= high:
            best = max(best, sum(scores[n][int(c)] for n, c in zip(table.variables, choice, strict=True)))
    return best


def check(problem: tuple[CostTable, Scores, int, int]) -> None:
    table, scores, low, high = problem
    best = brute_force(*problem)
    if best == -np.inf:
        with pytest.raises(InfeasibleBudgetError, match="no architecture costs between"):
            most_probable(*problem)
        return
    index = most_probable(*problem)
    assert low <= table.cost({n: table.variables[n][i] for n, i in index.items()}) <= high
    assert sum(scores[n][i] for n, i in index.items()) == pytest.approx(best, abs=1e-9)
    assert most_probable(*problem) == index


@given(problems())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_equals_brute_force(problem: tuple[CostTable, Scores, int, int]) -> None:
    check(problem)


@pytest.mark.parametrize("num_suffixes", [0, 20])
def test_equals_brute_force_when_hardly_any_label_fits(num_suffixes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "_MAX_LABELS", 8)
    monkeypatch.setattr(knapsack, "_MAX_SUFFIXES", num_suffixes)

    @given(problems())
    @settings(max_examples=100, deadline=None, derandomize=True)
    def run(problem: tuple[CostTable, Scores, int, int]) -> None:
        check(problem)

    run()


@given(problems())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_cost_range_is_that_of_all_architectures(problem: tuple[CostTable, Scores, int, int]) -> None:
    table = problem[0]
    costs = [table.cost(dict(zip(table.variables, c, strict=True))) for c in product(*table.variables.values())]
    assert cost_range(table) == (min(costs), max(costs))


@given(problems(), st.integers(1, 3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_most_expensive_within_a_budget_is_that_of_all_architectures(
    problem: tuple[CostTable, Scores, int, int], period: int
) -> None:
    table, high = replace(problem[0], period=period), problem[3] // period
    costs = [table.cost(dict(zip(table.variables, c, strict=True))) for c in product(*table.variables.values())]
    if not (within := [cost for cost in costs if cost <= high]):
        with pytest.raises(InfeasibleBudgetError, match="no architecture costs at most"):
            most_expensive_within(table, high)
        return
    assert most_expensive_within(table, high) == max(within)


def large(num_gates: int, *, coupled: bool, step: int = 1) -> CostTable:
    rng = np.random.default_rng(0)
    names = [f"v{i}" for i in range(num_gates)]
    terms = []
    for i, name in enumerate(names):
        read = (name, names[i + 1]) if coupled and i + 1 < num_gates else (name,)
        terms.append(CostTerm(name, read, rng.integers(0, 10**6, (9,) * len(read)) * step))
    return CostTable(dict.fromkeys(names, tuple(range(9))), tuple(terms), 7)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("coupled", [False, True])
def test_forty_gates_of_nine_choices_take_no_time_within_five_per_cent(coupled: bool, spread: float) -> None:
    table, rng = large(40, coupled=coupled), np.random.default_rng(1)
    scores = {name: (spread * rng.normal(size=9)).tolist() for name in table.variables}
    least, most = cost_range(table)
    for share in (0.1, 0.5, 0.9):
        high = int(least + share * (most - least))
        start = time.process_time()
        index = most_probable(table, scores, int(0.95 * high), high)
        assert time.process_time() - start < 5  # 0.1 s on a free core
        assert 0.95 * high - 1 <= table.cost(index) <= high


@pytest.mark.parametrize("coupled", [False, True])
def test_the_most_expensive_within_a_budget_takes_no_time(coupled: bool) -> None:
    table = large(20, coupled=coupled, step=1024)  # of which no cost is near the budget, to the last FLOP
    high = sum(cost_range(table)) // 2
    start = time.process_time()
    cost = most_expensive_within(table, high)
    assert time.process_time() - start < 20  # 40 gates: 7 s, down to the last FLOP
    assert high - 1024 < cost <= high


def test_a_band_without_a_possible_cost_is_refused_at_once() -> None:
    table = large(40, coupled=True, step=1024)
    scores = {name: [0.0] * 9 for name in table.variables}
    start = time.process_time()
    with pytest.raises(InfeasibleBudgetError, match="no architecture costs between 10,240,008 and 10,241,030"):
        most_probable(table, scores, 10_240_008, 10_241_030)  # costs are 7 more than multiples of 1,024
    assert time.process_time() - start < 2


def test_few_gates_with_sparse_costs_are_searched_to_the_end() -> None:
    table = large(10, coupled=False)
    scores = {name: [0.0] * 9 for name in table.variables}
    reachable = most_probable(table, scores, 5_000_000, 5_001_000)
    cost = table.cost(reachable)
    assert 5_000_000 <= cost <= 5_001_000
    assert table.cost(most_probable(table, scores, cost, cost)) == cost


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_cannot_be_compared_are_refused(value: float) -> None:
    table = large(2, coupled=False)
    with pytest.raises(ValueError, match="scores must be finite or -inf, but those of 'v1'"):
        most_probable(table, {"v0": [0.0] * 9, "v1": [value] * 9}, 0, 10**9)


def milp_optimum(table: CostTable, scores: dict[str, list[float]], low: int, high: int) -> float | None:
    """The best sum of scores within the costs, as a mixed-integer linear program of scipy; None where there is none.

    One binary unknown a choice, and one for each joint choice of the variables of a term, whose marginals are the
    choices.
    """
    unknowns: list[float] = [score for name in table.variables for score in scores[name]]
    start, total = {}, 0
    for name, choices in table.variables.items():
        start[name] = total
        total += len(choices)
    rows: list[tuple[dict[int, float], float, float]] = []
    for name, choices in table.variables.items():
        rows.append(({start[name] + i: 1.0 for i in range(len(choices))}, 1.0, 1.0))
    cost: dict[int, float] = {}
    for term in table.terms:
        first = len(unknowns)
        unknowns += [0.0] * term.costs.size
        cost |= {first + i: float(value) for i, value in enumerate(term.costs.reshape(-1))}
        places = np.arange(term.costs.size).reshape(term.costs.shape)
        for axis, name in enumerate(term.variables):
            for i in range(len(table.variables[name])):
                marginal = {first + int(place): 1.0 for place in places.take(i, axis).reshape(-1)}
                rows.append(({**marginal, start[name] + i: -1.0}, 0.0, 0.0))
    rows.append((cost, low - table.constant - 0.5, high - table.constant + 0.5))  # costs are integers
    matrix = np.zeros((len(rows), len(unknowns)))
    for i, (row, _, _) in enumerate(rows):
        matrix[i, list(row)] = list(row.values())
    constraint = LinearConstraint(matrix, [r[1] for r in rows], [r[2] for r in rows])
    found = milp(-np.array(unknowns), integrality=np.ones(len(unknowns)), bounds=(0, 1), constraints=constraint)
    return None if found.x is None else -float(found.fun)


def chained(rng: np.random.Generator, gates: int) -> CostTable:
    """Gates in a row; each term couples two neighbours, as the widths of two stages."""
    variables = {f"g{i}": tuple(range(int(rng.integers(2, 5)))) for i in range(gates)}
    names = list(variables)
    terms = []
    for left, right in pairwise(names):
        shape = (len(variables[left]), len(variables[right]))
        terms.append(CostTerm(left, (left, right), rng.integers(1, 60, shape)))
    return CostTable(variables, tuple(terms), int(rng.integers(0, 20)))


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_that_of_a_mixed_integer_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = chained(rng, gates=7)
    scores = {name: rng.normal(size=len(choices)).tolist() for name, choices in table.variables.items()}
    least, most = cost_range(table)
    for share in (0.1, 0.5, 0.9):
        high = int(least + share * (most - least))
        low = int(0.95 * high)
        expected = milp_optimum(table, scores, low, high)
        if expected is None:
            with pytest.raises(InfeasibleBudgetError):
                most_probable(table, scores, low, high)
            continue
        index = most_probable(table, scores, low, high)
        assert sum(scores[name][i] for name, i in index.items()) == pytest.approx(expected, abs=1e-6)
