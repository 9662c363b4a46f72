"""What all trials of a campaign share in one process: data, teacher, space. Built once, kept while it lives."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nas_kd.config import TEACHER_SECTIONS, CampaignConfig
from nas_kd.data import Batch, ClipDataset, ClipLoader, Splits, load, normalize
from nas_kd.frames import on_frames, random_frames
from nas_kd.objectives import Objective, ObjectiveConfig
from nas_kd.proposals import outline, proposals
from nas_kd.taps import shapes_given
from nas_kd.tasks import Task, make_task
from nas_kd.teachers import TEACHER_KINDS, TEACHERS, StoredMaps, Streams, Teacher, build_teacher_model
from nas_kd.teachers.cache import TeacherCache
from nas_kd.teachers.teacher import load_weights
from nas_kd.training.checkpoint import count_params, write_whole
from nas_kd.training.fit import FitConfig, Progress, evaluate, fit, no_progress
from nas_kd.training.measure import environment
from search_spaces import SPACE_KINDS, CostTable, DeltaBlocksSpace, SearchSpace, Supernet, count_flops
from search_spaces.arch import Choice
from search_spaces.flops import Parted
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

    def teacher_input(self, batch: Batch) -> Tensor:
        """What the teacher sees of a batch: what nets see, or maps (N, S, H, W) where it consists of such."""
        return self.teacher_model.take(batch) if isinstance(self.teacher_model, StoredMaps) else self.input(batch)

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
        Its metrics by split, FLOPs where they are known, and parameters, as in `teacher.json`.

    Raises:
        ValueError: the folder holds another teacher's outputs, or the model does not classify the data's classes.
    """
    folder = run_dir / "teacher"
    config, model = bench.config, bench.teacher_model
    digest = config.digest(*TEACHER_SECTIONS)
    manifest = folder / "teacher.json"
    check_teacher(bench)
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
        if config.teacher.weights is None and not isinstance(model, StoredMaps):
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
        if not isinstance(model, StoredMaps):  # what made them is not known
            known["flops"] = _teacher_flops(bench)
        if isinstance(model, Parted):
            known |= model.part_flops(bench.example())
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
    """Of clips, or of one frame of each clip; a teacher of several streams has the labels at each of them."""
    if bench.task.framewise:
        batch = random_frames(batch)
        return {"task": bench.task.loss(on_frames(model)(bench.input(batch)), batch)}
    if isinstance(model, Streams):
        losses = [bench.task.loss(output, batch) for output in model.streams(bench.input(batch)).values()]
        return {"task": torch.stack(losses).sum()}
    return {"task": bench.task.loss(model(bench.input(batch)), batch)}


def _teacher_flops(bench: Workbench) -> int:
    """Of a clip, or of a frame with BatchNorm folded, as its delta students have it."""
    if isinstance(bench.space, DeltaBlocksSpace):
        return bench.space.plan.teacher_flops
    return count_flops(bench.teacher_model, bench.teacher_example(), strict=False).total


def check_outputs(bench: Workbench, who: str, outputs: object, example: Tensor, way_out: str = "") -> None:
    """Raise where a net does not give what the task reads.

    Args:
        bench: with the task.
        who: the net, for the sentence.
        outputs: what it gave for the example.
        example: its input.
        way_out: of the mistake, for the sentence.

    Raises:
        ValueError: the shape wanted and the one given.
    """
    task = bench.task
    maps = task.framewise or task.dense
    wanted = f"(1, {task.num_outputs}{', h, w' if maps else ''})"
    fits = isinstance(outputs, Tensor) and outputs.ndim == (4 if maps else 2)
    if not fits or cast(Tensor, outputs).shape[:2] != (1, task.num_outputs):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"{who} must give {'maps' if maps else 'logits'} of shape {wanted} for one "
            f"{'frame' if task.framewise else 'item'} of shape {tuple(example.shape)[1:]}, but gives {got}"
            f"{'; ' if way_out else ''}{way_out}"
        )


def check_teacher(bench: Workbench) -> None:
    """Raise `ValueError` where the teacher does not read what the data are or give what the task reads."""
    model, example, name = bench.teacher_model, bench.teacher_example(), bench.config.teacher.model
    mode = model.training
    try:
        with torch.no_grad():
            outputs = model.eval()(example)
    except Exception as error:
        if name in TEACHERS and isinstance(error, ValueError):  # it says what is wrong
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"teacher.model: {name} cannot read {'a frame' if bench.task.framewise else 'an item'} of the data, of "
            f"shape {tuple(example.shape)[1:]}; change its settings or the data's, or choose another teacher (it "
            f"stopped with {type(error).__name__}: {reason})"
        ) from error
    model.train(mode)
    check_outputs(bench, f"teacher.model: {name}", outputs, example, "change its settings, or choose another teacher")


