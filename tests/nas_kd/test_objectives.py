from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_kd.data import DataInfo
from nas_kd.objectives import DistillationLoss, ObjectiveConfig, cross_resolution, feature, response
from nas_kd.objectives.default_maps import last_maps
from nas_kd.objectives.maps import Adapter, adapter_for
from nas_kd.objectives.response import ResponseConfig
from nas_kd.objectives.term import TermContext
from nas_kd.taps import ModelOutput, Taps
from nas_kd.tasks import Classification
from nas_kd.teachers import R2Plus1D, R2Plus1DSettings, Teacher

THREE = DataInfo(num_classes=3, class_names=("a", "b", "c"), frames=4, height=16, width=16, name="three")


def test_response_is_the_closed_form_with_t_squared() -> None:
    student, teacher, t = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]]), 2.0
    p = [math.exp(1.0), 1.0]
    p = [v / sum(p) for v in p]
    q = [1.0, math.exp(0.5)]
    q = [v / sum(q) for v in q]
    expected = t**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert response(student, teacher, t).item() == pytest.approx(expected, rel=1e-5)
    assert response(teacher, teacher, t).item() == pytest.approx(0.0, abs=1e-7)


def test_response_gradient_keeps_its_size_over_temperatures() -> None:
    teacher = torch.tensor([[0.3, -0.2, 0.1]])
    norms = []
    for t in (10.0, 40.0):
        student = torch.zeros(1, 3, requires_grad=True)
        response(student, teacher, t).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)  # without T² they would differ 16-fold


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (
            (1, 2),
            (1, 3),
            "(1, 2) and the teacher's (1, 3): their numbers of classes differ; build both nets for the same",
        ),
        ((1, 4, 3, 8, 8), (1, 4, 2, 8, 8), "(1, 4, 2, 8, 8): their numbers of classes differ"),
        ((1, 4, 3, 8, 8), (1, 4, 3, 16, 8), "(1, 4, 3, 16, 8): their heights or widths of the maps differ; give both"),
        ((1, 2, 3, 8, 8), (1, 4, 3, 8, 8), "(1, 4, 3, 8, 8): their numbers of items or frames differ"),
        ((1, 3), (1, 4, 3, 8, 8), "(1, 4, 3, 8, 8): their numbers of dimensions differ"),
    ],
)
def test_response_says_what_differs_between_logits(
    student: tuple[int, ...], teacher: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        response(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize("frames", [(), (2,)])
def test_response_compares_maps_of_frames_before_training(frames: tuple[int, ...]) -> None:
    """A student with key frames returns several frames of the example, the teacher one."""
    net, example = nn.Identity(), torch.zeros(1)
    context = TermContext("response", Classification(THREE), net, net, example, example, varying_width=False)
    term = ResponseConfig(weight=1).build(context)
    term.build(ModelOutput(torch.zeros(1, *frames, 3, 4, 4)), ModelOutput(torch.zeros(1, 3, 4, 4)))
    with pytest.raises(ValueError, match="their heights or widths of the maps differ; give both nets the same output"):
        term.build(ModelOutput(torch.zeros(1, *frames, 3, 4, 4)), ModelOutput(torch.zeros(1, 3, 8, 8)))
    with pytest.raises(ValueError, match="their numbers of dimensions differ"):
        term.build(ModelOutput(torch.zeros(1, 3)), ModelOutput(torch.zeros(1, 3, 8, 8)))


@pytest.mark.parametrize("frames", [None, 3])
def test_cross_resolution_equals_its_slow_twin(frames: int | None) -> None:
    torch.manual_seed(0)
    lead = (2, 5) if frames is None else (2, 5, frames)
    student, teacher = torch.randn(*lead, 4, 4), torch.randn(*lead, 7, 7)

    def up(image: Tensor) -> Tensor:  # bilinear, half-pixel centres, frame by frame
        out = torch.zeros(7, 7)
        for y in range(7):
            for x in range(7):
                sy, sx = (max((v + 0.5) * 4 / 7 - 0.5, 0.0) for v in (y, x))
                y0, x0 = int(sy), int(sx)
                y1, x1, fy, fx = min(y0 + 1, 3), min(x0 + 1, 3), sy - y0, sx - x0
                top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
                low = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
                out[y, x] = top * (1 - fy) + low * fy
        return out

    raised = torch.stack([up(image) for image in student.reshape(-1, 4, 4)]).reshape(teacher.shape)
    expected = (raised - teacher).pow(2).mean()
    assert torch.allclose(cross_resolution(student, teacher), expected, atol=1e-5)


def test_cross_resolution_compares_the_frames_that_the_student_sees() -> None:
    teacher = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 3, 8, 2, 2)
    student = teacher[:, :, [2, 6]]  # centres of two halves of eight frames
    assert cross_resolution(student, teacher).item() == 0.0


def test_maps_of_unequal_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="equal rank"):
        cross_resolution(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 3, 4, 4))


