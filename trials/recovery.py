"""What a driver mends when it opens a ledger: a damaged journal, and trials that the ledger lost.

The record in the folder of a trial holds all that the ledger needs of a trial that has ended.
"""

from __future__ import annotations

import json
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas_kd.trials.context import RECORD_NAME
from nas_kd.trials.files import trial_folders
from nas_kd.trials.objectives import Ranking
from nas_kd.trials.record import Metric, TrialRecord
from nas_kd.trials.storage import JOURNAL_NAME, DamagedJournalError, open_storage, repair_journal, set_aside
from nas_kd.trials.translation import STATES


def open_or_renew(run_dir: Path, storage: str | None) -> tuple[BaseStorage, list[str]]:
    """The storage of a run for its driver, and what was mended: a damaged journal is set aside."""
    path = run_dir / JOURNAL_NAME
    try:
        repair_journal(path)
        opened = open_storage(run_dir, storage)
        if storage is None:
            check_sound(opened, path)
        return opened, []
    except DamagedJournalError as error:
        kept = set_aside(path)
        return open_storage(run_dir, storage), [f"{error}; it is kept as {kept.name}, and a new one was made"]


def check_sound(storage: BaseStorage, path: Path) -> None:
    """Raise where lines of a journal are missing, so that trials lack what they were written with."""
    for study in storage.get_all_studies():
        if "format" in study.user_attrs and not {"metric", "objectives"} <= study.user_attrs.keys():
            raise DamagedJournalError(f"{path} is damaged: lines on the study are missing")
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            lacking = (trial.state.is_finished() and "record" not in trial.user_attrs) or (
                trial.state == TrialState.RUNNING and "knobs" not in trial.user_attrs
            )
            if lacking:
                raise DamagedJournalError(f"{path} is damaged: lines on trial {trial.number} are missing")


def trials_of_folders(run_dir: Path, known: int, metric: Metric, ranking: Ranking) -> tuple[list[FrozenTrial], str]:
    """The trials of folders that the ledger does not know, as it stores them.

    Trials without a record, which had not ended, give their numbers up: others run in their place.

    Args:
        run_dir: The run's folder.
        known: How many trials the ledger has.
        metric: The primary metric of the campaign.
        ranking: Of the campaign.

    Returns:
        The trials from number `known` on, and a sentence on them; an empty one where there are none.

    Raises:
        ValueError: A record is of another campaign or trial.
    """
    unknown = dict(trial_folders(run_dir, known))
    if not unknown:
        return [], ""
    records: dict[int, TrialRecord] = {}
    damaged = []
    for number, folder in unknown.items():
        path = folder / RECORD_NAME
        try:
            record = TrialRecord.read(path)
        except FileNotFoundError:
            continue
        except ValueError:
            damaged.append(str(path))
            continue
        if record.number != number:
            raise ValueError(
                f"{path} must be of trial {number}, but is of trial {record.number}: its folder is a copy; move it out "
                f"of {folder.parent}"
            )
        if not record.metric.is_same_as(metric):
            raise ValueError(
                f"{path} is of another campaign ({record.metric.name!r} of trial {record.number}), and the ledger "
                "does not know it; move that folder away, or use another run folder"
            )
        records[number] = record
    templates = []
    for number in range(known, max(unknown) + 1):
        if number in records:
            templates.append(_recorded_trial(records[number], ranking))
        else:
            templates.append(create_trial(state=TrialState.WAITING, user_attrs={"queued": {}, "withdrawn": True}))
    trials, were = ("trial", "was") if len(records) == 1 else ("trials", "were")
    text = f"{len(records)} {trials} that the ledger did not know {were} taken in from the records in trials/"
    if damaged:
        text += f"; these records are damaged and were left out: {', '.join(damaged)}"
    return templates, text


def _recorded_trial(record: TrialRecord, ranking: Ranking) -> FrozenTrial:
    """A trial that has ended, as the ledger stores it, from its record."""
    return create_trial(
        state=STATES[record.state],
        values=list(ranking.values(record)) if record.state == "complete" else None,
        user_attrs={"knobs": dict(record.knobs), "record": json.loads(record.to_json()), "taken_in": True},
    )