@dataclass(frozen=True)
class TrialNets:
    """The nets that trials with these knobs of the space may have, with fresh weights, to see whether things fit.

    Attributes:
        supernet: for the search; it runs its widest architecture.
        students: the widest and the narrowest one: a module that both have is one that, in all likelihood, all have.
    """

    supernet: Supernet
    students: tuple[nn.Module, ...]

    def example(self, bench: Workbench) -> Tensor:
        """Zeros of what they see, with batch size 1."""
        return bench.student_example(self.supernet.knobs)

    def shapes(self, bench: Workbench, net: nn.Module) -> dict[str, tuple[int, ...]]:
        """What can be tapped in one of them: module -> shape."""
        return shapes_given(net, self.example(bench))


def build_nets(bench: Workbench, knobs: Mapping[str, Choice]) -> TrialNets:
    """The nets for these knobs."""
    space = bench.space
    supernet = Supernet(space, knobs)
    widest = space.widest(supernet.knobs)
    first = {name: values[0] for name, values in space.variables.items()}
    archs = dict.fromkeys([widest, space.arch({**supernet.knobs, **first})])
    supernet.control.pinned = {n: len(space.variables[n]) - 1 for n in widest.choices if n in space.variables}
    return TrialNets(supernet.to(bench.device), tuple(space.student(arch).to(bench.device) for arch in archs))


def build_objective(bench: Workbench, config: ObjectiveConfig, nets: TrialNets, net: nn.Module) -> Objective:
    """The objective of one of these nets, to see what it needs and whether it fits.

    Raises:
        ValueError: it does not fit the task, the space or the teacher.
    """
    teacher = bench.teacher_model if config.distils else None
    varying, theirs = net is nets.supernet, bench.teacher_example()
    return Objective(config, bench.task, net, teacher, nets.example(bench), theirs, varying_width=varying)


def num_steps(bench: Workbench, config: FitConfig) -> int:
    """Steps of a training on both splits together."""
    return len(bench.loader(bench.splits.retrain, config, seed=0, train=True)) * config.epochs


def trains_on_one(net: nn.Module, example: Tensor) -> bool:
    """Whether a net can be trained in batches of one item: no BatchNorm is left with one value a channel."""
    net = copy.deepcopy(net).train()  # whose statistics stay as they are
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            net(example)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                return False
            raise
    return True


def cached_taps(bench: Workbench) -> tuple[str, ...]:
    """Modules of the teacher whose outputs trials of the campaign distil."""
    return tuple(dict.fromkeys(name for objective in _cached_objectives(bench) for name in objective.teacher_taps))


def _cached_objectives(bench: Workbench) -> list[Objective]:
    """Those of all that trials may have that ask the teacher for what depends on the clip alone."""
    found: dict[tuple[str, ...], Objective] = {}
    built: dict[str, TrialNets] = {}
    for proposal in proposals(bench.config, bench.space):
        search, retrain = proposal.config.search, proposal.config.retrain
        for knobs, is_search in product(proposal.knobs, (True, False)):
            config, fits = (search.objective, search) if is_search else (proposal.config.objective, retrain)
            key = (str(is_search), str(knobs), outline(config))
            if key in found or not config.distils or config.asks_live or fits.augment != "none":
                continue
            nets = built.setdefault(str(knobs), built.get(str(knobs)) or build_nets(bench, knobs))
            found[key] = build_objective(bench, config, nets, nets.supernet if is_search else nets.students[0])
    return [objective for objective in found.values() if objective.uses_teacher]


def _fill_cache(bench: Workbench, folder: Path, progress: Progress) -> None:
    config = bench.config
    if bench.task.framewise:  # which frames are looked at varies from step to step
        return
    if not (objectives := _cached_objectives(bench)):
        return
    teacher = Teacher(bench.teacher_model, dict.fromkeys(name for o in objectives for name in o.teacher_taps))
    # Not for training: every clip once, in order.
    loader = bench.loader(bench.splits.retrain, config.retrain, seed=0, train=False)
    num_clips = len(bench.splits.retrain.base)
    if TeacherCache.size_bytes(teacher(bench.teacher_example()), num_clips) <= CACHE_LIMIT_BYTES:
        TeacherCache.write(folder, teacher, loader, bench.teacher_input, num_clips, progress)
    teacher.close()
