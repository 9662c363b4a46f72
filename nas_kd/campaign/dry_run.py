"""`nas-kd search --dry-run`: a rehearsal, then some steps of each training at full batch size: what a campaign takes.

Nothing is written into the run's folder; decoded files go into their cache, as in a campaign.
"""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nas_kd.callbacks import Note, OnProgress, no_note, no_progress
from nas_kd.config import CampaignConfig
from nas_kd.config.budget import BudgetRange
from nas_kd.data import ClipDataset
from nas_kd.files import existing_parent
from nas_kd.preflight.checked_context import checked_context
from nas_kd.preflight.overview import describe_disk
from nas_kd.preflight.rehearsal import NUM_ITEMS, Rehearsal, generators_kept, rehearse
from nas_kd.preparation.nets import build_nets, num_batches
from nas_kd.preparation.proposals import proposals
from nas_kd.preparation.teacher import prepare_latency
from nas_kd.preparation.teacher_outputs import bytes_on_disk
from nas_kd.settings.sizes import bytes_text
from nas_kd.teachers import is_precomputed
from nas_kd.training.measure import latency_ms
from nas_kd.trial import CampaignContext
from nas_kd.trial.memory import peak_bytes, usable_bytes
from nas_kd.trials.files import bytes_on_disk as bytes_of_folder
from nas_kd.trials.packing import places_of_gpu, trials_of_gpu
from nas_kd.trials.progress import format_duration
from nas_kd.trials.resources import Resources

BATCHES = 2  # of each part of the data, of the largest batch of all trainings
_STAGE = re.compile(r"rehearsal, (\w+)")
_STEP = re.compile(r"(epoch|search) \d+/\d+")


@dataclass
class StepClock:
    """How long the steps of each training take, from what the functions of a campaign report.

    Attributes:
        threads: of a trial.
        times: (stage, kind of its steps) -> when each of them ended.
    """

    threads: int
    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    _stage: str = ""

    def see(self, share: float, words: str) -> None:
        """Take in a report of progress."""
        stage, step = _STAGE.match(words), _STEP.search(words)
        if stage is not None:
            self._stage = stage[1]
            if self._stage == "trial":
                torch.set_num_threads(self.threads)
        elif step is not None:
            self.times.setdefault((self._stage, step[1]), []).append(time.perf_counter())

    def seconds(self, stage: str, kind: str) -> float:
        """The median time of a step; 0 where there were not two."""
        times = self.times.get((stage, kind), [])
        steps = [after - before for before, after in pairwise(times)]
        return statistics.median(steps) if steps else 0.0

    def beside_steps(self, stage: str, seconds: float) -> float:
        """What a stage that took so long needs beside its steps: nets built, costs counted, architectures derived."""
        for (known, kind), times in self.times.items():
            if known == stage:
                seconds -= times[-1] - times[0] + self.seconds(stage, kind)
        return max(seconds, 0.0)


def dry_run(config: CampaignConfig, note: Note = no_note, progress: OnProgress = no_progress) -> list[str]:
    """Build everything, rehearse it, time some steps, and say what the campaign takes.

    Args:
        config: of the campaign.
        note: called with a sentence on each decision.
        progress: called with the share that is done and a text.

    Returns:
        Lines on time, memory and disk.

    Raises:
        ConfigError, ValueError: the campaign cannot work.
    """
    context = checked_context(config, note)
    threads = torch.get_num_threads()
    with TemporaryDirectory(prefix="nas-kd-dry-run-") as name, generators_kept(context.device):
        folder = Path(name)
        if config.budget.max_latency_ms is not None:
            prepare_latency(context, folder, config.resources.threads, progress)
        begun = time.perf_counter()
        rehearse(context, folder, note, progress)
        rehearsal = time.perf_counter() - begun if config.rehearse else 0.0
        clock = StepClock(config.resources.threads)
        small = folder / "steps"
        proposal = proposals(config, context.space)[0]
        progress(0.8, "steps of each training")
        try:
            done: dict[str, float] = {}
            Rehearsal(
                *(context, proposal, small, time.perf_counter(), note, clock.see),
                items=_num_items(context),
                on_step=clock.see,
            ).train(done)
            lines = [*_times(context, clock, rehearsal, done), _memory(config.resources), *describe_disk(context)]
        finally:
            torch.set_num_threads(threads)
        return [*lines, _run_folder(config, small)]


def _num_items(context: CampaignContext) -> int:
    config, splits = context.config, context.splits
    largest = max(config.teacher.fit.batch_size, config.search.batch_size, config.retrain.batch_size)
    return max(min(BATCHES * largest, len(splits.weights), len(splits.gates)), NUM_ITEMS)


