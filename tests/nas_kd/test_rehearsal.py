"""The rehearsal: what would fail after the teacher's training fails before it, and nothing of the campaign changes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas_kd.campaign import Campaign
from nas_kd.campaign import campaign as campaigns
from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.deploy.export import WRITERS, ExportError
from nas_kd.objectives import DistillationTerm
from nas_kd.objectives.term import TermConfig, TermContext
from nas_kd.preflight import rehearsal
from nas_kd.preflight.checks import check_fit
from nas_kd.preflight.rehearsal import rehearse
from nas_kd.taps import ModelOutput
from nas_kd.tasks import Batch, Classification
from nas_kd.trial import build_context


@pytest.fixture(autouse=True)
def one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs take seconds."""
    monkeypatch.setattr(rehearsal, "WRITERS", {"safetensors": WRITERS["safetensors"]})


class Net(nn.Module):
    """A teacher of the user's; subclasses fail where no forward in evaluation mode shows it."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        return self.fc(self.norm(self.stem(clip)).mean((2, 3, 4)))  # type: ignore[no-any-return]


class FailsInTraining(Net):
    def forward(self, clip: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("no training mode here")
        return super().forward(clip)


class WithoutBackward(Net):
    def forward(self, clip: Tensor) -> Tensor:
        logits = super().forward(clip)
        return logits.detach() if self.training else logits


class NotANumber(Net):
    def forward(self, clip: Tensor) -> Tensor:
        return super().forward(clip) * (float("nan") if self.training else 1.0)


class AtMostFour(Net):
    def forward(self, clip: Tensor) -> Tensor:
        if len(clip) in range(5, 7):  # 7 are tried when its modules are looked at
            raise RuntimeError("too many clips")
        return super().forward(clip)


class LossOfItems(Classification):
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")


class WrongMetric(Classification):
    def compute(self) -> dict[str, float]:
        return {"top1": super().compute()["accuracy"]}


class NanMetric(Classification):
    def compute(self) -> dict[str, float]:
        return {**super().compute(), "kappa": float("nan")}


class WrongTerm(DistillationTerm):
    def __init__(self, context: TermContext, weight: float) -> None:
        super().__init__(context.name, weight)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        return {self.name: student.logits}


class WrongTermConfig(TermConfig):
    weight: float = 1.0

    def build(self, context: TermContext) -> DistillationTerm:
        return WrongTerm(context, self.weight)


def fails(config: CampaignConfig, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sentence, where the rehearsal refuses a campaign before its teacher trains."""

    def train(*_: Any) -> None:
        raise AssertionError("the teacher was trained before the rehearsal was over")

    monkeypatch.setattr(campaigns, "prepare_teacher", train)
    with Campaign(config) as campaign, pytest.raises(ConfigError) as caught:
        campaign.prepare()
    assert not (config.run_dir / rehearsal.RECORD_NAME).exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"teacher": {"model": f"{__name__}:FailsInTraining", "settings": {}}},
            (
                "rehearsal of the teacher (training): RuntimeError in test_rehearsal.py, line",
                "(forward): no training mode here; change teacher.model",
            ),
        ),
        (
            {"teacher": {"model": f"{__name__}:WithoutBackward", "settings": {}}},
            ("rehearsal of the teacher (training): RuntimeError: element 0 of tensors does not require grad",),
        ),
        (
            {"teacher": {"model": f"{__name__}:NotANumber", "settings": {}}},
            ("rehearsal of the teacher (training): the loss of the training is not finite (task=nan);",),
        ),
        (
            {"teacher": {"model": f"{__name__}:AtMostFour", "settings": {}}, "evaluation": {"batch_size": 6}},
            (
                "rehearsal of the full batch (teacher, evaluation.batch_size 6): RuntimeError in test_rehearsal.py",
                "(forward): too many clips; lower evaluation.batch_size",
            ),
        ),
        (
            {"task": f"{__name__}:LossOfItems"},
            ("task LossOfItems: loss must give a scalar tensor, the mean over the batch, but gives a tensor of shape",),
        ),
        (
            {"task": f"{__name__}:NanMetric"},
            ("rehearsal of the teacher (evaluation): task NanMetric: compute must return finite",),
        ),
        ({"task": f"{__name__}:WrongMetric"}, ("must return the primary metric 'accuracy', but returns top1",)),
        (
            {"objective": {f"{__name__}:WrongTermConfig": {"weight": 1.0}}},
            (":WrongTermConfig: forward must give scalar tensors, but", "has the shape (2, 4); take its mean"),
        ),
    ],
)
def test_what_would_fail_after_the_teacher_fails_before_it(
    changes: dict[str, Any],
    parts: tuple[str, ...],
    tiny: Callable[..., CampaignConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sentence = fails(tiny(rehearse=True, **changes), monkeypatch)
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize("shared", [False, True])
def test_a_rehearsal_changes_nothing_and_is_done_once(
    shared: bool, tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(rehearse=True, search={"shared": shared})
    context = build_context(config, "cpu")
    check_fit(config, context)
    before = {name: value.clone() for name, value in context.teacher_model.state_dict().items()}
    caches, splits = context.caches, context.splits
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(2)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    notes: list[str] = []
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    rehearse(context, run_dir, notes.append)
    found = random.random(), np.random.rand(), torch.rand(2)
    assert (found[:2], found[2].tolist()) == (expected[:2], expected[2].tolist())
    assert context.caches is caches
    assert context.splits is splits
    for name, value in context.teacher_model.state_dict().items():
        assert torch.equal(value, before[name])
    stages = ["teacher", *(["search"] if shared else []), "trial", "full batches", "latency", "safetensors"]
    assert notes[0].startswith("rehearsed on 2 items of each split in ")
    assert notes[0].endswith(f" s: {', '.join(stages)}")
    assert list(json.loads((run_dir / rehearsal.RECORD_NAME).read_text())["seconds_until"]) == stages
    assert [path.name for path in run_dir.iterdir()] == [rehearsal.RECORD_NAME]
    rehearse(context, run_dir, notes.append)
    assert len(notes) == 1, "the same campaign is not rehearsed again"


def test_a_format_that_fails_is_told_and_stops_nothing(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ExportError("student.pt2 differs from the trained student by 0.3; it was not kept")

    monkeypatch.setattr(rehearsal, "WRITERS", {"pt2": broken})
    monkeypatch.setitem(WRITERS, "pt2", broken)
    notes: list[str] = []
    rehearse(build_context(tiny(), "cpu"), tmp_path, notes.append)
    assert notes[0] == (
        "warning: students of this campaign cannot be exported as pt2: student.pt2 differs from the trained student by "
        "0.3; it was not kept"
    )


class FailsOnAll(Classification):
    """Its metric needs what two items of a rehearsal do not show."""

    def compute(self) -> dict[str, float]:
        return {"score": 1 / (self._count < 3), **super().compute()}


def test_what_only_all_items_show_is_a_sentence_with_the_line(tiny: Callable[..., CampaignConfig]) -> None:
    config = tiny(task=f"{__name__}:FailsOnAll", teacher={"fit": {"epochs": 1}})
    with Campaign(config) as campaign, pytest.raises(ConfigError) as caught:
        campaign.prepare()
    sentence = str(caught.value)
    assert sentence.startswith("teacher (evaluation): ZeroDivisionError in test_rehearsal.py, line ")
    assert "(compute): division by zero; correct it and run the same command again" in sentence
