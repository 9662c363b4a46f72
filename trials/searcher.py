"""The bridge from Ray Tune to the ledger: a searcher and a scheduler without any state of their own.

Ray's own Optuna searcher tells trials that were stopped early as complete, cannot warm start several objectives, and
keeps its state in a pickle. Here Tune only executes: it takes trials from the driver and returns reports and records.

This module imports Ray; `import nas_kd.trials` does not.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nas_kd.trials.context import Report, Shortage
from nas_kd.trials.driver import Driver
from nas_kd.trials.execution import Assignment
from nas_kd.trials.places import Places
from nas_kd.trials.record import TrialRecord

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

# Ray takes up to a minute to notice that a machine is dead, and until then starts processes on it.
_SECONDS_TO_START = 120.0
_SECONDS_TO_PREPARE = 15.0  # where an error comes before the trial itself, as on a machine without nas-kd
_SECONDS_BETWEEN_STARTS = 1.0
_DIED = "its process died; it is started again from its last checkpoint"


class Restarts(Callback):
    """How often Tune may start a trial again.

    A trial has `max_failures` restarts for deaths of its process while it runs. A process that cannot be started, as on
    a machine that has just died, says nothing of the trial: a second later it is started again, for two minutes, or for
    15 seconds where an error comes before the trial.
    """

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self._deaths: dict[str, int] = {}
        self._running: set[str] = set()
        self._waiting_since: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """From now on a death counts."""
        self._running.add(trial.trial_id)
        self._waiting_since.pop(trial.trial_id, None)
        left = self.max_failures - self._deaths.get(trial.trial_id, 0)
        trial.max_failures = trial.run_metadata.num_failures + left

    def after_death(self, trial: Trial, error: Exception | None) -> bool:
        """Set what the trial may do next; called where Tune starts it again.

        Returns:
            Whether its process died while it ran; otherwise none could be started.
        """
        if trial.trial_id in self._running:
            self._running.discard(trial.trial_id)
            self._deaths[trial.trial_id] = self._deaths.get(trial.trial_id, 0) + 1
            trial.max_failures = -1  # until it runs again
            return True
        since = self._waiting_since.setdefault(trial.trial_id, time.monotonic())
        time.sleep(_SECONDS_BETWEEN_STARTS)
        lost = error is None or (isinstance(error, RayActorError) and not error.actor_init_failed)
        if time.monotonic() - since > (_SECONDS_TO_START if lost else _SECONDS_TO_PREPARE):
            trial.max_failures = trial.run_metadata.num_failures  # its next start is the last
        return False

    def is_waiting(self, trial_id: str) -> bool:
        """Whether no process could be started for it since it last ran."""
        return trial_id in self._waiting_since


class LedgerSearcher(Searcher):
    """Ask and tell over the ledger, through the driver.

    Args:
        driver: Says which trial is next, and sees it to its end.
        places: No more trials than find room are proposed ahead of their results. May be set anew while trials run.
        restarts: How often a trial is started again whose process died.
        num_trials: How many it gives at most.
    """

    def __init__(self, driver: Driver, *, places: Places, restarts: Restarts, num_trials: int) -> None:
        super().__init__()
        self._driver = driver
        self._num_left = num_trials
        self.places = places
        self._restarts = restarts
        self._assignments: dict[str, Assignment] = {}
        self._shares: dict[str, float] = {}  # of the trials that run
        self.given_up: set[str] = set()
        """Ids of trials that Tune ends although they may be started again."""
        self.reasons: dict[str, str] = {}
        """Why a trial could not go on, by Tune's id; only the scheduler sees the errors themselves."""

    def assignment(self, trial_id: str) -> Assignment:
        """The assignment behind one of Tune's trials."""
        return self._assignments[trial_id]

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while all places are taken; `FINISHED` where there is none any more."""
        if self._num_left == 0:
            return str(Searcher.FINISHED)
        packing = self.places.packing
        if not self.places.has_room(self._shares, packing.least):
            return None
        if not self._driver.has_first_starts():
            may_be_postponed = any(0 < share < 1 for share in self._shares.values())
            if self._driver.has_postponed and not self.places.has_room(self._shares, packing.alone):
                return None
            if not self._driver.has_postponed and may_be_postponed:
                return None
        assignment = self._driver.next()
        if assignment is None:
            return str(Searcher.FINISHED)
        self._num_left -= 1
        self._assignments[trial_id] = assignment
        self._shares[trial_id] = packing.share(assignment)
        return {"assignment": assignment, "share": self._shares[trial_id]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell how a trial ended: with a record, stopped by the scheduler, or lost with its process."""
        assignment = self._assignments.pop(trial_id)
        del self._shares[trial_id]
        number = assignment.number
        if error and trial_id in self.given_up:
            self.given_up.discard(trial_id)
            self._driver.hand_back(number, _DIED)
        elif error:
            attempts = self._restarts.max_failures + 1
            times = "once" if attempts == 1 else f"{attempts} times"
            reason = self.reasons.pop(trial_id, "its process died (killed, or out of memory)")
            if self._restarts.is_waiting(trial_id):
                sentence = (
                    f"trial {number} could not go on: no process could be started for it ({reason}); look at the "
                    "machines with `ray status`"
                )
            else:
                sentence = (
                    f"trial {number} was started {times} and could not be finished: {reason}; give a trial more "
                    "memory, or run fewer at a time"
                )
            self._driver.lose(number, sentence)
        elif result is not None and "record" in result:
            record = TrialRecord.from_json(result["record"])
            self.places.packing.see(record, assignment.work)
            self._driver.finish(record)
        elif result is not None and isinstance(shortage := result.get("shortage"), Shortage):
            self._driver.postpone(number, shortage)
        elif result is not None and "disk_full" in result:
            raise result["disk_full"]
        else:
            self._driver.stop(number)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles searchers to restore them, and the driver may hold a terminal or a connection."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the ledger is the state."""


