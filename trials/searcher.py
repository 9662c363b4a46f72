"""The bridge from Ray Tune to the ledger: a searcher and a scheduler without any state of their own.

Ray's own Optuna searcher tells trials that were stopped early as complete, cannot warm start several objectives, and
keeps its state in a pickle. Here Tune only executes: it takes trials from the driver and returns reports and records.

This module imports Ray; `import nas_kd.trials` does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from nas_kd.trials.context import Report
from nas_kd.trials.driver import Driver
from nas_kd.trials.execution import Assignment
from nas_kd.trials.record import TrialRecord

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


class LedgerSearcher(Searcher):
    """Ask and tell over the ledger, through the driver.

    Args:
        driver: Says which trial is next, and sees it to its end.
        max_concurrent: No more trials than this are proposed ahead of their results.
        max_failures: How often a trial is started again whose process died.
    """

    def __init__(self, driver: Driver, *, max_concurrent: int, max_failures: int) -> None:
        super().__init__()
        self._driver = driver
        self._max_concurrent = max_concurrent
        self._max_failures = max_failures
        self._assignments: dict[str, Assignment] = {}
        self.reasons: dict[str, str] = {}
        """Why a trial could not go on, by Tune's id; only the scheduler sees the errors themselves."""

    def assignment(self, trial_id: str) -> Assignment:
        """The assignment behind one of Tune's trials."""
        return self._assignments[trial_id]

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while all places are taken; `FINISHED` at the end of the campaign."""
        if self._driver.num_live >= self._max_concurrent:
            return None
        assignment = self._driver.next()
        if assignment is None:
            return str(Searcher.FINISHED)
        self._assignments[trial_id] = assignment
        return {"assignment": assignment}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell how a trial ended: with a record, stopped by the scheduler, or lost with its process."""
        number = self._assignments.pop(trial_id).number
        if error:
            attempts = self._max_failures + 1
            times = "once" if attempts == 1 else f"{attempts} times"
            reason = self.reasons.pop(trial_id, "its process died (killed, or out of memory)")
            self._driver.lose(
                number,
                f"trial {number} was started {times} and could not be finished: {reason}; give a trial more memory, "
                "or run fewer at a time",
            )
        elif result is not None and "record" in result:
            self._driver.finish(TrialRecord.from_json(result["record"]))
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

    def __init__(self, driver: Driver, searcher: LedgerSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = driver
        self._searcher = searcher

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
        error = trial.get_pickled_error()
        if error is not None and not isinstance(error, RayActorError):
            self._searcher.reasons[trial.trial_id] = str(error).strip().splitlines()[-1]
        if trial.should_recover():  # type: ignore[no-untyped-call]
            number = self._searcher.assignment(trial.trial_id).number
            self._driver.retry(number, "its process died; it is started again from its last checkpoint")