def _times(context: CampaignContext, clock: StepClock, rehearsal: float, done: Mapping[str, float]) -> list[str]:
    """What each stage takes, and all together.

    Args:
        context: of the campaign.
        clock: of the small run.
        rehearsal: its seconds.
        done: stage of the small run -> seconds from the begin of that run to the end of the stage.
    """
    config, splits = context.config, context.splits
    passes = _Passes(context)
    begins = [0.0, *done.values()]
    took = {stage: end - begin for (stage, end), begin in zip(done.items(), begins, strict=False)}
    beside = {stage: clock.beside_steps(stage, seconds) for stage, seconds in took.items()}
    lines, total = [], rehearsal
    if rehearsal:
        lines.append(f"rehearsal: about {format_duration(rehearsal)}")
    if config.teacher.trains and not is_precomputed(context.teacher_model):
        batches, each = num_batches(context, config.teacher.fit), clock.seconds("teacher", "epoch")
        seconds = beside["teacher"] + batches * each + passes.teacher(splits.val, splits.test)
        lines.append(f"teacher: {batches:,} batches of {each:.3g} s, about {format_duration(seconds)}")
        total += seconds
    views = [1 if augment == "none" else config.teacher.cache.views for augment in bytes_on_disk(context)]
    if views:
        seconds = sum(views) * passes.teacher(splits.retrain)
        lines.append(f"the teacher's outputs, once: about {format_duration(seconds)}")
        total += seconds
    if context.shares_search:
        steps, each = _search_steps(context), clock.seconds("search", "search")
        options = config.budget.options
        budgets = config.search.gates.knots if isinstance(options, BudgetRange) else len(options)
        compared = budgets * config.search.candidates * passes.student(splits.val)
        seconds = beside["search"] + steps * each + compared
        lines.append(f"search: {steps:,} steps of {each:.3g} s, about {format_duration(seconds)}")
        total += seconds
    batches, each = num_batches(context, config.retrain), clock.seconds("trial", "epoch")
    validations = config.retrain.epochs if config.retrain.keep == "best" else 0
    of_seed = batches * each + validations * passes.student(splits.val) + passes.student(splits.val, splits.test)
    seconds = beside["trial"] + config.retrain.num_seeds * of_seed
    if not context.shares_search:
        seconds += _search_steps(context) * clock.seconds("trial", "search")
    at_once = min(_at_once(config.resources), config.trials)
    trials = math.ceil(config.trials / at_once) * seconds
    lines.append(
        f"trials: {config.trials} of about {format_duration(seconds)} (batches of {each:.3g} s), {at_once} at once: "
        f"about {format_duration(trials)}"
    )
    total += trials
    gpus = _gpu_share(config.resources)
    of_gpus = f", {(total - trials + config.trials * seconds * gpus) / 3600:.2g} GPU-hours" if gpus else ""
    without = "without decoding, Ray's start and the latencies that are measured last"
    return [*lines, f"in all about {format_duration(total)}{of_gpus}, {without}"]


def _search_steps(context: CampaignContext) -> int:
    search = context.config.search
    return len(context.loader(context.splits.weights, search, seed=0, train=True)) * search.epochs


class _Passes:
    """Seconds that evaluations take, from the time of one batch."""

    def __init__(self, context: CampaignContext) -> None:
        self._context = context
        nets = build_nets(context, proposals(context.config, context.space)[0].knobs[-1])
        size = context.eval_batch_size
        self._student = self._time(nets.students[0], nets.example, size)
        self._teacher = 0.0
        if not is_precomputed(context.teacher_model):
            self._teacher = self._time(context.teacher_model, context.teacher_example(), size)

    def _time(self, net: torch.nn.Module, example: torch.Tensor, size: int) -> float:
        """Seconds for one item."""
        batch = example.expand(size, *example.shape[1:]).contiguous()
        return latency_ms(net.eval(), batch, repeats=3, warmup=1) / 1e3 / size

    def teacher(self, *datasets: ClipDataset) -> float:
        return self._teacher * self._items(datasets)

    def student(self, *datasets: ClipDataset) -> float:
        return self._student * self._items(datasets)

    def _items(self, datasets: tuple[ClipDataset, ...]) -> int:
        context = self._context
        return sum(map(len, datasets)) * context.input_type.positions * context.config.evaluation.views


def _at_once(resources: Resources) -> int:
    """How many trials run at a time: on this machine, since a cluster may be busy."""
    if resources.executor == "inline":
        return 1
    places = int(len(os.sched_getaffinity(0)) / resources.cpus_per_trial)
    share = _gpu_share(resources)
    if share:
        places = min(places, torch.cuda.device_count() * places_of_gpu(share))
    return max(min(places, resources.max_concurrent or places), 1)


def _gpu_share(resources: Resources) -> float:
    """Which part of a GPU a trial gets: with `auto` by what this process took, for the teacher's training as well."""
    if resources.gpus_per_trial != "auto":
        return resources.gpus_per_trial
    if not torch.cuda.is_available():
        return 1.0
    return 1 / trials_of_gpu(peak_bytes("cuda"), usable_bytes("cuda"))


def _memory(resources: Resources) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    at_once = _at_once(resources)
    text = f"memory: {bytes_text(peak)} at most in this process"
    if resources.executor != "inline":
        text += f"; a campaign with {at_once} trial{'s' if at_once > 1 else ''} at once has {at_once + 1}"
    if torch.cuda.is_available() and resources.use_gpus:
        text += f"; of a GPU {bytes_text(peak_bytes('cuda'))} at most"
        if resources.gpus_per_trial == "auto":
            text += f", so that {places_of_gpu(_gpu_share(resources))} trials share one"
    return text


def _run_folder(config: CampaignConfig, small: Path) -> str:
    """What the run's folder will take, from that of the small run."""
    trial = bytes_of_folder(small / "trials")
    rest = bytes_of_folder(small) - trial
    there = existing_parent(config.runs.absolute())
    free = shutil.disk_usage(there).free
    needed = config.trials * trial + rest
    return f"run folder: about {bytes_text(needed)} without caches; {bytes_text(free)} are free at {there}"
