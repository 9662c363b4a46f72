from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import succeed
from torch import Tensor, nn

from nas_kd.config import CampaignConfig, validate
from nas_kd.data import DataInfo
from nas_kd.objectives import DistillationLoss, ModuleNameError, ObjectiveConfig
from nas_kd.objectives.fewer_frames import prediction_kl, prediction_squared, representation
from nas_kd.objectives.maps import Adapter
from nas_kd.objectives.response import multilabel_response, response
from nas_kd.taps import ModelOutput, Taps
from nas_kd.tasks import Classification, Multilabel, Saliency, Task
from nas_kd.teachers.frame_sequence import build_frame_sequence

FEATURES = DataInfo(
    num_classes=3, class_names=("a", "b", "c"), frames=6, height=0, width=0, name="f", feature_size=5, multi_label=True
)
CLIPS = DataInfo(
    num_classes=3, class_names=("a", "b", "c"), frames=2, height=8, width=8, name="c", mask_names=("none", "seen")
)
BATCH: Mapping[str, Tensor] = {
    "label": torch.tensor([0, 2]),
    "labels": torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.uint8),
}


def net(upper: int, seed: int, num_classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"lower": 4, "upper": upper, "block_length": 2}
    settings = {"feature_size": 5, "family": "h_rnn", "head": "linear", "h_rnn": sizes}
    return build_frame_sequence(num_classes, settings)


def config(*, task: float = 1.0, finetune_share: float = 0.0, **term: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate(
        {
            "task": {"weight": task},
            "feature": {"weight": 0},
            "finetune_share": finetune_share,
            "fewer_frames": {"weight": 1, **term},
        }
    )


class Case:
    """Students of two of six frames, and the objective."""

    def __init__(
        self,
        config: ObjectiveConfig,
        *,
        upper: tuple[int, int] = (6, 6),
        task: Task | None = None,
        varying_width: bool = False,
    ) -> None:
        self.student, self.teacher = net(upper[0], 1), net(upper[1], 2)
        torch.manual_seed(3)
        self.all = torch.randn(2, 6, 5)
        self.few = self.all[:, [1, 4]]
        self.objective = DistillationLoss(
            config,
            task or Multilabel(FEATURES),
            self.student,
            self.teacher,
            self.few[:1],
            self.all[:1],
            varying_width=varying_width,
        )

    def answers(self) -> tuple[ModelOutput, ModelOutput]:
        with (
            Taps(self.student, self.objective.student_taps) as ours,
            Taps(self.teacher, self.objective.teacher_taps) as theirs,
        ):
            return ours(self.few), theirs(self.all)

    def terms(self) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective(*self.answers(), BATCH)
        return terms


# Closed forms


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(v) for v in logits]
    return [w / sum(weights) for w in weights]


def sigmoid(logits: list[float]) -> list[float]:
    return [1 / (1 + math.exp(-v)) for v in logits]


STUDENT, TEACHER = [[0.5, -1.0, 2.0], [0.0, 0.3, -0.2]], [[1.5, 0.0, -0.5], [-2.0, 0.7, 0.1]]


def test_representation_sums_over_the_encoding_and_means_over_the_batch() -> None:
    ours, theirs = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[4.0, -2.0], [1.0, 1.0]])
    assert representation(ours, theirs).item() == pytest.approx((9 + 16 + 1 + 1) / 2)


@pytest.mark.parametrize(("several", "probabilities"), [(False, softmax), (True, sigmoid)])
def test_squared_predictions_are_the_closed_form(
    several: bool, probabilities: Callable[[list[float]], list[float]]
) -> None:
    expected = 0.0
    for ours, theirs in zip(STUDENT, TEACHER, strict=True):
        pairs = zip(probabilities(theirs), probabilities(ours), strict=True)
        expected += sum((a - b) ** 2 for a, b in pairs) / 2
    value = prediction_squared(torch.tensor(STUDENT), torch.tensor(TEACHER), several=several)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_divergence_of_class_vectors_is_the_closed_form(several: bool) -> None:
    def vector(logits: list[float]) -> list[float]:
        values = sigmoid(logits) if several else softmax(logits)
        return [v / sum(values) for v in values]

    expected = 0.0
    for ours, theirs in zip(STUDENT, TEACHER, strict=True):
        pairs = zip(vector(theirs), vector(ours), strict=True)
        expected += sum(q * math.log(q / p) for q, p in pairs) / 2
    value = prediction_kl(torch.tensor(STUDENT), torch.tensor(TEACHER), several=several)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert prediction_kl(torch.tensor(TEACHER), torch.tensor(TEACHER), several=several).item() == pytest.approx(
        0.0, abs=1e-6
    )