@pytest.mark.parametrize("term", [feature, cross_resolution])
def test_maps_of_other_channels_are_refused_and_never_broadcast(term: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"equal channels.*\(1, 1, 4, 4\).*\(1, 2, 4, 4\); .*adapter_for"):
        term(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4))


def test_feature_ignores_the_size_of_activations_and_is_two_for_unrelated_maps() -> None:
    torch.manual_seed(0)
    a = torch.randn(2, 6, 3, 4, 4)
    assert feature(a * 7, a).item() == pytest.approx(0.0, abs=1e-6)
    first, second = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    first[:, 0], second[:, 1] = 3.0, 5.0
    assert feature(first, second).item() == pytest.approx(2.0)


def test_an_adapter_is_there_only_where_widths_differ() -> None:
    same, wide = torch.zeros(1, 4, 2, 2), torch.zeros(1, 8, 2, 2)
    assert isinstance(adapter_for(same, same), nn.Identity)
    adapter = adapter_for(same, wide)
    assert isinstance(adapter, Adapter)
    conv = nn.Conv2d(3, 8, 1, bias=False)
    conv.weight.data = adapter.weight.data[:, :3, None, None].clone()
    narrow = torch.randn(2, 3, 2, 2)  # a supernet's narrower map uses the leading columns
    assert torch.allclose(adapter(narrow), conv(narrow), atol=1e-6)


def small(width: int) -> R2Plus1D:
    torch.manual_seed(width)
    return R2Plus1D(3, R2Plus1DSettings(widths=(width, 2 * width), blocks=(1, 1), strides=(1, 2)))


def test_objective_names_weighs_and_sums_its_terms() -> None:
    student, teacher, clip = small(4), small(6).eval(), torch.randn(2, 3, 4, 16, 16)
    config = ObjectiveConfig.model_validate(
        {
            "task": {"weight": 0.5},
            "response": {"weight": 2},
            "feature": {"weight": 3},
            "cross_resolution": {"weight": 100},
        }
    )
    objective = DistillationLoss(config, Classification(THREE), student, teacher, clip[:1], clip[:1])
    assert objective.parts["feature"].pairs == (("layers.0", "layers.0"), ("layers.1", "layers.1"))
    assert objective.parts["cross_resolution"].pairs == (("layers.1", "layers.1"),)
    batch = {"label": torch.tensor([0, 2])}
    with Taps(student, objective.student_taps) as ours, Taps(teacher, objective.teacher_taps) as theirs:
        terms = objective(ours(clip), theirs(clip), batch)
    assert set(terms) == {"task", "response", "feature", "cross_resolution"}
    expected = 0.5 * terms["task"] + 2 * terms["response"] + 3 * terms["feature"] + 100 * terms["cross_resolution"]
    assert torch.allclose(objective.total(terms), expected)
    assert len(list(objective.parameters())) == 3


