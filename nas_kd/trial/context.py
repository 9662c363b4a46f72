"""`CampaignContext`: data, teacher and space, which all trials of one process share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.callbacks import Note, no_note
from nas_kd.config import CampaignConfig
from nas_kd.config.budget import LATENCY_FIGURE
from nas_kd.data import Augment, Batch, ClipDataset, ClipLoader, Splits, Views, load
from nas_kd.data.pace import Pace
from nas_kd.files import check_tensors, read_json
from nas_kd.inputs import InputType, check_kind, choose_input_type, space_settings, teacher_input_type
from nas_kd.search_spaces import SPACES, CostTable, SearchSpace
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.knapsack import Limit
from nas_kd.tasks import Task, make_task
from nas_kd.tasks.item_scores import ItemScores, interval_over_items
from nas_kd.teachers import TEACHERS, TeacherView, bare, build_teacher_model, layers_of, teacher_examples, teacher_input
from nas_kd.teachers.adapter import AdaptedTeacher
from nas_kd.teachers.cache import TeacherCache, open_caches
from nas_kd.teachers.weights import load_weights
from nas_kd.training.evaluate import Scored, evaluate
from nas_kd.training.settings import FitConfig
from nas_kd.trials import Evaluated, Split


@dataclass
class CampaignContext:
    """Data, teacher and space of one campaign on one device.

    Attributes:
        config: of the campaign.
        device: of all nets and batches.
        splits: the data.
        task: loss and metrics.
        space: of the students.
        input_type: how the data reach teacher and students.
        teacher_model: untrained until `freeze_teacher`.
        notes: sentences on how the teacher was taken in.
        pairs: term of the objective -> (module of the teacher, module of the student) that it compares, once a campaign
            was checked.
        caches: the teacher's outputs for the training items, where they are kept: augmentation -> cache.
        latencies: `latency_name` -> measured latencies, for a budget of latency.
        tell_pace: called once with a sentence on how fast data are read, in the first training from now on.
    """

    config: CampaignConfig
    device: torch.device
    splits: Splits
    task: Task
    space: SearchSpace
    input_type: InputType
    teacher_model: nn.Module
    notes: tuple[str, ...] = ()
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    caches: dict[Augment, TeacherCache] = field(default_factory=dict)
    latencies: dict[str, CostTable] = field(default_factory=dict)
    tell_pace: Note | None = None

    @property
    def eval_batch_size(self) -> int:
        """Items of a batch in evaluation, and inputs of the teacher at once where its outputs are cached."""
        asked = self.config.evaluation.batch_size
        return asked or min(self.input_type.eval_batch_size, self.config.retrain.batch_size)

    @property
    def shares_search(self) -> bool:
        """Whether trials share one search: `search.shared` is on, and the space has choices beside its knobs."""
        if not self.config.search.shared:
            return False
        return self.input_type.always_searches or any(self.space.is_open(knobs) for knobs in all_knobs(self.space))

    def table(self, knobs: Mapping[str, Choice]) -> CostTable:
        """What the budget counts: the space's FLOPs, or the latencies that were measured for these knobs."""
        if not self.config.budget.is_latency:
            with torch.random.fork_rng(devices=[]):  # counting builds modules, or not where costs are known already
                return self.space.cost_table(knobs)
        return self.latency_table(knobs)

    def latency_table(self, knobs: Mapping[str, Choice]) -> CostTable:
        """The latencies of candidates that were measured for these knobs, in ns."""
        return self.latencies[latency_name(self.space, knobs)]

    def figures(self, knobs: Mapping[str, Choice]) -> dict[str, tuple[CostTable, ...]]:
        """What is limited beside the budget and is no figure of the space: the measured latencies, where they are."""
        if LATENCY_FIGURE not in self.config.budget.limits:
            return {}
        return {LATENCY_FIGURE: (self.latencies[latency_name(self.space, knobs)],)}

    def limits(self, knobs: Mapping[str, Choice]) -> tuple[Limit, ...]:
        """The limits of the campaign file beside the budget.

        Raises:
            ValueError: the space has no table of a figure.
        """
        measured, limits = self.figures(knobs), []
        for figure, most in self.config.budget.limits.items():
            tables = measured[figure] if figure in measured else self.space.figure_tables(figure, knobs)
            limits.append(Limit(figure, tables, most))
        return tuple(limits)

    def loader(
        self, dataset: ClipDataset, fit_config: FitConfig, *, seed: int, train: bool, views: Views | None = None
    ) -> ClipLoader:
        """Batches of a split: shuffled, augmented and mixed for training, in order and complete otherwise.

        Args:
            dataset: the split.
            fit_config: batch size and augmentation of the training.
            seed: of order and augmentation.
            train: whether batches are for training.
            views: that a training is to see, with the same augmentation; None augments anew in each epoch.
        """
        assert views is None or views.augment == fit_config.augment, "views are those of the training's augmentation"
        batch_size = min(fit_config.batch_size, len(dataset))
        cuts = () if train else self.config.evaluation.cuts(self.splits.info)
        return ClipLoader(
            dataset,
            batch_size if train else min(self.eval_batch_size, len(dataset)),
            seed=seed,
            shuffle=train,
            augment=(views or fit_config.augment) if train else "none",
            drop_last=train,  # a last batch of one clip would upset BatchNorm
            device=self.device,
            keys=(self.input_type.key, *self.task.keys, *(f"map.{name}" for name in self.splits.info.map_names)),
            seen=None if cuts else self.splits.info.seen,
            consecutive=self.splits.info.consecutive,
            cuts=cuts,
            mix=fit_config.mix if train else None,
            num_workers=self.config.data.workers,
            on_pace=self._tell_pace if train and self.tell_pace is not None else None,
        )

    def _tell_pace(self, pace: Pace) -> None:
        """Say how fast data are read beside a training step, once for all trainings."""
        tell, self.tell_pace = self.tell_pace, None
        if tell is not None:
            tell(pace.describe(self.config.data.reading_hint))

    def teacher_input(self, batch: Batch) -> Tensor:
        """What the teacher sees of a batch of whole items."""
        return teacher_input(self.teacher_model, batch, self.input_type.read(batch))

    def teacher_example(self) -> Tensor:
        """One input of the teacher, with values such as the data have."""
        return self.teacher_examples(1)

    def teacher_examples(self, items: int) -> Tensor:
        """Inputs of the teacher with values such as the data have: always the same for a shape.

        Args:
            items: how many.
        """
        examples = teacher_examples(self.teacher_model, self.splits.info, self.input_type.example(items))
        return examples.to(self.device)

    def student_example(self, knobs: Mapping[str, Choice]) -> Tensor:
        """Zeros of what a student sees in a training step, with batch size 1."""
        return self.input_type.student_example(self.space, knobs).to(self.device)

    def freeze_teacher(self) -> None:
        """Keep the teacher, which has its weights now, as it is; a space that is derived from it is derived again."""
        self.teacher_model.requires_grad_(False).eval()
        if self.config.space.is_derived:
            self.space = _space(self.config, self.splits, self.task, self.teacher_model)
            self.teacher_model = self.input_type.frozen_teacher(self.teacher_model, self.space).to(self.device)

    def untrained_teacher(self) -> nn.Module:
        """A net like the teacher with weights of its own, to be trained beside a student."""
        teacher = self.config.teacher.model_copy(update={"weights": None})
        return teacher_of(self.config.model_copy(update={"teacher": teacher}), self.task).to(self.device)

    def evaluate_teacher(
        self,
        dataset: ClipDataset,
        seen: Callable[[Tensor, Batch], None] | None = None,
        scored: Scored | None = None,
    ) -> dict[str, float]:
        """Metrics of the teacher over a split.

        Args:
            dataset: the split.
            seen: called with the outputs of each batch and the batch.
            scored: called with what the evaluation rests on.
        """
        model = self.input_type.on_items(self.teacher_model, self.eval_batch_size)
        return evaluate(model, self._whole(dataset), self.task, self.teacher_input, seen=seen, scored=scored)

    def evaluate_student(
        self, student: nn.Module, dataset: ClipDataset, knobs: Mapping[str, Choice], scored: Scored | None = None
    ) -> dict[str, float]:
        """Metrics of a student, or of a supernet with its most probable candidates, over a split.

        Args:
            student: in any mode; evaluation mode afterwards.
            dataset: the split.
            knobs: of the student.
            scored: called with what the evaluation rests on.
        """
        student.eval()
        loader = self._whole(dataset)
        return self.input_type.evaluate_student(student, loader, self.task, self.space, knobs, scored)

    def evaluated(self, split: Split, scores: Sequence[ItemScores]) -> Evaluated:
        """What the metrics of a split rest on, as a record keeps it.

        Args:
            split: `val` or `test`.
            scores: of one net, or of the same net trained with several seeds; of several evaluations of the split.
        """
        groups = self.splits.groups.get(split)
        fields: dict[str, Any] = {
            "num_items": len(getattr(self.splits, split)),
            "num_groups": None if groups is None else len(set(groups)),
            "views": self.config.evaluation.views,
        }
        if scores:
            low, high = interval_over_items(scores, groups) or (None, None)
            fields |= {"low": low, "high": high, "majority": scores[0].majority, "chance": scores[0].chance}
        return Evaluated.model_validate(fields)

    def _whole(self, dataset: ClipDataset) -> ClipLoader:
        return self.loader(dataset, FitConfig(), seed=0, train=False)


