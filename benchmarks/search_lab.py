"""What the arms of the search benchmark share: settings, trainings that are kept on disk, and the count of compute."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.config import CampaignConfig
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.search_spaces import ArchSpec, Supernet
from nas_kd.search_spaces.arch import Choice
from nas_kd.trial.context import CampaignContext, build_context
from nas_kd.trial.learner import Learner

NUM_DRAWS = 1000  # of architectures, before cheaper ones are taken
FORWARD_AND_BACKWARD = 3  # a backward pass costs two forward passes


@dataclass(frozen=True)
class Setting:
    """A campaign at which the arms are compared.

    Attributes:
        campaign: the campaign file.
        equal_cost: FLOPs near which searched and random architectures are compared, at 95 to 100 %.
        search_of_a_trial: keys of `search` for the arms that search for one budget at a time.
        num_trainings: that the compute of an arm pays for, of students of the mean cost.
    """

    campaign: Mapping[str, Any]
    equal_cost: float
    search_of_a_trial: Mapping[str, Any]
    num_trainings: int = 40

    def at(self, data: Path) -> Setting:
        """The same with the data sets in this folder, in place of `data`."""
        section = dict(self.campaign["data"])
        if "root" in section:
            section["root"] = str(data / Path(section["root"]).name)
        return replace(self, campaign={**self.campaign, "data": section})


SETTINGS: Mapping[str, Setting] = {
    "generated": Setting(
        campaign={
            "data": {
                "source": "generated",
                "num_train": 1024,
                "digits": [[0], [1], [3], [5], [8]],
                "glyph": 0.4,
                "texture": 0.05,
                "noise": 0.03,
            },
            "teacher": {"settings": {"widths": [12, 24, 48]}, "fit": {"epochs": 12}},
            "space": {
                "name": "clip_cell",
                "widths": [[4, 8], [8, 12, 16], [12, 18, 24]],
                "depths": [[1], [1, 2], [1, 2]],
                "ops": ["conv2d_k3", "conv2plus1d_k3", "separable3d_k3_e1", "shift_k3", "identity", "zero"],
                "resolution": [16, 24],
            },
            "budget": {"max_flops": [500_000, 670_000, 900_000, 1_210_000, 1_640_000, 2_210_000, 2_970_000, 4_000_000]},
            "search": {"shared": True, "epochs": 36, "batch_size": 32, "lr": 0.01, "gates": {"split_share": 0.25}},
            "retrain": {"epochs": 12, "batch_size": 32, "lr": 0.01},
        },
        equal_cost=1_500_000,
        search_of_a_trial={"shared": False, "epochs": 12, "gates": {"split_share": 0.5}},
    ),
    # VGG features of the frames of UCF101 videos, made hard: half of the frames are those of other videos.
    "ucf101_features": Setting(
        campaign={
            "task": "multilabel",
            "data": {
                "source": "features",
                "root": "data/ucf101-14-vggfeat",
                "multi_label": True,
                "distractors": 0.5,
                "noise": 1.0,
                "seed": 0,
            },
            "teacher": {
                "model": "frame_sequence",
                "settings": {"family": "h_rnn", "h_rnn": {"lower": 128, "upper": 128, "block_length": 5}},
                "fit": {"epochs": 60, "batch_size": 32, "lr": 3e-3},
            },
            "space": {
                "name": "frame_sequence",
                "frames": [2, 3, 5, 8, 12],
                "family": ["h_rnn"],
                "selector": ["uniform", "first", "middle"],
                "h_rnn": {
                    "lower": [16, 24, 32, 48, 64, 96, 128],
                    "upper": [16, 24, 32, 48, 64, 96, 128],
                    "block_length": [2, 3, 4],
                },
                "head": ["linear", "moe"],
            },
            "budget": {"max_flops": [120_000, 184_000, 282_000, 433_000, 665_000, 1_020_000, 1_565_000, 2_400_000]},
            "search": {
                "shared": True,
                "epochs": 40,
                "batch_size": 32,
                "lr": 3e-3,
                "gates": {"split_share": 0.25},
                "finish": 0.25,
            },
            "retrain": {"epochs": 15, "batch_size": 32, "lr": 3e-3},
        },
        equal_cost=600_000,
        search_of_a_trial={"shared": False, "epochs": 15, "gates": {"split_share": 0.5}},
        num_trainings=32,
    ),
}


@dataclass(frozen=True)
class Result:
    """A trained student.

    Attributes:
        cost: FLOPs.
        val: metric on the validation split.
        test: metric on the test split.
        compute: FLOPs of its training.
    """

    cost: int
    val: float
    test: float
    compute: float


@dataclass
class Meter:
    """FLOPs that supernets have executed: forward passes once, forward and backward passes three times."""

    total: float = 0.0


@contextmanager
def count_supernets() -> Iterator[Meter]:
    """Count the FLOPs of what each supernet runs within this context, from the draws of its gates."""
    meter = Meter()

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if not isinstance(module, Supernet) or not inputs:
            return
        ran: dict[str, Tensor] = {}
        for name, gate in module.gates.items():
            ran[name] = torch.zeros(len(gate.choices))
            draw = module.control.draws.get(name)
            ran[name][list(draw.indices) if draw is not None else [0]] = 1.0
        passes = FORWARD_AND_BACKWARD if torch.is_grad_enabled() else 1
        meter.total += passes * len(inputs[0]) * float(module.cost_table.expected(ran))

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield meter
    finally:
        handle.remove()


@dataclass
class Lab:
    """A setting with its data and its trained teacher.

    Args:
        setting: of the arms.
        folder: keeps the teacher and all results.
    """

    setting: Setting
    folder: Path
    results: dict[tuple[str, int, str], Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = CampaignConfig.model_validate(dict(self.setting.campaign))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.context = build_context(self.config, "cpu")
        self.teacher = prepare_teacher(self.context, self.folder)
        self.log = self.folder / "trained.jsonl"
        if self.log.is_file():
            for line in self.log.read_text().splitlines():
                entry = json.loads(line)
                self.results[entry["arch_id"], entry["seed"], entry["init"]] = Result(**entry["result"])

    def searching(self, seed: int, **keys: Any) -> CampaignContext:
        """The context of a campaign with another seed, whose section `search` has other keys."""
        config = self.config.model_copy(update={"seed": seed})
        if keys:
            campaign = {**self.setting.campaign, "seed": seed}
            campaign["search"] = {**campaign["search"], **keys}
            config = CampaignConfig.model_validate(campaign)
        return replace(self.context, config=config)

    @property
    def compute(self) -> float:
        """FLOPs that an arm has."""
        budgets = [self.config.budget.lowest, self.config.budget.highest]
        return self.setting.num_trainings * self.training_compute(float(np.sqrt(np.prod(budgets))))

    def training_compute(self, cost: float) -> float:
        """FLOPs of the training of a student of this cost."""
        retrain = self.config.retrain
        clips = len(self.context.splits.retrain) // retrain.batch_size * retrain.batch_size
        return FORWARD_AND_BACKWARD * cost * clips * retrain.epochs

    def knobs(self, arch: ArchSpec) -> dict[str, Choice]:
        """The space's knobs of an architecture."""
        return self.context.space.knobs_of(arch)

    def cost(self, arch: ArchSpec) -> int:
        """FLOPs of an architecture."""
        return self.context.table(self.knobs(arch)).cost(arch.choices)

    def random_arch(self, rng: np.random.Generator, low: float, high: float) -> ArchSpec:
        """Drawn uniformly among the choices until the cost lies between the two; where none does, from below them."""
        while True:
            for _ in range(NUM_DRAWS):
                arch = self.context.space.sample(rng)
                if low <= self.cost(arch) <= high:
                    return arch
            low *= 0.9

    def train(
        self,
        arch: ArchSpec,
        seed: int,
        derived: nn.Module | None = None,
        adapters: Mapping[str, Tensor] = MappingProxyType({}),
        init: str = "fresh",
    ) -> Result:
        """Train a student as the campaign does, or read what an earlier run kept.

        Args:
            arch: of the student.
            seed: of weights, order and augmentation.
            derived: a student with the weights to begin with; fresh ones without it.
            adapters: of the objective that they were trained under.
            init: names those weights in the file of results.
        """
        key = (arch.arch_id, seed, init)
        if key in self.results:
            return self.results[key]
        context, config = self.context, self.config.retrain
        torch.manual_seed(seed)
        student = context.space.student(arch)
        if derived is not None:
            student.load_state_dict(derived.state_dict())
        knobs, metric = self.knobs(arch), context.task.metric
        with closing(
            Learner(
                context,
                student,
                self.config.objective,
                knobs,
                cached=True,
                augment=config.augment,
                adapters=adapters,
            )
        ) as learner:
            learner.fit(context.splits.retrain, config, seed=seed)
        val, test = (
            float(context.evaluate_student(student, split, knobs)[metric])
            for split in (context.splits.val, context.splits.test)
        )
        cost = self.cost(arch)
        result = self.results[key] = Result(cost, val, test, self.training_compute(cost))
        entry = {"arch_id": arch.arch_id, "seed": seed, "init": init, "result": asdict(result), "arch": arch.as_dict()}
        with self.log.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return result
