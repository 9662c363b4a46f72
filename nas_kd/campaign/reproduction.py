"""`nas-kd reproduce`: a trial of a run once more, by its record's knobs, seed and settings, held against the record.

The trial learns from the run's own teacher and begins with the run's own search. Nothing is written into the run's
folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isclose, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from nas_kd.callbacks import Note, OnProgress, no_note, no_progress
from nas_kd.campaign.campaign import SETTINGS
from nas_kd.config import CampaignConfig, ConfigError, load_config
from nas_kd.deploy.bundle import WEIGHTS_NAME
from nas_kd.files import CONFIG_NAME, DamagedFileError, check_tensors, read_json, write_text_atomically
from nas_kd.preparation.identity import answers, changed_parts, identity, same_answers
from nas_kd.preparation.teacher_outputs import have_outputs, prepare_caches
from nas_kd.runs.exports import export_name, pick
from nas_kd.runs.run import open_run, shown_records
from nas_kd.search_spaces import ArchSpec
from nas_kd.teachers.cache import open_caches
from nas_kd.training.measure import using_threads
from nas_kd.trial import CampaignContext, SharedSearch, load_context
from nas_kd.trial.function import run_trial
from nas_kd.trial.shared import FOLDER as SEARCH_FOLDER
from nas_kd.trial.shared import WEIGHTS_NAME as SUPERNET_NAME
from nas_kd.trial.shared import trained_by
from nas_kd.trials import TrialContext, TrialRecord
from nas_kd.trials.context import GPU_PEAK, RECORD_NAME, Report
from nas_kd.trials.execution import LOCK_NAME
from nas_kd.trials.files import locked, remove_checkpoints, trial_directory

if TYPE_CHECKING:
    from nas_kd.analysis.agreement import Agreement, WeightsCompared

ORIGINAL_NAME = "original.json"  # the record that is reproduced, as the run has it
COMPARISON_NAME = "comparison.json"
OUTPUTS = "teacher-outputs"  # where those of the run cannot be used; goes when the trial has ended
_NAMED = 20  # trials that a message lists
_OF_GATES = ("expected_cost", "gate_entropy")  # diagnostics by which a search is known again
_TOLERANCE = 1e-3  # of what the gates say: devices round differently


@dataclass(frozen=True)
class Reproduction:
    """A trial that was run again.

    Attributes:
        folder: with its record, weights and log, the original record, and `comparison.json`.
        record: of the trial that was run again.
        agreement: how it compares with the original; `verdict` says it in a word, `is_reproduced` whether it is equal.
    """

    folder: Path
    record: TrialRecord
    agreement: Agreement


def reproduce(
    run_dir: Path | str,
    *,
    trial: int | None = None,
    out_dir: Path | str | None = None,
    progress: OnProgress = no_progress,
    note: Note = no_note,
) -> Reproduction:
    """Run a trial of a run again, in another folder, and compare what it gives with what its record says.

    The trial has its record's knobs and seed, the settings that the run kept for it (`settings/`), the run's teacher,
    its search, and as many threads as it had. After an interruption the same call goes on from its checkpoint.

    Args:
        run_dir: the run's folder, to which nothing is added.
        trial: number of a complete trial; by default the one that the report recommends.
        out_dir: where to, a new or empty folder; `reproduced/NAME-trial-NNNN` beside the run's by default.
        progress: called with the share that is done and a text.
        note: called with a sentence where something of the run could not be used as it was.

    Returns:
        Its `agreement` has the values side by side, `verdict` and `is_reproduced`; `record` and `folder` are those of
        the trial that was run again.

    Raises:
        ValueError: there is no such complete trial, data, teacher, search or settings are missing or others than they
            were, or the folder is in use.

    Examples:
        >>> found = nas_kd.reproduce("runs/demo", trial=0, out_dir="again")
        >>> found.agreement.verdict
        'bit by bit'
    """
    run_dir = Path(run_dir).resolve()
    recorded = _recorded(run_dir, trial)
    config = _settings(run_dir, recorded)
    folder = Path(out_dir) if out_dir is not None else run_dir.parent / "reproduced" / _name(run_dir, recorded.number)
    folder = folder.resolve()
    with _prepared(folder, run_dir, recorded):
        progress(0.0, "preparing")
        # As many threads as the trial had: with another number, sums are taken in another order.
        with using_threads(int(recorded.environment.get("threads", torch.get_num_threads()))):
            context = _context(config, recorded, run_dir)
            items = _check_same(context, run_dir)
            context = _with_outputs(context, run_dir, folder, items, progress, note)
            search = _search(context, recorded, run_dir)
            record = _run(context, recorded, folder, search, progress)
        from nas_kd.analysis.agreement import compare_records

        now = config.digest()
        settings = None if now == recorded.config_hash else (recorded.config_hash, now)
        weights = _weights(trial_directory(run_dir, recorded.number), folder)
        agreement = compare_records(recorded, record, weights, settings)
        record.write(folder / RECORD_NAME)
        content = {"run": str(run_dir), **agreement.as_dict()}
        write_text_atomically(folder / COMPARISON_NAME, json.dumps(content, indent=2) + "\n")
        remove_checkpoints(folder)
        shutil.rmtree(folder / OUTPUTS, ignore_errors=True)
    return Reproduction(folder, record, agreement)


# What is reproduced


def _name(run_dir: Path, number: int) -> str:
    return f"{run_dir.name}-{export_name(number)}"


def _recorded(run_dir: Path, trial: int | None) -> TrialRecord:
    """The record of a complete trial, as the trial left it.

    Raises:
        ValueError: there is none; the sentence says what became of the trial.
    """
    config, ledger = open_run(run_dir)
    records = ledger.records()
    if trial is None:
        trial = pick(shown_records(run_dir, config, records), ranking=config.ranking).number
    complete = [str(record.number) for record in records if record.state == "complete"]
    listed = ", ".join(complete[:_NAMED]) + (", …" if len(complete) > _NAMED else "")
    way_out = f"complete trials: {listed or 'none'}"
    for record in records:
        if record.number != trial:
            continue
        if record.state == "complete":
            return record
        became = f"failed ({record.reason() or 'no reason given'})"
        if record.state == "stopped":
            became = f"was stopped ({record.warnings[-1] if record.warnings else 'early stopping'})"
        raise ValueError(f"trial {trial} of {run_dir} {became}, so it has no trained student to reproduce; {way_out}")
    raise ValueError(f"no trial {trial} of {run_dir} has ended; {way_out}")


def _settings(run_dir: Path, recorded: TrialRecord) -> CampaignConfig:
    """The campaign file under which a trial ran, without what only decides whether a trial is trained at all.

    Raises:
        ValueError: the run does not keep it, or it cannot be read.
    """
    path = run_dir / SETTINGS / f"{recorded.config_hash}.yaml"
    if not path.is_file():
        present = load_config(run_dir / CONFIG_NAME)
        if present.digest() != recorded.config_hash:
            raise ValueError(
                f"{path} is missing, with the settings under which trial {recorded.number} ran; restore it: those in "
                f"{run_dir / CONFIG_NAME} are others"
            )
        path = run_dir / CONFIG_NAME
    try:
        config = load_config(path)
    except ConfigError as error:
        raise DamagedFileError(
            f"{' '.join(str(error).split())}; restore it, or reproduce the trial with the version of nas-kd that ran it"
        ) from None
    return config.model_copy(update={"storage": None, "constraints": {}})


# Where it goes


@contextmanager
def _prepared(folder: Path, run_dir: Path, recorded: TrialRecord) -> Iterator[None]:
    """The folder, held for this process: a new or empty one, or one where the same was interrupted.

    Raises:
        ValueError: it holds something else, or lies in the run's.
        RuntimeError: another process works in it.
    """
    if folder.is_relative_to(run_dir):
        raise ValueError(f"{folder} lies in the run's folder, to which nothing is added; name another one with --out")
    original = folder / ORIGINAL_NAME
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        same = original.is_file() and original.read_text(encoding="utf-8") == recorded.model_dump_json(indent=2) + "\n"
        if not same or (folder / COMPARISON_NAME).exists():
            raise ValueError(
                f"{folder} is not empty; delete it, or name a new folder with --out: only a reproduction of the same "
                "record that was interrupted goes on where it was"
            )
    message = f"process {{owner}} reproduces a trial in {folder}; wait for it to end, or name another folder with --out"
    folder.mkdir(parents=True, exist_ok=True)
    if not original.is_file():
        recorded.write(original)
    with locked(folder / LOCK_NAME, timeout_s=0.0, message=message):
        yield


# What it takes


def _context(config: CampaignConfig, recorded: TrialRecord, run_dir: Path) -> CampaignContext:
    """Data, the run's teacher and the space, on the kind of device that the trial had, if there is one here."""
    teacher = run_dir / "teacher"
    way_out = f"restore it: trial {recorded.number} learned from the teacher that this run keeps"
    if not (teacher / "teacher.json").is_file():
        raise ValueError(f"{teacher / 'teacher.json'} is missing; {way_out}")
    check_tensors(teacher / "teacher.safetensors", way_out)
    device = "cuda:0" if GPU_PEAK in recorded.diagnostics and torch.cuda.is_available() else "cpu"
    return load_context(config.model_dump_json(), run_dir, device)