def build_context(config: CampaignConfig, device: str, *, decode: bool = True) -> CampaignContext:
    """Data, space and an untrained teacher.

    Args:
        config: of the campaign.
        device: of all nets and batches.
        decode: whether files are decoded now; else an item is when it is read, see `SourceConfig.outline`.

    Raises:
        ValueError: something of the config does not fit the data, in one sentence.
    """
    share = config.search.gates.split_share
    if decode:
        splits = load(config.data, seed=config.seed, gate_share=share)
    else:
        splits = config.data.outline(seed=config.seed, gate_share=share)
    task = make_task(config.task, splits.info, config.task_options)
    if decode:  # without, nothing is trained, and preparing may read many items
        task.prepare(splits)
    teacher_kinds = {name: (entry.reads, entry.gives) for name, entry in TEACHERS.items()}
    check_kind("teacher.model", config.teacher.model, teacher_kinds, task, config.task, config.data.source)
    kinds = {name: (entry.reads, entry.gives) for name, entry in SPACES.items() if not entry.derived}
    check_kind("space.name", config.space.name, kinds, task, config.task, config.data.source)
    torch.manual_seed(config.seed)
    notes: list[str] = []
    model = teacher_of(config, task, notes.append).to(device)
    space = _space(config, splits, task, model)
    input_type = choose_input_type(splits.info, type(task), space, config.normalize.mean, config.normalize.std)
    return CampaignContext(config, torch.device(device), splits, task, space, input_type, model, tuple(notes))


