"""The budget knapsack against brute force, and on tables where brute force is out of reach."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from nas_kd.search_spaces import CostTable, CostTerm, InfeasibleBudgetError, labels
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.knapsack import Effect, Knapsack, Limit, cost_range, most_expensive_within, most_probable

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
    monkeypatch.setattr(labels, "_MAX_LABELS", 8)
    monkeypatch.setattr(labels, "_MAX_ENDINGS", num_suffixes)

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


def random_table(rng: np.random.Generator, variables: dict[str, tuple[int, ...]], period: int) -> CostTable:
    """A term for each variable and its neighbour, and one that no other table has."""
    names, terms = list(variables), []
    for left, right in [*pairwise(names), (names[-1], names[0])]:
        shape = (len(variables[left]), len(variables[right]))
        terms.append(CostTerm(left, (left, right), rng.integers(0, 30, shape)))
    read = tuple(rng.permutation(names)[:2].tolist())
    terms.append(CostTerm("own", read, rng.integers(0, 30, [len(variables[name]) for name in read])))
    return CostTable(variables, tuple(terms), int(rng.integers(0, 9)), period=period)


def random_limits(rng: np.random.Generator, variables: dict[str, tuple[int, ...]]) -> list[Limit]:
    limits = []
    for i in range(int(rng.integers(1, 4))):
        tables = tuple(random_table(rng, variables, period=1 + i) for _ in range(1 + i % 2))
        least, most = np.max([cost_range(table) for table in tables], axis=0).tolist()
        limits.append(Limit(f"figure {i}", tables, least + float(rng.uniform(-0.1, 0.8)) * (most - least)))
    return limits


@pytest.mark.parametrize("seed", range(40))
def test_the_k_best_within_several_limits_are_those_of_all_architectures(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:
        monkeypatch.setattr(labels, "_BEAM", 3)  # so that equal labels are looked for
    rng = np.random.default_rng(seed)
    variables = {f"v{i}": tuple(range(int(rng.integers(2, 4)))) for i in range(5)}
    table, limits = random_table(rng, variables, period=2), random_limits(rng, variables)
    holds = rng.random((len(variables["v0"]), len(variables["v3"]))) < 0.5
    effects = [Effect("v1", ("v0", "v3"), holds), Effect("v4", ("v1",), rng.random(len(variables["v1"])) < 0.5)]
    scores = {name: rng.normal(size=len(choices)).round(1).tolist() for name, choices in variables.items()}
    least, most = cost_range(table)
    high = least + 0.7 * (most - least)
    low = -np.inf if seed % 3 == 0 else 0.7 * high
    expected = []
    for choice in product(*variables.values()):
        named = dict(zip(variables, choice, strict=True))
        has_effect = {"v1": holds[named["v0"], named["v3"]], "v4": effects[1].holds[named["v1"]]}
        is_canonical = all(has or named[n] == np.argmax(scores[n]) for n, has in has_effect.items())
        is_within = all(own.cost(named) <= limit.high for limit in limits for own in limit.tables)
        if is_canonical and is_within and low <= table.cost(named) <= high:
            expected.append(sum(scores[name][index] for name, index in named.items()))
    knapsack = Knapsack(table, limits, effects)
    for k in (1, 7, 1000):
        if not expected:
            with pytest.raises(InfeasibleBudgetError, match=r"figure 0 of at most"):
                knapsack.best(scores, low, high, k)
            continue
        found = knapsack.best(scores, low, high, k)
        sums = [sum(scores[name][index] for name, index in choice.items()) for choice in found]
        assert sums == pytest.approx(sorted(expected, reverse=True)[:k], abs=1e-9)
        assert len({tuple(choice.items()) for choice in found}) == len(found)
        for choice in found:
            assert low <= table.cost(choice) <= high
            assert all(own.cost(choice) <= limit.high for limit in limits for own in limit.tables)


@pytest.mark.parametrize("seed", range(20))
def test_the_error_names_the_first_limit_that_cannot_be_met_and_the_least_possible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    variables = {f"v{i}": tuple(range(3)) for i in range(4)}
    table, limits = random_table(rng, variables, period=2), random_limits(rng, variables)
    limits = [limit._replace(high=int(limit.high * 0.6)) for limit in limits]
    high = int(np.mean(cost_range(table)))
    architectures = [dict(zip(variables, choice, strict=True)) for choice in product(*variables.values())]
    left, words = architectures, None
    for limit in [Limit("cost", (table,), high), *limits]:
        values = [max(own.cost(choice) for own in limit.tables) for choice in left]
        if min(values) > limit.high:
            words = f"has {limit.name} of at most {limit.high}; the least is {min(values)}"
            break
        left = [choice for choice, value in zip(left, values, strict=True) if value <= limit.high]
    if words is None:
        Knapsack(table, limits).check(high)
        return
    with pytest.raises(InfeasibleBudgetError, match=words):
        Knapsack(table, limits).check(high)


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


def best_scores(table: CostTable, scores: Scores, low: float, high: float, k: int) -> list[float]:
    """The k best sums for a table of separate gates, by all costs that can be reached, each with its k best sums."""
    reached = {table.constant: [0.0]}
    for term in table.terms:
        (name,) = term.variables
        sums: dict[int, list[float]] = {}
        for cost, own in reached.items():
            for index, more in enumerate(term.costs.tolist()):
                sums.setdefault(cost + more, []).extend(score + scores[name][index] for score in own)
        reached = {cost: sorted(own, reverse=True)[:k] for cost, own in sums.items()}
    return sorted((s for cost, own in reached.items() if low <= cost <= high for s in own), reverse=True)[:k]


@pytest.mark.parametrize("k", [1, 4])
def test_gates_that_all_prefer_what_is_cheap_are_searched_in_no_time(k: int) -> None:
    # As after a few steps with large ones: many gates have nearly the same probabilities, and a few of the improbable
    # choices must be taken to come near the budget. Without equal labels made one, this took minutes.
    rng = np.random.default_rng(0)
    names = [f"edge{i}" for i in range(17)]
    costs = [np.array([0, 0, 0, 0, 1, 4, 9]) * unit for unit in rng.choice([2_304, 4_608, 9_216], size=17)]
    table = CostTable(
        dict.fromkeys(names, tuple(range(7))),
        tuple(CostTerm(name, (name,), cost) for name, cost in zip(names, costs, strict=True)),
        40_000,
    )
    scores = {
        name: (np.array([0, 0, 0, 0, -22.7, -22.7, -22.7]) + 0.05 * rng.random(7)).round(3).tolist() for name in names
    }
    high = 400_000
    start = time.process_time()
    found = Knapsack(table).best(scores, 0.95 * high, high, k)
    assert time.process_time() - start < 5  # 0.1 s on a free core
    sums = [sum(scores[name][index] for name, index in choice.items()) for choice in found]
    assert sums == pytest.approx(best_scores(table, scores, 0.95 * high, high, k), abs=1e-9)


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


def milp_optimum(
    table: CostTable, scores: dict[str, list[float]], low: int, high: int, limits: list[Limit] | None = None
) -> float | None:
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
    bounded = [(table, float(low), float(high))]
    bounded += [(own, -np.inf, limit.high) for limit in limits or [] for own in limit.tables]
    for each, least, most in bounded:
        cost: dict[int, float] = {}
        for term in each.terms:
            first = len(unknowns)
            unknowns += [0.0] * term.costs.size
            cost |= {first + i: float(value) for i, value in enumerate(term.costs.reshape(-1))}
            places = np.arange(term.costs.size).reshape(term.costs.shape)
            for axis, name in enumerate(term.variables):
                for i in range(len(table.variables[name])):
                    marginal = {first + int(place): 1.0 for place in places.take(i, axis).reshape(-1)}
                    rows.append(({**marginal, start[name] + i: -1.0}, 0.0, 0.0))
        rows.append((cost, least - each.constant - 0.5, most - each.constant + 0.5))  # costs are integers
    matrix = np.zeros((len(rows), len(unknowns)))
    for i, (row, _, _) in enumerate(rows):
        matrix[i, list(row)] = list(row.values())
    constraint = LinearConstraint(matrix, [r[1] for r in rows], [r[2] for r in rows])
    found = milp(-np.array(unknowns), integrality=np.ones(len(unknowns)), bounds=(0, 1), constraints=constraint)
    return None if found.x is None else -float(found.fun)


def chained(
    rng: np.random.Generator, gates: int, variables: Mapping[str, tuple[Choice, ...]] | None = None
) -> CostTable:
    """Gates in a row; each term couples two neighbours, as the widths of two stages."""
    variables = variables or {f"g{i}": tuple(range(int(rng.integers(2, 5)))) for i in range(gates)}
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


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_within_limits_is_that_of_a_mixed_integer_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = chained(rng, gates=12)
    others = [chained(rng, gates=12, variables=table.variables) for _ in range(3)]
    limits = []
    for i, other in enumerate(others):
        least, most = cost_range(other)
        limits.append(Limit(f"figure {i}", (other,), int(least + 0.45 * (most - least))))
    scores = {name: rng.normal(size=len(choices)).tolist() for name, choices in table.variables.items()}
    least, most = cost_range(table)
    for share in (0.35, 0.6):
        high = int(least + share * (most - least))
        expected = milp_optimum(table, scores, int(0.95 * high), high, limits)
        knapsack = Knapsack(table, limits)
        if expected is None:
            with pytest.raises(InfeasibleBudgetError):
                knapsack.best(scores, int(0.95 * high), high)
            continue
        index = knapsack.best(scores, int(0.95 * high), high, k=20)[0]
        assert sum(scores[name][i] for name, i in index.items()) == pytest.approx(expected, abs=1e-6)