def test_divergence_stays_finite_where_sigmoids_underflow() -> None:
    student = torch.tensor([[-200.0, -200.0, -200.0]], requires_grad=True)
    value = prediction_kl(student, torch.tensor([[-150.0, -150.0, 90.0]]), several=True)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(math.log(3), rel=1e-4)  # all on one class, against a third each
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_multilabel_response_is_the_divergence_of_each_class() -> None:
    t, expected = 2.0, 0.0
    for ours, theirs in zip(STUDENT, TEACHER, strict=True):
        for p, q in zip(sigmoid([v / t for v in ours]), sigmoid([v / t for v in theirs]), strict=True):
            expected += t**2 * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))) / 2
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    assert multilabel_response(student, teacher, t).item() == pytest.approx(expected, rel=1e-5)
    # Two classes of a softmax are one Bernoulli variable of the difference of their logits.
    one, two = student[:, :1], torch.cat([student[:, :1], torch.zeros(2, 1)], 1)
    goal = torch.cat([teacher[:, :1], torch.zeros(2, 1)], 1)
    assert torch.allclose(multilabel_response(one, teacher[:, :1], t), response(two, goal, t), rtol=1e-5)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 1\)"):
        multilabel_response(student, teacher[:, :1])


# Through the objective


@pytest.mark.parametrize(
    ("distance", "task", "twin", "several"),
    [
        ("squared", Multilabel(FEATURES), prediction_squared, True),
        ("kl", Multilabel(FEATURES), prediction_kl, True),
        ("squared", Classification(replace(FEATURES, multi_label=False)), prediction_squared, False),
        ("kl", Classification(replace(FEATURES, multi_label=False)), prediction_kl, False),
    ],
)
def test_terms_compare_encodings_and_classes(
    distance: str, task: Task, twin: Callable[..., Tensor], several: bool
) -> None:
    case = Case(config(distance=distance), task=task)
    terms, (ours, theirs) = case.terms(), case.answers()
    assert set(terms) == {"task", "fewer_frames.representation", "fewer_frames.prediction"}
    assert torch.allclose(terms["fewer_frames.prediction"], twin(ours.logits, theirs.logits, several=several))
    with torch.no_grad():
        gap = case.student.get_submodule("encoder")(case.few) - case.teacher.get_submodule("encoder")(case.all)
    assert torch.allclose(terms["fewer_frames.representation"], gap.square().sum(1).mean())
    assert torch.allclose(terms["task"], task.loss(ours.logits, BATCH))


def test_weights_multiply_and_absent_terms_are_absent() -> None:
    case = Case(config(task=0.5, weight=3, representation=2, prediction=0.25))
    terms = case.terms()
    expected = 0.5 * terms["task"] + 6 * terms["fewer_frames.representation"] + 0.75 * terms["fewer_frames.prediction"]
    assert torch.allclose(case.objective.total(terms), expected)

    only = Case(config(representation=0, task=0))
    assert set(only.terms()) == {"fewer_frames.prediction"}
    assert only.objective.student_taps == only.objective.teacher_taps == ()

    other = Case(config(prediction=0))
    assert set(other.terms()) == {"task", "fewer_frames.representation"}
    assert other.objective.student_taps == other.objective.teacher_taps == ("encoder",)

    neither = Case(config(representation=0, prediction=0))
    assert not neither.objective.uses_teacher
    assert set(neither.objective(neither.answers()[0], None, BATCH)) == {"task"}


def test_terms_that_leave_nothing_to_learn_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one term must have a weight above 0"):
        config(task=0, representation=0, prediction=0)


