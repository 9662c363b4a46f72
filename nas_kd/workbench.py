"""What all trials of a campaign share in one process: data, teacher, space. Built once, kept while it lives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nas_kd.config import TEACHER_SECTIONS, CampaignConfig
from nas_kd.data import Batch, ClipDataset, ClipLoader, Splits, load, normalize
from nas_kd.frames import on_frames, random_frames
from nas_kd.objectives import ObjectiveConfig
from nas_kd.taps import last_maps
from nas_kd.tasks import Task, make_task
from nas_kd.teachers import Teacher, build_teacher_model
from nas_kd.teachers.cache import TeacherCache
from nas_kd.teachers.teacher import load_weights
from nas_kd.training.checkpoint import count_params, write_whole
from nas_kd.training.fit import FitConfig, Progress, evaluate, fit, no_progress
from nas_kd.training.measure import environment
from search_spaces import CostTable, DeltaBlocksSpace, SearchSpace, count_flops
from search_spaces.arch import Choice
from search_spaces.latency import latency_table
from search_spaces.supernet import delta_net_of

CACHE_LIMIT_BYTES = 8 * 2**30  # of the teacher's outputs; above, trials ask the teacher itself


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
            keys=("clip", *self.task.keys),
        )

    @property
    def has_keyframes(self) -> bool:
        """Whether students run frame by frame from key frames."""
        return isinstance(self.space, DeltaBlocksSpace)

    def clip(self, batch: Batch) -> Tensor:
        """The normalised clips of a batch: (N, 3, T, H, W), what the teacher sees."""
        return normalize(batch["clip"], self.config.normalize.mean, self.config.normalize.std)

    def example(self) -> Tensor:
        """Zeros of the teacher's input shape, with batch size 1: a clip, or a frame (1, 3, H, W)."""
        info = self.splits.info
        frames = () if self.task.framewise else (info.frames,)
        return torch.zeros(1, 3, *frames, info.height, info.width, device=self.device)

    def student_example(self, knobs: Mapping[str, Choice]) -> Tensor:
        """Zeros of what a student sees in a training step, with batch size 1: with key frames, one pair of frames."""
        if self.has_keyframes:
            info = self.splits.info
            return torch.zeros(1, 3, 2, info.height, info.width, device=self.device)
        return self.space.example_input(knobs).to(self.device)

    def evaluate_teacher(self, dataset: ClipDataset) -> dict[str, float]:
        """Metrics of the teacher over a split."""
        model: Callable[[Tensor], Tensor] = self.teacher_model
        return self._evaluate(on_frames(model) if self.task.framewise else model, dataset, None)

    def evaluate_student(
        self, student: nn.Module, dataset: ClipDataset, knobs: Mapping[str, Choice]
    ) -> dict[str, float]:
        """Metrics of a student, or of a supernet with its most probable candidates, over a split."""
        student.eval()
        if (net := delta_net_of(student)) is not None:
            return self._evaluate(student, dataset, net.offsets(self.splits.info.frames))
        if self.task.framewise:
            return self._evaluate(on_frames(student), dataset, None)
        return self._evaluate(lambda clip: student(self.space.fit_input(clip, knobs)), dataset, None)

    def _evaluate(
        self, model: Callable[[Tensor], Tensor], dataset: ClipDataset, offsets: Sequence[int] | None
    ) -> dict[str, float]:
        return evaluate(model, self.loader(dataset, FitConfig(), seed=0, train=False), self.task, self.clip, offsets)


def build_workbench(config: CampaignConfig, device: str) -> Workbench:
    """Data, space and an untrained teacher.

    Raises:
        ValueError: something of the config does not fit the data, in one sentence.
    """
    splits = load(config.data, seed=config.seed, gate_share=config.search.gates.split_share)
    task = make_task(config.task, splits.info, config.task_options)
    torch.manual_seed(config.seed)
    model = build_teacher_model(config.teacher, task.num_outputs).to(device)
    space = _space(config, splits, task, model)
    return Workbench(config, torch.device(device), splits, task, space, model)


