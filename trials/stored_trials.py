"""The trials of a study, as they are stored.

A driver is the only one that writes to its study. So it reads all trials once, and from then on those alone that it
wrote to: a proposal among thousands of trials asks the journal or the database for one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas_kd.trials.database import Database

REPORT = "report:"  # and the step, as the name of an attribute


class StoredTrials:
    """The trials of one study.

    Args:
        storage: Of the study.
        study_id: Of the study.
        alone: Whether nobody else writes to the study; otherwise all trials are read whenever they are asked for.
    """

    def __init__(self, storage: BaseStorage | Database, study_id: int, *, alone: bool) -> None:
        self._storage = storage
        self._study_id = study_id
        self.alone = alone
        self._known: list[FrozenTrial] | None = None
        self._changed: set[int] = set()  # identities in the storage
        self._counts: Counter[TrialState] = Counter()
        self._unended: dict[int, FrozenTrial] = {}
        self._reports: dict[int, dict[int, Mapping[str, float]]] = {}
        self._unread: set[int] = set()  # trials of which the reports are read when they are asked for

    def all(self) -> Sequence[FrozenTrial]:
        """All trials, by number; not to be changed."""
        if self._known is None or not self.alone:
            self._known = None  # while it is not known whether the storage answers
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
            self._changed.clear()
            self._counts.clear()
            self._unended.clear()
            self._reports.clear()
            self._unread.clear()
            known: list[FrozenTrial] = []
            for trial in trials:
                self._take_in(known, trial)
            self._known = known
        while self._changed:  # in order, as trials are made
            first = min(self._changed)
            self._take_in(self._known, self._storage.get_trial(first))
            self._changed.remove(first)
        return self._known

    def _take_in(self, known: list[FrozenTrial], trial: FrozenTrial) -> None:
        number = trial.number
        assert number <= len(known), f"trial {number} comes before trial {len(known)}"
        if number < len(known):
            self._counts[known[number].state] -= 1
        known[number : number + 1] = [trial]
        self._unread.add(number)
        self._counts[trial.state] += 1
        if trial.state.is_finished():
            self._unended.pop(number, None)
        else:
            self._unended[number] = trial

    def unended(self) -> list[FrozenTrial]:
        """Those that wait or run, by number."""
        self.all()
        return [self._unended[number] for number in sorted(self._unended)]

    def reports(self) -> Mapping[int, Mapping[int, Mapping[str, float]]]:
        """Values of intermediate reports: trial number -> step, ascending -> name -> value."""
        trials = self.all()
        for number in self._unread:
            found = {
                int(key.removeprefix(REPORT)): values
                for key, values in trials[number].user_attrs.items()
                if key.startswith(REPORT)
            }
            if found:
                self._reports[number] = dict(sorted(found.items()))
        self._unread.clear()
        return self._reports

    def count(self, states: Collection[TrialState]) -> int:
        """How many are in any of the states."""
        self.all()
        return sum(self._counts[state] for state in states)

    def create(self, template: FrozenTrial) -> int:
        """Store a trial.

        Returns:
            Its number.
        """
        number = len(self.all())
        try:
            if isinstance(self._storage, Database):
                trial_id = self._storage.create_new_trial(self._study_id, template, number=number)
            else:
                trial_id = self._storage.create_new_trial(self._study_id, template_trial=template)
        except BaseException:
            self._known = None  # it may have been stored
            raise
        self._changed.add(trial_id)
        return number

    # A trial counts as changed before it is written to: an interrupted write may have been stored.

    def set_param(self, trial: FrozenTrial, name: str, value: Any, distribution: BaseDistribution) -> None:
        """Store the value of a knob of a trial that waits."""
        self._changed.add(trial._trial_id)
        internal = distribution.to_internal_repr(value)
        self._storage.set_trial_param(trial._trial_id, name, internal, distribution)

    def set_user_attr(self, trial: FrozenTrial, key: str, value: Any) -> None:
        """Store an attribute of ours."""
        self._changed.add(trial._trial_id)
        self._storage.set_trial_user_attr(trial._trial_id, key, value)

    def set_system_attr(self, trial: FrozenTrial, key: str, value: Any) -> None:
        """Store an attribute of Optuna's."""
        self._changed.add(trial._trial_id)
        self._storage.set_trial_system_attr(trial._trial_id, key, value)

    def set_state(self, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Store a state, with the values of a complete trial."""
        self._changed.add(trial._trial_id)
        self._storage.set_trial_state_values(trial._trial_id, state, values)
