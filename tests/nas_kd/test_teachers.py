from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nas_kd.config import CampaignConfig
from nas_kd.data import GeneratedConfig
from nas_kd.data.generated import GeneratedDataset
from nas_kd.objectives.default_maps import last_maps
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.search_spaces import Supernet, count_flops
from nas_kd.taps import Taps
from nas_kd.tasks import Segmentation
from nas_kd.teachers import (
    FrameNet,
    FrameNetSettings,
    R2Plus1D,
    R2Plus1DSettings,
    Teacher,
    TeacherConfig,
    build_teacher_model,
)
from nas_kd.trial import build_context

MAKE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Conv3d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, num_classes)

    def forward(self, clip):
        return self.head(self.body(clip).mean(dim=(2, 3, 4)))

class Pair(Net):
    def forward(self, clip):
        logits = super().forward(clip)
        return logits, 2 * logits

def good(num_classes, **settings):
    return Net(num_classes)

def pair(num_classes):
    return Pair(num_classes)

def few(num_classes):
    return Net(num_classes - 1)

def strict(num_classes):
    return Net(num_classes)

def number(num_classes):
    return 7
"""


def small(**changes: object) -> R2Plus1D:
    settings = {"widths": (4, 6), "blocks": (1, 1), "strides": (1, 2), **changes}
    return R2Plus1D(3, R2Plus1DSettings.model_validate(settings))


def test_a_teacher_is_frozen_whatever_is_called_on_it() -> None:
    model = small(dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = Teacher(model, ["layers.1"])
    nn.Sequential(teacher).train()  # what a training loop does to a module that holds the teacher
    clip = torch.randn(2, 3, 4, 16, 16, requires_grad=True)
    first, second = teacher(clip), teacher(clip)
    assert torch.equal(first.logits, second.logits)  # no dropout
    assert not first.logits.requires_grad
    assert not first.features["layers.1"].requires_grad
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    teacher.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_maps_of_our_teacher_keep_all_frames() -> None:
    model = small()
    assert last_maps(model, torch.zeros(1, 3, 4, 16, 16)) == ("layers.0", "layers.1")
    with Taps(model.eval(), ["layers.0", "layers.1"]) as taps:
        maps = taps(torch.zeros(1, 3, 4, 16, 16)).features
    assert [tuple(m.shape) for m in maps.values()] == [(1, 4, 4, 8, 8), (1, 6, 4, 4, 4)]


def test_maps_of_a_supernet_are_those_of_its_students(tiny: Callable[..., CampaignConfig]) -> None:
    space = tiny().space.build(4)
    supernet = Supernet(space)
    example = space.example_input(supernet.knobs)
    student = supernet.derive(arch=space.widest(supernet.knobs))
    assert last_maps(supernet, example) == last_maps(student, example) == ("stages.0", "stages.1")


class Tokens(nn.Module):
    """As a transformer: no module returns a map."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.layer(tokens)
        mixed: Tensor = self.attention(tokens, tokens, tokens)[0]
        return self.twice(self.twice(mixed)).mean(1)


def test_taps_refuse_what_gives_no_map() -> None:
    net, tokens = Tokens().eval(), torch.randn(1, 3, 8)
    assert last_maps(net, tokens) == ()
    with Taps(net, ["unused"]) as taps, pytest.raises(ValueError, match="did not run in the forward pass: unused"):
        taps(tokens)
    with Taps(net, ["attention"]) as taps, pytest.raises(ValueError, match="'attention' returns a tuple"):
        taps(tokens)
    with Taps(net.attention, []) as taps, pytest.raises(ValueError, match="must return logits as one tensor"):
        taps(tokens, tokens, tokens)
    with Taps(net, ["twice"]) as taps:  # called twice: the last call counts
        assert torch.equal(taps(tokens).features["twice"].mean(1), net(tokens))


