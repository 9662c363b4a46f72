"""The most probable architecture within a budget, exactly.

Maximise Σ score(choice) subject to low ≤ cost ≤ high, where costs are a sum of terms that may couple several choices
(the width of a stage and of the next). Variables are eliminated along the net. A partial solution is a *label*: cost
so far, score so far, choices. Three rules keep the labels few without losing the optimum:

- dominance: among labels that agree in every choice that later terms still read, one that is more expensive and no
  better is dropped where only the upper limit binds; where both limits bind, only labels of equal cost compete;
- reach: the costs with which a label can still end must meet [low, high]; towards the end of the net these costs are
  known exactly, before that as an interval;
- Lagrange: no completion of a label scores more than its relaxation at the best multiplier (Handler and Zang, 1980),
  so a label whose relaxation is not above a solution already known is dropped.

Cost: the problem is a knapsack, so the worst case is exponential in time; memory stays bounded, because labels beyond
a fixed number are searched depth first. What is hard is a band so narrow that only few of many architectures meet it;
within 5 % below a budget, 40 gates of 9 choices took at most 0.1 s (random costs, four spreads of the scores). One
single cost with 40 coupled gates took 25 s and 0.3 GB, torch included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nas_kd.search_spaces.cost import CostTable

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_MAX_LABELS = 1 << 14  # kept together; more are split and searched depth first
_MAX_SUFFIXES = 1 << 17  # costs of completions that are listed one by one
_WIDEST_GAP = 1e3  # of scores, for the passes that look near the bound only
_SLACK = 1e-12  # relative to the scores; sums that differ by less count as equal


class InfeasibleBudgetError(ValueError):
    """No architecture of the space lies in the range of costs asked for."""


class _TooManyLabelsError(Exception):
    """More labels than are kept together."""


class _Step(NamedTuple):
    """One term: introduce its new variables, add its costs, forget the variables that no later term reads."""

    variables: tuple[int, ...]
    costs: Ints
    new: list[int]
    before: list[int]  # live variables before the step
    live: list[int]  # and after it


@dataclass
class _Labels:
    cost: Ints  # (n,)
    score: Floats  # (n,)
    choice: npt.NDArray[np.int16]  # (n, num_variables), -1 where not chosen yet

    def __len__(self) -> int:
        return len(self.cost)

    def __getitem__(self, keep: Ints | npt.NDArray[np.bool_] | slice) -> _Labels:
        return _Labels(self.cost[keep], self.score[keep], self.choice[keep])


class _Solution(NamedTuple):
    score: float
    cost: int
    choice: tuple[int, ...]


class _Chain:
    """The table as steps in the order of the net."""

    def __init__(self, table: CostTable, scores: Mapping[str, Sequence[float] | Floats], sign: int = 1) -> None:
        names = list(table.variables)
        self.sizes = [len(table.variables[n]) for n in names]
        self.scores = [np.asarray(scores[n], dtype=np.float64) for n in names]
        self.constant = sign * table.constant
        self.terms = [(tuple(names.index(v) for v in t.variables), sign * t.costs) for t in table.terms]
        used = {v for variables, _ in self.terms for v in variables}
        # A gate without any cost still has a best choice.
        self.terms += [((v,), np.zeros(self.sizes[v], dtype=np.int64)) for v in range(len(names)) if v not in used]
        last = {v: k for k, (variables, _) in enumerate(self.terms) for v in variables}
        seen: set[int] = set()
        self.steps: list[_Step] = []
        live: list[int] = []
        for k, (variables, costs) in enumerate(self.terms):
            new = [v for v in variables if v not in seen]
            seen.update(new)
            before, live = live, [v for v in [*live, *new] if last[v] > k]
            self.steps.append(_Step(variables, costs, new, before, live))

    def completions(self, cost_weight: float, score_weight: float) -> tuple[list[Floats], _Solution]:
        """Best Σ (score_weight · score + cost_weight · cost) of what follows each point between steps.

        Returns:
            One array a point, whose axes are the live variables there; and a solution that attains the first of them.
        """
        tables: list[Floats] = [np.zeros(())]
        picks: list[Ints] = []
        for step in reversed(self.steps):
            axes = [*step.before, *step.new]
            total = np.zeros([self.sizes[v] for v in axes])
            total += _aligned(tables[0], step.live, axes) + cost_weight * _aligned(step.costs, step.variables, axes)
            if score_weight:
                for v in step.new:
                    total += score_weight * _aligned(self.scores[v], [v], axes)
            flat = total.reshape([*total.shape[: len(step.before)], -1])
            picks.insert(0, flat.argmax(-1))
            tables.insert(0, flat.max(-1))
        choice = [0] * len(self.sizes)
        for step, pick in zip(self.steps, picks, strict=True):
            best = np.unravel_index(pick[tuple(choice[v] for v in step.before)], [self.sizes[v] for v in step.new])
            for v, index in zip(step.new, best, strict=True):
                choice[v] = int(index)
        return tables, self.solution(choice)

    def solution(self, choice: Sequence[int]) -> _Solution:
        """Score and cost of complete choices."""
        cost = self.constant + sum(int(costs[tuple(choice[v] for v in vs)]) for vs, costs in self.terms)
        return _Solution(sum(float(s[i]) for s, i in zip(self.scores, choice, strict=True)), cost, tuple(choice))

    def cost_step(self) -> int:
        """All costs differ by multiples of this."""
        return max(gcd(*(int(d) for _, costs in self.terms for d in np.unique(costs - costs.flat[0]))), 1)

    def suffixes(self) -> dict[int, tuple[Ints, int, int]]:
        """Point between steps -> all costs with which it can end, as far back as they are few enough to list.

        The costs of a combination of live choices lie, sorted, from `combination · span` on: (sorted, span, least).
        """
        sets: dict[tuple[int, ...], Ints] = {(): np.zeros(1, dtype=np.int64)}
        found: dict[int, tuple[Ints, int, int]] = {}
        for k in range(len(self.steps) - 1, 0, -1):
            step, grown = self.steps[k], dict[tuple[int, ...], Ints]()
            if sum(map(len, sets.values())) * prod(self.sizes[v] for v in step.new) > 8 * _MAX_SUFFIXES:
                break
            for old in product(*(range(self.sizes[v]) for v in step.before)):
                parts = []
                for fresh in product(*(range(self.sizes[v]) for v in step.new)):
                    at = dict(zip([*step.before, *step.new], (*old, *fresh), strict=True))
                    cost = step.costs[tuple(at[v] for v in step.variables)]
                    parts.append(sets[tuple(at[v] for v in step.live)] + cost)
                grown[old] = np.unique(np.concatenate(parts))
            if sum(map(len, grown.values())) > _MAX_SUFFIXES:
                break
            sets = grown
            least = min(int(costs[0]) for costs in sets.values())
            span = max(int(costs[-1]) for costs in sets.values()) - least + 1
            found[k] = (np.concatenate([c - least + i * span for i, c in enumerate(sets.values())]), span, least)
        return found


def _aligned(array: npt.NDArray[np.generic], axes: Sequence[int], onto: list[int]) -> Floats:
    """`array`, whose axes are variables `axes`, broadcastable against axes `onto`."""
    order = sorted(range(len(axes)), key=lambda i: onto.index(axes[i]))
    shape = [array.shape[axes.index(v)] if v in axes else 1 for v in onto]
    return np.asarray(np.transpose(array, order), dtype=np.float64).reshape(shape)


class _Search:
    """Label search in [low, high], for a chain whose unconstrained optimum costs more than `high`."""

    def __init__(self, chain: _Chain, low: int, high: int) -> None:
        self.chain, self.low, self.high = chain, low, high
        self.slack = _SLACK * max(1.0, sum(float(np.abs(s[np.isfinite(s)]).max(initial=0.0)) for s in chain.scores))
        self.least = [-t for t in chain.completions(-1.0, 0.0)[0]]
        self.most = chain.completions(1.0, 0.0)[0]
        self.suffixes: dict[int, tuple[Ints, int, int]] = {}
        self.multiplier, self.cheap = self._dual()
        self.relaxed = chain.completions(-self.multiplier, 1.0)[0]

    def _dual(self) -> tuple[float, _Solution]:
        """The multiplier with the lowest bound, by intersecting lines, and a solution at or below `high`."""
        over = self.chain.completions(0.0, 1.0)[1]
        spread = sum(float(np.ptp(s[np.isfinite(s)])) for s in self.chain.scores if np.isfinite(s).any())
        under = self.chain.completions(-(spread + 1.0), 1.0)[1]  # costs are integers: the cheapest one
        if not np.isfinite(under.score) or under.cost > self.high:
            raise InfeasibleBudgetError
        multiplier = 0.0
        for _ in range(100):
            multiplier = max((over.score - under.score) / (over.cost - under.cost), 0.0)
            middle = self.chain.completions(-multiplier, 1.0)[1]
            gain = (middle.score - over.score) - multiplier * (middle.cost - over.cost)
            if gain <= self.slack or middle.cost in (over.cost, under.cost):
                break
            over, under = (middle, under) if middle.cost > self.high else (over, middle)
        return multiplier, under

    def best(self) -> _Solution:
        """The optimum.

        Raises:
            InfeasibleBudgetError: there is none.
        """
        one_sided = self._run(self.cheap.score, None) or self.cheap
        if one_sided.cost >= self.low:
            return one_sided
        known = self._run(-np.inf, self.low, beam=True)
        if known is not None and known.score >= one_sided.score - self.slack:
            return known
        floor = known.score if known else -np.inf
        self.suffixes = self.chain.suffixes()
        try:
            return self._found(self._run(floor, self.low, split=False) or known)
        except _TooManyLabelsError:
            # The optimum is near the bound: first only labels that reach a share of the gap, then more.
            gap = min(one_sided.score - floor, _WIDEST_GAP)
            share = max(min(gap, 1.0) / 256, self.slack)
            while share < gap:
                if (solution := self._run(one_sided.score - share, self.low)) is not None:
                    return solution
                share *= 4
            return self._found(self._run(floor, self.low) or known)

    @staticmethod
    def _found(solution: _Solution | None) -> _Solution:
        if solution is None:
            raise InfeasibleBudgetError
        return solution

    def _run(self, floor: float, low: int | None, *, beam: bool = False, split: bool = True) -> _Solution | None:
        """The best solution above `floor`, or None.

        Args:
            floor: score to beat.
            low: least cost; None for no lower limit, where dominance is stronger.
            beam: keep one label for each of a few hundred costs: fast, but the result is only some solution.
            split: search more labels than are kept together in parts, instead of raising an error.
        """
        found: _Solution | None = None
        nothing = np.full((1, len(self.chain.sizes)), -1, dtype=np.int16)
        stack = [(0, _Labels(np.array([self.chain.constant], dtype=np.int64), np.zeros(1), nothing))]
        while stack:
            k, labels = stack.pop()
            if k == len(self.chain.steps):
                if len(labels) and float(labels.score.max()) > floor + self.slack:
                    found = self.chain.solution(labels.choice[int(labels.score.argmax())].tolist())
                    floor = found.score
                continue
            labels, bound = self._extended(k, labels, floor, low)
            group = self._combination(k, labels)
            if beam:
                keep = _best_of_each(np.zeros_like(group), labels.cost // max((self.high - self.low) // 8, 1), bound)
            else:
                keep = (_undominated if low is None else _best_of_each)(group, labels.cost, labels.score)
            labels, bound = labels[keep], bound[keep]
            if len(labels) <= _MAX_LABELS:
                stack.append((k + 1, labels))
            elif not split:
                raise _TooManyLabelsError
            else:
                labels, size = labels[np.argsort(bound, kind="stable")], _MAX_LABELS // 4
                parts = [labels[start : start + size] for start in range(0, len(labels), size)]
                stack += [(k + 1, part) for part in (parts[-1:] if beam else parts)]  # the most promising is on top
        return found

    def _combination(self, k: int, labels: _Labels) -> Ints:
        """(n,) number of the combination of live choices after step k."""
        number = np.zeros(len(labels), dtype=np.int64)
        for v in self.chain.steps[k].live:
            number = number * self.chain.sizes[v] + labels.choice[:, v]
        return number

    def _extended(self, k: int, labels: _Labels, floor: float, low: int | None) -> tuple[_Labels, Floats]:
        """All labels after step k that may still end in the band above `floor`, and their bounds."""
        step, sizes = self.chain.steps[k], self.chain.sizes
        n, shape = len(labels), [sizes[v] for v in step.new]
        labels = labels[np.repeat(np.arange(n), prod(shape))]
        for v, fresh in zip(step.new, np.indices(shape).reshape(len(shape), prod(shape)), strict=True):
            labels.choice[:, v] = np.tile(fresh, n)
            labels.score += self.chain.scores[v][labels.choice[:, v]]
        labels.cost += step.costs[tuple(labels.choice[:, v] for v in step.variables)]
        at = tuple(labels.choice[:, v] for v in step.live)
        bound = labels.score + self.relaxed[k + 1][at] + self.multiplier * (self.high - labels.cost)
        keep = (labels.cost + self.least[k + 1][at] <= self.high) & (bound > floor + self.slack)
        if low is not None:
            keep &= labels.cost + self.most[k + 1][at] >= low
            if k + 1 in self.suffixes:
                costs, span, least = self.suffixes[k + 1]
                offset, base = self._combination(k, labels) * span, labels.cost + least
                left = np.searchsorted(costs, offset + np.clip(low - base, 0, span))
                keep &= np.searchsorted(costs, offset + np.clip(self.high - base, -1, span - 1), side="right") > left
        return labels[keep], bound[keep]


def _best_of_each(group: Ints, cost: Ints, score: Floats) -> Ints:
    """Indices of the best score of each group and cost."""
    order = np.lexsort((-score, cost, group))
    group, cost = group[order], cost[order]
    first = np.diff(group, prepend=-1).astype(bool) | np.diff(cost, prepend=cost[:1] - 1).astype(bool)
    return np.asarray(order[first])


def _undominated(group: Ints, cost: Ints, score: Floats) -> Ints:
    """Indices of the labels to which no other one of their group is at most as expensive and at least as good."""
    if not len(cost):
        return np.zeros(0, dtype=np.int64)
    order = np.lexsort((-score, cost, group))
    rank = group[order] * len(score) + np.unique(score, return_inverse=True)[1][order]
    # Within a group, in order of cost, a label must be better than all before it.
    best_before = np.maximum.accumulate(np.concatenate([[-1], rank[:-1]]))
    new_group = np.diff(group[order], prepend=-1) > 0
    return np.asarray(order[(rank > best_before) | new_group])


def cost_range(table: CostTable) -> tuple[int, int]:
    """Cost of the cheapest and of the most expensive architecture, a frame where the table has a period."""
    chain = _Chain(table, {name: [0.0] * len(values) for name, values in table.variables.items()})
    least, most = chain.completions(-1.0, 0.0)[1].cost, chain.completions(1.0, 0.0)[1].cost
    return -(-least // table.period), -(-most // table.period)


def most_expensive_within(table: CostTable, high: int) -> int:
    """Cost of the most expensive architecture of at most `high`, a frame where the table has a period.

    By bisection: bands below `high` either hold an architecture or they do not.

    Raises:
        InfeasibleBudgetError: even the cheapest architecture costs more.
    """
    total, limit = replace(table, period=1), high * table.period
    known, most = cost_range(total)
    if known > limit:
        raise InfeasibleBudgetError(f"no architecture costs at most {high:,}")
    known, beyond = (most, most + 1) if most <= limit else (known, limit + 1)
    anything = {name: np.zeros(len(choices)) for name, choices in table.variables.items()}
    while beyond - known > 1:  # `known` is the cost of one, and none has `beyond` to `limit`
        low = (known + beyond) // 2
        try:
            index = most_probable(total, anything, low, limit)
        except InfeasibleBudgetError:
            beyond = low
        else:
            known = total.cost({name: table.variables[name][i] for name, i in index.items()})
    return -(-known // table.period)


def most_probable(
    table: CostTable, scores: Mapping[str, Sequence[float] | Floats], low: int, high: int
) -> dict[str, int]:
    """The choices with the highest sum of scores among those with low ≤ cost ≤ high.

    All gates count, also those without effect under the other choices: they take their most probable value, so a
    shallow net has no advantage over a deep one.

    Args:
        table: costs.
        scores: gate -> score of each choice, finite or -inf, which forbids it. With logits (log-probabilities but for a
            constant a gate) the result is the most probable architecture.
        low: least cost, inclusive.
        high: most cost, inclusive.

    Returns:
        gate -> index of its choice; of several optima any, but always the same one.

    Raises:
        InfeasibleBudgetError: there is none.
        ValueError: a score is NaN or +inf.
    """
    for name in table.variables:
        if not bool((np.asarray(scores[name]) < np.inf).all()):
            raise ValueError(f"scores must be finite or -inf, but those of {name!r} are {list(scores[name])}")
    chain = _Chain(table, scores)
    best = chain.completions(0.0, 1.0)[1]
    try:
        if not np.isfinite(best.score):
            raise InfeasibleBudgetError
        if not low <= best.cost <= high:
            first, step = chain.solution([0] * len(chain.sizes)).cost, chain.cost_step()
            lowest, highest = low + (first - low) % step, high - (high - first) % step  # costs that can occur at all
            if lowest > highest:
                raise InfeasibleBudgetError
            if best.cost > highest:
                best = _Search(chain, lowest, highest).best()
            else:  # too cheap: the mirror image
                best = _Search(_Chain(table, scores, sign=-1), -highest, -lowest).best()
    except InfeasibleBudgetError:
        raise InfeasibleBudgetError(f"no architecture costs between {low:,} and {high:,}") from None
    return dict(zip(table.variables, best.choice, strict=True))