def test_a_student_begins_with_the_adapters_of_the_search_that_it_inherits_from() -> None:
    student, teacher, clip = small(4), small(6).eval(), torch.randn(1, 3, 4, 16, 16)
    config = ObjectiveConfig.model_validate({"feature": {"weight": 1}, "cross_resolution": {"weight": 1}})
    search = DistillationLoss(config, Classification(THREE), small(6), teacher, clip, clip, varying_width=True)
    searched = {name: value for name, value in search.searched_tensors().items() if name.startswith("feature.")}
    assert {tuple(value.shape) for value in searched.values()} == {(6, 6), (12, 12)}
    own = DistillationLoss(config, Classification(THREE), student, teacher, clip, clip, inherited=searched)
    found = {name: value for name, value in own.searched_tensors().items() if name.startswith("feature.")}
    assert found.keys() == searched.keys()
    for name, value in found.items():  # students are 4 and 8 channels wide there
        assert torch.equal(value, searched[name][:, : value.shape[1]])
    assert {tuple(value.shape) for value in found.values()} == {(6, 4), (12, 8)}
    as_wide = DistillationLoss(config, Classification(THREE), small(6), teacher, clip, clip, inherited=searched)
    kept = as_wide.searched_tensors()
    assert kept.keys() == searched.keys()  # of equal widths too; for a term that was not searched the identity is best
    assert all(torch.equal(kept[name], searched[name]) for name in kept)


def test_adapters_are_on_the_device_of_the_nets() -> None:
    """The device `meta` takes no tensors of another one, as a GPU does, and every machine has it."""
    config = ObjectiveConfig.model_validate({"feature": {"weight": 1}, "cross_resolution": {"weight": 1}})
    student, teacher, clip = small(4).to("meta"), small(6).to("meta"), torch.zeros(1, 3, 4, 16, 16, device="meta")
    objective = DistillationLoss(config, Classification(THREE), student, teacher, clip, clip)
    assert {type(part).__name__ for part in objective.modules()} > {"Adapter"}
    assert {p.device.type for p in objective.parameters()} == {"meta"}


def test_terms_without_weight_are_absent_and_a_copy_of_the_teacher_has_no_distance() -> None:
    net, clip = small(4).eval(), torch.randn(2, 3, 4, 16, 16)
    config = ObjectiveConfig.model_validate({"task": {"weight": 0}, "cross_resolution": {"weight": 1}})
    objective = DistillationLoss(config, Classification(THREE), net, net, clip[:1], clip[:1])
    with Taps(net, objective.student_taps) as taps:
        output = taps(clip)
    terms = objective(output, output, {"label": torch.zeros(2, dtype=torch.long)})
    assert "task" not in terms
    assert objective.total(terms).item() == pytest.approx(0.0, abs=1e-6)
    assert not list(objective.parameters())


def test_position_logits_teach_the_students_classifier_and_change_no_teacher() -> None:
    student, net, clip = small(4), small(6), torch.randn(2, 3, 4, 16, 16)
    term = {"weight": 200, "form": "logits", "teacher_norm": "batch"}
    config = ObjectiveConfig.model_validate({"task": {"weight": 0}, "feature": {"weight": 0}, "cross_resolution": term})
    low = clip[..., ::2, ::2]
    objective = DistillationLoss(config, Classification(THREE), student, net, low[:1], clip[:1])
    teacher = Teacher(net, objective.teacher_taps, norm="batch")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with Taps(student, objective.student_taps) as ours:
        terms = objective(ours(low), teacher(clip), {})
    teacher.close()
    assert set(terms) == {"cross_resolution"}
    objective.total(terms).backward()
    learnt = [p.grad for m in student.modules() if isinstance(m, nn.Linear) for p in m.parameters()]
    assert learnt
    assert all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in learnt)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