def _space(config: CampaignConfig, splits: Splits, task: Task, teacher: nn.Module) -> SearchSpace:
    if not config.space.is_derived:
        return config.space.build(task.num_outputs)
    identity = {"model": config.teacher.model, "settings": config.teacher.settings, "num_outputs": task.num_outputs}
    return config.space.derive(teacher, (splits.info.height, splits.info.width), identity)


def _take_teacher(bench: Workbench) -> None:
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
    _take_teacher(bench)
    if bench.config.budget.max_latency_ms is not None:
        for interval in bench.space.knobs["keyframe_interval"]:
            content = json.loads(_latency_file(run_dir, interval).read_text())
            bench.latencies[int(interval)] = CostTable.from_json(content["table"])
    if (run_dir / "teacher" / "outputs" / "cache.json").is_file():
        bench.cache = TeacherCache(run_dir / "teacher" / "outputs")
    return bench


def _latency_file(run_dir: Path, interval: Choice) -> Path:
    return run_dir / "latency" / f"keyframe_interval-{interval}.json"


def prepare_latency(bench: Workbench, run_dir: Path, threads: int, progress: Progress = no_progress) -> None:
    """Measure the latency of all candidates, for a budget of latency. Done once a campaign, for all trials.

    Args:
        bench: gets the tables.
        run_dir: keeps them.
        threads: as many as a trial has.
        progress: told how far it is.
    """
    assert isinstance(bench.space, DeltaBlocksSpace)
    intervals, before = bench.space.knobs["keyframe_interval"], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # What was measured for other candidates, or elsewhere, is measured again.
        place = {name: environment(str(bench.device))[name] for name in ("torch", "device", "threads", "host")}
        key = json.loads(json.dumps({**place, "space": bench.space.settings}))
        for i, interval in enumerate(intervals):
            path = _latency_file(run_dir, interval)
            known = json.loads(path.read_text()) if path.is_file() else {}
            if known.get("of") != key:
                progress(i / len(intervals), f"latency of candidates, key frames every {interval} frames")
                table = latency_table(bench.space, {"keyframe_interval": interval}, device=bench.device)
                known = {"of": key, "table": table.to_json()}
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, json.dumps(known) + "\n")
            bench.latencies[int(interval)] = CostTable.from_json(known["table"])
    finally:
        torch.set_num_threads(before)


def prepare_teacher(bench: Workbench, run_dir: Path, progress: Progress = no_progress) -> dict[str, float | int | str]:
    """Train or load the teacher, measure it, and keep it and its outputs in the run's folder. Done once a campaign.

    Returns:
        Its metrics by split, FLOPs and parameters, as in `teacher.json`.

    Raises:
        ValueError: the folder holds another teacher's outputs, or the model does not classify the data's classes.
    """
    folder = run_dir / "teacher"
    config, model = bench.config, bench.teacher_model
    digest = config.digest(*TEACHER_SECTIONS)
    manifest = folder / "teacher.json"
    check_logits(bench)
    if manifest.is_file():
        known: dict[str, float | int | str] = json.loads(manifest.read_text())
        if known.get("digest") != digest:
            raise ValueError(
                f"{run_dir} was begun with another teacher or other data; give the campaign another name, or restore "
                f"the sections {', '.join(TEACHER_SECTIONS)}"
            )
        load_weights(model, folder / "teacher.safetensors")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        if config.teacher.weights is None:
            loader = bench.loader(bench.splits.retrain, config.teacher.fit, seed=config.seed, train=True)
            fit(
                model,
                loader,
                lambda batch: _teacher_loss(bench, model, batch),
                lambda terms: terms["task"],
                config.teacher.fit,
                seed=config.seed,
                checkpoint=folder / "checkpoint.pt",
                tag=digest,
                progress=lambda share, words: progress(share, f"teacher, {words}"),
            )
        model.eval()
        known = {"digest": digest, "params": count_params(model)}
        known["flops"] = _teacher_flops(bench)
        for split in ("val", "test"):
            values = bench.evaluate_teacher(getattr(bench.splits, split))
            known |= {f"{split}/{name}": value for name, value in values.items()}
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "teacher.safetensors")
        write_whole(manifest, json.dumps(known, indent=2) + "\n")
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    _take_teacher(bench)
    _fill_cache(bench, folder / "outputs", progress)
    return known


