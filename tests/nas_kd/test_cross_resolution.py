"""The pieces of ResKD: the form for transformers, classifiers on maps, a teacher with the batch's statistics."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from nas_kd.objectives.cross_resolution import (
    apply_classifier,
    cross_resolution,
    cross_resolution_logits,
    find_classifier,
)
from nas_kd.search_spaces import ClipCellSettings, Supernet
from nas_kd.search_spaces.clip_cell import ClipCellSpace
from nas_kd.taps import tappable
from nas_kd.teachers import R2Plus1D, R2Plus1DSettings
from nas_kd.teachers.norm import batch_statistics


def enlarged(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with half-pixel centres, pixel by pixel: (h, w) -> (height, width)."""
    out = torch.zeros(height, width, dtype=image.dtype)
    for y in range(height):
        for x in range(width):
            sy = min(max((y + 0.5) * image.shape[0] / height - 0.5, 0.0), image.shape[0] - 1.0)
            sx = min(max((x + 0.5) * image.shape[1] / width - 0.5, 0.0), image.shape[1] - 1.0)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            top = image[y0, x0] * (1 - (sx - x0)) + image[y0, x1] * (sx - x0)
            low = image[y1, x0] * (1 - (sx - x0)) + image[y1, x1] * (sx - x0)
            out[y, x] = top * (1 - (sy - y0)) + low * (sy - y0)
    return out


def softened(classifier: nn.Linear, features: Tensor, t: float) -> list[float]:
    """Probabilities of the classes at one position, by hand."""
    columns = classifier.weight[:, : len(features)]
    logits = [
        (sum(w * f for w, f in zip(row.tolist(), features.tolist(), strict=True)) + bias.item()) / t
        for row, bias in zip(columns, classifier.bias, strict=True)
    ]
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


@pytest.mark.parametrize("lead", [(2,), (1, 2)], ids=["images", "clips"])
def test_logits_equal_the_closed_form_at_every_position(lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    num, *frames = lead
    ours, theirs, t = nn.Linear(3, 4), nn.Linear(5, 4), 2.0
    student, teacher = torch.randn(num, 3, *frames, 2, 2), torch.randn(num, 5, *frames, 3, 4)
    flat = student.reshape(-1, 2, 2)
    raised = torch.stack([enlarged(image, 3, 4) for image in flat]).reshape(num, 3, *frames, 3, 4)
    summed = 0.0
    positions = raised.movedim(1, -1).reshape(-1, 3), teacher.movedim(1, -1).reshape(-1, 5)
    for here, there in zip(*positions, strict=True):
        p, q = softened(ours, here, t), softened(theirs, there, t)
        summed += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    expected = t**2 * summed / (len(positions[0]) * 4)  # classes count in the mean, as in KLDivLoss(reduction="mean")
    got = cross_resolution_logits(student, teacher, ours, theirs, t)
    assert got.item() == pytest.approx(expected, rel=1e-4)
    assert cross_resolution_logits(student, teacher, ours, theirs).item() == got.item()  # T = 2 as in the paper


def test_logits_vanish_where_both_nets_say_the_same() -> None:
    torch.manual_seed(0)
    features, classifier = torch.randn(2, 6, 4, 4), nn.Linear(6, 3)
    assert cross_resolution_logits(features, features, classifier, classifier).item() == pytest.approx(0.0, abs=1e-6)
    shifted = copy.deepcopy(classifier)
    shifted.bias.data += 5.0  # the same for all classes: no other probabilities
    assert cross_resolution_logits(features, features, shifted, classifier).item() == pytest.approx(0.0, abs=1e-6)
    even = nn.Linear(6, 3)
    nn.init.zeros_(even.weight)
    nn.init.zeros_(even.bias)
    assert cross_resolution_logits(features, features, even, classifier).item() > 1e-3


def test_the_students_map_and_classifier_learn_and_the_teachers_do_not() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 4), nn.Linear(5, 4)
    student, teacher = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 5, 3, 3, requires_grad=True)
    cross_resolution_logits(student, teacher, ours, theirs).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert ours.weight.grad is not None
    assert ours.weight.grad.abs().sum() > 0
    assert teacher.grad is None
    assert theirs.weight.grad is None


