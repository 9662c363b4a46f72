"""The rehearsal of a campaign: everything that follows is done once on a few items, before anything is trained.

A campaign with one epoch and a handful of items runs in a temporary folder by the functions that the campaign itself
calls: teacher, search, one trial, export. What would fail after hours fails in seconds. Nothing of the campaign is
touched: the nets are built anew, and all generators of random numbers are as they were.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nas_kd.callbacks import Note, OnProgress, no_note, no_progress
from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.config.budget import BudgetConfig
from nas_kd.data import ClipDataset, Sample, Splits, Subset
from nas_kd.deploy.bundle import read_info
from nas_kd.deploy.export import WRITERS, export_student
from nas_kd.files import DamagedFileError, read_json, write_text_atomically
from nas_kd.preflight.explain import explained, reason_of
from nas_kd.preflight.full_batches import full_batches
from nas_kd.preparation.nets import build_nets, build_objective
from nas_kd.preparation.proposals import Proposal, proposals
from nas_kd.preparation.ranking import check_metrics, describe_ranking
from nas_kd.preparation.shared import prepare_search
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.runs.latencies import passes_of_nets
from nas_kd.runs.own_space import own_space
from nas_kd.tasks import Task, make_task
from nas_kd.teachers import bare
from nas_kd.trial import CampaignContext, SearchTrial, SharedSearch, Trial
from nas_kd.trial.architecture_trial import ArchitectureTrial
from nas_kd.trial.context import restore_teacher, teacher_of
from nas_kd.trial.shared import FOLDER
from nas_kd.trials import KnobValue, Report, TrialContext

NUM_ITEMS = 2  # of each part of the data: batches of one would upset BatchNorm
LOOKED_AT = 64  # items among which labelled ones are looked for
LIMIT_S = 120.0  # after which no further stage is begun
STEPS = (2, 4, 8, 16)  # lengths of the retraining that are tried until every stage of every term has a step
RECORD_NAME = "rehearsal.json"

_SHARES = {
    "teacher": 0.0,
    "search": 0.2,
    "trial": 0.3,
    "full batch": 0.4,
    "latency": 0.45,
    "bundle": 0.5,
}  # of the time, roughly, when a stage begins


def rehearse(
    context: CampaignContext,
    run_dir: Path,
    note: Note = no_note,
    progress: OnProgress = no_progress,
) -> None:
    """Do everything once that the campaign will do. Once for each campaign file: a run that goes on is not rehearsed.

    Args:
        context: of the campaign, checked, with an untrained teacher; it stays as it is.
        run_dir: the run's folder, which gets a file that says what was rehearsed.
        note: called with what was rehearsed and how long it took, and with export formats that fail.
        progress: called with the share that is done and a text.

    Raises:
        ConfigError: a stage failed; the sentence names it and what to change.
    """
    record = run_dir / RECORD_NAME
    key = f"{context.config.digest()} {torch.__version__} {describe_ranking(context.config)}"
    with contextlib.suppress(FileNotFoundError, DamagedFileError):
        if read_json(record, "").get("of") == key:
            return
    clock = time.perf_counter()
    done: dict[str, float] = {}
    with TemporaryDirectory(prefix="nas-kd-rehearsal-") as folder, generators_kept(context.device):
        for number, proposal in enumerate(_chosen(proposals(context.config, context.space))):
            if time.perf_counter() - clock > LIMIT_S:
                note(
                    f"not all objectives were rehearsed, since the first ones took {time.perf_counter() - clock:.0f} s"
                )
                break
            Rehearsal(context, proposal, Path(folder) / str(number), clock, note, progress).run(done)
    seconds = time.perf_counter() - clock
    note(f"rehearsed on {NUM_ITEMS} items of each split in {seconds:.1f} s: {', '.join(done)}")
    stages = {stage: round(until, 2) for stage, until in done.items()}
    write_text_atomically(record, json.dumps({"of": key, "seconds_until": stages}) + "\n")


def _chosen(possible: Sequence[Proposal]) -> list[Proposal]:
    """As few as have all terms that any of them distils; those with most terms first."""

    def terms(proposal: Proposal) -> set[str]:
        config = proposal.config
        return {f"{name}" for name in config.objective.active_terms} | {
            f"search.{name}" for name in config.search.objective.active_terms
        }

    chosen: list[Proposal] = []
    seen: set[str] = set()
    for proposal in sorted(possible, key=lambda each: -len(terms(each))):
        if not chosen or not terms(proposal) <= seen:
            chosen.append(proposal)
            seen |= terms(proposal)
    return chosen


@dataclass
class Rehearsal:
    """The stages with one proposal of the study.

    Attributes:
        context: of the campaign.
        proposal: values of the dotted knobs, and the knobs of the space.
        folder: of the small run.
        clock: when the rehearsal began.
        note: called with what does not fail the campaign.
        progress: called with the share that is done and a text, at the start of each stage.
        items: of each part of the data.
        on_step: called after each step of a training with its share and a text.
    """

    context: CampaignContext
    proposal: Proposal
    folder: Path
    clock: float
    note: Note
    progress: OnProgress
    items: int = NUM_ITEMS
    on_step: OnProgress = no_progress

    def run(self, done: dict[str, float]) -> None:
        """All stages; `done` gets each of them, with the seconds since the rehearsal began."""
        worker, trial_dir = self.train(done)
        for full in full_batches(self.context, self._small_context(), self.proposal):
            # What fails at this size alone, since all that is small went well.
            with self._stage("full batch", f"lower {full.key}", full.what):
                full.run()
        done["full batches"] = self._seconds()
        with self._stage("latency", "change teacher.model or space"), torch.no_grad():
            nets = passes_of_nets(worker, self.folder, [0])
            for run in [run for net in nets.values() for run in net.parts.values()]:
                run()
        done["latency"] = self._seconds()
        if done.keys() & WRITERS.keys():  # the student of another objective is exported as that of the first one is
            return
        with self._stage("bundle", "change space"):
            space = own_space(worker.config, self.folder, read_info(trial_dir))
        for kind in WRITERS:
            if self._seconds() > LIMIT_S:
                self.note(f"export as {kind} was not rehearsed, since the rehearsal took more than {LIMIT_S:.0f} s")
                continue
            self.progress(_SHARES["bundle"], f"rehearsal, export as {kind}")
            try:
                export_student(
                    trial_dir,
                    self.folder / "export",
                    (kind,),  # type: ignore[arg-type]
                    space=space,
                    with_latency=False,
                )
            except Exception as error:  # whatever exporters raise; the campaign can do without
                self.note(f"warning: students of this campaign cannot be exported as {kind}: {reason_of(error)}")
            else:
                done[kind] = self._seconds()

    def train(self, done: dict[str, float]) -> tuple[CampaignContext, Path]:
        """The stages up to the trial; returns what a worker knows of the campaign, and the trial's folder."""
        with self._stage("teacher", "change teacher.model or its settings"):
            small = self._small_context()
            prepare_teacher(small, self.folder, self.on_step)
            worker = replace(self._small_context(), latencies=self.context.latencies)
            restore_teacher(worker, self.folder)
        done["teacher"] = self._seconds()
        trial_dir = self.folder / "trials" / "0000"
        trial: Trial
        if self.context.shares_search:
            with self._stage("search", "change space, search or search.objective"):
                small.latencies = self.context.latencies
                derived = prepare_search(small, self.folder, self.on_step).derived
                search = SharedSearch.load(worker, self.folder / FOLDER)
            done["search"] = self._seconds()
            trial = ArchitectureTrial(worker, worker.config, self._trial_context(trial_dir, derived[-1]), search=search)
        else:
            budget = worker.config.budget
            knobs = {budget.knob: budget.highest, **self.proposal.knobs[-1]}
            trial = SearchTrial(worker, worker.config, self._trial_context(trial_dir, knobs))
        with self._stage("trial", "change space, objective, search or retrain"):
            record = trial.run()
        check_metrics(worker.config, record.metrics["retrained"]["val"])
        done["trial"] = self._seconds()
        return worker, trial_dir

    def _seconds(self) -> float:
        return time.perf_counter() - self.clock

    def _trial_context(self, directory: Path, knobs: Mapping[str, KnobValue]) -> TrialContext:
        directory.mkdir(parents=True)
        device = str(self.context.device)

        def report(given: Report) -> None:
            self.on_step(given.fraction or 0.0, given.message)

        return TrialContext(
            number=0, knobs=knobs, seed=self.context.config.seed, directory=directory, device=device, reporter=report
        )

    @contextmanager
    def _stage(self, name: str, way_out: str, what: str = "") -> Iterator[None]:
        self.progress(_SHARES[name], f"rehearsal, {name}")
        with explained(f"rehearsal of the {name}", way_out, what, hidden=f"{self.folder}/"):
            yield

    def _small_context(self) -> CampaignContext:
        """The campaign with a few items, one epoch, and nets of its own."""
        context, config = self.context, self._small_config()
        task = make_task(config.task, context.splits.info, config.task_options)
        task.prepare(context.splits)
        torch.manual_seed(config.seed)
        model = teacher_of(config, task).to(context.device)
        if bare(model) is bare(context.teacher_model):
            raise ConfigError(
                f"teacher.model: {config.teacher.model} returns the same module at each call, but every worker needs "
                "one of its own; build it anew in the function"
            )
        splits = _few(context.splits, task, self.items)
        return replace(context, config=config, splits=splits, task=task, teacher_model=model, caches={}, latencies={})

    def _small_config(self) -> CampaignConfig:
        config = self.proposal.config
        cut = {"epochs": 1}
        teacher = config.teacher.model_copy(
            update={
                "fit": config.teacher.fit.model_copy(update={**cut, **self._batch(config.teacher.fit.batch_size)}),
                "cache": config.teacher.cache.model_copy(update={"views": min(config.teacher.cache.views, 1)}),
            }
        )
        search = config.search.model_copy(
            update={
                "epochs": 2,
                "finish": 0.5,
                "candidates": 1,
                "gates": config.search.gates.model_copy(update={"warmup": 0.0, "knots": 2}),
                "local": config.search.local.model_copy(
                    update={"steps": min(config.search.local.steps, 1), "probes": 1}
                ),
                **self._batch(config.search.batch_size),
            }
        )
        retrain = config.retrain.model_copy(update={"num_seeds": 1, **self._batch(config.retrain.batch_size)})
        steps_an_epoch = 2 * self.items // retrain.batch_size
        retrain = retrain.model_copy(update={"epochs": max(self._steps() // steps_an_epoch, 1)})
        return config.model_copy(
            update={
                "grid": (),
                "knobs": {},
                "early_stopping": None,
                "teacher": teacher,
                "search": search,
                "retrain": retrain,
                "budget": _ends(config.budget),
            }
        )

    def _batch(self, batch_size: int) -> dict[str, int]:
        return {"batch_size": min(batch_size, self.items)}

    def _steps(self) -> int:
        """The least length of a retraining in which every term has a step for each of its stages."""
        nets = build_nets(self.context, self.proposal.knobs[-1])
        objective = build_objective(self.context, self.proposal.config.objective, nets, nets.students[0])
        for steps in STEPS[:-1]:
            try:
                objective.check_batches(steps)
            except ValueError:
                continue
            return steps
        return STEPS[-1]


def _ends(budget: BudgetConfig) -> BudgetConfig:
    """The lowest and the highest budget alone."""
    return budget.model_copy(update={budget.knob: tuple(dict.fromkeys((budget.lowest, budget.highest)))})


class _Kept:
    """Some items of a data set, read once."""

    def __init__(self, dataset: ClipDataset, indices: Sequence[int]) -> None:
        self._items: list[Sample] = [dataset[index] for index in indices]
        self.labels = [int(item["label"]) if "label" in item else 0 for item in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> Sample:
        return self._items[index]


def _few(splits: Splits, task: Task, number: int) -> Splits:
    """A few labelled items of each part."""
    parts = [[part.indices[i] for i in _labelled(part, task, number)] for part in (splits.weights, splits.gates)]
    train = _Kept(splits.weights.base, [*parts[0], *parts[1]])
    first, second = range(len(parts[0])), range(len(parts[0]), len(train))
    val, test = (_Kept(part, _labelled(part, task, number)) for part in (splits.val, splits.test))
    return Splits(Subset(train, first), Subset(train, second), val, test, splits.info)


def _labelled(dataset: ClipDataset, task: Task, number: int) -> list[int]:
    """Positions of the first items that have what the task needs; where there are fewer, of others too."""
    looked_at = range(min(len(dataset), max(LOOKED_AT, number) if task.needs else number))
    with_labels = [index for index in looked_at if not task.needs or task.is_labelled(dataset[index])]
    others = [index for index in looked_at if index not in with_labels]
    return sorted([*with_labels, *others][:number])


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """The generators of random numbers of Python, NumPy and torch have the same state afterwards."""
    python, array = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
