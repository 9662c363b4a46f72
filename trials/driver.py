"""The driver of a campaign: it chooses the next trial, takes reports, and records how trials end.

Both executors call it, from one thread. It holds no state beyond the ledger but the trials that run at the moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nas_kd.trials.context import RECORD_NAME, Report, Shortage
from nas_kd.trials.events import Event, EventKind, OnEvent
from nas_kd.trials.execution import Assignment
from nas_kd.trials.files import remove_checkpoints, trial_directory
from nas_kd.trials.knobs import KnobSpace, check_values
from nas_kd.trials.known_costs import KnownCosts
from nas_kd.trials.ledger import Ledger
from nas_kd.trials.pace import Work
from nas_kd.trials.proposals import ProposedTrial
from nas_kd.trials.record import KnobValue, TrialRecord
from nas_kd.trials.remote_files import remote_files
from nas_kd.trials.samplers import SAMPLERS, proposal_seed
from nas_kd.trials.scheduler import RungScheduler


class Driver:
    """Starts trials until `num_trials` have been proposed in the ledger, and records the end of each.

    Failed and stopped trials count towards `num_trials`: a campaign whose trials all fail ends.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: KnobSpace,
        *,
        num_trials: int,
        run_dir: Path,
        seed: int,
        sampler: str = "tpe",
        known_costs: KnownCosts | None = None,
        work: Work | None = None,
        scheduler: RungScheduler | None = None,
        on_event: OnEvent | None = None,
        files_url: str | None = None,
        shared_files: Sequence[str] = (),
    ) -> None:
        if num_trials < 1:
            raise ValueError(f"`num_trials` must be 1 or more, but got {num_trials}")
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
        self.ledger = ledger
        self.num_trials = num_trials
        self._space = space
        self._run_dir = run_dir.resolve()
        self._seed = seed
        self._sampler = sampler
        self._known_costs = known_costs
        self._work = work
        self._scheduler = scheduler
        self._on_event = on_event
        self._files_url = files_url
        self._shared_files = shared_files
        self._remote = remote_files(files_url, self._run_dir)
        self._num_ended = 0  # counted once: a count of the ledger takes longer the more trials there are
        self._live: dict[int, Assignment] = {}
        self._left_running: deque[Assignment] = deque()
        self._postponed: deque[Assignment] = deque()

    def recover(self) -> None:
        """Finish what an earlier driver left: record results that were written, and queue trials that were running."""
        self._num_ended = self.ledger.count("complete", "failed", "stopped")
        self.announce("begun")
        if self._remote is not None:
            self._remote.push_shared(self._shared_files)
        for proposal in self.ledger.running():
            assignment = self._assign(proposal)
            self._fetch(proposal.number)  # it may have ended on another machine
            record = assignment.written_record()
            if record is not None:
                self._live[proposal.number] = assignment
                self._end(record)
            elif reason := self._not_allowed(proposal.knobs):
                self._live[proposal.number] = assignment
                sentence = f"it is not run any more: {reason}"
                self.announce("noted", message=f"trial {proposal.number} was running, but {sentence}")
                self._finish_without_result(
                    assignment.record_without_result("stopped", None).with_remarks({}, sentence)
                )
            else:
                queue = self._left_running if assignment.shortage is None else self._postponed
                queue.append(assignment)

    def _not_allowed(self, knobs: Mapping[str, KnobValue]) -> str:
        """Why the present space does not hold these values; empty where it does."""
        try:
            check_values(knobs, self._space)
        except ValueError as error:
            return str(error)
        return ""

    def has_work(self) -> bool:
        """Whether `next` would hand out a trial."""
        return self.has_postponed or self.has_first_starts()

    @property
    def has_postponed(self) -> bool:
        """Whether trials wait until all others have been started."""
        return bool(self._postponed)

    def has_first_starts(self) -> bool:
        """Whether `next` would hand out a trial that was not postponed."""
        proposed = self.ledger.count("running", "complete", "failed", "stopped")
        return bool(self._left_running) or proposed < self.num_trials

    def next(self) -> Assignment | None:
        """The next trial, already in the ledger; None when there is none to start any more.

        Trials of an earlier driver come first, then queued ones, then the sampler's, and those that were postponed
        last.
        """
        kind: EventKind = "started"
        if self._left_running:
            assignment, kind = self._left_running.popleft(), "continued"
        elif self.has_first_starts():
            proposal = self.ledger.ask(
                self._space, sampler=self._sampler, seed=self._seed, known_costs=self._known_costs, work=self._work
            )
            assignment = self._assign(proposal)
            if self._remote is not None:
                self._remote.drop_trial(assignment.number)  # of an earlier run at the same URL
        elif self._postponed:
            assignment, kind = self._postponed.popleft(), "continued"
        else:
            return None
        self._live[assignment.number] = assignment
        # The record of an earlier run would have ended the trial in `recover`.
        has_damaged_record = (assignment.directory / RECORD_NAME).exists()
        message = "its record.json is damaged, so it starts again" if has_damaged_record else ""
        if assignment.shortage is not None:
            message = message or "with a GPU of its own"
        self.announce(kind, assignment, message=message)
        return assignment

    def report(self, number: int, report: Report) -> bool:
        """Take a report of a live trial.

        Returns:
            Whether the trial ends here. It is then recorded as stopped; see `stop`.
        """
        assignment = self._live[number]
        self.announce("progress", assignment, report=report)
        if report.values is None or report.step is None:
            return False
        self.ledger.report(number, report.step, report.values)
        if self._scheduler is None:
            return False
        return self._scheduler.decide(number, report.step, self.ledger.reports(), self.ledger.ranking)

    def stop(self, number: int) -> None:
        """End a live trial as stopped; the values of its last report go into the record's diagnostics."""
        self._fetch(number)
        reports = self.ledger.reports().get(number, {})
        diagnostics: dict[str, float] = {}
        if reports:
            step = max(reports)
            diagnostics = {"stopped/step": float(step)}
            diagnostics |= {f"stopped/{name}": float(value) for name, value in reports[step].items()}
        self._finish_without_result(self._live[number].record_without_result("stopped", None, diagnostics=diagnostics))

    def lose(self, number: int, reason: str) -> None:
        """Record a live trial as failed because its process died too often."""
        self._fetch(number)
        written = self._live[number].written_record()  # the process may have died after it wrote its record
        if written is not None:
            self._end(written)
        else:
            self._finish_without_result(self._live[number].record_without_result("failed", reason))

    def retry(self, number: int, reason: str) -> None:
        """Announce that a live trial is started again."""
        self.announce("retried", self._live[number], report=Report(message=reason))

    def postpone(self, number: int, shortage: Shortage) -> None:
        """Have a live trial that ran out of the memory of a shared GPU run again, alone, after all others started."""
        assignment = self._live.pop(number)
        self.ledger.postpone(number, shortage)
        self._postponed.append(replace(assignment, shortage=shortage))
        self.announce("postponed", assignment, report=Report(message=f"{shortage}; it is run again later, alone"))

    def hand_back(self, number: int, reason: str) -> None:
        """Have `next` give a live trial again: its process died before the trial ran in it."""
        self.retry(number, reason)
        self._left_running.append(self._live.pop(number))

    def finish(self, record: TrialRecord) -> None:
        """End a live trial whose record is in its folder, there where it ran."""
        self._fetch(record.number)
        self._end(record)

    def _end(self, record: TrialRecord) -> None:
        """Delete the checkpoints of a trial whose record is in its folder, add it to the ledger, and announce it."""
        assignment = self._live[record.number]
        # First: after a kill between the two, the trial still counts as running, and this is done again.
        remove_checkpoints(assignment.directory)
        if self.ledger.tell(record):
            self._num_ended += 1
        del self._live[record.number]
        if self._remote is not None:
            self._remote.drop_trial(record.number)
        self.announce("ended", assignment, record=record)

    def _fetch(self, number: int) -> None:
        """Get what another machine has left of a trial, where machines share no disk."""
        if self._remote is not None:
            self._remote.pull_trial(number)

    def _finish_without_result(self, record: TrialRecord) -> None:
        record.write(self._live[record.number].directory / RECORD_NAME)
        self._end(record)

    def _assign(self, proposal: ProposedTrial) -> Assignment:
        return Assignment(
            number=proposal.number,
            knobs=proposal.knobs,
            seed=proposal_seed(self._seed, proposal.number) if proposal.seed is None else proposal.seed,
            directory=trial_directory(self._run_dir, proposal.number),
            metric=self.ledger.metric,
            ranking=self.ledger.ranking,
            config_hash=str(self.ledger.metadata.get("config_hash", "")),
            work=proposal.work,
            files_url=self._files_url,
            shortage=proposal.shortage,
        )

    def announce(
        self,
        kind: EventKind,
        assignment: Assignment | None = None,
        *,
        report: Report | None = None,
        record: TrialRecord | None = None,
        message: str = "",
    ) -> None:
        """Call the observer, if there is one."""
        if self._on_event is None:
            return
        knobs: Mapping[str, bool | int | float | str] = {} if assignment is None else assignment.knobs
        report = report or Report(message=message)
        self._on_event(
            Event(
                kind=kind,
                num_ended=self._num_ended,
                num_trials=max(self.num_trials, self._num_ended),  # fewer may be wanted than have ended
                number=None if assignment is None else assignment.number,
                knobs=knobs,
                fraction=report.fraction,
                message=report.message,
                values=report.values,
                record=record,
                work=None if assignment is None else assignment.work,
            )
        )