def test_logits_compare_the_frames_that_the_student_sees() -> None:
    classifier = nn.Linear(3, 2)
    teacher = torch.randn(1, 3, 8, 1, 1).expand(1, 3, 8, 2, 2)
    student = teacher[:, :, [2, 6]]  # centres of two halves of eight frames
    assert cross_resolution_logits(student, teacher, classifier, classifier).item() == pytest.approx(0.0, abs=1e-6)
    assert cross_resolution_logits(teacher[:, :, [0, 1]], teacher, classifier, classifier).item() > 1e-4


def test_a_narrow_map_uses_leading_columns_of_its_classifier() -> None:
    torch.manual_seed(0)
    wide, features = nn.Linear(6, 4), torch.randn(2, 3, 2, 2, 2)
    narrow = nn.Linear(3, 4)
    narrow.weight.data, narrow.bias.data = wide.weight.data[:, :3].clone(), wide.bias.data.clone()
    got = apply_classifier(wide, features)
    assert got.shape == (2, 2, 2, 2, 4)
    assert torch.allclose(got, narrow(features.movedim(1, -1)), atol=1e-6)
    padded = torch.cat([features, torch.zeros(2, 3, 2, 2, 2)], 1)
    assert torch.allclose(got, apply_classifier(wide, padded), atol=1e-6)  # missing channels are silent ones


def test_a_narrow_map_passes_a_norm_before_its_classifier() -> None:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(6), nn.Linear(6, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    features = torch.randn(2, 3, 2, 2)
    rows = features.movedim(1, -1)
    spread = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    expected = (spread * norm.weight[:3] + norm.bias[:3]) @ linear.weight[:, :3].T + linear.bias
    stacked = nn.Sequential(nn.Sequential(norm), nn.Dropout(0.5).eval(), linear)
    assert torch.allclose(apply_classifier(stacked, features), expected, atol=1e-5)
    full = torch.randn(2, 6, 2, 2)
    assert torch.equal(apply_classifier(stacked, full), linear(norm(full.movedim(1, -1))))


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (nn.Linear(2, 4), r"3 channels of its map \(1, 3, 2, 2\), but the Linear does not"),
        (nn.Conv2d(3, 4, 1), "Conv2d does not"),
        (nn.Flatten(), r"logits at every position, \(1, 2, 2, 'num_classes'\), but the Flatten gives \(1, 12\)"),
        (nn.GRU(3, 4), "GRU does not"),
    ],
)
def test_a_classifier_that_does_not_fit_its_map_is_refused(classifier: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_classifier(classifier, torch.zeros(1, 3, 2, 2))


def test_classifiers_of_other_classes_are_refused() -> None:
    features = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"classes, but .* are \(1, 2, 2, 4\) and .* \(1, 2, 2, 5\); name"):
        cross_resolution_logits(features, features, nn.Linear(3, 4), nn.Linear(3, 5))


def test_tokens_are_no_maps() -> None:
    tokens, features = torch.zeros(1, 16, 3), torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"the teacher's is \(1, 16, 3\); wrap the module"):
        cross_resolution_logits(features, tokens, nn.Linear(3, 2), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"the student's is \(1, 16, 3\); wrap the module"):
        cross_resolution(tokens, features)


def test_the_classifier_is_the_last_layer_with_the_tasks_outputs() -> None:
    net = nn.Sequential(nn.Linear(4, 7), nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 3)), nn.Conv2d(1, 7, 1))
    assert find_classifier(net, 7) == "1.0"
    assert find_classifier(net, 3) == "1.1"
    with pytest.raises(ValueError, match=r"Sequential has no nn.Linear with 9 outputs.*; name its classifier"):
        find_classifier(net, 9)