def teacher_of(config: CampaignConfig, task: Task, note: Note = no_note) -> nn.Module:
    """The teacher of a campaign as its config gives it: with the weights of a file, or untrained.

    Args:
        config: of the campaign.
        task: with the data.
        note: called with a sentence on what was decided about it.

    Raises:
        ValueError: it cannot be had, or does not fit the data.
    """
    kind, normalize = teacher_input_type(task), config.normalize
    examples = kind(task.info, normalize.mean, normalize.std).example(2)
    view = TeacherView(examples, kind.item, kind.outputs_are_maps(type(task)), normalize, task.class_names)
    return build_teacher_model(config.teacher, task.num_outputs, task.info, view, note)


def with_decoded_data(context: CampaignContext) -> CampaignContext:
    """A context of which `build_context` did not decode the files, with its files decoded and its task prepared.

    Raises:
        DataError: files cannot be decoded.
    """
    config, splits = context.config, context.splits
    if config.data.decodes:
        splits = load(config.data, seed=config.seed, gate_share=config.search.gates.split_share)
    if splits.info == context.splits.info:
        context.task.prepare(splits)
        return replace(context, splits=splits)
    return build_context(config, str(context.device))  # items that were left out may have taken a class along


def _space(config: CampaignConfig, splits: Splits, task: Task, teacher: nn.Module) -> SearchSpace:
    if not config.space.is_derived:
        return config.space.build(task.num_outputs, space_settings(splits.info))
    layers = layers_of(teacher)
    if layers is teacher and isinstance(teacher, AdaptedTeacher) and ":" not in config.teacher.model:
        raise ValueError(
            f"space.name: {config.space.name!r} is made of the layers of teacher.model {config.teacher.model} as they "
            "are, so teacher.outputs, teacher.normalize and other keys that adapt it cannot be used; leave them out, "
            "give normalize at the top, or return the net by a function of yours (teacher.model: module:function)"
        )
    identity = {"model": config.teacher.model, "settings": config.teacher.settings, "num_outputs": task.num_outputs}
    return config.space.derive(layers, (splits.info.height, splits.info.width), identity)


