"""Label search: the best complete choices of a chain whose costs lie within bounds, exactly.

A partial solution is a *label*: state, costs so far, score so far, choices. Three rules keep labels few without losing
a solution:

- reach: in each table, the costs with which a label can still end must meet the bounds; for the first table they are
  known exactly towards the end of the net where an interval is too coarse;
- Lagrange: no completion of a label scores more than its relaxation, in which each table's costs have a price
  (Handler and Zang, 1980, for one table). Labels whose relaxation is not above the solutions already known are dropped;
- equality: labels of the same state and the same costs can be completed alike, so only the k best of them matter.

Labels beyond a fixed number are searched depth first, the most promising ones first, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas_kd.search_spaces.chain import Bools, Chain, Floats, Ints
from nas_kd.search_spaces.prices import Bounds, excluding_prices, low_prices

_MAX_LABELS = 1 << 14  # kept together; more are split and searched depth first
_MAX_ENDINGS = 1 << 17  # costs of completions that are listed one by one
_BEAM = 512  # labels of the pass that looks for some solutions
_SLACK = 1e-12  # relative to the scores; sums that differ by less count as equal
_TOLERANCE = 1e-10  # of sums of costs times prices, whose ranges add up to 1


class InfeasibleBudgetError(ValueError):
    """No architecture of the space lies in the range of costs asked for."""


class TooManyLabelsError(Exception):
    """More labels than are kept together."""


@dataclass
class Labels:
    """Partial solutions.

    Attributes:
        state: (n,) number of the combination of live variables.
        cost: (n, num_tables).
        score: (n,).
        choice: (n, num_variables), -1 where not chosen yet.
    """

    state: Ints
    cost: Floats
    score: Floats
    choice: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, keep: Ints | Bools | slice) -> Labels:
        return Labels(self.state[keep], self.cost[keep], self.score[keep], self.choice[keep])


@dataclass
class Found:
    """The best solutions so far, best first: (n,) scores and (n, num_variables) choices."""

    k: int
    score: Floats
    choice: npt.NDArray[np.int16]

    @property
    def floor(self) -> float:
        """What a solution must beat to be among the k best."""
        return float(self.score[self.k - 1]) if len(self.score) >= self.k else -np.inf

    def add(self, score: Floats, choice: npt.NDArray[np.integer]) -> None:
        """Take solutions that differ from each other; those that are known already do no harm."""
        if len(score) > 2 * self.k:  # at most k of them are known
            best = np.argsort(-score, kind="stable")[: 2 * self.k]
            score, choice = score[best], choice[best]
        scores = np.concatenate([self.score, score])
        choices = np.concatenate([self.choice, choice.astype(np.int16)])
        first = np.sort(np.unique(choices, axis=0, return_index=True)[1])
        order = first[np.argsort(-scores[first], kind="stable")][: self.k]
        self.score, self.choice = scores[order], choices[order]


class LabelSearch:
    """The k best solutions of a chain within bounds.

    Args:
        chain: of the tables.
        added: scores of its steps.
        low: (num_tables,) least costs, inclusive; -inf for none.
        high: (num_tables,) most costs, inclusive; inf for none.
        k: number of solutions.
    """

    def __init__(self, chain: Chain, added: Sequence[Floats], low: Floats, high: Floats, k: int) -> None:
        self.chain, self.added, self.k = chain, added, k
        self.low, self.high = low - chain.constants, high - chain.constants
        finite = [np.abs(a[np.isfinite(a)]).max(initial=0.0) for a in added]
        self.slack = _SLACK * max(1.0, float(sum(finite)))
        self.found = Found(k, np.zeros(0), np.zeros((0, len(chain.sizes)), dtype=np.int16))
        self.endings: dict[int, tuple[Ints, int, int]] = {}
        self.allowed = [np.where(np.isneginf(step), step, 0.0) for step in added]
        unit = np.eye(chain.num_tables)
        reach = chain.completions(self.allowed, np.concatenate([-unit, unit]))[0]
        self.least = [-r[: chain.num_tables] for r in reach]  # (num_tables, P)
        self.most = [r[chain.num_tables :] for r in reach]
        self.bounds = Bounds(self.low, self.high, self.least[0][:, 0], self.most[0][:, 0])
        if not np.isfinite(self.bounds.least).all():
            raise InfeasibleBudgetError
        if (self.bounds.least > self.high).any() or (self.bounds.most < self.low).any():
            raise InfeasibleBudgetError
        self.prices, self.bound = low_prices(chain, added, self.bounds, self._take)
        self.relaxed = chain.completions(added, -self.prices)[0]
        self.offset = self.bounds.offset(self.prices)
        self.excluding: Floats = np.zeros((0, chain.num_tables))

    def _take(self, choice: npt.NDArray[np.integer]) -> float:
        """Add those of some choices that are within the bounds; returns the highest score of a solution known."""
        score, cost = self.chain.totals(self.added, choice)
        within = self.bounds.hold(cost - self.chain.constants) & (score > -np.inf)
        self.found.add(score[within], choice[within])
        return float(self.found.score.max(initial=-np.inf))

    def best(self) -> Found:
        """The k best solutions, fewer where there are not so many.

        Raises:
            InfeasibleBudgetError: there is none.
        """
        self._run(self.found, beam=True)
        if not len(self.found.score) and len(self.bounds.binding) > 1:
            self._exclude()
            self._run(self.found, beam=True)
        if self.found.floor < self.bound - self.slack:
            self._search()
        if not len(self.found.score):
            raise InfeasibleBudgetError
        return self.found

    def _exclude(self) -> None:
        """From now on drop labels that cannot meet all bounds together.

        Raises:
            InfeasibleBudgetError: nothing can.
        """
        self.excluding = excluding_prices(self.chain, self.allowed, self.bounds, self._take)
        self.reach = self.chain.completions(self.allowed, -self.excluding)[0]
        self.reach_offset = self.bounds.offset(self.excluding)
        if (self.reach[0][:, 0] + self.reach_offset < -_TOLERANCE).any():
            raise InfeasibleBudgetError

    def _search(self) -> None:
        try:
            self._run(self.found, split=False)
        except TooManyLabelsError:
            if np.isfinite(self.low[0]):
                for point, costs, span, least in self.chain.endings(self.added, _MAX_ENDINGS):
                    self.endings[point] = costs, span, least
            # The solutions are near the bound: first only labels that reach a share of the gap, then more.
            floor = self.found.floor
            gap = self.bound - floor if np.isfinite(floor) else np.inf
            share = max(min(gap, 1.0) / 256, self.slack)
            while share < min(gap, 1e3):
                near = Found(self.k, np.zeros(0), self.found.choice[:0])
                self._run(near, floor=self.bound - share)
                self.found.add(near.score, near.choice)
                if len(near.score) >= self.k:
                    return
                share *= 4
            self._run(self.found)

    # Labels

    def _run(self, found: Found, *, floor: float = -np.inf, beam: bool = False, split: bool = True) -> None:
        """Add all solutions above `floor` that are among the k best.

        Args:
            found: takes them.
            floor: score to beat, beside that of the solutions known.
            beam: keep the most promising labels alone: fast, but the result is only some solutions.
            split: search more labels than are kept together in parts, instead of raising an error.
        """
        nothing = np.full((1, len(self.chain.sizes)), -1, dtype=np.int16)
        start = Labels(np.zeros(1, dtype=np.int64), np.zeros((1, self.chain.num_tables)), np.zeros(1), nothing)
        stack = [(0, start)]
        while stack:
            k, labels = stack.pop()
            if k == len(self.chain.steps):
                if len(labels):
                    found.add(labels.score, labels.choice)
                continue
            labels, bound = self._extended(k, labels, max(floor, found.floor))
            if beam and len(labels) > _BEAM:
                labels = labels[np.argsort(-bound, kind="stable")[:_BEAM]]
            if len(labels) <= _MAX_LABELS:
                stack.append((k + 1, labels))
            elif not split:
                raise TooManyLabelsError
            else:
                labels, size = labels[np.argsort(bound, kind="stable")], _MAX_LABELS // 4
                # The most promising part is on top.
                stack += [(k + 1, labels[begin : begin + size]) for begin in range(0, len(labels), size)]

    def _extended(self, k: int, labels: Labels, floor: float) -> tuple[Labels, Floats]:
        """All labels after step k that may still end within the bounds and above `floor`, and their relaxations."""
        step, num = self.chain.steps[k], self.chain.num_tables
        state = step.after[labels.state]  # (n, N)
        score = labels.score[:, None] + self.added[k][labels.state]
        cost = labels.cost[:, None] + step.costs[labels.state]  # (n, N, num_tables)
        bound = score + (self.relaxed[k + 1][0][state] - cost @ self.prices[0] + self.offset[0])
        for i in range(1, len(self.prices)):
            relaxed = score + (self.relaxed[k + 1][i][state] - cost @ self.prices[i] + self.offset[i])
            np.minimum(bound, relaxed, out=bound)
        keep = bound > floor + self.slack
        for j in range(num):
            keep &= cost[..., j] + self.least[k + 1][j][state] <= self.high[j]
            if np.isfinite(self.low[j]):
                keep &= cost[..., j] + self.most[k + 1][j][state] >= self.low[j]
        for i in range(len(self.excluding)):
            keep &= self.reach[k + 1][i][state] - cost @ self.excluding[i] + self.reach_offset[i] >= -_TOLERANCE
        row, column = np.nonzero(keep)
        if k + 1 in self.endings:
            exact = self._can_end(k + 1, state[row, column], cost[row, column, 0])
            row, column = row[exact], column[exact]
        if len(row) > _BEAM:
            best = self._best_of_equal(state[row, column], cost[row, column], score[row, column])
            row, column = row[best], column[best]
        choice = labels.choice[row]
        choice[:, step.new] = step.choices[column]
        kept = Labels(state[row, column], cost[row, column], score[row, column], choice)
        return kept, bound[row, column]

    def _best_of_equal(self, state: Ints, cost: Floats, score: Floats) -> Ints:
        """Indices of the k best labels of each state and costs, which all can be completed alike."""
        keys = np.column_stack([state, cost])
        order = np.lexsort([-score, *keys.T])
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
        place = np.arange(len(order))
        rank = place - np.maximum.accumulate(np.where(is_first, place, 0))
        return np.sort(order[rank < self.k])

    def _can_end(self, point: int, state: Ints, cost: Floats) -> Bools:
        """Whether the first table's costs can end within their bounds, exactly."""
        costs, span, least = self.endings[point]
        offset, base = state * span, cost.astype(np.int64) + least
        low = np.ceil(self.low[0]).astype(np.int64)
        high = np.floor(np.minimum(self.high[0], 2.0**62)).astype(np.int64)
        left = np.searchsorted(costs, offset + np.clip(low - base, 0, span))
        right = np.searchsorted(costs, offset + np.clip(high - base, -1, span - 1), side="right")
        return np.asarray(right > left)