def test_the_classifier_of_a_supernet_has_the_name_that_its_students_have() -> None:
    space = ClipCellSpace(ClipCellSettings(num_classes=5, widths=((4, 6),), depths=((1,),), strides=(1,)))
    supernet = Supernet(space, seed=0)
    name = find_classifier(supernet, 5)
    student = space.student(space.widest(supernet.knobs))
    assert name == find_classifier(student, 5) == "head.classifier"
    classifier = tappable(supernet)[name]
    assert apply_classifier(classifier, torch.zeros(2, 4, 3, 2, 2)).shape == (2, 3, 2, 2, 5)


class Net(nn.Module):
    """One BatchNorm of the given kind, a dropout before it, and what it normalises."""

    def __init__(self, norm: nn.Module, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout, self.inner = nn.Dropout(dropout), nn.ModuleDict({"norm": norm})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner["norm"](self.dropout(x))
        return out


NORMS = {
    "1d": (nn.BatchNorm1d(3), (6, 3)),
    "1d over time": (nn.BatchNorm1d(3), (6, 3, 4)),
    "2d": (nn.BatchNorm2d(3), (2, 3, 4, 4)),
    "2d without scale": (nn.BatchNorm2d(3, affine=False), (2, 3, 4, 4)),
    "3d": (nn.BatchNorm3d(3), (2, 3, 2, 4, 4)),
    "3d, cumulative": (nn.BatchNorm3d(3, momentum=None), (2, 3, 2, 4, 4)),
    "sync": (nn.SyncBatchNorm(3), (2, 3, 4, 4)),
    "without statistics": (nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("kind", NORMS)
def test_batch_statistics_equal_training_mode_and_change_nothing(kind: str) -> None:
    torch.manual_seed(0)
    norm, shape = NORMS[kind]
    x = torch.randn(shape) * 3 + 1
    net = Net(copy.deepcopy(norm)).eval()
    if net.inner["norm"].running_mean is not None:
        net.inner["norm"].running_mean += 7.0
    twin = Net(copy.deepcopy(net.inner["norm"]), dropout=0.0).train()
    before, kept = net(x), {name: value.clone() for name, value in net.state_dict().items()}
    with batch_statistics(net):
        inside = net(x)
    assert torch.equal(inside, twin(x))
    assert list(kept) == list(net.state_dict())
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(x), before)
    if norm.running_mean is not None:
        assert not torch.allclose(inside, before)


def test_batch_statistics_restore_every_mode_also_after_errors_and_within_each_other() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()
    net[2].train()  # a layer with a mode of its own
    net[3].track_running_stats = False

    def modes() -> list[tuple[bool, bool]]:
        return [(m.training, bool(getattr(m, "track_running_stats", True))) for m in net.modules()]

    before, x = modes(), torch.randn(2, 3, 4, 4)
    outputs = []

    def run() -> None:
        with batch_statistics(net):
            with batch_statistics(net[0]):
                assert net[0].training
            assert net[0].training  # the outer one still holds
            assert not net.training
            assert not net[1].training
            outputs.append(net(x))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run()
    assert modes() == before
    assert torch.allclose(outputs[0].mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    with pytest.raises(ValueError, match="more than 1 value"), batch_statistics(net):
        net(torch.randn(1, 3, 1, 1))
    assert modes() == before
    assert int(net[0].num_batches_tracked) == 0


def test_a_teacher_answers_with_the_statistics_of_the_batch() -> None:
    torch.manual_seed(0)
    teacher = R2Plus1D(3, R2Plus1DSettings(widths=(4, 8), blocks=(1, 1), strides=(1, 2), dropout=0.5)).eval()
    bright = torch.randn(4, 3, 2, 16, 16) * 4 + 9
    with torch.no_grad(), batch_statistics(teacher):
        together, alone = teacher(bright), teacher(bright[:2])
    assert not torch.allclose(together[:2], alone)  # hence nothing of it can be cached by clip
    with torch.no_grad():
        assert torch.allclose(teacher(bright)[:2], teacher(bright[:2]), atol=1e-4)
