"""The most probable architecture within a budget, exactly.

Maximise Σ log p(choice) subject to low ≤ FLOPs ≤ high, where FLOPs are a sum of terms that may couple several choices
(the width of a cell and of the next). Variables are eliminated along the net: a partial solution is a *label* (FLOPs so
far, score so far, choices), and labels that agree in every choice that later terms still read, and in FLOPs, compete
(dynamic programming on the exact integer cost). Two bounds keep the labels few without losing the optimum:

- reach: the least and the most FLOPs with which a label can still end must meet [low, high];
- Lagrange: no completion of a label scores more than its relaxation at the best multiplier (Handler and Zang, 1980),
  so a label whose relaxation is below a solution already known is dropped.

A solution is known early from a first pass that keeps only the best label of each of a few thousand cost classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from search_spaces.cost import CostTable

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_NUM_CLASSES = 4096  # cost classes of the first pass
_SLACK = 1e-9  # relative; solutions closer than this in log-probability count as equally probable


class InfeasibleBudgetError(ValueError):
    """No architecture of the space lies in the range of FLOPs asked for."""


@dataclass
class _Labels:
    cost: Ints  # (n,)
    score: Floats  # (n,)
    choice: Ints  # (n, num_variables), -1 where not chosen yet

    def __getitem__(self, keep: Ints | npt.NDArray[np.bool_]) -> _Labels:
        return _Labels(self.cost[keep], self.score[keep], self.choice[keep])


class _Chain:
    """The table as steps: introduce the variables of a term, add the term, forget what no later term reads."""

    def __init__(self, table: CostTable, scores: Mapping[str, Sequence[float]]) -> None:
        names = list(table.variables)
        self.sizes = [len(table.variables[n]) for n in names]
        self.scores = [np.asarray(scores[n], dtype=np.float64) for n in names]
        self.constant = table.constant
        terms = [(tuple(names.index(v) for v in t.variables), t.flops) for t in table.terms]
        used = {v for variables, _ in terms for v in variables}
        # A gate without any cost still has a most probable choice.
        terms += [((v,), np.zeros(self.sizes[v], dtype=np.int64)) for v in range(len(names)) if v not in used]
        last = {v: k for k, (variables, _) in enumerate(terms) for v in variables}
        seen: set[int] = set()
        self.steps: list[tuple[tuple[int, ...], Ints, list[int], list[int]]] = []
        live: list[int] = []
        for k, (variables, flops) in enumerate(terms):
            new = [v for v in variables if v not in seen]
            seen.update(new)
            live = [v for v in [*live, *new] if last[v] > k]
            self.steps.append((variables, flops, new, live))

    def completions(self, cost_weight: float, score_weight: float, best: Literal["max", "min"]) -> list[Floats]:
        """For each point between steps: best Σ (score_weight · score + cost_weight · cost) of what follows.

        One array a point, whose axes are the live variables there.
        """
        reduce = np.max if best == "max" else np.min
        tables: list[Floats] = [np.zeros(())]
        for k in range(len(self.steps) - 1, -1, -1):
            variables, flops, new, live = self.steps[k]
            before = self.steps[k - 1][3] if k else []
            axes = [*before, *(v for v in new if v not in before)]
            shape = [self.sizes[v] for v in axes]
            total = np.zeros(shape)
            total = total + _aligned(tables[0], live, axes) + cost_weight * _aligned(flops, list(variables), axes)
            for v in new:
                total = total + score_weight * _aligned(self.scores[v], [v], axes)
            drop = tuple(i for i, v in enumerate(axes) if v not in before)
            tables.insert(0, reduce(total, axis=drop) if drop else total)
        return tables

    def run(self, low: int, high: int, multiplier: float, incumbent: float, num_classes: int | None) -> _Labels:
        """All labels that may end in [low, high] and beat `incumbent`; one a cost class if `num_classes` is given."""
        least = self.completions(1.0, 0.0, "min")
        most = self.completions(1.0, 0.0, "max")
        relaxed = self.completions(-multiplier, 1.0, "max")
        edge = high if multiplier >= 0 else low
        slack = _SLACK * max(1.0, abs(incumbent)) if np.isfinite(incumbent) else 0.0
        labels = _Labels(
            np.array([self.constant], dtype=np.int64),
            np.zeros(1),
            np.full((1, len(self.sizes)), -1, dtype=np.int64),
        )
        for k, (variables, flops, new, live) in enumerate(self.steps):
            for v in new:
                n, m = len(labels.cost), self.sizes[v]
                labels = labels[np.repeat(np.arange(n), m)]
                labels.choice[:, v] = np.tile(np.arange(m), n)
                labels.score = labels.score + self.scores[v][labels.choice[:, v]]
            labels.cost = labels.cost + flops[tuple(labels.choice[:, v] for v in variables)]
            at = tuple(labels.choice[:, v] for v in live)
            bound = labels.score - multiplier * labels.cost + relaxed[k + 1][at] + multiplier * edge
            keep = (
                (labels.cost + least[k + 1][at] <= high)
                & (labels.cost + most[k + 1][at] >= low)
                & (bound > incumbent + slack)
                & np.isfinite(labels.score)
            )
            labels = self._compete(labels[keep], live, high, num_classes)
        return labels

    def _compete(self, labels: _Labels, live: list[int], high: int, num_classes: int | None) -> _Labels:
        """Of labels with equal live choices and equal cost (or cost class), keep the best score."""
        if len(labels.cost) == 0:
            return labels
        cost = labels.cost if num_classes is None else labels.cost * num_classes // max(high, 1)
        keys = [labels.choice[:, v] for v in live]
        # Last key first; a tie in score goes to the dearer label, which wastes less of the budget.
        order = np.lexsort((-labels.cost, -labels.score, cost, *keys))
        labels, cost = labels[order], cost[order]
        first = np.ones(len(order), dtype=bool)
        same = cost[1:] == cost[:-1]
        for v in live:
            same &= labels.choice[1:, v] == labels.choice[:-1, v]
        first[1:] = ~same
        return labels[first]


def _aligned(array: npt.NDArray[np.generic], axes: list[int], onto: list[int]) -> Floats:
    """`array`, whose axes are variables `axes`, broadcastable against axes `onto`."""
    order = sorted(range(len(axes)), key=lambda i: onto.index(axes[i]))
    shape = [array.shape[axes.index(v)] if v in axes else 1 for v in onto]
    return np.asarray(np.transpose(array, order), dtype=np.float64).reshape(shape)


def _multiplier(chain: _Chain, low: int, high: int) -> float:
    """The multiplier with the lowest Lagrange bound, by ternary search on a convex function."""

    def bound(multiplier: float) -> float:
        edge = high if multiplier >= 0 else low
        return float(chain.completions(-multiplier, 1.0, "max")[0]) + multiplier * (edge - chain.constant)

    spread = sum(float(np.ptp(s[np.isfinite(s)])) for s in chain.scores if np.isfinite(s).any())
    gap = max(min((int(g) for _, f, _, _ in chain.steps for g in [np.ptp(f)] if g), default=1), 1)
    left, right = -spread / gap, spread / gap
    for _ in range(60):
        a, b = left + (right - left) / 3, right - (right - left) / 3
        if bound(a) <= bound(b):
            right = b
        else:
            left = a
    middle = (left + right) / 2
    return min((0.0, middle, left, right), key=bound)


def cost_range(table: CostTable) -> tuple[int, int]:
    """FLOPs of the cheapest and of the dearest architecture."""
    chain = _Chain(table, {name: [0.0] * len(values) for name, values in table.variables.items()})
    least = chain.completions(1.0, 0.0, "min")[0]
    most = chain.completions(1.0, 0.0, "max")[0]
    return chain.constant + int(least), chain.constant + int(most)


def most_probable(
    table: CostTable, log_probabilities: Mapping[str, Sequence[float]], low: int, high: int
) -> dict[str, int]:
    """The choices with the highest joint probability among those with low ≤ FLOPs ≤ high.

    All gates count, also those without effect under the other choices: they take their most probable value, so a
    shallow net has no advantage over a deep one.

    Args:
        table: costs.
        log_probabilities: gate -> log p of each choice; -inf forbids a choice.
        low: least FLOPs, inclusive.
        high: most FLOPs, inclusive.

    Returns:
        gate -> index of its choice.

    Raises:
        InfeasibleBudgetError: there is none.
    """
    chain = _Chain(table, log_probabilities)
    multiplier = _multiplier(chain, low, high)
    incumbent = -np.inf
    best: Ints | None = None
    for num_classes in (_NUM_CLASSES, None):  # a good solution first, then whatever is better
        labels = chain.run(low, high, multiplier, incumbent, num_classes)
        if len(labels.cost):
            winner = int(np.lexsort((-labels.cost, -labels.score))[0])
            incumbent, best = float(labels.score[winner]), labels.choice[winner]
    if best is None:
        raise InfeasibleBudgetError(f"no architecture has between {low:,} and {high:,} FLOPs")
    return dict(zip(table.variables, (int(i) for i in best), strict=True))
