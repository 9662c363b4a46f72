"""Proposals: the next trial of a study, a queued one or the sampler's, written before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas_kd.trials.context import Shortage
from nas_kd.trials.history import SeenTrials
from nas_kd.trials.knobs import KnobSpace, check_values, to_distributions
from nas_kd.trials.known_costs import KnownCosts
from nas_kd.trials.objectives import Ranking
from nas_kd.trials.pace import Work
from nas_kd.trials.record import KnobValue
from nas_kd.trials.samplers import build_sampler, proposal_seed
from nas_kd.trials.stored_trials import StoredTrials
from nas_kd.trials.study import directions_of
from nas_kd.trials.translation import FIXED, Translation, is_queued

_MAX_PROPOSALS = 10  # of a sampler that knows no costs, for one that is within their range


@dataclass(frozen=True)
class ProposedTrial:
    """A trial to run, with its knobs; without a `seed` of its own, the driver derives one."""

    number: int
    knobs: Mapping[str, KnobValue]
    seed: int | None = None
    work: float | None = None
    """What its time grows with, where that is known."""
    shortage: Shortage | None = None
    """Where it ran out of the memory of a GPU that it shared."""


class Proposals:
    """Proposes the trials of one study.

    Args:
        stored: The trials of the study.
    """

    def __init__(self, stored: StoredTrials) -> None:
        self._stored = stored
        self._translation = Translation()
        self._seen = SeenTrials()

    def next(
        self,
        space: KnobSpace,
        ranking: Ranking,
        sampler: str,
        seed: int,
        known_costs: KnownCosts | None,
        work: Work | None,
    ) -> ProposedTrial:
        """See `nas_kd.trials.ledger.Ledger.ask`; `ranking` is what the trials are ranked by."""
        trials = self._stored.all()
        waiting = next((trial for trial in self._stored.unended() if is_queued(trial)), None)
        if waiting is not None:
            check_values(waiting.user_attrs["queued"], space)
        number = len(trials) if waiting is None else waiting.number
        proposed = self._proposed(number, space, ranking, sampler, seed, known_costs)
        for attempt in range(1, _MAX_PROPOSALS + 1):
            if waiting is not None or _is_allowed(proposed, known_costs):
                break
            # A sampler that knows no costs proposes again; at last the one that knows them decides.
            other = sampler if attempt < _MAX_PROPOSALS else "known_cost"
            proposed = self._proposed(number, space, ranking, other, seed + attempt * 1_000_003, known_costs)
        own_work = None if work is None else work(proposed.params)
        self._write_proposal(proposed, trials, waiting, own_work)
        own_seed = None if waiting is None else waiting.user_attrs.get("seed")
        return ProposedTrial(number, dict(proposed.params), own_seed, own_work)

    def view(self, space: KnobSpace, ranking: Ranking) -> optuna.Study:
        """What a sampler sees of the trials; see `nas_kd.trials.translation`."""
        return self._translation.view(self._stored.all(), space, directions_of(ranking), ranking)

    def _proposed(
        self,
        number: int,
        space: KnobSpace,
        ranking: Ranking,
        sampler: str,
        seed: int,
        known_costs: KnownCosts | None,
    ) -> FrozenTrial:
        """What a sampler would propose as trial `number`; nothing is stored."""
        distributions = to_distributions(space)
        view = self.view(space, ranking)
        view.sampler = build_sampler(sampler, proposal_seed(seed, number), distributions, known_costs, self._seen)
        asked = view.ask(distributions)
        assert asked.number == number, f"the sampler's view is at {asked.number}, the ledger at {number}"
        return view.get_trials(deepcopy=False)[number]

    def _write_proposal(
        self,
        proposed: FrozenTrial,
        trials: Sequence[FrozenTrial],
        waiting: FrozenTrial | None,
        work: float | None,
    ) -> None:
        stored_names = self._translation.stored_names(proposed.distributions, trials)
        attributes = {key: value for key, value in proposed.system_attrs.items() if key != FIXED}
        if waiting is None:
            # One write: a kill leaves either no trial or one that knows all its knobs.
            template = create_trial(
                state=TrialState.RUNNING,
                params={stored_names[name]: value for name, value in proposed.params.items()},
                distributions={stored_names[name]: item for name, item in proposed.distributions.items()},
                user_attrs={"knobs": dict(proposed.params)} | ({} if work is None else {"work": work}),
                system_attrs=attributes,
            )
            self._stored.create(template)
            return
        # Several writes, but the trial is queued until the last of them; asked again, it gets the same again.
        for name, distribution in proposed.distributions.items():
            if stored_names[name] not in waiting.params:
                self._stored.set_param(waiting, stored_names[name], proposed.params[name], distribution)
        for key, value in attributes.items():
            self._stored.set_system_attr(waiting, key, value)
        if work is not None and waiting.user_attrs.get("work") != work:
            self._stored.set_user_attr(waiting, "work", work)
        self._stored.set_user_attr(waiting, "knobs", dict(proposed.params))
        self._stored.set_state(waiting, TrialState.RUNNING)


def _is_allowed(proposed: FrozenTrial, known_costs: KnownCosts | None) -> bool:
    """Whether a proposal is within the range of costs and all limits, where they are known."""
    return known_costs is None or known_costs.allows(proposed.params)
