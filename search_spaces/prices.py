"""Prices of costs, with which the relaxation of a chain has a low bound.

Let s be the score of a choice and c its costs. For prices p, one a table, positive ones on upper bounds and negative
ones on lower bounds, no choice within the bounds scores more than

    max over all choices of s − p · c, plus p · bounds

(Handler and Zang, 1980, for one table). It is convex in p, and each evaluation gives a choice, whose line s − p · c is
below it everywhere, so the prices of the next round are those at which the lines known so far are low.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas_kd.search_spaces.chain import Chain, Floats

_ROUNDS = 6
_SAMPLES = 1024  # prices that are compared by the lines known so far, in a round
_BATCH = 12  # and of those, how many are evaluated
_MAX_NUMBERS = 1 << 20  # of one array
_KEPT = 3  # whose relaxations are used together

Choices = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Bounds:
    """What costs must lie within, inclusive, without the constants of the tables.

    Attributes:
        low: (num_tables,), -inf for none.
        high: (num_tables,), inf for none.
        least: (num_tables,) of all choices.
        most: (num_tables,) of all choices.
    """

    low: Floats
    high: Floats
    least: Floats
    most: Floats

    @property
    def binding(self) -> list[int]:
        """The tables in which some choices are out of bounds."""
        tables = range(len(self.low))
        return [j for j in tables if self.least[j] < self.low[j] or self.most[j] > self.high[j]]

    @property
    def spread(self) -> Floats:
        """(num_tables,) between the cheapest and the most expensive choice, at least 1."""
        return np.maximum(self.most - self.least, 1.0)

    def signs(self, j: int) -> list[float]:
        """Of the prices that table j may have."""
        signs = []
        if np.isfinite(self.high[j]):
            signs.append(1.0)
        if np.isfinite(self.low[j]):
            signs.append(-1.0)
        return signs

    def hold(self, costs: Floats) -> npt.NDArray[np.bool_]:
        """(n,) whether costs (n, num_tables) are within."""
        return np.asarray(((costs >= self.low) & (costs <= self.high)).all(1))

    def offset(self, prices: Floats) -> Floats:
        """(B,) p · bounds of prices (B, num_tables)."""
        bounds = np.where(prices > 0, self.high, np.where(prices < 0, self.low, 0.0))
        priced = np.where(prices != 0, prices * np.where(prices != 0, bounds, 0.0), 0.0)
        return np.asarray(priced.sum(1))


def low_prices(
    chain: Chain,
    added: Sequence[Floats],
    bounds: Bounds,
    take: Callable[[Choices], float],
) -> tuple[Floats, float]:
    """Prices at which no score within the bounds can be high.

    Args:
        chain: of the tables.
        added: scores of its steps.
        bounds: of the costs.
        take: told the choices (B, num_variables) of each round; returns the highest score known within the bounds, or
            -inf.

    Returns:
        (B, num_tables) prices, the one with the lowest bound first; and that bound: -inf where a variable has no
        choice that is allowed.
    """
    finite = [step[np.isfinite(step)] for step in added]
    range_of_scores = sum(float(np.ptp(scores)) for scores in finite if len(scores)) or 1.0
    unit = range_of_scores / bounds.spread
    rng, best, slack = np.random.default_rng(0), -np.inf, 1e-12 * range_of_scores
    lines = _Lines(chain, added, bounds)
    batch = _first_prices(bounds, unit)
    for _ in range(_ROUNDS):
        best = take(lines.evaluate(batch))
        if lines.lowest == -np.inf or not bounds.binding or lines.lowest <= best + slack:
            break
        sample = _prices_around(lines.best, bounds, unit, rng)
        order, model = lines.order(sample)
        if model >= lines.lowest - 1e-4 * range_of_scores:
            break
        batch = sample[np.concatenate([order[: _BATCH // 3], rng.choice(order[:64], _BATCH - _BATCH // 3)])]
    return lines.kept, lines.lowest


def excluding_prices(
    chain: Chain, allowed: Sequence[Floats], bounds: Bounds, take: Callable[[Choices], float]
) -> Floats:
    """Prices that tell which choices cannot meet several bounds together: with scores of 0, a relaxation below 0.

    Args:
        chain: of the tables.
        allowed: 0 for the choices of its steps that are allowed, else -inf.
        bounds: of the costs.
        take: as in `low_prices`.

    Returns:
        (B, num_tables) prices, the one with the lowest bound first, whose sizes are of no importance.
    """
    unit, rng = 1.0 / bounds.spread, np.random.default_rng(0)
    lines = _Lines(chain, allowed, bounds)
    batch = np.zeros((4 * _BATCH, chain.num_tables))
    for j in bounds.binding:
        batch[:, j] = rng.choice(bounds.signs(j), len(batch)) * rng.exponential(unit[j], len(batch))
    batch = _normalized(batch, bounds)
    for _ in range(_ROUNDS):
        take(lines.evaluate(batch))
        if lines.lowest < -1e-9:
            break
        sample = _normalized(_prices_around(lines.best, bounds, unit, rng), bounds)
        batch = sample[lines.order(sample)[0][:_BATCH]]
    return lines.kept


class _Lines:
    """The prices that were evaluated, and the choices that attain their relaxations."""

    def __init__(self, chain: Chain, added: Sequence[Floats], bounds: Bounds) -> None:
        self.chain, self.added, self.bounds = chain, added, bounds
        self.prices: Floats = np.zeros((0, chain.num_tables))
        self.values: Floats = np.zeros(0)
        self.scores: Floats = np.zeros(0)
        self.costs: Floats = np.zeros((0, chain.num_tables))

    def evaluate(self, prices: Floats) -> Choices:
        """Take prices (B, num_tables); returns the choices that attain their relaxations."""
        size = max(1, _MAX_NUMBERS // max(step.after.size for step in self.chain.steps))
        relaxed, chosen = [], []
        for start in range(0, len(prices), size):
            values, choice = self.chain.completions(self.added, -prices[start : start + size])
            relaxed.append(values[0][:, 0])
            chosen.append(choice)
        choice = np.concatenate(chosen)
        score, cost = self.chain.totals(self.added, choice)
        self.prices = np.concatenate([self.prices, prices])
        self.values = np.concatenate([self.values, np.concatenate(relaxed) + self.bounds.offset(prices)])
        self.scores = np.concatenate([self.scores, score])
        self.costs = np.concatenate([self.costs, cost - self.chain.constants])
        return choice

    @property
    def lowest(self) -> float:
        """The lowest bound so far."""
        return float(self.values.min())

    @property
    def best(self) -> Floats:
        """(num_tables,) the prices with the lowest bound."""
        return np.asarray(self.prices[self.values.argmin()])

    @property
    def kept(self) -> Floats:
        """(B, num_tables) those with the lowest bounds."""
        return np.asarray(self.prices[np.argsort(self.values, kind="stable")[:_KEPT]])

    def order(self, prices: Floats) -> tuple[npt.NDArray[np.int64], float]:
        """Prices by how low the lines known so far allow their bounds to be, and the lowest of these values."""
        model = (self.scores - prices @ self.costs.T).max(1) + self.bounds.offset(prices)
        order = np.argsort(model)
        return order, float(model[order[0]])


def _first_prices(bounds: Bounds, unit: Floats) -> Floats:
    """No prices, and one price alone or all together in several sizes."""
    asked = [np.zeros(len(unit))]
    for size in 4.0 ** np.arange(-3, 4):
        together = np.zeros(len(unit))
        for j in bounds.binding:
            for sign in bounds.signs(j):
                alone = np.zeros(len(unit))
                alone[j] = sign * size * unit[j]
                asked.append(alone)
            together[j] = bounds.signs(j)[0] * size * unit[j]
        asked.append(together)
    return np.unique(np.array(asked), axis=0)


def _prices_around(centre: Floats, bounds: Bounds, unit: Floats, rng: np.random.Generator) -> Floats:
    """(B, num_tables) prices around `centre`, near and far, some of them 0."""
    sample = np.zeros((_SAMPLES, len(centre)))
    width = rng.choice([0.01, 0.05, 0.3, 1.0], (_SAMPLES, 1))
    for j in bounds.binding:
        start = centre[j] if centre[j] else bounds.signs(j)[0] * unit[j] * 0.1
        sample[:, j] = start * np.exp(width[:, 0] * rng.normal(size=_SAMPLES))
        sample[rng.random(_SAMPLES) < (0.1 if centre[j] else 0.6), j] = 0.0
        if len(bounds.signs(j)) == 2:
            sample[rng.random(_SAMPLES) < 0.05, j] *= -1
    return sample


def _normalized(prices: Floats, bounds: Bounds) -> Floats:
    """Prices times what makes the sum of the costs' ranges 1; those without any price are left out."""
    size = np.abs(prices * bounds.spread).sum(1, keepdims=True)
    return np.asarray((prices / np.where(size > 0, size, 1.0))[size[:, 0] > 0])
