"""The contract tests for users hold for what the package ships and for the examples, and find what is broken."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from nas_kd.data import Batch, DataInfo, GeneratedConfig
from nas_kd.objectives import DistillationTerm, TermConfig, TermContext
from nas_kd.objectives.feature import FeatureConfig
from nas_kd.objectives.response import ResponseConfig
from nas_kd.search_spaces import SPACES
from nas_kd.search_spaces.registry import DataShape
from nas_kd.taps import ModelOutput
from nas_kd.tasks import TASKS, Classification, Saliency, Segmentation
from nas_kd.testing import check_objective_term, check_operator, check_source, check_space, check_task, check_teacher

INFO = DataInfo(3, ("a", "b", "c"), 4, 16, 16, "toy", mask_names=("background", "x", "y"), box_names=("x",))
SEVERAL = DataInfo(3, ("a", "b", "c"), 4, 16, 16, "toy", multi_label=True)


def batch() -> Batch:
    draws = torch.Generator().manual_seed(0)
    boxes = torch.tensor([2.0, 3.0, 9.0, 11.0, 0.0]).expand(2, 4, 1, 5)
    return {
        "clip": torch.randint(256, (2, 3, 4, 16, 16), dtype=torch.uint8, generator=draws),
        "label": torch.tensor([0, 2]),
        "labels": torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.uint8),
        "mask": torch.randint(3, (2, 4, 16, 16), dtype=torch.uint8, generator=draws),
        "boxes": boxes.clone(),
        "ejection_fraction": torch.tensor([0.3, 0.6]),
    }


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "examples")


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", TASKS)
def test_the_tasks_of_the_package_keep_the_contract(name: str) -> None:
    check_task(TASKS[name], SEVERAL if name == "multilabel" else INFO, batch())


@pytest.mark.usefixtures("example")
def test_the_tasks_of_the_examples_keep_the_contract() -> None:
    check_task(module("ejection_fraction").EjectionFraction, DataInfo(0, (), 4, 16, 16, "toy"), batch())
    check_task(module("pose").Pose, INFO, batch())


def test_a_broken_task_is_found() -> None:
    class Remembers(Classification):
        def compute(self) -> dict[str, float]:
            return {"accuracy": sum(self._right) / max(len(self._right), 1)}

    class Rows(Classification):
        def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
            return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")

    class NoOffsets(Segmentation):
        def update(self, outputs: Tensor, batch: Batch, offsets: Sequence[int] | None = None) -> None:
            super().update(outputs, batch)

    class Writes(Saliency):
        def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
            batch["mask"].clamp_(max=1)
            return super().loss(outputs, batch)

    class ReadsMore(Classification):
        def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
            return super().loss(outputs, batch) * batch["mask"].float().mean()

    class NoParent(Classification):
        def __init__(self, info: DataInfo, config: object = None) -> None:
            self.count = 0

    for task, sentence in (
        (ReadsMore, "ReadsMore reads 'mask' of the batch, which a campaign gives only where it is in keys"),
        (NoParent, r"NoParent.__init__ must call super\(\).__init__\(info, config\)"),
        (Remembers, "must raise ValueError where nothing was added"),
        (Rows, r"Rows.loss must give a scalar, but gives a tensor of shape \(2,\)"),
        (NoOffsets, "must give miou@k where offsets were given"),
        (Writes, "must not write to its batch, but changed 'mask'"),
    ):
        with pytest.raises(AssertionError, match=sentence):
            check_task(task, INFO, batch())


def net(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv3d(3, width, 3, padding=1), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, 3))


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Constant(TermConfig):
    def build(self, context: TermContext) -> DistillationTerm:
        return ConstantTerm(context.name, self.weight)


class ConstantTerm(DistillationTerm):
    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        return {self.name: student.logits.sum() * 0 + 1}


class BuildsNoTerm(TermConfig):
    def build(self, context: TermContext) -> DistillationTerm:
        return nn.Linear(2, 2)  # type: ignore[return-value]


class GivesNoDict(TermConfig):
    def build(self, context: TermContext) -> DistillationTerm:
        return GivesNoDictTerm(context.name, self.weight)


class GivesNoDictTerm(DistillationTerm):
    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        return student.logits.mean()  # type: ignore[return-value]


@pytest.mark.usefixtures("example")
def test_terms_keep_the_contract_and_a_broken_one_is_found() -> None:
    transfer = module("attention_transfer").AttentionTransfer(weight=2.0, student="0", teacher="0")
    configs: list[TermConfig] = [ResponseConfig(weight=1), FeatureConfig(weight=1, pairs=(("0", "0"),)), transfer]
    clips = torch.randn(2, 3, 4, 16, 16)
    for config in configs:
        check_objective_term(config, Classification(INFO), net(4, 0), net(6, 1), clips, batch())
    for config, sentence in (
        (Constant(weight=1), "the student must learn from the term"),
        (BuildsNoTerm(weight=1), "build must give a DistillationTerm, but gives a Linear"),
        (
            GivesNoDict(weight=1),
            r"forward must give a dict of values with the names of weights, \[.*\], but gives a T",
        ),
    ):
        with pytest.raises(AssertionError, match=sentence):
            check_objective_term(config, Classification(INFO), net(4, 0), net(6, 1), clips, batch())


@pytest.mark.usefixtures("example")
def test_operators_keep_the_contract_and_a_broken_one_is_found() -> None:
    def unused(c_in: int, c_out: int, stride: int) -> nn.Module:
        conv = nn.Conv3d(c_in, c_out, 1, (1, stride, stride))
        conv.extra = nn.Parameter(torch.zeros(c_in))
        return conv

    check_operator(module("large_kernel").large_kernel)
    with pytest.raises(AssertionError, match="all parameters must take part, but extra has no gradient"):
        check_operator(unused)
    with pytest.raises(AssertionError, match=r"must map an input of shape \(2, 8, 4, 9, 9\) to \(2, 8, 4, 9, 9\)"):
        check_operator(lambda c_in, c_out, stride: nn.Conv3d(c_in, c_out, 3, (1, stride, stride)))


def test_spaces_teachers_and_sources_keep_the_contract() -> None:
    settings = {
        "stem_width": 4,
        "widths": [[4, 6]],
        "depths": [[1, 2]],
        "strides": [2],
        "resolution": [16],
        "frames": [4],
    }
    entry = SPACES["clip_cell"]
    check_space(entry.make({**entry.from_data(DataShape(3)), **settings}), num_archs=4)
    check_teacher(net(4, 0), torch.randn(2, 3, 4, 16, 16), 3)
    with pytest.raises(AssertionError, match=r"must give \(2, 5\) outputs, but gives \(2, 3\)"):
        check_teacher(net(4, 0), torch.randn(2, 3, 4, 16, 16), 5)
    with pytest.raises(AssertionError, match="must answer for each item alone"):
        check_teacher(Centred(), torch.randn(3, 8), 8)
    with pytest.raises(AssertionError, match=r"Sequential, for inputs of shape \(2, 8\), fails with RuntimeError"):
        check_teacher(net(4, 0), torch.randn(2, 8), 3)
    check_source(GeneratedConfig(num_train=8, num_val=4, num_test=4, frames=4, size=16))