def _check_same(context: CampaignContext, run_dir: Path) -> str:
    """Raise where data or teacher are others than when the run began.

    Returns:
        The hash of the content of the training items.

    Raises:
        ValueError: what changed.
    """
    path = run_dir / "teacher" / "teacher.json"
    known: dict[str, Any] = read_json(path, "restore it")
    before = known["identity"]
    changed = changed_parts(before, identity(context, before))
    if changed:
        raise ValueError(
            f"{run_dir} was begun with {', '.join(changed)}, so none of its trials can be reproduced; restore what "
            "changed"
        )
    if not same_answers(known.get("answers"), answers(context)):
        raise ValueError(
            f"the teacher in {path.parent} does not answer a fixed input as {path.name} has it: its weights or its "
            "code changed, so no trial of the run can be reproduced; restore them"
        )
    return str(before["train"]["content"])


def _with_outputs(
    context: CampaignContext, run_dir: Path, folder: Path, content: str, progress: OnProgress, note: Note
) -> CampaignContext:
    """The context with the teacher's outputs that the run keeps, or with new ones where the trial learned from others.

    Args:
        context: which other trials of this process may share, so it stays as it is.
        run_dir: the run's folder.
        folder: for new ones.
        content: hash of the content of the training items.
        progress: called while outputs are computed.
        note: called where they are.
    """
    outputs = run_dir / "teacher" / "outputs"
    if not have_outputs(context, outputs, content):
        note(f"{outputs} has other outputs of the teacher than this trial learned from, or none: computing its own")
        outputs = folder / OUTPUTS
        prepare_caches(context, outputs, content, progress, note)
    return replace(context, caches=open_caches(outputs))