def load_context(config_json: str, run_dir: Path, device: str) -> CampaignContext:
    """The context with the teacher that `prepare_teacher` left in the run's folder; kept for the next trial."""
    return _load_context(config_json, run_dir, device, teacher_state(run_dir))


def teacher_state(run_dir: Path) -> tuple[str, int]:
    """What tells one preparation of a run from another: a folder may be deleted and begun again, with other data."""
    folder = run_dir / "teacher"
    return (folder / "teacher.json").read_text(), (folder / "teacher.safetensors").stat().st_mtime_ns


@lru_cache(maxsize=1)
def _load_context(config_json: str, run_dir: Path, device: str, state: tuple[str, int]) -> CampaignContext:
    context = build_context(CampaignConfig.model_validate_json(config_json), device)
    restore_teacher(context, run_dir)
    if context.config.budget.max_latency_ms is not None:
        for knobs in all_knobs(context.space):
            path = latency_file(context.space, knobs, run_dir)
            content = read_json(path, "start the campaign again to have it measured")
            context.latencies[latency_name(context.space, knobs)] = CostTable.from_json(content["table"])
    return context


def restore_teacher(context: CampaignContext, run_dir: Path) -> None:
    """Give a context the teacher that `prepare_teacher` left in the run's folder, with its cached outputs."""
    load_kept_teacher(context.teacher_model, run_dir)
    context.freeze_teacher()
    context.caches = open_caches(run_dir / "teacher" / "outputs")


def load_kept_teacher(model: nn.Module, run_dir: Path) -> None:
    """Give a teacher the weights that a run keeps.

    Raises:
        DamagedFileError: they cannot be read.
    """
    path = run_dir / "teacher" / "teacher.safetensors"
    check_tensors(
        path,
        f"restore it, or delete the folder {path.parent}: the same `nas-kd search` command then trains the teacher "
        "again, but trials that have ended learned from the one that is lost",
    )
    load_weights(bare(model), path)


def all_knobs(space: SearchSpace) -> list[dict[str, Choice]]:
    """All combinations of the knobs of a space."""
    return [dict(zip(space.knobs, values, strict=True)) for values in product(*space.knobs.values())]


def latency_name(space: SearchSpace, knobs: Mapping[str, Choice]) -> str:
    """What the latencies that were measured for these knobs of a space are kept under."""
    return "_".join(f"{name}-{knobs[name]}" for name in space.knobs)


def latency_file(space: SearchSpace, knobs: Mapping[str, Choice], run_dir: Path) -> Path:
    """Where they are kept."""
    return run_dir / "latency" / f"{latency_name(space, knobs)}.json"