def test_an_adapter_is_there_only_where_encodings_differ() -> None:
    assert not list(Case(config()).objective.parameters())
    case = Case(config(), upper=(4, 7))
    (weight,) = case.objective.parameters()
    assert weight.shape == (7, 4)
    ours, theirs = case.answers()
    expected = (ours.features["encoder"] @ weight.T - theirs.features["encoder"]).square().sum(1).mean()
    assert torch.allclose(case.terms()["fewer_frames.representation"], expected)
    varying = [m for m in Case(config(), varying_width=True).objective.modules() if isinstance(m, Adapter)]
    assert len(varying) == 1


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fewer_frames.student: an encoding has the form \(N, E\).*'encoder.lower'"):
        Case(config(student="encoder.lower"))
    with pytest.raises(ValueError, match=r"fewer_frames.teacher: an encoding has the form \(N, E\).*'encoder.lower'"):
        Case(config(teacher="encoder.lower"))
    for who in ("student", "teacher"):
        sentence = (
            f"fewer_frames.{who}: module 'encodr' of the {who} does not exist; did you mean 'encoder'\\? choose from "
            "encoder, head.*, or set fewer_frames.weight to 0"
        )
        with pytest.raises(ModuleNameError, match=sentence):
            Case(config(**{who: "encodr"}))
    with pytest.raises(ValueError, match="whole videos, but task saliency"):
        Case(config(), task=Saliency(CLIPS))
    few, whole = torch.zeros(1, 2, 5), torch.zeros(1, 6, 5)
    with pytest.raises(ValueError, match=r"student's logits are \(1, 3\) and the teacher's \(1, 4\); build both"):
        DistillationLoss(config(), Multilabel(FEATURES), net(4, 0), net(4, 1, num_classes=4), few, whole)


# Beside a teacher that learns


def test_a_companion_learns_from_the_labels_alone() -> None:
    case = Case(config(training="parallel", distance="kl"), upper=(4, 6))
    terms = case.terms()
    assert set(terms) == {"task", "teacher", "fewer_frames.representation", "fewer_frames.prediction"}
    assert torch.allclose(case.objective.total(terms), torch.stack(list(terms.values())).sum())
    assert {id(p) for p in case.teacher.parameters()} < {id(p) for p in case.objective.parameters()}
    assert torch.allclose(terms["teacher"], Multilabel(FEATURES).loss(case.answers()[1].logits, BATCH))
    theirs, ours = list(case.teacher.parameters()), list(case.student.parameters())
    distilled = terms["fewer_frames.representation"] + terms["fewer_frames.prediction"]
    kept = {"retain_graph": True, "allow_unused": True}
    assert all(g is None for g in torch.autograd.grad(distilled, theirs, **kept))
    assert any(g is not None and g.abs().sum() > 0 for g in torch.autograd.grad(distilled, ours, **kept))
    assert all(g is not None and g.abs().sum() > 0 for g in torch.autograd.grad(terms["teacher"], theirs, **kept))
    assert all(g is None for g in torch.autograd.grad(terms["teacher"], ours, **kept))


def test_a_finished_teacher_is_no_part_of_the_objective() -> None:
    case = Case(config(training="serial"))
    assert case.objective.co_trained_teacher is None
    assert "teacher" not in case.terms()


@pytest.mark.parametrize("training", ["serial", "parallel"])
def test_the_last_share_is_the_task_with_weight_one(training: str) -> None:
    case = Case(config(task=0, finetune_share=0.25, training=training))
    case.objective.advance(0.74)
    assert "task" not in case.terms()
    assert case.objective.uses_teacher
    case.objective.advance(0.75)
    assert not case.objective.uses_teacher
    terms = case.objective(case.answers()[0], None, BATCH)
    assert set(terms) == {"task"}
    assert torch.equal(case.objective.total(terms), terms["task"])
    weighted = Case(config(task=0.5, finetune_share=0.25, training=training))
    weighted.objective.advance(0.9)
    terms = weighted.objective(weighted.answers()[0], None, BATCH)
    assert torch.allclose(weighted.objective.total(terms), 0.5 * terms["task"])


def test_responses_join_fewer_frames_and_see_no_gradient_of_the_companion() -> None:
    both = ObjectiveConfig.model_validate(
        {
            "response": {"weight": 2, "kd_temperature": 3},
            "feature": {"weight": 0},
            "fewer_frames": {"weight": 1, "training": "parallel"},
        }
    )
    case = Case(both)
    terms, (ours, theirs) = case.terms(), case.answers()
    assert set(terms) == {"task", "teacher", "response", "fewer_frames.representation", "fewer_frames.prediction"}
    assert torch.allclose(terms["response"], multilabel_response(ours.logits, theirs.logits, 3.0))
    assert torch.allclose(case.objective.total(terms), sum(terms.values()) + terms["response"])
    grads = torch.autograd.grad(terms["response"], list(case.teacher.parameters()), allow_unused=True)
    assert all(g is None for g in grads)


# A campaign