def _teacher_loss(bench: Workbench, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Of clips, or of one frame of each clip."""
    if bench.task.framewise:
        batch = random_frames(batch)
        return {"task": bench.task.loss(on_frames(model)(bench.clip(batch)), batch)}
    return {"task": bench.task.loss(model(bench.clip(batch)), batch)}


def _teacher_flops(bench: Workbench) -> int:
    """Of a clip, or of a frame with BatchNorm folded, as its delta students have it."""
    if isinstance(bench.space, DeltaBlocksSpace):
        return bench.space.plan.teacher_flops
    return count_flops(bench.teacher_model, bench.example(), strict=False).total


def check_logits(bench: Workbench) -> None:
    """Raise `ValueError` where the teacher does not give what the task reads."""
    mode = bench.teacher_model.training
    with torch.no_grad():
        logits = bench.teacher_model.eval()(bench.example())
    bench.teacher_model.train(mode)
    if bench.task.framewise:
        _check_maps(bench, logits)
        return
    wanted = (1, bench.task.num_outputs)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the teacher must give logits of shape {wanted} for one clip of shape {tuple(bench.example().shape)[1:]}, "
            f"but gives {got}"
        )


def _check_maps(bench: Workbench, outputs: object) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim != 4 or outputs.shape[:2] != (1, bench.task.num_outputs):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the teacher must give maps of shape (1, {bench.task.num_outputs}, h, w) for one frame of shape "
            f"{tuple(bench.example().shape)[1:]}, but gives {got}"
        )


def cached_taps(bench: Workbench) -> tuple[str, ...]:
    """Modules of the teacher whose maps any trial of the campaign may distil."""
    objectives = weighed(bench.config).values()
    if not any(o.feature.weight > 0 or o.cross_resolution.weight > 0 for o in objectives):
        return ()
    maps = last_maps(bench.teacher_model, bench.example())
    names: list[str] = []
    for objective in objectives:
        if objective.feature.weight > 0:
            names += [theirs for _, theirs in objective.feature.pairs] if objective.feature.pairs else maps
        if objective.cross_resolution.weight > 0:
            names.append(objective.cross_resolution.teacher or maps[-1])
    return tuple(dict.fromkeys(names))


def weighed(config: CampaignConfig) -> dict[str, ObjectiveConfig]:
    """The objectives of the search and of the retraining, with every term that any trial may use."""

    def of(objective: ObjectiveConfig, path: str) -> ObjectiveConfig:
        terms = {name: getattr(objective, name) for name in type(objective).model_fields}
        varied = {
            n: t.model_copy(update={"weight": 1.0}) for n, t in terms.items() if f"{path}.{n}.weight" in config.knobs
        }
        return objective.model_copy(update=varied)

    paths = {"objective": config.objective, "search.objective": config.search.objective}
    return {path: of(objective, path) for path, objective in paths.items()}


def _fill_cache(bench: Workbench, folder: Path, progress: Progress) -> None:
    config = bench.config
    fits: tuple[FitConfig, ...] = (config.search, config.retrain)
    if bench.task.framewise:  # which frames are looked at varies from step to step
        return
    if not any(o.distils for o in weighed(config).values()) or all(f.augment != "none" for f in fits):
        return
    teacher = Teacher(bench.teacher_model, cached_taps(bench))
    # Not for training: every clip once, in order.
    loader = bench.loader(bench.splits.retrain, config.retrain, seed=0, train=False)
    num_clips = len(bench.splits.retrain.base)
    if TeacherCache.size_bytes(teacher(bench.example()), num_clips) <= CACHE_LIMIT_BYTES:
        TeacherCache.write(folder, teacher, loader, bench.clip, num_clips, progress)
    teacher.close()
