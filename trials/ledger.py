"""The ledger: one Optuna study as the only store of a campaign.

What a driver must know after any crash is read from here, so nothing else needs saving: proposals are written before
they run, records before they are announced. Every write is one durable step, in an order that leaves a running trial
running until its record is safe. Where it is stored, and why there, stands in `nas_kd.trials.storage`.

What samplers see of it stands in `nas_kd.trials.translation`: in the stored study, for Optuna's own tools, a knob whose
definition became incompatible goes on as `NAME~2`, `NAME~3`, ...; the plain knobs stand in the attribute `knobs`.

**Loss.** Folders of trials that the ledger does not know, as after its file was lost or damaged, are taken in when a
driver opens it: the record in a folder holds all that the ledger needs of a trial that has ended.

**States.** complete -> COMPLETE with values; stopped -> PRUNED without values, so that a low rung never enters a
sampler as final; failed -> FAIL; proposed and not recorded yet -> RUNNING; queued -> WAITING, and if withdrawn with the
attribute `withdrawn`, since Optuna deletes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage, get_storage
from optuna.trial import TrialState

from nas_kd.trials.context import RECORD_NAME, Shortage
from nas_kd.trials.database import WAIT_S, Database
from nas_kd.trials.files import TRIALS, FileLock, files_in_the_way, is_locked, trial_folders
from nas_kd.trials.knobs import KnobSpace, check_values
from nas_kd.trials.known_costs import KnownCosts
from nas_kd.trials.objectives import Objective, Ranking
from nas_kd.trials.pace import Work
from nas_kd.trials.passwords import masked
from nas_kd.trials.proposals import Proposals, ProposedTrial
from nas_kd.trials.queued import enqueue, withdraw
from nas_kd.trials.record import KnobValue, Metric, TrialRecord
from nas_kd.trials.recovery import check_sound, open_or_renew, trials_of_folders
from nas_kd.trials.samplers import quiet_optuna
from nas_kd.trials.storage import (
    JOURNAL_NAME,
    STUDY_FILE,
    DamagedJournalError,
    open_storage,
    set_aside,
    storage_errors,
    study_name,
)
from nas_kd.trials.stored_trials import REPORT, StoredTrials
from nas_kd.trials.study import LEDGER_FORMAT, begin_study, only_study
from nas_kd.trials.translation import STATES, is_queued

DRIVER_LOCK = ".driver.lock"  # in the folder of a run


def is_driven(run_dir: Path) -> bool:
    """Whether a process of this machine drives the run now."""
    return is_locked(run_dir / DRIVER_LOCK)


class Ledger:
    """The trials of one campaign. Make one with `Ledger.open` to drive it, or with `Ledger.load` to read it."""

    def __init__(self, storage: BaseStorage | Database, name: str, run_dir: Path, lock: FileLock | None) -> None:
        self.run_dir = run_dir
        self.name = name
        self.repairs: tuple[str, ...] = ()
        """What was mended when the ledger was opened, a sentence each."""
        self._storage: BaseStorage | Database = storage
        self._lock = lock
        self._study_id = storage.get_study_id_from_name(name)
        self._stored = StoredTrials(storage, self._study_id, alone=lock is not None)
        self._proposals = Proposals(self._stored)
        stored = self.metadata
        if stored.get("format") != LEDGER_FORMAT:
            raise ValueError(
                f"{run_dir}: the ledger's format must be {LEDGER_FORMAT}, but is {stored.get('format')!r}; "
                "open it with the release of nas-kd that wrote it, or a later one"
            )
        self.metric = Metric.model_validate(stored["metric"])
        # Constraints are the driver's: unlike directions, they may change from one run of a campaign to the next.
        self.ranking = Ranking(tuple(Objective.model_validate(item) for item in stored["objectives"]))

    @classmethod
    def open(
        cls,
        run_dir: Path,
        *,
        metric: Metric,
        ranking: Ranking | None = None,
        config_hash: str = "",
        storage: str | None = None,
        name: str | None = None,
    ) -> Ledger:
        """Open the ledger of a run for its driver, making it where there is none.

        Args:
            run_dir: The run's folder. One driver at a time holds it, wherever the study is stored.
            metric: The primary metric.
            ranking: What to rank by; by default the primary metric and `flops`, minimized.
            config_hash: Of the campaign's config; goes into records that the driver has to write by itself.
            storage: An SQLAlchemy URL of PostgreSQL or MySQL; by default a journal file in `run_dir`.
            name: Of the campaign; by default the name of the folder. See `storage.study_name`.

        Raises:
            RuntimeError: Another driver holds the run.
            StorageError: The database cannot be used.
            ValueError: The stored study ranks by something else, the folder is a copy of another run's, or has trials
                of another campaign.
        """
        run_dir = run_dir.resolve()
        lock = FileLock(run_dir / DRIVER_LOCK)
        if not lock.acquire():
            raise RuntimeError(
                f"a run has one driver at a time, but process {lock.owner()} drives {run_dir}; "
                "wait for it to end, stop it, or use another run folder"
            )
        try:
            wanted = ranking or Ranking.default(metric)
            opened, repairs = open_or_renew(run_dir, storage)
            with quiet_optuna(), storage_errors(storage):
                own_name = only_study(opened) if storage is None else None
                own_name = own_name or study_name(run_dir, storage, name or run_dir.name, make=True)
                study = begin_study(opened, own_name, metric, wanted)
            own = opened if storage is None else Database(opened, storage, wait_s=WAIT_S)
            ledger = cls(own, study.study_name, run_dir, lock)
            ledger._check_place()
            if not ledger.metric.is_same_as(metric) or ledger.ranking.objectives != wanted.objectives:
                raise ValueError(
                    f"{run_dir} ranks by {_listed(ledger.ranking)} with {ledger.metric.name!r} as its metric, but "
                    f"this campaign asks for {_listed(wanted)} with {metric.name!r}; restore that or use another run "
                    "folder, since a study cannot change its objectives"
                )
            ledger.ranking = wanted
            if ledger.metadata.get("config_hash") != config_hash:
                ledger.set_metadata("config_hash", config_hash)
            ledger.repairs = (*repairs, *ledger._take_in_folders())
            return ledger
        except BaseException:
            lock.release()
            raise

    @classmethod
    def load(cls, run_dir: Path, *, storage: str | None = None, name: str | None = None) -> Ledger:
        """Open the ledger of a run for reading, whether or not a driver holds it.

        Raises:
            FileNotFoundError: There is no such study.
            StorageError: The database cannot be used.
            DamagedJournalError: The journal cannot be read.
        """
        run_dir = run_dir.resolve()
        name = name or run_dir.name
        place = JOURNAL_NAME if storage is None else masked(storage)
        renewed = f"the same `nas-kd search` command makes it anew from the records in {run_dir / TRIALS}"

        def missing() -> FileNotFoundError:
            way_out = "search first" if _first_recorded(run_dir, 0) is None else renewed
            return FileNotFoundError(f"no trials in {run_dir}: there is no study {name!r} in {place}; {way_out}")

        own_name = study_name(run_dir, storage, name)
        if own_name is None or (storage is None and not (run_dir / JOURNAL_NAME).exists()):
            raise missing()
        try:
            with storage_errors(storage):
                opened = open_storage(run_dir, storage)
                if storage is None:
                    check_sound(opened, run_dir / JOURNAL_NAME)
                    own_name = only_study(opened) or name
                # As `get_storage` wraps a database, trials that have ended are read from it once.
                read = opened if storage is None else Database(get_storage(opened), storage)
                ledger = cls(read, own_name, run_dir, None)
                unknown = _first_recorded(run_dir, len(ledger))
                # The length is read again: a campaign that runs may have begun and ended the trial in between.
                if unknown is not None and unknown >= len(ledger):
                    raise DamagedJournalError(f"{place} lacks trial {unknown}, whose record is there")
                return ledger
        except KeyError as error:
            raise missing() from error
        except DamagedJournalError as error:
            raise DamagedJournalError(f"{error}; {renewed}") from error

    @classmethod
    def of_records(cls, run_dir: Path, *, metric: Metric, ranking: Ranking) -> Ledger:
        """A ledger in memory of the trials whose records are in the run's folder, for reading while a database is away.

        Args:
            run_dir: The run's folder.
            metric: The primary metric.
            ranking: What the campaign ranks by.

        Raises:
            ValueError: A record is of another campaign.
        """
        storage = InMemoryStorage()
        with quiet_optuna():
            study = begin_study(storage, run_dir.name, metric, ranking)
        for template in trials_of_folders(run_dir, 0, metric, ranking)[0]:
            storage.create_new_trial(study._study_id, template_trial=template)
        return cls(storage, study.study_name, run_dir.resolve(), None)

    def _check_place(self) -> None:
        """Raise where two folders, one of them a copy, would write to one study; else note where the run is."""
        here, there = str(self.run_dir), self.metadata.get("run_dir")
        if there == here:
            return
        other = Path(there or here) / STUDY_FILE
        if there is not None and other.is_file() and other.read_text(errors="replace").strip() == self.name:
            raise ValueError(
                f"{here} is a copy of {there}, and both would write to one study of the database; delete "
                f"{self.run_dir / STUDY_FILE}, and the copy gets a study of its own"
            )
        self.set_metadata("run_dir", here)

    def _take_in_folders(self) -> list[str]:
        """Add the trials of folders that the ledger does not know, and make room for those to come.

        Returns:
            Sentences on what was done.

        Raises:
            ValueError: A record is of another campaign or trial.
        """
        sentences = [
            f"{file} is a file with the name of a trial's folder; it is kept as {set_aside(file).name}"
            for file in list(files_in_the_way(self.run_dir))
        ]
        templates, text = trials_of_folders(self.run_dir, len(self), self.metric, self.ranking)
        with self._driving():
            for template in templates:
                self._stored.create(template)
        return [*sentences, text] if text else sentences

    def close(self) -> None:
        """Release the run, so that another driver can open it."""
        self._storage.remove_session()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            self._stored.alone = False

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Attributes of the study: `format`, `metric`, `objectives`, `convention`, `config_hash`, and others."""
        return dict(self._storage.get_study_user_attrs(self._study_id))

    def set_metadata(self, key: str, value: Any) -> None:
        """Store a JSON value beside the trials."""
        with self._driving():
            self._storage.set_study_user_attr(self._study_id, key, value)

    def __len__(self) -> int:
        """How many trials there are, in whatever state, queued ones included."""
        return len(self._stored.all())

    def count(self, *states: str) -> int:
        """How many trials are in any of the states `queued`, `running`, `complete`, `failed`, `stopped`."""
        names = {**STATES, "running": TrialState.RUNNING}
        number = self._stored.count({names[state] for state in states if state != "queued"})
        return number + (sum(map(is_queued, self._stored.unended())) if "queued" in states else 0)

    def ask(
        self,
        space: KnobSpace,
        *,
        sampler: str = "tpe",
        seed: int = 0,
        known_costs: KnownCosts | None = None,
        work: Work | None = None,
    ) -> ProposedTrial:
        """Propose the next trial and record it as running. Queued trials come first.

        The proposal is a function of the seed, its number, and what the ledger holds; of nothing else.

        Args:
            space: The knobs; they may differ from those of earlier trials.
            sampler: A name in `nas_kd.trials.samplers.SAMPLERS`.
            seed: The campaign's.
            known_costs: What is known of a trial from its knobs, for samplers that can use it.
            work: What the time of a trial grows with; kept with the trial.

        Raises:
            ValueError: A queued trial has values that the space does not hold.
        """
        with self._driving():
            return self._proposals.next(space, self.ranking, sampler, seed, known_costs, work)

    def enqueue(
        self,
        cells: Iterable[Mapping[str, KnobValue]],
        space: KnobSpace,
        *,
        seed: int | None = None,
        work: Work | None = None,
    ) -> list[int]:
        """Queue trials, in order; they are proposed before anything from the sampler.

        Each is one durable write: 500 take 2 s, or 5 ms if known.

        Args:
            cells: For each trial the knobs to run with; the sampler chooses those left out.
            space: The knobs, to check the values against.
            seed: With it these trials run, instead of one that follows from their number. Trials that were queued
                with another one are others.
            work: What the time of a trial grows with; kept with the trial.

        Returns:
            The numbers of the trials; earlier ones where the same values were queued before, so that a campaign file
            may be run again.

        Raises:
            ValueError: A value is not in the space; nothing was queued.
        """
        wanted = [dict(cell) for cell in cells]
        for values in wanted:
            check_values(values, space)
        with self._driving():
            return enqueue(self._stored, wanted, seed, work)

    def withdraw(self, keep: Collection[int]) -> int:
        """Withdraw queued trials that are not wanted any more; queued again, they return under their numbers.

        Args:
            keep: Numbers of the trials that stay queued.

        Returns:
            How many were withdrawn.
        """
        with self._driving():
            return withdraw(self._stored, keep)

    def report(self, number: int, step: int, values: Mapping[str, float]) -> None:
        """Keep an intermediate report of a running trial; a later one of the same step replaces it."""
        with self._driving():
            self._stored.set_user_attr(self._stored.all()[number], f"{REPORT}{step}", dict(values))

    def reports(self) -> Mapping[int, Mapping[int, Mapping[str, float]]]:
        """All intermediate reports: trial number -> step, ascending -> values; not to be changed."""
        return self._stored.reports()

    def tell(self, record: TrialRecord) -> bool:
        """Record how a trial ended.

        Returns:
            Whether the record is new: recording the same one again is allowed and changes nothing.

        Raises:
            ValueError: There is no such trial, it is already recorded otherwise, or a complete record lacks an
                objective or names another metric.
        """
        with self._driving():
            trials = self._stored.all()
            if record.number >= len(trials) or trials[record.number].state == TrialState.WAITING:
                raise ValueError(f"trial {record.number} was never proposed in {self.run_dir}; ask for it first")
            trial = trials[record.number]
            if trial.state.is_finished():
                if trial.user_attrs["record"] != json.loads(record.to_json()):
                    raise ValueError(
                        f"trial {record.number} of {self.run_dir} is already recorded, with another record; "
                        "a recorded trial cannot change"
                    )
                return False
            if not record.metric.is_same_as(self.metric):
                raise ValueError(f"trial {record.number}: metric must be {self.metric}, but is {record.metric}")
            complete = record.state == "complete"
            values = self.ranking.values(record) if complete else None
            self._stored.set_user_attr(trial, "record", json.loads(record.to_json()))
            self._stored.set_state(trial, STATES[record.state], values)
            return True

    def postpone(self, number: int, shortage: Shortage) -> None:
        """Keep that a running trial ran out of the memory of a GPU that it shared."""
        with self._driving():
            self._stored.set_user_attr(self._stored.all()[number], "shortage", asdict(shortage))

    def running(self) -> list[ProposedTrial]:
        """Trials that were proposed and are not recorded yet. After a crash, run them again under their numbers."""
        return [
            ProposedTrial(
                trial.number,
                dict(trial.user_attrs["knobs"]),
                trial.user_attrs.get("seed"),
                trial.user_attrs.get("work"),
                Shortage(**trial.user_attrs["shortage"]) if "shortage" in trial.user_attrs else None,
            )
            for trial in self._stored.unended()
            if trial.state == TrialState.RUNNING
        ]

    def works(self) -> dict[int, float]:
        """What the time of trials grows with, by number, where it is known; withdrawn trials are left out."""
        return {
            trial.number: trial.user_attrs["work"]
            for trial in self._stored.all()
            if "work" in trial.user_attrs and (trial.state != TrialState.WAITING or is_queued(trial))
        }

    def records(self) -> list[TrialRecord]:
        """The records of all trials that have ended, by number."""
        return [
            TrialRecord.from_data(trial.user_attrs["record"])
            for trial in self._stored.all()
            if trial.state.is_finished() and "record" in trial.user_attrs
        ]

    @contextmanager
    def _driving(self) -> Iterator[None]:
        if self._lock is None:
            raise RuntimeError(f"the ledger of {self.run_dir} is open for reading only; use `Ledger.open` to write")
        with quiet_optuna():
            yield


def _first_recorded(run_dir: Path, first: int) -> int | None:
    """The lowest number from `first` on of a trial whose folder has a record; None without one."""
    folders = trial_folders(run_dir, first)
    return next((number for number, folder in folders if (folder / RECORD_NAME).is_file()), None)


def _listed(ranking: Ranking) -> str:
    return ", ".join(map(str, ranking.objectives))