class Halving(nn.Module):
    """Two stages that each halve the sides, and a pool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, width, 3, 2, 1)
        self.two = nn.Conv2d(width, width, 3, 2, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.pool(self.two(self.one(x))).flatten(1))
        return out


@pytest.mark.parametrize("side", [2, 4, 8])
def test_the_default_maps_are_those_of_the_same_modules_at_every_resolution(side: int) -> None:
    config = ObjectiveConfig.model_validate({"cross_resolution": {"weight": 1}})
    student, teacher = Halving(2), Halving(4)
    small, large = torch.zeros(1, 3, side, side), torch.zeros(1, 3, 8, 8)
    objective = DistillationLoss(config, Classification(THREE), student, teacher, small, large)
    assert objective.parts["cross_resolution"].pairs == (("two", "two"),)  # of one pixel where a side is 4 or less
    assert objective.parts["feature"].pairs == (("one", "one"), ("two", "two"))


@pytest.mark.parametrize("mistake", [RuntimeError, AssertionError])
def test_a_net_of_one_size_is_looked_at_as_it_is(mistake: type[Exception]) -> None:
    class Fixed(Halving):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 4:
                raise mistake("a net for one size")
            return super().forward(x)

    config = ObjectiveConfig.model_validate({"cross_resolution": {"weight": 1}, "feature": {"weight": 0}})
    small, large = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8)
    objective = DistillationLoss(config, Classification(THREE), Fixed(2), Halving(4), small, large)
    assert objective.parts["cross_resolution"].pairs == (("one", "two"),)


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        (
            {"cross_resolution": {"student": "twp"}},
            r"cross_resolution.student: module 'twp' of the student does not exist; did you mean 'two'\? choose from "
            r"one, two, pool, or set cross_resolution.weight to 0",
        ),
        (
            {"cross_resolution": {"teacher": "foo"}},
            r"cross_resolution.teacher: module 'foo' of the teacher does not exist; choose from one, two, pool, or",
        ),
        ({"cross_resolution": {"student": "last"}}, r"cross_resolution.student: maps have the form .* 'last' gives"),
        ({"feature": {"pairs": [["one", "tow"]]}}, r"feature.pairs: module 'tow' of the teacher does not exist"),
        (
            {"cross_resolution": {"form": "logits", "teacher_classifier": "one"}},
            r"cross_resolution.teacher_classifier: a classifier must take rows .* Conv2d does not; name the last layer",
        ),
        (
            {"cross_resolution": {"form": "logits", "student_classifier": "lost"}},
            r"cross_resolution.student_classifier: the student has no module 'lost'; did you mean 'last'",
        ),
    ],
)
def test_a_module_that_cannot_be_distilled_is_named_with_its_key(objective: dict[str, Any], sentence: str) -> None:
    terms = {"feature": {"weight": float("feature" in objective)}, **objective}
    if "cross_resolution" in objective:
        terms["cross_resolution"] = {"weight": 1, **objective["cross_resolution"]}
    config, image = ObjectiveConfig.model_validate(terms), torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=sentence) as caught:
        DistillationLoss(config, Classification(THREE), Halving(2), Halving(4), image, image)
    assert not re.search("expected|Expected|tensor|groups=", str(caught.value))


def test_a_term_of_maps_says_where_there_are_none() -> None:
    config = ObjectiveConfig.model_validate({"feature": {"weight": 0}, "cross_resolution": {"weight": 1}})
    net, features = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), torch.zeros(1, 2, 3)
    sentence = "cross_resolution: no module of the teacher gives feature maps.*; set cross_resolution.weight to 0, or"
    with pytest.raises(ValueError, match=sentence):
        DistillationLoss(config, Classification(THREE), net, net, features, features)


def test_distilling_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="no teacher"):
        DistillationLoss(ObjectiveConfig(), Classification(THREE), small(4), None, torch.zeros(1), torch.zeros(1))


class Strided(nn.Module):
    """As a ResNet: stages in a row, whose first layer runs before the stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.layer2 = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer2(self.layer1(self.stem(x))))
        return out


def test_last_maps_are_the_outermost_of_each_scale() -> None:
    assert last_maps(Strided(), torch.zeros(1, 3, 8, 8)) == ("layer1", "layer2")
    assert last_maps(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), torch.zeros(1, 3)) == ()
    score = nn.Conv2d(8, 1, 1)  # of each place, beside the features
    assert last_maps(nn.Sequential(nn.Conv2d(3, 8, 1), score, nn.Flatten()), torch.zeros(1, 3, 8, 8)) == ("0",)


def test_taps_read_by_name_and_say_what_exists() -> None:
    net = Strided()
    with Taps(net, ["layer2"]) as taps:
        output = taps(torch.ones(1, 3, 8, 8))
    assert isinstance(output, ModelOutput)
    assert output.features["layer2"].shape == (1, 8, 4, 4)
    assert not net.layer2._forward_hooks
    with pytest.raises(ValueError, match=r"no module 'layer9' to tap; it has stem, layer1"):
        Taps(net, ["layer9"])
