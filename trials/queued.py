"""Queued trials: those that a campaign file names run before the sampler's, each once however often the file is run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from nas_kd.trials.pace import Work
from nas_kd.trials.record import KnobValue
from nas_kd.trials.stored_trials import StoredTrials
from nas_kd.trials.translation import is_queued


def enqueue(
    stored: StoredTrials, wanted: Sequence[dict[str, KnobValue]], seed: int | None, work: Work | None
) -> list[int]:
    """See `nas_kd.trials.ledger.Ledger.enqueue`; the values are those of a space."""
    known = _KnownQueue(stored.all(), seed)
    numbers: dict[object, int] = {}
    for values in wanted:
        key = frozenset(values.items())
        if key in numbers:
            continue
        earlier = known.find(values)
        if earlier is not None and earlier.state == TrialState.WAITING and not is_queued(earlier):
            stored.set_user_attr(earlier, "withdrawn", False)
        numbers[key] = earlier.number if earlier is not None else _queue(stored, values, seed, work)
    return [numbers[frozenset(values.items())] for values in wanted]


def withdraw(stored: StoredTrials, keep: Collection[int]) -> int:
    """See `nas_kd.trials.ledger.Ledger.withdraw`."""
    unwanted = [trial for trial in stored.unended() if is_queued(trial) and trial.number not in keep]
    for trial in unwanted:
        stored.set_user_attr(trial, "withdrawn", True)
    return len(unwanted)


def _queue(stored: StoredTrials, values: dict[str, KnobValue], seed: int | None, work: Work | None) -> int:
    """Queue a trial that is new; returns its number."""
    attributes: dict[str, Any] = {"queued": values} | ({} if seed is None else {"seed": seed})
    own_work = None if work is None else work(values)
    attributes |= {} if own_work is None else {"work": own_work}
    return stored.create(create_trial(state=TrialState.WAITING, user_attrs=attributes))


class _KnownQueue:
    """The trials of a ledger that were queued before, or may have been.

    Args:
        trials: Of the ledger.
        seed: Of the trials that are looked for; those that were queued with another one are others.
    """

    def __init__(self, trials: Sequence[FrozenTrial], seed: int | None) -> None:
        self._seed = seed
        self._queued: dict[object, FrozenTrial] = {}
        self._taken_in: list[FrozenTrial] = []  # what they were queued with is not known
        for trial in trials:
            if "queued" in trial.user_attrs:
                if trial.user_attrs.get("seed") == seed:
                    self._queued.setdefault(frozenset(trial.user_attrs["queued"].items()), trial)
            elif trial.user_attrs.get("taken_in"):
                self._taken_in.append(trial)

    def find(self, values: Mapping[str, KnobValue]) -> FrozenTrial | None:
        """The trial that was queued with these values; None where there is none. A trial is found once."""
        trial = self._queued.get(frozenset(values.items()))
        return trial if trial is not None else self._take_fitting(values)

    def _take_fitting(self, values: Mapping[str, KnobValue]) -> FrozenTrial | None:
        for trial in self._taken_in:
            record = trial.user_attrs["record"]
            same_seed = self._seed is None or record["seed"] == self._seed
            if same_seed and values.items() <= trial.user_attrs["knobs"].items():
                self._taken_in.remove(trial)
                return trial
        return None
