"""What all trials of a campaign share in one process: data, teacher, space. Built once, kept while it lives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from nas_kd.config import CampaignConfig
from nas_kd.data import Batch, ClipDataset, ClipLoader, Splits, load, normalize
from nas_kd.frames import on_frames
from nas_kd.tasks import Task, make_task
from nas_kd.teachers import TEACHER_KINDS, StoredMaps, build_teacher_model
from nas_kd.teachers.cache import TeacherCache
from nas_kd.teachers.teacher import load_weights
from nas_kd.training.fit import FitConfig, evaluate
from search_spaces import SPACE_KINDS, CostTable, DeltaBlocksSpace, SearchSpace
from search_spaces.arch import Choice
from search_spaces.supernet import delta_net_of


@dataclass
class Workbench:
    """Data, teacher and space of one campaign on one device."""

    config: CampaignConfig
    device: torch.device
    splits: Splits
    task: Task
    space: SearchSpace
    teacher_model: nn.Module
    cache: TeacherCache | None = None
    latencies: dict[int, CostTable] = field(default_factory=dict)

    def table(self, knobs: Mapping[str, Choice]) -> CostTable:
        """What the budget counts: the space's FLOPs, or the measured latencies of a key-frame interval."""
        if self.config.budget.max_latency_ms is None:
            with torch.random.fork_rng(devices=[]):  # counting builds modules, or not where costs are known already
                return self.space.cost_table(knobs)
        return self.latencies[int(knobs["keyframe_interval"])]

    def loader(self, dataset: ClipDataset, fit_config: FitConfig, *, seed: int, train: bool) -> ClipLoader:
        """Batches of a split: shuffled and augmented for training, in order and complete otherwise."""
        batch_size = min(fit_config.batch_size, len(dataset))
        return ClipLoader(
            dataset,
            batch_size if train else min(8 if self.task.framewise else 64, len(dataset)),
            seed=seed,
            shuffle=train,
            augment=fit_config.augment if train else "none",
            drop_last=train,  # a last batch of one clip would upset BatchNorm
            device=self.device,
            keys=(self.splits.info.input_key, *self.task.keys, *(f"map.{name}" for name in self.splits.info.map_names)),
        )

    @property
    def has_keyframes(self) -> bool:
        """Whether students run frame by frame from key frames."""
        return isinstance(self.space, DeltaBlocksSpace)

    def input(self, batch: Batch) -> Tensor:
        """What nets see of a batch: normalised clips (N, 3, T, H, W), or frame features (N, T, D)."""
        if self.splits.info.input_key == "features":
            return batch["features"].float()
        return normalize(batch["clip"], self.config.normalize.mean, self.config.normalize.std)

    def teacher_input(self, batch: Batch, inputs: Tensor | None = None) -> Tensor:
        """What the teacher sees of a batch: what nets see, `inputs` where it is at hand, or maps (N, S, H, W)."""
        if isinstance(self.teacher_model, StoredMaps):
            return self.teacher_model.take(batch)
        return self.input(batch) if inputs is None else inputs

    def example(self) -> Tensor:
        """Zeros of the data's shape, with batch size 1: a clip, features, or a frame (1, 3, H, W)."""
        info = self.splits.info
        shape = (3, info.height, info.width) if self.task.framewise else info.input_shape
        return torch.zeros(1, *shape, device=self.device)

    def teacher_example(self) -> Tensor:
        """Zeros of the teacher's input shape, with batch size 1."""
        if not isinstance(self.teacher_model, StoredMaps):
            return self.example()
        info = self.splits.info
        return torch.zeros(1, len(self.teacher_model.names), info.height, info.width, device=self.device)

    def student_example(self, knobs: Mapping[str, Choice]) -> Tensor:
        """Zeros of what a student sees in a training step, with batch size 1: with key frames, one pair of frames."""
        if self.has_keyframes:
            info = self.splits.info
            return torch.zeros(1, 3, 2, info.height, info.width, device=self.device)
        return self.space.example_input(knobs).to(self.device)

    def untrained_teacher(self) -> nn.Module:
        """A net like the teacher with weights of its own, to be trained beside a student."""
        config = self.config.teacher.model_copy(update={"weights": None})
        return build_teacher_model(config, self.task.num_outputs, self.splits.info).to(self.device)

    def evaluate_teacher(self, dataset: ClipDataset) -> dict[str, float]:
        """Metrics of the teacher over a split."""
        model: Callable[[Tensor], Tensor] = self.teacher_model
        seen = on_frames(model) if self.task.framewise else model
        return evaluate(seen, self._whole(dataset), self.task, self.teacher_input)

    def evaluate_student(
        self, student: nn.Module, dataset: ClipDataset, knobs: Mapping[str, Choice]
    ) -> dict[str, float]:
        """Metrics of a student, or of a supernet with its most probable candidates, over a split."""
        student.eval()
        clips = self._whole(dataset)
        if (net := delta_net_of(student)) is not None:
            return evaluate(student, clips, self.task, self.input, net.offsets(self.splits.info.frames))
        if self.task.framewise:
            return evaluate(on_frames(student), clips, self.task, self.input)
        with torch.random.fork_rng(devices=[]):  # a space may choose frames at random: the same ones each time
            torch.manual_seed(0)
            return evaluate(lambda inputs: student(self.space.fit_input(inputs, knobs)), clips, self.task, self.input)

    def _whole(self, dataset: ClipDataset) -> ClipLoader:
        return self.loader(dataset, FitConfig(), seed=0, train=False)