def _search(context: CampaignContext, recorded: TrialRecord, run_dir: Path) -> SharedSearch | None:
    """The search that the trial began with: the run's, or one that it has set aside. None where trials share none.

    Raises:
        ValueError: the run keeps none that says of the trial's architecture what the record says.
    """
    if not context.shares_search:
        return None
    assert recorded.arch is not None, "a complete trial has its architecture"
    arch, kept = ArchSpec.from_dict(recorded.arch), []
    for manifest in sorted(run_dir.glob(f"{SEARCH_FOLDER}*/search.json")):
        kept.append(manifest.parent.name)
        known = read_json(manifest, "restore it")
        if known.get("trained_by") != trained_by(context.config):
            continue
        check_tensors(manifest.parent / SUPERNET_NAME, f"restore it: trial {recorded.number} took its weights from it")
        search = SharedSearch.load(context, manifest.parent)
        said = search.remarks(arch)
        if all(isclose(said[name], recorded.diagnostics.get(name, nan), rel_tol=_TOLERANCE) for name in _OF_GATES):
            return search
    raise ValueError(
        f"{run_dir} keeps no search that trial {recorded.number} can have begun with (it has "
        f"{', '.join(kept) or 'none'}): each was done with other settings, or its gates say something else of the "
        f"architecture than the record; restore the folder {SEARCH_FOLDER} that the trial had"
    )


# The trial


def _run(
    context: CampaignContext, recorded: TrialRecord, folder: Path, search: SharedSearch | None, progress: OnProgress
) -> TrialRecord:
    """Run the trial in its folder, or go on from its checkpoint."""

    def reporter(report: Report) -> None:
        if report.fraction is not None:
            progress(report.fraction, f"trial {recorded.number}, {report.message}")

    device = str(context.device)
    own = TrialContext(
        number=recorded.number,
        knobs=dict(recorded.knobs),
        seed=recorded.seed,
        directory=folder,
        num_cpus=torch.get_num_threads(),
        num_gpus=0.0 if device == "cpu" else 1.0,
        device=device,
        reporter=reporter,
    )
    return run_trial(context, own, search)


def _weights(kept: Path, again: Path) -> WeightsCompared | None:
    """Compare the weights in the folder of a trial with those in another one; None where the first has none."""
    from nas_kd.analysis.agreement import WeightsCompared

    path = kept / WEIGHTS_NAME
    if not path.is_file():
        return None
    check_tensors(path, f"delete it to compare trial {kept.name} by its record alone")
    recorded, reproduced = load_file(path), load_file(again / WEIGHTS_NAME)
    numbers = sum(tensor.numel() for tensor in recorded.values())
    largest = max((float(tensor.abs().max()) for tensor in recorded.values() if tensor.numel()), default=0.0)
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (recorded, reproduced)]
    difference = None
    if shapes[0] == shapes[1]:
        differences = [(tensor.double() - reproduced[name].double()).abs() for name, tensor in recorded.items()]
        difference = max((float(each.max()) for each in differences if each.numel()), default=0.0)
    return WeightsCompared(len(recorded), numbers, largest, difference)