@pytest.mark.parametrize("training", ["serial", "parallel"])
def test_a_campaign_of_frame_features(make: Callable[..., CampaignConfig], tmp_path: Path, training: str) -> None:
    objective = {"fewer_frames": {"weight": 1, "training": training}, "finetune_share": 0.5}
    config = make(objective=objective, retrain={"epochs": 2, "batch_size": 8})
    file = tmp_path / "features.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert "1 of 1 trials complete" in succeed("search", file)
    (path,) = config.run_dir.glob("trials/*/record.json")
    record = json.loads(path.read_text())
    assert record["state"] == "complete"
    assert set(record["metrics"]) == {"derived", "retrained"}
    assert 0 < record["diagnostics"]["encoder_flops"] < record["cost"]["flops"] <= 3000
    head = 3 * record["arch"]["choices"]["h_rnn.upper"]
    assert record["cost"]["flops"] - record["diagnostics"]["encoder_flops"] == head
    lines = [json.loads(line) for line in path.with_name("log.jsonl").read_text().splitlines()]
    first, second = (line for line in lines if line["stage"] == "retrain-0")
    distilled = {"fewer_frames.representation", "fewer_frames.prediction"}
    assert distilled <= set(first)
    assert ("teacher" in first) == (training == "parallel")
    assert set(second) == {"stage", "epoch", "task", "total"}
    succeed("report", config.run_dir)
    assert (config.run_dir / "report" / "report.html").is_file()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CampaignConfig]:
    """A campaign on 24 items of 6 frames, whose class is the largest of their first three features."""
    rng = np.random.default_rng(0)
    items, classes = rng.normal(size=(24, 6, 8)).astype(np.float32), np.arange(24) % 3
    items[np.arange(24), :, classes] += 2
    root = tmp_path / "data"
    root.mkdir()
    np.save(root / "all.npy", items)
    splits = ["train"] * 12 + ["val"] * 6 + ["test"] * 6
    rows = [f"all.npy#{i},{'abc'[classes[i]]},{split}" for i, split in enumerate(splits)]
    (root / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")

    def make(**changes: Any) -> CampaignConfig:
        sizes = {"lower": 4, "upper": 6, "block_length": 3}
        return CampaignConfig.model_validate(
            {
                "name": "features",
                "runs": str(tmp_path / "runs"),
                "task": "multilabel",
                "trials": 1,
                "data": {"source": "features", "root": str(root), "multi_label": True},
                "teacher": {"settings": {"family": "h_rnn", "h_rnn": sizes, "head": "linear"}, "fit": {"epochs": 1}},
                "space": {
                    "name": "frame_sequence",
                    "frames": [2],
                    "selector": ["uniform"],
                    "family": ["h_rnn"],
                    "h_rnn": {"lower": [4], "upper": [4, 6], "block_length": [1]},
                    "head": ["linear"],
                },
                "budget": {"max_flops": 3000},
                "search": {"epochs": 1},
                "rehearse": False,
                "resources": {"executor": "inline", "max_concurrent": 1},
                **changes,
            }
        )

    return make


class Attention(nn.Module):
    """A teacher of frame features whose module `encoder` gives something for each frame."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 6)
        self.head = nn.Linear(6, num_classes)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.encoder(frames).mean(1))


def test_a_teacher_without_an_encoding_is_distilled_by_its_answers() -> None:
    case = Case(config())
    few, whole = case.few, case.all
    of_answers = DistillationLoss(config(), Multilabel(FEATURES), case.student, Attention(3), few[:1], whole[:1])
    assert of_answers.left_out == {
        "fewer_frames.representation": (
            "no module of the teacher is called 'encoder' and gives an encoding (N, E)", "fewer_frames.teacher",
        )
    }  # fmt: skip
    assert set(of_answers(case.answers()[0], ModelOutput(torch.zeros(2, 3)), BATCH)) == {
        "task", "fewer_frames.prediction",
    }  # fmt: skip
    assert case.objective.left_out == {}
    with pytest.raises(ValueError, match=r"module 'encoder' gives \(1, 6, 6\)"):  # named, so it is not left out
        DistillationLoss(
            config(teacher="encoder"), Multilabel(FEATURES), case.student, Attention(3), few[:1], whole[:1]
        )


def test_own_features_have_the_defaults_of_features() -> None:
    own = {"source": "own", "function": "a:b"}
    with_items = validate({"task": "multilabel", "data": {**own, "items": "features"}}, source="test")
    of_files = validate({"task": "multilabel", "data": {"source": "features", "root": "x"}}, source="test")
    for section in ("teacher", "space", "budget", "objective", "search"):
        assert getattr(with_items, section) == getattr(of_files, section)
    assert validate({"data": own}, source="test").space.name == "clip_cell"
