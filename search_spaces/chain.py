"""Cost tables as one chain of steps in the order of the net, and what can still follow each point between two steps.

Variables are eliminated along the net: a step takes one term, introduces its new variables, adds what the term costs in
each of the tables, and forgets the variables that no later term reads. Between steps the *state* is the combination of
the variables that are still live, as one number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nas_kd.search_spaces.cost import CostTable

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Scores = Mapping[str, Sequence[float] | Floats]


class Effect(NamedTuple):
    """When the choice of a variable has an effect on the net.

    Attributes:
        variable: its name.
        deciders: the variables whose choices decide that.
        holds: (num_choices of each decider ...) whether it has an effect.
    """

    variable: str
    deciders: tuple[str, ...]
    holds: Bools


@dataclass
class _Term:
    """Costs over some variables in all tables: (num_choices of each variable ..., num_tables); and the effects that
    these variables decide."""

    variables: tuple[int, ...]
    costs: Ints
    effects: list[Effect]


class Step(NamedTuple):
    """One term.

    Attributes:
        new: the variables that it introduces.
        choices: (N, len(new)) their combinations.
        costs: (P, N, num_tables) added by each combination in each state before the step.
        after: (P, N) the state after it.
        effects: what is decided here, as (effect's number, (P, N) whether it holds, (N or P, N) the variable's choice).
    """

    new: list[int]
    choices: npt.NDArray[np.int16]
    costs: Floats
    after: Ints
    effects: list[tuple[int, Bools, Ints]]


class Chain:
    """The steps of some tables over the same variables.

    Args:
        tables: what architectures cost; the first one decides the order of the terms.
        effects: of the variables that have none under some choices of others. Such a variable takes its best choice.

    Raises:
        ValueError: a table is of other variables.
    """

    def __init__(self, tables: Sequence[CostTable], effects: Sequence[Effect] = ()) -> None:
        self.names = list(tables[0].variables)
        for table in tables[1:]:
            if dict(table.variables) != dict(tables[0].variables):
                raise ValueError("all cost tables must be of the same variables with the same choices; measure again")
        self.sizes = [len(choices) for choices in tables[0].variables.values()]
        self.num_tables = len(tables)
        self.constants = np.array([table.constant for table in tables], dtype=np.float64)
        terms = self._terms(tables, effects)
        last = {v: k for k, term in enumerate(terms) for v in term.variables}
        seen: set[int] = set()
        live: list[int] = []
        self.effects = list(effects)
        self.steps: list[Step] = []
        self.granularity = [
            max(gcd(*(int(d) for term in terms for d in np.unique(term.costs[..., j] - term.costs[..., j].flat[0]))), 1)
            for j in range(self.num_tables)
        ]
        for k, term in enumerate(terms):
            new = [v for v in term.variables if v not in seen]
            seen.update(new)
            after = [v for v in [*live, *new] if last[v] > k]
            least = term.costs.reshape(-1, self.num_tables).min(0)
            self.constants += least  # sums stay small where they differ little
            self.steps.append(self._step(term, term.costs - least, live, new, after))
            live = after

    def _terms(self, tables: Sequence[CostTable], effects: Sequence[Effect]) -> list[_Term]:
        """The terms of all tables; one that reads no more than an earlier one is added to it."""
        terms: list[_Term] = []

        def term_for(names: Sequence[str]) -> _Term:
            variables = tuple(self.names.index(name) for name in names)
            for term in terms:
                if set(variables) <= set(term.variables):
                    return term
            shape = [self.sizes[v] for v in variables]
            term = _Term(variables, np.zeros([*shape, self.num_tables], dtype=np.int64), [])
            unseen = set(variables)
            place = len(terms)
            for k, other in enumerate(terms):
                unseen -= set(other.variables)
                if not unseen:
                    place = k + 1
                    break
            terms.insert(place, term)
            return term

        for j, table in enumerate(tables):
            for cost in table.terms:
                term = term_for(cost.variables)
                own = [self.names.index(name) for name in cost.variables]
                term.costs[..., j] += _aligned(cost.costs, own, term.variables).astype(np.int64)
        for effect in effects:
            term_for((effect.variable, *effect.deciders)).effects.append(effect)
        for name in self.names:  # a gate without any cost still has a best choice
            term_for((name,))
        return terms

    def _step(self, term: _Term, costs: Ints, live: list[int], new: list[int], after: list[int]) -> Step:
        axes = [*live, *new]
        shape = [self.sizes[v] for v in axes]
        before, fresh = prod(shape[: len(live)]), prod(shape[len(live) :])
        index = np.indices(shape, sparse=True)

        def flat(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
            return np.broadcast_to(array, shape).reshape(before, fresh)

        state: Ints = np.zeros([1] * len(axes), dtype=np.int64)
        for v in after:
            state = state * self.sizes[v] + index[axes.index(v)]
        added = np.stack([flat(_aligned(costs[..., j], term.variables, axes)) for j in range(self.num_tables)], -1)
        effects = []
        for effect in term.effects:
            deciders = [self.names.index(name) for name in effect.deciders]
            own = index[axes.index(self.names.index(effect.variable))]
            number = next(i for i, other in enumerate(self.effects) if other is effect)
            effects.append((number, flat(_aligned(effect.holds, deciders, axes)), flat(own)))
        choices = np.indices(shape[len(live) :]).reshape(len(new), fresh).T.astype(np.int16)
        return Step(new, choices, added.astype(np.float64), flat(state), effects)  # type: ignore[arg-type]

    def added_scores(self, scores: Scores, cost_weight: float = 0.0) -> list[Floats]:
        """(P, N) what the combinations of each step add to the score; -inf where one is forbidden.

        Args:
            scores: gate -> score of each choice.
            cost_weight: of the first table's costs, which are added to the scores.
        """
        values = [np.asarray(scores[name], dtype=np.float64) for name in self.names]
        found = []
        for step in self.steps:
            added = np.zeros(step.after.shape) + cost_weight * step.costs[..., 0]
            for i, v in enumerate(step.new):
                added += values[v][step.choices[:, i]]
            for number, holds, choice in step.effects:
                best = values[self.names.index(self.effects[number].variable)].argmax()
                added[~holds & (choice != best)] = -np.inf
            found.append(added)
        return found

    def completions(self, added: Sequence[Floats], weights: Floats) -> tuple[list[Floats], Ints]:
        """Best Σ (score + weights · costs) of what follows each point between steps, for B weights at once.

        Args:
            added: (P, N) scores of each step.
            weights: (B, num_tables) of the costs.

        Returns:
            One array (B, P) a point; and (B, num_variables) choices that attain the first of them.
        """
        values = [np.zeros((len(weights), 1))]
        picks: list[Ints] = []
        for step, score in zip(reversed(self.steps), reversed(added), strict=True):
            total = np.moveaxis(step.costs @ weights.T, -1, 0)  # (B, P, N)
            total = total + score + values[0][:, step.after]
            picks.insert(0, total.argmax(-1))
            values.insert(0, total.max(-1))
        choice = np.zeros((len(weights), len(self.sizes)), dtype=np.int64)
        state = np.zeros(len(weights), dtype=np.int64)
        for step, pick in zip(self.steps, picks, strict=True):
            best = pick[np.arange(len(weights)), state]
            choice[:, step.new] = step.choices[best]
            state = step.after[state, best]
        return values, choice

    def totals(self, added: Sequence[Floats], choice: npt.NDArray[np.integer]) -> tuple[Floats, Floats]:
        """(n,) scores and (n, num_tables) costs, constants included, of complete choices (n, num_variables)."""
        score, cost = np.zeros(len(choice)), np.tile(self.constants, (len(choice), 1))
        state = np.zeros(len(choice), dtype=np.int64)
        for step, of_step in zip(self.steps, added, strict=True):
            number = np.zeros(len(choice), dtype=np.int64)
            for v in step.new:
                number = number * self.sizes[v] + choice[:, v]
            score += of_step[state, number]
            cost += step.costs[state, number]
            state = step.after[state, number]
        return score, cost

    def endings(self, added: Sequence[Floats], most: int) -> Iterator[tuple[int, Ints, int, int]]:
        """From the last point backwards, all costs of the first table with which each state can end.

        Yields:
            (point, costs, span, least): those of state p lie, sorted, from p · span on, less `least`. Until they are
            more than `most`.
        """
        sets: list[Ints] = [np.zeros(1, dtype=np.int64)]
        for k in range(len(self.steps) - 1, 0, -1):
            step, grown = self.steps[k], list[Ints]()
            if sum(map(len, sets)) * step.after.shape[1] > 8 * most:
                return
            for p in range(len(step.after)):
                allowed = np.flatnonzero(added[k][p] > -np.inf)
                parts = [sets[step.after[p, n]] + int(step.costs[p, n, 0]) for n in allowed]
                grown.append(np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64))
            if not 0 < sum(map(len, grown)) <= most:
                return
            sets = grown
            least = min(int(costs[0]) for costs in sets if len(costs))
            span = max(int(costs[-1]) for costs in sets if len(costs)) - least + 1
            yield k, np.concatenate([costs - least + p * span for p, costs in enumerate(sets)]), span, least


def _aligned(array: npt.NDArray[np.generic], axes: Sequence[int], onto: Sequence[int]) -> npt.NDArray[np.generic]:
    """`array`, whose axes are variables `axes`, broadcastable against axes `onto`."""
    order = sorted(range(len(axes)), key=lambda i: onto.index(axes[i]))
    shape = [array.shape[axes.index(v)] if v in axes else 1 for v in onto]
    return np.transpose(array, order).reshape(shape)
