"""The best architectures within a budget and limits, exactly.

Maximise Σ score(choice) subject to low ≤ cost ≤ high in one table of costs and to upper limits in others, where costs
are sums of terms that may couple several choices (the width of a stage and of the next). `chain` brings the tables into
one order, `labels` searches, with `prices` that say which partial solutions cannot be among the best.

Cost: the problem is a knapsack, so the worst case is exponential in time; memory stays bounded. What is hard is a band
so narrow, or limits so tight together, that only few of many architectures meet them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nas_kd.search_spaces.chain import Chain, Effect, Floats, Scores
from nas_kd.search_spaces.cost import CostTable
from nas_kd.search_spaces.labels import InfeasibleBudgetError, LabelSearch

__all__ = [
    "Effect",
    "InfeasibleBudgetError",
    "Knapsack",
    "Limit",
    "cost_range",
    "most_expensive_within",
    "most_probable",
]


class Limit(NamedTuple):
    """An upper limit of a figure.

    Attributes:
        name: of the figure, for people.
        tables: the largest of what they say is limited.
        high: most, inclusive, a frame where a table has a period.
    """

    name: str
    tables: tuple[CostTable, ...]
    high: float


class _Bound(NamedTuple):
    """The costs of one table over its whole period, inclusive."""

    table: CostTable
    low: float
    high: float


class Knapsack:
    """Costs of one space, for any number of questions.

    Args:
        table: what the budget counts.
        limits: of other costs, over the same variables.
        effects: of variables that have no effect under some choices of others. Such a variable then takes its best
            choice, so that no two solutions are the same net.

    Raises:
        ValueError: a table is of other variables.
    """

    def __init__(self, table: CostTable, limits: Sequence[Limit] = (), effects: Sequence[Effect] = ()) -> None:
        self.table, self.limits = table, tuple(limits)
        self._chain = Chain([table, *(own for limit in limits for own in limit.tables)], effects)

    def best(self, scores: Scores, low: float, high: float, k: int = 1) -> list[dict[str, int]]:
        """The k choices with the highest sums of scores among those within the budget and all limits, best first.

        All gates count, also those without effect under the other choices: they take their most probable value, so a
        shallow net has no advantage over a deep one.

        Args:
            scores: gate -> score of each choice, finite or -inf, which forbids it. With logits (log-probabilities but
                for a constant a gate) the result is the most probable architecture.
            low: least cost, inclusive, a frame where the table has a period; -inf for none.
            high: most cost, likewise; inf for none.
            k: number of solutions.

        Returns:
            k times gate -> index of its choice, fewer where there are not so many; of equal ones any, but always the
            same ones.

        Raises:
            InfeasibleBudgetError: there is none.
            ValueError: a score is NaN or +inf, or k is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, but it is {k}")
        for name in self.table.variables:
            if not bool((np.asarray(scores[name]) < np.inf).all()):
                raise ValueError(f"scores must be finite or -inf, but those of {name!r} are {list(scores[name])}")
        added, bounds = self._chain.added_scores(scores), self._bounds(low, high)
        if all(len(set(scores[name])) == 1 and np.isfinite(scores[name][0]) for name in self.table.variables):
            first = dict.fromkeys(self.table.variables, 0)
            if k == 1 and all(bound.low <= _total(bound.table, first) <= bound.high for bound in bounds):
                return [first]
            added = self._chain.added_scores(_any_scores(self.table))  # any solution will do
        try:
            return _best(self._chain, added, bounds, k)
        except InfeasibleBudgetError:
            beside = "".join(f" and has {_words(limit)}" for limit in self.limits)
            raise InfeasibleBudgetError(f"no architecture costs between {low:,.0f} and {high:,.0f}{beside}") from None

    def check(self, high: float) -> None:
        """Raise where no architecture is within a budget and all limits.

        Args:
            high: most cost, inclusive, a frame where the table has a period.

        Raises:
            InfeasibleBudgetError: names the first limit that cannot be met beside those before it, of which the budget
                is the first one, and the least that is possible.
        """
        added = self._chain.added_scores(_any_scores(self.table))
        try:
            _best(self._chain, added, self._bounds(-np.inf, high), 1)
        except InfeasibleBudgetError:
            pass
        else:
            return
        met: list[Limit] = []
        budget = [Limit("cost", (self.table,), high)] if np.isfinite(high) else []
        for limit in [*budget, *self.limits]:
            least = _least(limit.tables, met)
            if least > limit.high:
                beside = " and ".join(_words(other) for other in met)
                raise InfeasibleBudgetError(
                    f"no architecture{' with ' if beside else ''}{beside} has {_words(limit)}; the least is {least:,}"
                )
            met.append(limit)
        raise AssertionError("one of the limits cannot be met")

    def _bounds(self, low: float, high: float) -> list[_Bound]:
        period = self.table.period
        least = (math.ceil(low) - 1) * period + 1 if np.isfinite(low) else low  # a frame's share is rounded up
        most = math.floor(high) * period if np.isfinite(high) else high
        return [_Bound(self.table, least, most), *_upper_bounds(self.limits)]


