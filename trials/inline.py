"""Trials one after the other in the driver's own process: for tests, for debugging, and for a machine without Ray."""

from __future__ import annotations

from nas_kd.trials.context import Report, TrialFn, TrialStopped
from nas_kd.trials.driver import Driver
from nas_kd.trials.execution import run_assignment
from nas_kd.trials.record import TrialRecord


def run_inline(driver: Driver, trial_fn: TrialFn, *, num_cpus: int, num_gpus: float) -> None:
    """Run all trials of the driver. Threads are those that this process has; none are set here."""
    while (assignment := driver.next()) is not None:
        number = assignment.number

        def reporter(report: Report, number: int = number) -> None:
            if driver.report(number, report):
                raise TrialStopped

        try:
            record = run_assignment(assignment, trial_fn, reporter, num_cpus=num_cpus, num_gpus=num_gpus)
        except TrialStopped:
            driver.stop(number)
        else:
            assert isinstance(record, TrialRecord), "nobody shares the GPU of the only trial"
            driver.finish(record)
