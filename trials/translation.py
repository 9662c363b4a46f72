"""What a sampler sees of the stored study: the trials in the terms of the present space.

Optuna refuses a categorical knob whose choices changed, and its samplers propose
jointly only what all trials share. So the sampler does not look at the stored study but at one in memory, made from
it in the terms of the present space: a choice may gain and lose values, a knob may appear (with a `default`, earlier
trials count as having had it), go or change its type. Trials that the present space does not hold stay in the ledger
and on its front; the sampler no longer learns from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas_kd.trials.knobs import KnobSpace, to_distributions
from nas_kd.trials.objectives import Constraint, Ranking
from nas_kd.trials.record import TrialRecord
from nas_kd.trials.view import STUDY_NAME, ProposalView

FIXED = "fixed_params"  # where Optuna keeps the values of a queued trial
CONSTRAINT_PREFIX = "constraints:"  # of the names under which `set_constraint` keeps them


STATES: Mapping[str, TrialState] = {
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "stopped": TrialState.PRUNED,
}


class Translation:
    """The trials of one ledger; each that has ended is looked at once, and passed over from then on."""

    def __init__(self) -> None:
        self._space: KnobSpace = {}
        self._distributions: dict[str, BaseDistribution] = {}  # one object of each knob for all trials
        self._constraints: tuple[Constraint, ...] = ()
        self._translated: list[FrozenTrial] = []  # in the terms of `_space`
        self._unended: list[int] = []  # numbers of those that are to be translated again
        self._stored: dict[str, BaseDistribution] = {}  # by the names of the stored study
        self._unended_stored: list[int] = []
        self._num_stored = 0  # trials that were looked at for `_stored`

    def view(
        self, trials: Sequence[FrozenTrial], space: KnobSpace, directions: Sequence[StudyDirection], ranking: Ranking
    ) -> optuna.Study:
        """A study in memory, in the terms of `space`, for one proposal.

        It is made anew for each: a study that lives on keeps caches, which made NSGA-II propose otherwise after a
        resume.

        Args:
            trials: All that are stored, by number.
            space: The knobs.
            directions: Of the objectives.
            ranking: Whose constraints Optuna's samplers look for at each trial.
        """
        if (self._space, self._constraints) != (space, ranking.constraints):
            self._space, self._constraints = dict(space), ranking.constraints
            self._distributions = to_distributions(space)
            self._translated, self._unended = [], []
        numbers = (*self._unended, *range(len(self._translated), len(trials)))
        self._unended = [number for number in numbers if not trials[number].state.is_finished()]
        for number in numbers:
            seen = _translate(trials[number], space, self._distributions, ranking)
            seen.number = seen._trial_id = number
            self._translated[number : number + 1] = [seen]
        return optuna.Study(STUDY_NAME, ProposalView(directions, self._translated, self._unended))

    def stored_names(
        self, distributions: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial]
    ) -> dict[str, str]:
        """Under which name each knob goes into the stored study: its own, or `NAME~2` and on where that is taken."""
        numbers = (*self._unended_stored, *range(self._num_stored, len(trials)))
        for number in numbers:
            self._stored.update(trials[number].distributions)
        self._unended_stored = [number for number in numbers if not trials[number].state.is_finished()]
        self._num_stored = len(trials)
        names: dict[str, str] = {}
        for name, distribution in distributions.items():
            version, candidate = 1, name
            while candidate in self._stored and not _compatible(self._stored[candidate], distribution):
                version += 1
                candidate = f"{name}~{version}"
            names[name] = candidate
        return names


def is_queued(trial: FrozenTrial) -> bool:
    """Whether a trial waits to be proposed and was not withdrawn."""
    return trial.state == TrialState.WAITING and not trial.user_attrs.get("withdrawn", False)


def _translate(
    trial: FrozenTrial, space: KnobSpace, distributions: Mapping[str, BaseDistribution], ranking: Ranking
) -> FrozenTrial:
    """A stored trial as the view holds it, under the same number."""
    if trial.state == TrialState.WAITING:
        if not is_queued(trial):
            return create_trial(state=TrialState.FAIL)  # withdrawn: samplers pass over it
        return create_trial(state=trial.state, system_attrs={FIXED: trial.user_attrs["queued"]})
    knobs = {name: trial.user_attrs["knobs"].get(name, knob.default) for name, knob in space.items()}
    if not all(knob.contains(knobs[name]) for name, knob in space.items()):
        return create_trial(state=TrialState.FAIL)  # outside of the space: samplers pass over it
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=knobs,
        distributions=dict(distributions),
        system_attrs={**trial.system_attrs, **_excesses(trial, ranking)},
    )


def _excesses(trial: FrozenTrial, ranking: Ranking) -> dict[str, float]:
    """How far a complete trial is beyond each constraint, under the names at which Optuna's samplers look for it."""
    if not ranking.constraints or trial.state != TrialState.COMPLETE:
        return {}
    record = TrialRecord.model_validate(trial.user_attrs["record"])
    excesses = zip(ranking.constraints, ranking.excesses(record), strict=True)
    return {f"{CONSTRAINT_PREFIX}{constraint}": excess for constraint, excess in excesses}


def _compatible(old: BaseDistribution, new: BaseDistribution) -> bool:
    try:
        check_distribution_compatibility(old, new)
    except ValueError:
        return False
    return True