def _words(limit: Limit) -> str:
    return f"{limit.name} of at most {limit.high:,.0f}"


def _upper_bounds(limits: Sequence[Limit]) -> list[_Bound]:
    bounds = []
    for limit in limits:
        for table in limit.tables:
            bounds.append(_Bound(table, -np.inf, math.floor(limit.high) * table.period))
    return bounds


def _any_scores(table: CostTable) -> dict[str, Floats]:
    """Scores where any solution will do: without ties, so that a search has a direction."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=len(choices)) for name, choices in table.variables.items()}


def _zeros(table: CostTable) -> dict[str, Floats]:
    return {name: np.zeros(len(choices)) for name, choices in table.variables.items()}


def _best(chain: Chain, added: Sequence[Floats], bounds: Sequence[_Bound], k: int) -> list[dict[str, int]]:
    low, high = np.array([bound.low for bound in bounds]), np.array([bound.high for bound in bounds])
    step = np.array(chain.granularity, dtype=np.float64)  # costs are multiples of it above the constants
    low = chain.constants + np.ceil((low - chain.constants) / step) * step
    high = chain.constants + np.floor((high - chain.constants) / step) * step
    if (low > high).any():
        raise InfeasibleBudgetError
    found = LabelSearch(chain, added, low, high, k).best()
    return [dict(zip(chain.names, map(int, choice), strict=True)) for choice in found.choice]


def _total(table: CostTable, index: Mapping[str, int]) -> int:
    return table.total({name: table.variables[name][i] for name, i in index.items()})


def _extreme(table: CostTable, sign: float, limits: Sequence[Limit] = ()) -> int:
    """Most (sign 1) or least (sign -1) cost over the whole period within limits."""
    bounds = [_Bound(table, -np.inf, np.inf), *_upper_bounds(limits)]
    chain = Chain([bound.table for bound in bounds])
    return _total(table, _best(chain, chain.added_scores(_zeros(table), cost_weight=sign), bounds, 1)[0])


def _least(tables: Sequence[CostTable], limits: Sequence[Limit]) -> int:
    """Least value within limits of the figure that is the largest of what some tables say, a frame."""
    low = max(-(-_extreme(table, -1.0, limits) // table.period) for table in tables)
    if len(tables) == 1:
        return low
    high = max(cost_range(table)[1] for table in tables)
    while low < high:  # by bisection: limits below the least value cannot be met
        middle = (low + high) // 2
        bounds = _upper_bounds([*limits, Limit("", tuple(tables), middle)])
        chain = Chain([bound.table for bound in bounds])
        try:
            _best(chain, chain.added_scores(_any_scores(tables[0])), bounds, 1)
        except InfeasibleBudgetError:
            low = middle + 1
        else:
            high = middle
    return low


def cost_range(table: CostTable) -> tuple[int, int]:
    """Cost of the cheapest and of the most expensive architecture, a frame where the table has a period."""
    return -(-_extreme(table, -1.0) // table.period), -(-_extreme(table, 1.0) // table.period)


def most_expensive_within(table: CostTable, high: int) -> int:
    """Cost of the most expensive architecture of at most `high`, a frame where the table has a period.

    By bisection: bands below `high` either hold an architecture or they do not.

    Raises:
        InfeasibleBudgetError: even the cheapest architecture costs more.
    """
    limit = high * table.period
    known, most = _extreme(table, -1.0), _extreme(table, 1.0)
    if known > limit:
        raise InfeasibleBudgetError(f"no architecture costs at most {high:,}")
    chain = Chain([table])
    added = chain.added_scores(_any_scores(table))
    known, beyond = (most, most + 1) if most <= limit else (known, limit + 1)
    while beyond - known > 1:  # `known` is the cost of one, and none has `beyond` to `limit`
        low = (known + beyond) // 2
        try:
            known = _total(table, _best(chain, added, [_Bound(table, low, beyond - 1)], 1)[0])
        except InfeasibleBudgetError:
            beyond = low
    return -(-known // table.period)


def most_probable(table: CostTable, scores: Scores, low: float, high: float) -> dict[str, int]:
    """The choices with the highest sum of scores among those with low ≤ cost ≤ high; see `Knapsack.best`."""
    return Knapsack(table).best(scores, low, high)[0]
