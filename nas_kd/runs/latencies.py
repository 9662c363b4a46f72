"""Latency of the front's students and of their teacher, measured after the trials, one net at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.deploy.bundle import load_bundle
from nas_kd.deploy.timing import PASSES, ROUNDS, summary, timed
from nas_kd.files import DamagedFileError, read_json, write_text_atomically
from nas_kd.inputs import Passes
from nas_kd.teachers import is_precomputed
from nas_kd.training.measure import environment, using_threads
from nas_kd.trial import CampaignContext
from nas_kd.trials import Ranking, TrialRecord
from nas_kd.trials.files import trial_directory

LATENCY_NAME, TEACHER = "latency.json", "teacher"  # as in nas_kd.analysis.latencies, which reads the file
MAX_STUDENTS = 16


def measure_latencies(
    context: CampaignContext,
    run_dir: Path,
    records: Sequence[TrialRecord],
    threads: int,
    progress: OnProgress = no_progress,
) -> None:
    """Measure and keep the latencies in `latency.json`; nothing is measured where the front is the same as before.

    Args:
        context: with the trained teacher.
        run_dir: the run's folder.
        records: of the run.
        threads: as many as a trial has.
        progress: called with the share that is done and a text.
    """
    chosen = front_students(records, context.config.ranking)
    path = run_dir / LATENCY_NAME
    known: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, DamagedFileError):  # they are measured again
        known = read_json(path, "")
    where = {**environment(str(context.device)), "threads": str(threads)}
    names = [TEACHER, *(str(record.number) for record in chosen)]
    if not chosen or (known.get("environment") == where and set(names) <= set(known.get("nets", {}))):
        return
    with using_threads(threads):
        nets = passes_of_nets(context, run_dir, [record.number for record in chosen])
        times, waited = timed(nets, context.device, progress)
    content = {
        "environment": where,
        "waited_share": waited,
        "passes": ROUNDS * PASSES,
        "nets": {name: summary(parts, nets[name]) for name, parts in times.items()},
    }
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")


def front_students(records: Sequence[TrialRecord], ranking: Ranking) -> list[TrialRecord]:
    """The students of the front, or an even choice of them with both ends and the pick."""
    from nas_kd.analysis import ParetoFront, judged  # plotting libraries, which all before the end does without

    front = ParetoFront.from_records(judged(records, ranking), ranking=ranking)
    if len(front.records) <= MAX_STUDENTS:
        return list(front.records)
    places = np.linspace(0, len(front.records) - 1, MAX_STUDENTS - 1).round().astype(int)
    numbers = {front.records[place].number for place in places}
    if front.pick is not None:
        numbers.add(front.pick.number)
    return [record for record in front.records if record.number in numbers]


def passes_of_nets(context: CampaignContext, run_dir: Path, numbers: Sequence[int]) -> dict[str, Passes]:
    """Name of a net -> its passes. A student of other settings than the campaign file now has is left out.

    Args:
        context: with the trained teacher.
        run_dir: the run's folder.
        numbers: of the students' trials.
    """
    found = {}
    teacher = context.teacher_model
    if not is_precomputed(teacher):
        found[TEACHER] = Passes.whole(partial(teacher, context.teacher_example()))
    for number in numbers:
        try:
            student, info = load_bundle(trial_directory(run_dir, number), context.space)
        except ValueError:
            continue
        example = torch.zeros(1, *info.input_shape, device=context.device)
        found[str(number)] = context.input_type.latency_passes(student.to(context.device), example)
    return found
