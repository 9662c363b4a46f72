"""The sampler `known_cost`: expected hypervolume improvement of a metric and exact costs.

What an architecture costs is known before it is trained. So only the metric is guessed, by a Gaussian process over the
knobs (`nas_kd.trials.surrogate`), and the trial is proposed whose exact costs and guessed metric promise the largest
gain of hypervolume (`nas_kd.trials.improvement`). Each objective that nobody knows, such as a measured latency or a
second metric, has a process of its own. So have the constraints: the gain counts by the probability that all of them
are kept, and as long as no trial keeps them, what promises to be less beyond them is proposed.

Candidates are random trials, mutants of the front's members, and mutants of the best candidates. What the study holds
already, running trials included, is proposed again only when nothing else is found. A part of the proposals is a
mutant of the front without regard to the process: on a table where the process misleads, the search still moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from nas_kd.trials.dominance import front, non_dominated_ranks, on_front
from nas_kd.trials.encoding import Encoding, draw
from nas_kd.trials.history import Candidate, History, Objects, SeenTrials
from nas_kd.trials.improvement import cells, expected_improvement, known_overlap
from nas_kd.trials.known_costs import KnownCosts
from nas_kd.trials.surrogate import Points, Surrogate, far_worse, one_thread

Floats = npt.NDArray[np.float64]
Candidates = Sequence[Candidate] | Objects

_NUM_STARTUP = 8  # complete trials before the process is used
_NUM_RANDOM, _NUM_MUTANTS, _NUM_CROSSED = 150, 300, 100
_NUM_ROUNDS, _NUM_BEST, _NUM_OF_EACH = 2, 6, 12  # rounds of mutating the best candidates
_MAX_TRAINED = 500  # trials that the process rests on, for its time grows with their cube
_FRONT_SHARE = 0.15  # of the proposals, a mutant of the front without regard to the process
_MAX_LISTED = 512  # spaces up to this size are listed in full
_MAX_TRIES = 2000  # draws for a trial within the range of costs


class KnownCostSampler(BaseSampler):
    """Propose what promises the largest gain of hypervolume; see the module.

    Args:
        seed: Seeds the draws.
        search_space: All knobs.
        known_costs: What is known of a trial from its knobs; without it costs are learned from the trials.
        seen: What an earlier proposal of the same study kept of its trials.
    """

    def __init__(
        self,
        seed: int,
        search_space: Mapping[str, BaseDistribution],
        known_costs: KnownCosts | None = None,
        seen: SeenTrials | None = None,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._encoding = Encoding(search_space)
        self._known = known_costs
        self._seen = SeenTrials() if seen is None else seen

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All knobs."""
        return self._encoding.space

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a knob that is not part of the search space."""
        return draw(param_distribution, self._rng)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose all knobs at once.

        Raises:
            ValueError: No trial has an allowed cost.
        """
        if not self._encoding.names:
            return {}
        fixed = dict(trial.system_attrs.get("fixed_params", {}))
        maximize = [direction == StudyDirection.MAXIMIZE for direction in study.directions]
        trials = study.get_trials(deepcopy=False)
        history = self._seen.history(trials, trial.number, self._encoding, self._known, maximize)
        pool = _Pool(self._encoding, self._known, fixed, history.counts, self._rng)
        with one_thread():
            return self._propose(history, pool).knobs

    def _propose(self, history: History, pool: _Pool) -> Candidate:
        if self._encoding.size() <= _MAX_LISTED:
            pool.list_all()
        if len(history.complete) < _NUM_STARTUP:
            pool.draw(_NUM_RANDOM)
            return self._spread_out(history, pool) if pool.candidates else pool.repeat()
        members = self._front(history)
        if self._rng.random() < _FRONT_SHARE:
            for num_mutated in (1, 1, 2, 3):
                pool.mutate(members, num_mutated, 20)
                if pool.candidates:
                    return pool.candidates[self._rng.integers(len(pool.candidates))]
        pool.draw(_NUM_RANDOM)
        pool.mutate(members, 1, 2 * _NUM_MUTANTS // 3)
        pool.mutate(members, 2, _NUM_MUTANTS // 3)
        pool.cross(members, _NUM_CROSSED)
        if not pool.candidates:
            return pool.repeat()
        return self._most_promising(history, pool)

    @staticmethod
    def _front(history: History) -> Objects:
        chosen: Objects = history.complete[on_front(np.column_stack([history.losses, history.costs]), history.excesses)]
        return chosen

    def _spread_out(self, history: History, pool: _Pool) -> Candidate:
        """The candidate furthest from all trials by knobs and cost; with a prior, of those on the prior's front."""
        candidates = pool.candidates
        others = [*history.complete, *history.running, *history.unsuccessful]
        if self._known is not None and self._known.prior is not None:
            priors = self._known.prior([candidate.knobs for candidate in candidates])
            known = _known_columns(candidates)
            values = [(prior, *(each.values[i] for i in known)) for prior, each in zip(priors, candidates, strict=True)]
            candidates = [candidates[i] for i in front(values, (history.maximize, *(False for _ in known)))]
        if not others:
            return candidates[self._rng.integers(len(candidates))]
        everything = self._points([*candidates, *others])
        rows = np.arange(len(candidates))
        own, tried = everything.take(rows), everything.take(np.arange(len(candidates), len(everything)))
        num_knobs = max(len(self._encoding.free), 1)
        distance = sum(
            (own.choices[:, column, None] != tried.choices[None, :, column]) / num_knobs
            for column in range(own.choices.shape[1])
        ) + sum(
            2.0 * np.abs(own.numbers[:, column, None] - tried.numbers[None, :, column]) / num_knobs
            for column in range(own.numbers.shape[1])
        )
        if own.known.shape[1]:
            costs = everything.known[:, 0]
            spread = max(float(np.ptp(costs)), 1e-12)
            distance = distance + 2.0 * np.abs(own.known[:, :1] - tried.known[None, :, 0]) / spread
        return candidates[int(np.argmax(np.asarray(distance).min(axis=1)))]

    def _points(self, candidates: Candidates) -> Points:
        known: list[list[float]] = [[] for _ in candidates]
        if self._known is not None:
            further = () if self._known.objectives is None else _known_columns(candidates)
            known = [[_log(c.cost), *(_log(c.values[i]) for i in further)] for c in candidates]
        if self._known is not None and self._known.prior is not None:
            priors = self._known.prior([candidate.knobs for candidate in candidates])
            known = [[*row, prior] for row, prior in zip(known, priors, strict=True)]
        features = np.array(known, dtype=np.float64).reshape(len(candidates), -1)
        return self._encoding.points([candidate.knobs for candidate in candidates], features)

    def _most_promising(self, history: History, pool: _Pool) -> Candidate:
        points = self._points(pool.candidates)
        model = _Model(self._points, history, points, self._rng)
        gains = model.gains(pool.candidates, points)
        for _ in range(_NUM_ROUNDS):
            best = [pool.candidates[i] for i in np.argsort(-gains)[:_NUM_BEST]]
            before = len(pool.candidates)
            pool.mutate(best, 1, _NUM_BEST * _NUM_OF_EACH)
            if len(pool.candidates) == before:
                break
            added = pool.candidates[before:]
            gains = np.concatenate([gains, model.gains(added, self._points(added))])
        return pool.candidates[int(np.argmax(gains))]


class _Model:
    """What the trials so far say of candidates.

    Args:
        to_points: candidates -> their features.
        history: the trials.
        guessed: features of candidates, of which the worst is looked for.
        rng: draws trials where there are too many of them.
    """

    def __init__(
        self, to_points: Callable[[Candidates], Points], history: History, guessed: Points, rng: np.random.Generator
    ) -> None:
        failed = far_worse(history.losses)
        trained = history.complete[~failed]
        unsuccessful = np.concatenate([history.complete[failed], history.unsuccessful])
        if len(unsuccessful) > _MAX_TRAINED:
            unsuccessful = rng.choice(unsuccessful, size=_MAX_TRAINED, replace=False)
        losses, costs = history.losses[~failed], history.costs[~failed]
        worst = float(losses.max())
        rows = _telling_rows(losses, costs, rng)
        points = to_points(trained[rows])
        self._loss = Surrogate(points, losses[rows], rng)
        # The reference is what the space holds at worst, as far as it is guessed. With the worst of the trials, nothing
        # that is worse than all of them would gain, and the cheap end of the front would never be looked for.
        worst = max(worst, float(self._loss.scale.from_scale(self._loss.mean(guessed)).max()))
        unknown = np.isnan(history.known[~failed])
        self._costs: list[Surrogate | None] = [
            Surrogate(points, costs[rows, column], rng) if unknown[:, column].any() else None
            for column in range(costs.shape[1])
        ]
        self._excess: Surrogate | None = None
        self._least_excess = 0.0
        if history.excesses is not None:
            excesses = history.excesses[~failed]
            self._excess = Surrogate(points, excesses[rows], rng)
            self._least_excess = max(0.0, float(excesses.min()))
            kept = excesses <= 0  # what is beyond a constraint is not on the front that is to be improved
        else:
            kept = np.ones(len(losses), dtype=bool)
        everything = costs
        losses, costs = losses[kept], costs[kept]
        if len(history.running):
            running = to_points(history.running)
            losses = np.concatenate([losses, self._loss.believe(running)])
            believed = [
                _known_values(history.running, column) if surrogate is None else surrogate.believe(running)
                for column, surrogate in enumerate(self._costs)
            ]
            costs_believed = np.column_stack(believed)
            costs = np.vstack([costs, costs_believed])
            everything = np.vstack([everything, costs_believed])
        reference = (worst, *(everything.max(axis=0) + 0.05 * np.ptp(everything, axis=0)).tolist())
        self._cells = cells(losses, costs, reference)
        self._successful = points
        self._unsuccessful = to_points(unsuccessful) if len(unsuccessful) else None

    def gains(self, candidates: Candidates, points: Points) -> Floats:
        """The expected gain of each candidate; `points` are their features."""
        if self._excess is not None and self._least_excess > 0:  # no trial keeps the constraints yet
            return self._expected_shortfall(self._excess, np.array([self._least_excess]), points)[:, 0]
        levels, place = np.unique(self._cells.level, return_inverse=True)
        shortfall = self._expected_shortfall(self._loss, levels, points)
        overlaps = []
        for column, surrogate in enumerate(self._costs):
            left, right = self._cells.left[column], self._cells.right[column]
            if surrogate is None:
                overlaps.append(known_overlap(_known_values(candidates, column), left, right))
            else:
                below = self._expected_shortfall(surrogate, right, points)
                overlaps.append(below - np.hstack([np.zeros((len(points), 1)), below[:, :-1]]))
        gains = expected_improvement(shortfall, place.reshape(self._cells.level.shape), overlaps)
        if self._excess is not None:
            gains = gains * self._excess.probability_below(0.0, points)
        if self._unsuccessful is not None:
            good = 1.0 + self._loss.similarity(points, self._successful).sum(axis=1)
            bad = self._loss.similarity(points, self._unsuccessful).sum(axis=1)
            gains = gains * good / (good + bad)
        return gains

    @staticmethod
    def _expected_shortfall(surrogate: Surrogate, thresholds: Floats, points: Points) -> Floats:
        return surrogate.scale.expected_shortfall(thresholds, *surrogate.predict(points))


def _known_values(candidates: Candidates, column: int) -> Floats:
    """What is known of an objective after the first: `n`."""
    return np.array([candidate.values[column] for candidate in candidates], dtype=np.float64)


def _known_columns(candidates: Candidates) -> list[int]:
    """Which objectives after the first are known of every trial before it runs."""
    return [i for i in range(len(candidates[0].values)) if not np.isnan(_known_values(candidates, i)).any()]


def total_excess(trial: FrozenTrial) -> float:
    """How far a trial is beyond all constraints, from what is noted at it; 0 where it keeps them."""
    return sum(max(0.0, excess) for excess in trial.constraints.values())


def _telling_rows(losses: Floats, costs: Floats, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The trials that a process rests on, in order: all, or of many those nearest to the front and as many others."""
    if len(losses) <= _MAX_TRAINED:
        return np.arange(len(losses))
    by_rank = np.argsort(non_dominated_ranks(np.column_stack([losses, costs])), kind="stable")
    best, others = by_rank[: _MAX_TRAINED // 2], by_rank[_MAX_TRAINED // 2 :]
    drawn = rng.choice(others, size=_MAX_TRAINED - len(best), replace=False)
    return np.sort(np.concatenate([best, drawn]))


class _Pool:
    """Candidates of one proposal: allowed, and neither proposed before nor twice in here."""

    def __init__(
        self,
        encoding: Encoding,
        known: KnownCosts | None,
        fixed: Mapping[str, Any],
        counts: Mapping[tuple[Any, ...], int],
        rng: np.random.Generator,
    ) -> None:
        self.candidates: list[Candidate] = []
        self._encoding = encoding
        self._known = known
        self._fixed = {name: value for name, value in fixed.items() if name in encoding.space}
        self._counts = counts
        self._rng = rng
        self._seen: set[tuple[Any, ...]] = set()
        self._repeats: dict[tuple[Any, ...], Candidate] = {}

    def _add(self, knobs: Mapping[str, Any]) -> None:
        own = {**knobs, **self._fixed}
        if self._known is not None and self._known.canonical is not None:
            own = {**own, **self._known.canonical(own), **self._fixed}
        key = self._encoding.key(own)
        if key in self._counts:
            if key not in self._repeats and self._allows(own):
                self._repeats[key] = Candidate.of(own, self._known)
            return
        if key in self._seen:
            return
        self._seen.add(key)
        if self._allows(own):
            self.candidates.append(Candidate.of(own, self._known))

    def _allows(self, knobs: Mapping[str, Any]) -> bool:
        return self._known is None or self._known.allows(knobs)

    def list_all(self) -> None:
        """Add the whole space, which must be finite."""
        rows: list[dict[str, Any]] = [{name: self._encoding.values(name)[0] for name in self._encoding.names}]
        for name in self._encoding.free:
            rows = [{**row, name: value} for row in rows for value in self._encoding.values(name)]
        for row in rows:
            self._add(row)

    def draw(self, count: int) -> None:
        """Add random candidates; where few are allowed, it is tried longer until there is one."""
        for attempt in range(_MAX_TRIES):
            if attempt >= count and (self.candidates or self._repeats):
                break
            sample = None if self._known is None else self._known.sample
            self._add(self._encoding.draw(self._rng) if sample is None else sample(self._rng))

    def mutate(self, parents: Candidates, num_mutated: int, count: int) -> None:
        """Add mutants of random parents."""
        for index in self._rng.integers(len(parents), size=count):
            self._add(self._encoding.mutant(parents[index].knobs, num_mutated, self._rng))

    def cross(self, parents: Candidates, count: int) -> None:
        """Add candidates that have each knob from one of two random parents."""
        names = self._encoding.names
        for first, second in self._rng.integers(len(parents), size=(count, 2)):
            if first != second:
                of_first = self._rng.random(len(names)) < 0.5
                pair = (parents[second].knobs, parents[first].knobs)
                self._add({name: pair[int(own)][name] for name, own in zip(names, of_first, strict=True)})

    def repeat(self) -> Candidate:
        """One of those that were proposed least often, for a space that is exhausted.

        Raises:
            ValueError: Nothing has an allowed cost.
        """
        if not self._repeats:
            assert self._known is not None, "without a range of costs each draw is allowed"
            beside = "" if self._known.within_limits is None else " within all limits"
            raise ValueError(
                f"a trial must cost between {self._known.min_cost:g} and {self._known.max_cost:g}{beside}, but none of "
                f"{_MAX_TRIES} random ones does; widen the range, or change the space"
            )
        least = min(self._counts[key] for key in self._repeats)
        keys = [key for key in self._repeats if self._counts[key] == least]
        return self._repeats[keys[int(self._rng.integers(len(keys)))]]


def _log(cost: float) -> float:
    """Costs as a feature: by their order of magnitude, where they have one."""
    return math.log(cost) if cost > 0 else cost
