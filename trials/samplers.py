"""The samplers of a study by name, with a mutation sampler beside those of Optuna.

`mutation` is here because it is competitive on NAS-Bench-Macro (6,561 trained nets; median hypervolume regret over 10
seeds at 400 unique evaluations: mutation .0003, TPE .0005, NSGA-II with a population of 20 .0021, of 50 .0171, random
.0573) and because it never asks for what was already evaluated.

A sampler is built anew for every proposal, from `proposal_seed(seed, number)`: it holds no state, so that a resumed
study proposes what the uninterrupted one would have proposed.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas_kd.trials.dominance import front
from nas_kd.trials.encoding import draw, mutate
from nas_kd.trials.history import SeenTrials
from nas_kd.trials.known_cost import KnownCostSampler, total_excess
from nas_kd.trials.known_costs import KnownCosts

Space = Mapping[str, BaseDistribution]
SamplerBuilder = Callable[[int, Space, KnownCosts | None, SeenTrials | None], BaseSampler]

_NUM_TRIES = 100  # mutations tried for a proposal that nobody has had, before a duplicate is let through


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's progress lines and its notes on experimental arguments, both of our choosing, from the user."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


class MutationSampler(BaseSampler):
    """Mutate a random member of the front; never propose what the study holds already.

    One knob is mutated; after every ten proposals that turn out to be known, one more. A categorical knob takes
    another of its values, a number half the time a neighbouring value and otherwise any. Until `num_startup` trials
    are complete, proposals are random. Once the whole space is known, duplicates are let through.

    Args:
        seed: Seeds the draws.
        search_space: All knobs. Without it only those are proposed together that all complete trials share.
        num_startup: Complete trials before mutation begins.
    """

    def __init__(
        self, seed: int, search_space: Mapping[str, BaseDistribution] | None = None, *, num_startup: int = 10
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._search_space = None if search_space is None else dict(search_space)
        self._num_startup = num_startup

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All knobs; see the class."""
        if self._search_space is not None:
            return self._search_space
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose all knobs of the search space at once."""
        names = sorted(search_space)
        if not names:
            return {}
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        key = itemgetter(*names)
        having = [other for other in others if all(map(other.params.__contains__, names))]
        known = {key(other.params) for other in having}
        parents = self._front_members(study, having)
        proposal: dict[str, Any] = {}
        for attempt in range(_NUM_TRIES):
            if parents:
                parent = parents[self._rng.integers(len(parents))]
                proposal = {name: parent.params[name] for name in names}
                num_mutated = min(len(names), 1 + attempt // 10)
                for position in self._rng.choice(len(names), size=num_mutated, replace=False):
                    name = names[position]
                    proposal[name] = mutate(search_space[name], proposal[name], self._rng)
            else:
                proposal = {name: draw(search_space[name], self._rng) for name in names}
            if key(proposal) not in known:
                break
        return proposal

    def _front_members(self, study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if len(complete) < self._num_startup:
            return []
        maximize = [direction == StudyDirection.MAXIMIZE for direction in study.directions]
        excesses = [total_excess(trial) for trial in complete]
        return [complete[i] for i in front([trial.values for trial in complete], maximize, excesses)]

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a knob that is not part of the relative search space."""
        return draw(param_distribution, self._rng)


class _CommonSpace(IntersectionSearchSpace):
    """The knobs that all trials have.

    Optuna's own compares each knob of each trial at every proposal, 0.3 s of 10,000 trials with 10 knobs. Of trials in
    the terms of one space it is known: those that have ended with a report or a result have all of its knobs.
    """

    def __init__(self, space: Space, states: Collection[TrialState]) -> None:
        super().__init__()
        self._space = dict(sorted(space.items()))
        self._states = states

    def calculate(self, study: optuna.Study, use_cache: bool = False) -> dict[str, BaseDistribution]:
        """All knobs, as soon as there is a trial in one of the states."""
        trials = study._get_trials(deepcopy=False, use_cache=use_cache)
        return dict(self._space) if any(trial.state in self._states for trial in trials) else {}


def _tpe(seed: int, space: Space, known_costs: KnownCosts | None, seen: SeenTrials | None) -> BaseSampler:
    # `constant_liar` counts running trials as bad, so that parallel proposals keep apart.
    sampler = TPESampler(multivariate=True, constant_liar=True, seed=seed)
    sampler._search_space = _CommonSpace(space, (TrialState.COMPLETE, TrialState.PRUNED))
    return sampler


def _nsga2(seed: int, space: Space, known_costs: KnownCosts | None, seen: SeenTrials | None) -> BaseSampler:
    sampler = NSGAIISampler(population_size=20, seed=seed)
    sampler._search_space = _CommonSpace(space, (TrialState.COMPLETE,))
    return sampler


SAMPLERS: Mapping[str, SamplerBuilder] = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "random": lambda seed, space, known_costs, seen: RandomSampler(seed=seed),
    "mutation": lambda seed, space, known_costs, seen: MutationSampler(seed, space),
    "known_cost": KnownCostSampler,
}


def build_sampler(
    name: str, seed: int, space: Space, known_costs: KnownCosts | None = None, seen: SeenTrials | None = None
) -> BaseSampler:
    """A sampler by its name in `SAMPLERS`.

    Args:
        name: `known_cost` (the default of campaigns), `tpe`, `nsga2`, `random` or `mutation`.
        seed: Seeds its draws; see `proposal_seed`.
        space: All knobs, as distributions.
        known_costs: What is known of a trial from its knobs. The samplers that come with Optuna make no use of it.
        seen: What an earlier sampler of the same study kept of its trials, for those that can use it.

    Raises:
        ValueError: There is no sampler of that name.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose from {', '.join(SAMPLERS)}")
    with quiet_optuna():
        return SAMPLERS[name](seed, space, known_costs, seen)


def proposal_seed(seed: int, number: int) -> int:
    """The seed of the proposal of trial `number`: 31 bits that look unrelated for neighbouring seeds and numbers."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
