"""What a sampler sees while it proposes one trial: the trials of the ledger, and nothing that outlives the proposal.

Optuna's own storage in memory copies each trial deeply, so that a proposal would cost more with every trial that there
is. Here finished trials are shared with the ledger, which translates each of them once; only what a sampler writes to
is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState, create_trial

STUDY_NAME = "proposal"


class ProposalView(BaseStorage):
    """A study in memory for one proposal.

    Args:
        directions: Of the objectives.
        trials: By number; they are not changed.
        unended: Numbers of those that may be waiting or running; by default any may.
    """

    def __init__(
        self, directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial], unended: Iterable[int] | None = None
    ) -> None:
        self._directions = list(directions)
        self._trials = list(trials)
        self._unended = set(range(len(self._trials)) if unended is None else unended)
        self._own: set[int] = set()  # numbers of the trials that are copies
        self._user_attrs: dict[str, Any] = {}
        self._system_attrs: dict[str, Any] = {}

    def _writable(self, number: int) -> FrozenTrial:
        """A trial that may be changed."""
        if number not in self._own:
            trial = copy.copy(self._trials[number])
            trial.params = dict(trial.params)
            trial.distributions = dict(trial.distributions)
            trial.user_attrs = dict(trial.user_attrs)
            trial.system_attrs = dict(trial.system_attrs)
            trial.intermediate_values = dict(trial.intermediate_values)
            self._trials[number] = trial
            self._own.add(number)
        return self._trials[number]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a running trial, or a copy of a template; its number is its identity."""
        number = len(self._trials)
        self._unended.add(number)
        self._trials.append(template_trial or create_trial(state=TrialState.RUNNING))
        trial = self._writable(number)
        trial.number = trial._trial_id = number
        return number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Keep the value of a knob."""
        trial = self._writable(trial_id)
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Change the state of a trial, as of a queued one that is proposed."""
        if state == TrialState.RUNNING and self._trials[trial_id].state != TrialState.WAITING:
            return False
        trial = self._writable(trial_id)
        trial.state = state
        if values is not None:
            trial.values = list(values)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Keep a report."""
        self._writable(trial_id).intermediate_values[step] = intermediate_value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep an attribute of a trial."""
        self._writable(trial_id).user_attrs[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep what a sampler notes at a trial."""
        self._writable(trial_id).system_attrs[key] = value

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A trial by its number."""
        return self._trials[trial_id]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """The same number."""
        return trial_number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials, or those in some states."""
        if states is None:
            trials = list(self._trials)
        elif any(state in states for state in TrialState if state.is_finished()):
            trials = [trial for trial in self._trials if trial.state in states]
        else:  # asked for at every proposal: not all trials are gone through for the few of them
            trials = [self._trials[number] for number in sorted(self._unended) if self._trials[number].state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Keep an attribute of the study."""
        self._user_attrs[key] = value

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Keep what a sampler notes at the study, for this proposal alone."""
        self._system_attrs[key] = value

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Attributes of the study."""
        return dict(self._user_attrs)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """What samplers noted at the study."""
        return dict(self._system_attrs)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Of the objectives."""
        return list(self._directions)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Of the only study."""
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        """Of the only study."""
        return STUDY_NAME

    def get_all_studies(self) -> list[FrozenStudy]:
        """The only study."""
        return [
            FrozenStudy(
                STUDY_NAME, None, dict(self._user_attrs), dict(self._system_attrs), 0, directions=self._directions
            )
        ]

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Not for a view, which is one study.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a view holds one study")

    def delete_study(self, study_id: int) -> None:
        """Not for a view; see `create_new_study`.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a view holds one study")