def build_workbench(config: CampaignConfig, device: str) -> Workbench:
    """Data, space and an untrained teacher.

    Raises:
        ValueError: something of the config does not fit the data, in one sentence.
    """
    splits = load(config.data, seed=config.seed, gate_share=config.search.gates.split_share)
    task = make_task(config.task, splits.info, config.task_options)
    _check_kind("teacher.model", config.teacher.model, TEACHER_KINDS, config, splits, task)
    _check_kind("space.name", config.space.name, SPACE_KINDS, config, splits, task)
    torch.manual_seed(config.seed)
    model = build_teacher_model(config.teacher, task.num_outputs, splits.info).to(device)
    space = _space(config, splits, task, model)
    return Workbench(config, torch.device(device), splits, task, space, model)


def _check_kind(
    key: str, name: str, kinds: Mapping[str, tuple[str, str]], config: CampaignConfig, splits: Splits, task: Task
) -> None:
    """A teacher or a space of ours must read what the data are and give what the task wants."""
    clips = "frame features" if splits.info.feature_size else "clips"
    wanted = "frames" if task.framewise else clips, "maps" if task.framewise or task.dense else "logits"
    if kinds.get(name, wanted) != wanted:
        (reads, gives), (have, want) = kinds[name], wanted
        others = [other for other, kind in kinds.items() if kind == wanted]
        raise ValueError(
            f"{key}: {name} reads {reads} and gives {gives}, but task {config.task} with data.source "
            f"{config.data.source} needs one that reads {have} and gives {want}; choose {', '.join(others)}"
            f"{', or ' if others else ''}your own as module:function"
        )


def _space(config: CampaignConfig, splits: Splits, task: Task, teacher: nn.Module) -> SearchSpace:
    if not config.space.is_derived:
        return config.space.build(task.num_outputs, splits.info.feature_size, splits.info.frames)
    identity = {"model": config.teacher.model, "settings": config.teacher.settings, "num_outputs": task.num_outputs}
    return config.space.derive(teacher, (splits.info.height, splits.info.width), identity)


def take_teacher(bench: Workbench) -> None:
    """Freeze the teacher for good, now that it has its weights; what is derived from it is derived again."""
    bench.teacher_model.requires_grad_(False).eval()
    if bench.config.space.is_derived:
        bench.space = _space(bench.config, bench.splits, bench.task, bench.teacher_model)
        assert isinstance(bench.space, DeltaBlocksSpace)
        # Its folded form computes the same, and its layers are those of the students.
        bench.teacher_model = bench.space.teacher.to(bench.device)


@lru_cache(maxsize=1)
def ready_workbench(config_json: str, run_dir: Path, device: str) -> Workbench:
    """The workbench with the teacher that `prepare_teacher` left in the run's folder; kept for the next trial."""
    bench = build_workbench(CampaignConfig.model_validate_json(config_json), device)
    load_weights(bench.teacher_model, run_dir / "teacher" / "teacher.safetensors")
    take_teacher(bench)
    if bench.config.budget.max_latency_ms is not None:
        for interval in bench.space.knobs["keyframe_interval"]:
            content = json.loads(latency_file(run_dir, interval).read_text())
            bench.latencies[int(interval)] = CostTable.from_json(content["table"])
    if TeacherCache.is_complete(folder := run_dir / "teacher" / "outputs"):
        bench.cache = TeacherCache(folder)
    return bench


def latency_file(run_dir: Path, interval: Choice) -> Path:
    """Where the measured latencies of a key-frame interval are kept."""
    return run_dir / "latency" / f"keyframe_interval-{interval}.json"