class LedgerScheduler(FIFOScheduler):
    """Starts trials in the searcher's order, and stops those that the driver stops."""

    # Reports that came together would be judged after the trial had gone on.
    _supports_buffered_results = False

    def __init__(self, driver: Driver, searcher: LedgerSearcher, restarts: Restarts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = driver
        self._searcher = searcher
        self._restarts = restarts

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the searcher."""
        return {}

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Pass a report on; the driver keeps it in the ledger and decides."""
        report = result.get("report")
        if isinstance(report, Report):
            number = self._searcher.assignment(trial.trial_id).number
            if self._driver.report(number, report):
                return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Say that a trial whose process died is started again."""
        error = _error_of(trial)
        self._searcher.reasons.pop(trial.trial_id, None)  # of an earlier start
        if error is not None and (not isinstance(error, RayActorError) or error.actor_init_failed):
            self._searcher.reasons[trial.trial_id] = str(error).strip().splitlines()[-1]
            for number in (errno.ENOSPC, errno.EDQUOT):
                if os.strerror(number) in str(error):  # Ray keeps the text alone
                    raise OSError(number, os.strerror(number))
        if not trial.should_recover():  # type: ignore[no-untyped-call]
            return
        if trial.status == trial.PENDING:
            # It was to run in the process of a trial before it, which died: Tune starts it in no other one.
            self._searcher.given_up.add(trial.trial_id)
        elif self._restarts.after_death(trial, error):
            self._driver.retry(self._searcher.assignment(trial.trial_id).number, _DIED)


def _error_of(trial: Trial) -> Exception | None:
    """The error that a trial has just had; None where it was none of Ray's.

    `Trial.get_pickled_error` looks into the storage, where the file comes later.
    """
    path = Path(trial.pickled_error_file) if trial.pickled_error_file else None
    return cloudpickle.loads(path.read_bytes()) if path is not None and path.is_file() else None