def test_weights_come_from_a_file_that_fits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = small()
    save_file(source.state_dict(), tmp_path / "good.safetensors")
    settings = {"widths": (4, 6), "blocks": (1, 1), "strides": (1, 2)}
    model = build_teacher_model(TeacherConfig(settings=settings, weights=tmp_path / "good.safetensors"), 3)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True)
    )
    (tmp_path / "text.pt").write_text("no weights")
    for file, classes, reason in (
        ("good.safetensors", 5, r"do not fit R2Plus1D: .*size mismatch for classifier"),
        ("text.pt", 3, "neither safetensors nor a checkpoint of torch.save"),
        ("absent.safetensors", 3, "there is none at"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            build_teacher_model(TeacherConfig(settings=settings, weights=tmp_path / file), classes)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [
        (
            {"model": "own_teachers:pair"},
            r"several outputs of the shape that the task needs \(0, 1\); name .*output: 0",
        ),
        ({"model": "own_teachers:few"}, r"logits of shape \(1, 4\).*but gives \(1, 3\)"),
        ({"model": "own_teachers:number"}, "must return an nn.Module, but returns int"),
        ({"model": "own_teachers:nobody"}, "has no function 'nobody'"),
        (
            {"model": "own_teachers:strict", "settings": {"depth": 3}},
            "called with num_classes, depth, but its arguments are",
        ),
        ({"model": "r2plus1d", "settings": {"depth": 3}}, "teacher.settings: depth: unknown key .*widths, blocks"),
        ({"model": "r2plus1d", "settings": {"widths": [4]}}, "same number of stages"),
        (
            {"model": "resnet"},
            r"unknown teacher.model 'resnet'; did you mean 'framenet'\? choose from r2plus1d, framenet",
        ),
        (
            {"model": "framenet"},
            "teacher.model: framenet reads frames and gives maps, .* choose r2plus1d, hugging_face, or your own",
        ),
    ],
)
def test_a_wrong_teacher_is_one_sentence_before_anything_trains(
    tiny: Callable[..., CampaignConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher: dict[str, object],
    sentence: str,
) -> None:
    (tmp_path / "own_teachers.py").write_text(MAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_teachers", raising=False)
    config = tiny(teacher={"settings": {}, **teacher})
    with pytest.raises(ValueError, match=sentence) as caught:
        prepare_teacher(build_context(config, "cpu"), config.run_dir)
    assert "\n" not in str(caught.value)
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"width": [4]}, "teacher.settings: width: unknown key .*widths"),
        ({"widths": [4]}, "same number of stages, at least 1, but name 1 and 3"),
        ({"depths": [1, 0, 1]}, "teacher.settings: depths.1: .*, but got 0"),
    ],
)
def test_wrong_settings_of_a_framenet_are_one_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        build_teacher_model(TeacherConfig(model="framenet", settings=settings), 4)
    assert "\n" not in str(caught.value)


def test_an_own_teacher_is_trained_once_and_kept(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_teachers.py").write_text(MAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_teachers", raising=False)
    config = tiny(teacher={"model": "own_teachers:good", "settings": {}}, objective={"feature": {"weight": 0}})
    known = prepare_teacher(build_context(config, "cpu"), config.run_dir)
    assert known["params"] == 3 * 4 * 27 + 4 + 4 * 4 + 4
    weights = (config.run_dir / "teacher" / "teacher.safetensors").read_bytes()
    assert prepare_teacher(build_context(config, "cpu"), config.run_dir) == known
    assert (config.run_dir / "teacher" / "teacher.safetensors").read_bytes() == weights


@pytest.mark.parametrize("size", [(64, 112), (33, 47), (5, 7), (1, 1)])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_frame_teacher_gives_maps_at_a_quarter_of_any_size(size: tuple[int, int], stages: int) -> None:
    settings = FrameNetSettings(widths=(4, 6, 8)[:stages], depths=(1, 2, 1)[:stages], head_width=5)
    net = FrameNet(3, settings).eval()
    quarter = tuple(-(-side // 4) for side in size)
    assert net(torch.zeros(2, 3, *size)).shape == (2, 3, *quarter)
    with Taps(net, [f"stages.{i}" for i in range(stages)]) as taps:
        maps = taps(torch.zeros(1, 3, *size)).features
    for i, (width, image) in enumerate(zip(settings.widths, maps.values(), strict=True)):
        assert image.shape == (1, width, *(-(-side // 2 ** (i + 2)) for side in size))


def test_a_frame_teacher_is_made_of_plain_layers_each_used_once() -> None:
    net = build_teacher_model(TeacherConfig(model="framenet"), 4).eval()
    convs = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    assert next(iter(convs)) == "stem.0"
    assert [name for name, conv in convs.items() if conv.bias is not None] == ["head.3"]
    calls: list[nn.Module] = []
    leaves = [module for module in net.modules() if not list(module.children())]
    handles = [module.register_forward_hook(lambda m, *_: calls.append(m)) for module in leaves]
    frame = torch.randn(1, 3, 64, 112)
    net(frame)
    for handle in handles:
        handle.remove()
    assert len(calls) == len(set(calls)) == len(leaves)
    assert calls[0] is convs["stem.0"]
    assert calls[-1] is convs["head.3"]
    assert count_flops(net, frame).total == 64_575_616


def test_a_frame_teacher_learns_generated_masks() -> None:
    config = GeneratedConfig(num_train=8, num_val=1, num_test=1, frames=2, size=32, digits=((3,), (8,)))
    dataset = GeneratedDataset(config, "train")
    frames = torch.stack([dataset[i]["clip"] for i in range(8)]).transpose(1, 2).flatten(0, 1).float() / 255 - 0.5
    batch = {"mask": torch.stack([dataset[i]["mask"] for i in range(8)])}
    torch.manual_seed(0)
    task = Segmentation(config.info)
    net = FrameNet(task.num_outputs, FrameNetSettings(widths=(12, 16), depths=(1, 1), head_width=12))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        loss = task.loss(net(frames).unflatten(0, (8, 2)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        task.update(net.eval()(frames).unflatten(0, (8, 2)), batch)
    assert task.compute()["miou"] > 0.7, losses[-1]
