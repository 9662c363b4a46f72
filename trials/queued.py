"""Queued trials: which of those that are to run were queued before, so that a campaign file may be run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial

from nas_kd.trials.record import KnobValue


class KnownQueue:
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
