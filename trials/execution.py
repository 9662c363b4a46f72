"""Running one trial, from its assignment to its record on disk; both executors use it."""

from __future__ import annotations

import datetime
import platform
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nas_kd.trials.context import RECORD_NAME, OutOfGpuMemoryError, Report, Reporter, Shortage, TrialContext, TrialFn
from nas_kd.trials.files import disk_full, locked, remove_checkpoints
from nas_kd.trials.objectives import Ranking
from nas_kd.trials.record import FinalState, KnobValue, Metric, TrialRecord
from nas_kd.trials.remote_files import RemoteFiles, remote_files

LOCK_NAME = ".lock"  # in the folder of a trial
GPU_SHARE = "gpu/share"  # diagnostic of a trial on a GPU
_WAIT_FOR_PREDECESSOR_S = 60.0


@dataclass(frozen=True)
class Assignment:
    """A trial to be run, with all that is needed to run it elsewhere and to write its record whatever happens."""

    number: int
    knobs: Mapping[str, KnobValue]
    seed: int
    directory: Path
    metric: Metric
    ranking: Ranking
    config_hash: str
    work: float | None = None
    files_url: str | None = None  # where machines that share no disk exchange files of the run
    shortage: Shortage | None = None
    """Of an earlier start; it then gets a GPU of its own."""

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.directory.parent.parent

    def remarks(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """Diagnostics and warnings of a trial that ran out of memory before."""
        if self.shortage is None:
            return {}, ()
        found = {
            "gpu/out_of_memory_bytes": self.shortage.peak_bytes,
            "gpu/out_of_memory_share": self.shortage.share,
        }
        return found, (f"{self.shortage}; it was run again with a GPU of its own",)

    def record_without_result(
        self,
        state: FinalState,
        error: str | None,
        *,
        diagnostics: Mapping[str, float] | None = None,
        durations_s: Mapping[str, float] | None = None,
    ) -> TrialRecord:
        """The record of a trial that did not come to its end."""
        remarks, warnings = self.remarks()
        return TrialRecord(
            number=self.number,
            state=state,
            seed=self.seed,
            config_hash=self.config_hash,
            knobs=self.knobs,
            metric=self.metric,
            diagnostics={**remarks, **(diagnostics or {})},
            warnings=warnings,
            durations_s=durations_s or {},
            environment={"host": platform.node(), "python": platform.python_version()},
            started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            error=error,
        )

    def written_record(self) -> TrialRecord | None:
        """The record that an earlier run of this trial wrote and the ledger does not have.

        None where there is none, or a damaged one or that of another trial: then the trial has to run again.
        """
        try:
            record = TrialRecord.read(self.directory / RECORD_NAME)
        except (ValueError, OSError):
            return None
        return record if (record.number, record.knobs) == (self.number, dict(self.knobs)) else None


def run_assignment(
    assignment: Assignment, trial_fn: TrialFn, reporter: Reporter, *, num_cpus: int, num_gpus: float
) -> TrialRecord | Shortage:
    """Run a trial and write its record into its folder.

    An exception of the trial function becomes a failed record, with the traceback. `TrialStopped` and interrupts pass,
    and so does a full disk, which says nothing of the trial: it goes on from its checkpoint when there is space again.
    Files that are exchanged by a URL are got before, and copied there after it and with its reports.

    Returns:
        The record; where the memory of a GPU that the trial shares does not suffice, how far it came: no record is
        written then, and its checkpoints stay.

    Raises:
        RuntimeError: Another process still works in the trial's folder.
        Exception: Whatever came from a full disk; see `disk_full`.
    """
    assignment.directory.mkdir(parents=True, exist_ok=True)
    # After a driver was killed its workers may outlive it for a moment; two runs of one trial would share checkpoints.
    message = f"trial {assignment.number} is still being run by process {{owner}} in {assignment.directory}"
    with locked(assignment.directory / LOCK_NAME, timeout_s=_WAIT_FOR_PREDECESSOR_S, message=message):
        remote = remote_files(assignment.files_url, assignment.run_dir)
        if remote is not None:
            remote.pull_shared()
            remote.pull_trial(assignment.number, exact=True)
            reporter = _copying(reporter, remote, assignment.number)
        record = assignment.written_record()
        if record is None:
            ended = _run(assignment, trial_fn, reporter, num_cpus, num_gpus)
            if isinstance(ended, Shortage):
                if remote is not None:
                    remote.push_checkpoint(assignment.number)
                return ended
            record = ended
            record.write(assignment.directory / RECORD_NAME)
        if remote is not None:
            remote.push_trial(assignment.number)
            remove_checkpoints(assignment.directory)  # the driver deletes those of its own machine alone
        return record


def _copying(reporter: Reporter, remote: RemoteFiles, number: int) -> Reporter:
    """Reports that come with a copy of the trial's checkpoint."""

    def report(report: Report) -> None:
        remote.push_checkpoint(number)
        reporter(report)

    return report


def _run(
    assignment: Assignment, trial_fn: TrialFn, reporter: Reporter, num_cpus: int, num_gpus: float
) -> TrialRecord | Shortage:
    """The record of a trial, which is run now, or how far it came on a GPU that it shares."""
    context = TrialContext(
        number=assignment.number,
        knobs=dict(assignment.knobs),
        seed=assignment.seed,
        directory=assignment.directory,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        device="cuda:0" if num_gpus > 0 else "cpu",  # Ray shows a worker its own GPUs only, counted from 0
        ranked_by=assignment.ranking.names,
        reporter=reporter,
    )
    started = time.monotonic()
    share = {GPU_SHARE: num_gpus} if num_gpus > 0 else {}
    remarks, warnings = assignment.remarks()
    try:
        return _checked(trial_fn(context), assignment).with_remarks({**share, **remarks}, *warnings)
    except Exception as error:
        if disk_full(error) is not None:
            raise
        if isinstance(error, OutOfGpuMemoryError) and 0 < num_gpus < 1:
            return Shortage(error.peak_bytes, num_gpus)
        durations_s = {"total": time.monotonic() - started}
        return assignment.record_without_result(
            "failed", traceback.format_exc(), diagnostics=share, durations_s=durations_s
        )


def _checked(record: object, assignment: Assignment) -> TrialRecord:
    """What the trial function returned, checked to be a record of this trial that the ledger can rank."""
    if not isinstance(record, TrialRecord):
        raise TypeError(f"a trial function must return a `TrialRecord`, but returned {type(record).__name__}")
    if record.number != assignment.number:
        raise ValueError(f"the record must be of trial {assignment.number}, but is of trial {record.number}")
    if dict(record.knobs) != dict(assignment.knobs):
        raise ValueError(f"the record's knobs must be {dict(assignment.knobs)}, but are {dict(record.knobs)}")
    if not record.metric.is_same_as(assignment.metric):
        raise ValueError(f"the record's metric must be {assignment.metric}, but is {record.metric}")
    if record.state == "complete":
        assignment.ranking.values(record)
    return record
