"""The space of a teacher's own layers: students that are exact where they must be, at costs that are true."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from delta_teachers import HRNet, Layers, PreActivation, ResNet, UNet, trained
from pydantic import ValidationError
from torch import Tensor, nn

from nas_kd.search_spaces import Supernet, count_flops
from nas_kd.search_spaces.delta_blocks import CANDIDATES, DeltaBlocksSettings, DeltaBlocksSpace
from nas_kd.search_spaces.delta_blocks.net import DeltaLayer, DeltaNet
from nas_kd.search_spaces.delta_blocks.residual import ResidualLayer, residual_form
from nas_kd.search_spaces.key_frame_net import state_bytes

FAMILIES = ("zero", "lowres2", "pointwise4", "split4", "bottleneck4", "shuffle4", "grouped4", "separable", "pair4")
SIZES = {ResNet: (24, 40), HRNet: (32, 48), PreActivation: (24, 40), UNet: (24, 40), Layers: (37, 45)}


def space_of(build: Callable[[], nn.Module], **settings: Any) -> DeltaBlocksSpace:
    size = settings.pop("size", None) or SIZES[build]  # type: ignore[index]
    defaults = {"keyframe_interval": (3,)}
    return DeltaBlocksSpace(DeltaBlocksSettings(**{**defaults, **settings}), trained(build()), size)


@pytest.mark.parametrize("build", SIZES)
def test_parameters_worst_frame_and_state_are_those_of_the_student(build: Callable[[], nn.Module]) -> None:
    space, rng = space_of(build, skip_first=0, skip_last=0), np.random.default_rng(0)
    frame = torch.zeros(1, 3, *space.frame_size).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        arch = space.sample(rng)
        net = space.student(arch).eval()
        assert isinstance(net, DeltaNet)
        with torch.no_grad():
            state = net.key(frame)[1]
        delta = net.delta_flops(frame)
        key = space.cost_table(arch.choices).total(arch.choices) - 2 * delta
        assert {name: space.figure(name, arch) for name in space.figures(arch.choices)} == {
            "params": sum(p.numel() for p in net.parameters()),
            "worst_frame_flops": max(key, delta),
            "state_bytes": state_bytes(state),
        }


def clips(space: DeltaBlocksSpace, frames: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, frames, *space.frame_size, generator=torch.Generator().manual_seed(seed))


def student(space: DeltaBlocksSpace, choices: dict[str, Any], *, noise: float = 0.0) -> DeltaNet:
    """The student of these choices; candidates that are not named take the copy."""
    whole = {"keyframe_interval": 3, **{name: values[-1] for name, values in space.variables.items()}, **choices}
    net = space.student(space.arch(whole)).eval()
    assert isinstance(net, DeltaNet)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in net.student_parameters():
            p += noise * torch.randn(p.shape, generator=generator)
    return net.requires_grad_(False)


def with_family(space: DeltaBlocksSpace, name: str) -> dict[str, str]:
    """This candidate wherever it is offered."""
    return {layer: name for layer, values in space.variables.items() if name in values}


def frame_by_frame(net: DeltaNet, clip: Tensor) -> Tensor:
    outputs = []
    state: Any = {}
    for t in range(clip.shape[2]):
        key = t % net.keyframe_interval == 0
        output, state_after = net.key(clip[:, :, t]) if key else net.delta(clip[:, :, t], state)
        state = state_after if key or net.context.reference == "previous" else state
        outputs.append(output)
    return torch.stack(outputs, 1)


def per_frame(net: nn.Module, clip: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([net(clip[:, :, t]) for t in range(clip.shape[2])], 1)


@pytest.mark.parametrize("build", [ResNet, HRNet, PreActivation, UNet, Layers])
def test_full_copies_reproduce_the_teacher(build: Callable[[], nn.Module]) -> None:
    space = space_of(build, min_share=0.0)
    clip = clips(space, 5)
    expected = per_frame(trained(build()), clip)
    torch.testing.assert_close(student(space, {})(clip), expected, rtol=2e-4, atol=2e-4)
    cheap = student(space, with_family(space, "pointwise8"))(clip)
    keys, others = [0, 3], [1, 2, 4]
    torch.testing.assert_close(cheap[:, keys], expected[:, keys], rtol=2e-4, atol=2e-4)
    assert (cheap[:, others] - expected[:, others]).abs().amax((0, 2, 3, 4)).min() > 1e-3, "cheap students approximate"


@pytest.mark.parametrize(
    ("family", "blocks"),
    [*((f, ()) for f in (*FAMILIES, "full")), *((f, ("stage?.*",)) for f in (*FAMILIES[1:], "full"))],
)
def test_a_static_clip_gives_the_key_frames_output_bit_for_bit(family: str, blocks: tuple[str, ...]) -> None:
    space = space_of(ResNet, candidates=tuple({family, "full"}), blocks=blocks)
    assert with_family(space, family)
    net = student(space, with_family(space, family), noise=0.3)
    still = clips(space, 1).expand(-1, -1, 5, -1, -1)
    key = net.key(still[:, :, 0])[0]
    for outputs in (net(still), frame_by_frame(net, still)):
        assert all(torch.equal(outputs[:, t], key) for t in range(5))
    moving = net(clips(space, 3))
    assert not torch.equal(moving[:, 0], moving[:, 1])


@pytest.mark.parametrize("family", [*FAMILIES, "full"])
@pytest.mark.parametrize("build", [ResNet, Layers])
def test_streams_equal_clips_and_references_agree(build: Callable[[], nn.Module], family: str) -> None:
    space = space_of(build, candidates=tuple({family, "full"}), min_share=0.0)
    net = student(space, with_family(space, family), noise=0.05)
    clip = clips(space, 5)
    expected = net(clip)
    torch.testing.assert_close(frame_by_frame(net, clip), expected, rtol=1e-4, atol=1e-4)
    net.context.reference = "previous"
    torch.testing.assert_close(frame_by_frame(net, clip), expected, rtol=1e-4, atol=1e-4)


def test_every_kind_of_layer_gets_candidates_and_every_one_of_them_streams() -> None:
    space = space_of(Layers, min_share=0.0, skip_first=0, skip_last=0)
    assert len(space.variables) == 13
    clip = clips(space, 3, batch=1)
    for layer, values in space.variables.items():
        assert len(values) > 1 or "grouped" in layer, layer
        for choice in values:
            net = student(space, {layer: choice}, noise=0.05)
            torch.testing.assert_close(frame_by_frame(net, clip), net(clip), rtol=1e-4, atol=1e-4)


def test_whole_blocks_stream_too() -> None:
    for build, patterns in ((ResNet, ("stage?.*",)), (PreActivation, ("blocks.*",)), (HRNet, ("branches.*.*",))):
        space = space_of(build, blocks=patterns)
        rng = np.random.default_rng(0)
        clip = clips(space, 4)
        for _ in range(3):
            net = student(space, dict(space.sample(rng).choices), noise=0.05)
            torch.testing.assert_close(frame_by_frame(net, clip), net(clip), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(student(space, {})(clip), per_frame(space.teacher, clip), rtol=2e-4, atol=2e-4)


def test_an_interval_of_one_is_the_teacher() -> None:
    space = space_of(ResNet)
    clip = clips(space, 3)
    net = DeltaNet(student(space, with_family(space, "pointwise8")).net, 1)
    torch.testing.assert_close(net(clip), per_frame(space.teacher, clip))
    with pytest.raises(ValueError, match="keyframe_interval must be at least 1, but it is 0"):
        DeltaNet(net.net, 0)


def test_a_state_serves_many_frames_and_is_not_written_into() -> None:
    space = space_of(ResNet)
    net = student(space, {n: v[len(v) // 2] for n, v in space.variables.items()}, noise=0.1)
    assert any(layer.copy_output for layer in space.plan.layers), "the sums of the blocks are made in place"
    clip = clips(space, 3)
    _, state = net.key(clip[:, :, 0])
    before = {name: [t.clone() for t in tensors] for name, tensors in state.items()}
    first = net.delta(clip[:, :, 1], state)[0]
    net.delta(clip[:, :, 2], state)
    assert all(torch.equal(a, b) for n in state for a, b in zip(state[n], before[n], strict=True))
    assert torch.equal(net.delta(clip[:, :, 1], state)[0], first)
    assert state_bytes(state) > 0


# Costs


def segformer() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="SegFormer needs transformers")
    config = transformers.SegformerConfig(
        num_labels=3, num_encoder_blocks=2, hidden_sizes=[16, 32], depths=[1, 1], decoder_hidden_size=24,
        num_attention_heads=[1, 2], sr_ratios=[4, 2], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2],
    )  # fmt: skip

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = transformers.SegformerForSemanticSegmentation(config)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).logits

    return Logits()


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (ResNet, {"keyframe_interval": (2, 5)}),
        (ResNet, {"blocks": ("stage1.*", "stage2.1")}),
        (HRNet, {}),
        (HRNet, {"blocks": ("branches.*.*",), "include": ("branches*", "exchanges*")}),
        (PreActivation, {}),
        (PreActivation, {"blocks": ("blocks.1",)}),
        (UNet, {}),
        (Layers, {"min_share": 0.0, "skip_first": 0, "skip_last": 0}),
        (segformer, {"size": (32, 64), "min_share": 0.0}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(value) or "default",
)
def test_costs_are_those_of_the_students(build: Callable[[], nn.Module], settings: dict[str, Any]) -> None:
    space = space_of(build, **settings)
    rng = np.random.default_rng(0)
    zeros = 0
    for i in range(4 if build in (HRNet, segformer) else 6):
        arch = space.sample(rng)
        if i % 2:  # many zeros, so that layers die
            choices = {**arch.choices, **{n: v[0] for n, v in space.variables.items() if rng.random() < 0.6}}
            arch = space.arch({**{n: v[-1] for n, v in space.variables.items()}, **choices})
        knobs = {"keyframe_interval": arch.choices["keyframe_interval"]}
        table, counted = space.cost_table(knobs), count_flops(space.student(arch), space.example_input(knobs)).total
        assert table.total(arch.choices) == counted
        assert space.cost(arch) == -(-counted // knobs["keyframe_interval"])  # type: ignore[operator]
        one_hot = {
            name: F.one_hot(torch.tensor(v.index(arch.choices.get(name, v[0]))), len(v)).float()
            for name, v in space.variables.items()
        }
        assert float(table.expected(one_hot)) * table.period == counted
        zeros += sum(choice == "zero" for choice in arch.choices.values())
    assert zeros or not any(layer.may_be_zero for layer in space.plan.layers)


def test_supernets_derive_what_they_compute_and_meet_budgets() -> None:
    for build in (ResNet, HRNet):
        space = space_of(build)
        supernet = Supernet(space, seed=1)
        clip = clips(space, 4)
        generator = torch.Generator().manual_seed(2)
        least, most = supernet.cost_range()
        for share in (0.1, 0.4, 0.8):
            with torch.no_grad():
                for p in supernet.gate_parameters():
                    p.normal_(generator=generator)
                for p in supernet.network.student_parameters():  # type: ignore[operator,union-attr]
                    p += 0.05 * torch.randn(p.shape, generator=generator) * (p.ndim > 1)
            budget = least + share * (most - least)
            arch = supernet.arch(budget)
            assert 0.95 * budget <= space.cost(arch) <= budget
            supernet.eval()
            derived = supernet.derive(arch=arch).eval()
            with torch.no_grad(), supernet.pinned(arch):
                assert torch.equal(supernet(clip), derived(clip))


def test_only_candidates_cheaper_than_the_copy_are_offered_by_ascending_cost() -> None:
    space = space_of(ResNet, min_share=0.0, skip_last=0)
    table = space.cost_table({"keyframe_interval": 3})
    for term in table.terms:
        costs = term.costs.reshape(len(term.costs), -1).max(1)
        assert list(costs[:-1]) == sorted(costs[:-1])
        assert (costs[:-1] < costs[-1]).all()
        assert space.variables[term.name][-1] == "full"
    dear = space_of(ResNet, candidates=("bottleneck2", "pair2", "full"), include=("lateral", "smooth", "stage1*"))
    assert set(dear.variables["smooth"]) >= {"bottleneck2", "full"}
    assert "bottleneck2" not in dear.variables.get("lateral", ()), "it is 1×1 already"
    alone = space_of(ResNet, candidates=("full",))
    assert set(alone.variables.values()) == {("full",)}


# Which layers


class Zoo(nn.Module):
    """Layers that cannot be delta layers, each for its own reason."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.plain = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.gate = nn.Linear(16, 16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.reflected = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.rows = nn.Linear(16, 16)
        self.unread, self.unused = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.tiny = nn.Conv2d(16, 1, 1)
        self.alias = self.plain
        self.wide, self.head = nn.Conv2d(17, 64, 3, padding=1), nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.alias(self.stem(x)))
        pooled = x.mean((2, 3), keepdim=True)
        x = x * self.excite(F.relu(self.squeeze(pooled))).sigmoid() * self.gate(pooled.flatten(1))[..., None, None]
        x = self.up(self.reflected(self.twice(self.twice(x))))
        columns = self.rows(x.permute(2, 0, 3, 1).flatten(1, 2))  # (H, N · W, C)
        x = x + columns.unflatten(1, (x.shape[0], -1)).permute(1, 3, 0, 2)
        self.unread(x)
        return self.head(self.wide(torch.cat([x, self.tiny(x)], 1)))


def test_layers_are_left_out_for_a_reason() -> None:
    space = space_of(Zoo, size=(16, 24), min_share=0.003)
    assert set(space.variables) == {"plain", "wide"}
    reasons = {
        "stem": "first", "head": "last", "depthwise": "depthwise", "squeeze": "one pixel", "excite": "one pixel",
        "gate": "tokens", "twice": "more than once", "reflected": "zeros as padding", "unread": "does not depend",
        "rows": "first dimension", "unused": "does not run", "tiny": "less than 0.30%",
    }  # fmt: skip
    assert space.plan.left_out.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in space.plan.left_out[name], name
    clip = clips(space, 3)
    torch.testing.assert_close(student(space, {})(clip), per_frame(space.teacher, clip), rtol=2e-4, atol=2e-4)
    net = student(space, {}).net
    assert isinstance(net.plain, DeltaLayer)
    assert net.alias is net.plain, "a layer with two names is one delta layer"
    residual = residual_form(student(space, {}))
    assert isinstance(residual.net.plain, ResidualLayer)
    assert residual.net.alias is residual.net.plain
    torch.testing.assert_close(frame_by_frame(residual, clip), student(space, {})(clip), rtol=2e-4, atol=2e-4)


def test_patterns_choose() -> None:
    every = list(space_of(ResNet, min_share=0.0, skip_first=0, skip_last=0).variables)
    assert every[0] == "stem.0"
    assert every[-1] == "head"
    assert list(space_of(ResNet, min_share=0.0, skip_first=2, skip_last=3).variables) == every[2:-3]
    assert all(n.startswith("stage2") for n in space_of(ResNet, include=("stage2*",), skip_first=0).variables)
    without = space_of(ResNet, exclude=("*.down.*", "stage1.0.*"), skip_first=0, skip_last=0, min_share=0.0).variables
    assert list(without) == [n for n in every if ".down." not in n and not n.startswith("stage1.0.")]
    heavy = space_of(ResNet, min_share=0.2).variables
    assert list(heavy) == ["smooth"]
    blocks = space_of(ResNet, blocks=("stage1",), skip_first=0, skip_last=0, min_share=0.0)
    assert list(blocks.variables) == ["stem.0", "stage1", *every[5:]]
    assert blocks.plan.layers[1].shape.weight is None
    for setting in ("include", "exclude", "blocks"):
        with pytest.raises(ValueError, match=r"pattern 'stage9\.\*' matches no module; the teacher has stem"):
            space_of(ResNet, **{setting: ("*", "stage9.*") if setting == "include" else ("stage9.*",)})
    with pytest.raises(
        ValueError, match=r"become a delta layer \(stem.0: include and exclude; .*; and 9 more\); loosen"
    ):
        space_of(ResNet, include=("head",))


class OfClips(nn.Module):
    """A net of clips that is shown each frame as a clip of one frame; it holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.lock = threading.Lock()

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.conv(frame[:, :, None])[:, :, 0]
        return maps


def test_a_teacher_without_layers_of_frames_or_that_cannot_be_copied_is_refused_with_the_reason() -> None:
    teacher = OfClips()
    with pytest.raises(ValueError, match=r"the teacher must be .* copied, but copy.deepcopy gives: cannot pickle '_th"):
        DeltaBlocksSpace(DeltaBlocksSettings(), teacher, (16, 16))
    del teacher.lock
    with pytest.raises(ValueError, match=r"can become a delta layer, since it has no nn.Conv2d and no nn.Linear; take"):
        DeltaBlocksSpace(DeltaBlocksSettings(), teacher, (16, 16))


class OfShares(nn.Sequential):
    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        assert bool(((frame >= 0) & (frame <= 1)).all())
        out: torch.Tensor = super().forward(frame)
        return out


def test_a_teacher_that_refuses_what_is_no_share_of_brightness_has_a_space() -> None:
    convolutions = [nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8)]
    space = DeltaBlocksSpace(DeltaBlocksSettings(), trained(OfShares(*convolutions, nn.Conv2d(8, 2, 1))), (16, 24))
    assert space.plan.teacher_flops == 16 * 24 * (9 * 8 * (3 + 8 + 8) + 8 * 2)


def test_blocks_may_be_what_layers_may_not() -> None:
    space = space_of(Zoo, size=(16, 24), blocks=("reflected", "up"), skip_first=0, skip_last=0)
    assert {"reflected", "up"} <= set(space.variables)
    clip = clips(space, 3)
    torch.testing.assert_close(student(space, {})(clip), per_frame(space.teacher, clip), rtol=2e-4, atol=2e-4)


class Overwriting(nn.Module):
    """A block that writes into its own input, and a dead layer that the net writes into."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.mul_(0.5))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, 2, 1), self.Block()
        self.inner, self.outer = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x) * 1.0)
        y = self.inner(x)
        y += 1.0
        x = self.outer(F.relu(y)) + x
        x.clamp_(-5, 5)
        return self.head(x)


def test_nets_that_overwrite_tensors_keep_their_states() -> None:
    space = space_of(Overwriting, size=(16, 24), blocks=("block",))
    assert space.plan.left_out["block"] == "it overwrites its input"
    layers = {layer.name: layer for layer in space.plan.layers}
    assert layers["inner"].copy_output
    assert layers["outer"].may_be_zero
    net = student(space, {"outer": "zero"})
    clip = clips(space, 3)
    torch.testing.assert_close(frame_by_frame(net, clip), net(clip))
    assert net.layers()["inner"].student is None
    assert set(net.key(clip[:, :, 0])[1]) == {"outer"}, "a dead layer has no state"


def test_the_model_is_left_as_it_was() -> None:
    net = trained(ResNet()).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    kinds = [(name, type(m), m.training, getattr(m, "inplace", None)) for name, m in net.named_modules()]
    space = DeltaBlocksSpace(DeltaBlocksSettings(), net, (24, 40))
    Supernet(space)(clips(space, 3))
    assert kinds == [(name, type(m), m.training, getattr(m, "inplace", None)) for name, m in net.named_modules()]
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*net.modules(), *space.teacher.modules()])


def test_the_space_keeps_its_own_teacher() -> None:
    space = space_of(ResNet, blocks=("stage1.*",))
    clip = clips(space, 3)
    before = student(space, {})(clip)
    space.teacher.to("meta")  # as a campaign moves it to its device
    assert torch.equal(student(space, {})(clip), before)
    assert space.cost_table({"keyframe_interval": 3}).constant > 0


class Wrong(nn.Module):
    """A teacher with one mistake."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 2, 1)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False) if mistake == "norm" else nn.Identity()
        self.place = nn.Parameter(torch.zeros(8, 32, 32)) if mistake == "size" else 0.0
        self.mistake = mistake

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x) + self.place
        if self.mistake == "batch":
            x = x - x.mean((0, 2, 3), keepdim=True)
        y = self.head(self.norm(self.inner(x)))
        if self.mistake in ("dict", "tuple"):
            return {"out": y} if self.mistake == "dict" else (y, x)
        return y.mean() if self.mistake == "scalar" else y


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("dict", r"must give one tensor for a frame of shape \(1, 3, 24, 40\), but gives a dict; wrap it in a module"),
        (
            "tuple",
            r"one tensor for a frame of shape \(1, 3, 24, 40\), but gives a tuple; wrap it in a module that picks",
        ),
        ("scalar", r"one row for each frame, but for one of shape \(1, 3, 24, 40\) it gives \(\) and for two \(\)"),
        ("size", r"could not run a frame of shape \(1, 3, 24, 40\).*: The size of tensor .* set data\.size"),
        ("norm", r"must not depend on other frames, but norm normalises with the statistics of its batch; give it run"),
        ("batch", r"must not depend on other frames, but it changes with another one in the batch; replace"),
    ],
)
def test_what_cannot_teach_is_refused_in_one_sentence(mistake: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeltaBlocksSpace(DeltaBlocksSettings(), Wrong(mistake), (24, 40))


class Named(nn.Module):
    """Paddings by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 4, 1)
        self.same = nn.Conv2d(16, 16, (3, 5), padding="same", dilation=(2, 1))
        self.even = nn.Conv2d(16, 16, 2, padding="same")
        self.valid = nn.Conv2d(16, 16, 3, padding="valid")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for layer in (self.same, self.even, self.valid):
            x = torch.tanh(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_paddings_by_name_are_numbers() -> None:
    space = space_of(Named, size=(24, 40))
    assert set(space.variables) == {"same", "valid"}
    assert space.plan.left_out["even"] == "no plain convolution with zeros as padding, as many on both sides"
    clip = clips(space, 3)
    torch.testing.assert_close(student(space, {})(clip), per_frame(space.teacher, clip), rtol=2e-4, atol=2e-4)
    rng = np.random.default_rng(0)
    for _ in range(5):
        arch = space.sample(rng)
        counted = count_flops(space.student(arch), space.example_input({"keyframe_interval": 3})).total
        assert space.cost_table({"keyframe_interval": 3}).total(arch.choices) == counted


def test_other_settings_are_named_with_both_values() -> None:
    teacher = trained(ResNet())
    identity = {"model": "mine:net", "settings": {}, "num_outputs": 5}
    arch = DeltaBlocksSpace(DeltaBlocksSettings(), teacher, (24, 40), identity).widest({})
    other = DeltaBlocksSpace(DeltaBlocksSettings(candidates=("zero", "full")), teacher, (32, 40))
    message = (
        r"other settings of space 'delta_blocks': candidates is \[.* there and \[\"zero\",\"full\"\] here, "
        r"frame_size is \[24,40\] there and \[32,40\] here, "
        r"teacher is {\"model\":\"mine:net\".*} there and {} here; build"
    )
    with pytest.raises(ValueError, match=message):
        other.check(arch)


# Gates


def test_gradients_reach_gates_and_candidates_and_never_the_teacher() -> None:
    space = space_of(ResNet, blocks=("stage2.1",))
    supernet = Supernet(space, estimator="softmax").train()
    supernet(clips(space, 3))[:, 1:].square().mean().backward()
    network = supernet.network
    assert isinstance(network, DeltaNet)
    assert all(p.grad is None and not p.requires_grad for p in network.teacher_parameters())
    assert all(gate.gate_logits.grad is not None for gate in supernet.gates.values())
    assert all(bool(gate.gate_logits.grad.any()) for gate in supernet.gates.values() if len(gate.choices) > 1)
    reached = [name for name, p in network.named_parameters() if ".student." in name and p.grad is not None]
    assert len(reached) == sum(".student." in name for name, _ in network.named_parameters())
    names = supernet.state_dict()
    assert all(any(key.endswith(f"{name}.student.gate.gate_logits") for key in names) for name in space.variables)


def test_training_touches_students_alone() -> None:
    space = space_of(PreActivation, blocks=("blocks.1",), skip_first=0)
    net = space.student(space.widest({})).train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    still = clips(space, 1).expand(-1, -1, 3, -1, -1)
    outputs = net(still)
    assert torch.equal(outputs[:, 0], outputs[:, 2])
    torch.testing.assert_close(net(clips(space, 3)), net.eval()(clips(space, 3)))
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items()), "statistics are the teacher's"


# Zeros


class Dag(nn.Module):
    """Convolutions, each of which reads the sum of some earlier ones; all that nothing reads goes to the head."""

    def __init__(self, seed: int, nodes: int = 7) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.reads: list[list[int]] = []
        for i in range(nodes):
            count = int(rng.integers(1, min(3, i + 1) + 1))
            self.reads.append(sorted(int(j) for j in rng.choice(i + 1, count, replace=False)))
        self.last = sorted(set(range(nodes + 1)) - {j for reads in self.reads for j in reads})
        self.nodes = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(nodes))
        self.norms = nn.ModuleList(
            nn.LayerNorm([4, 6, 6]) if rng.random() < 0.2 else nn.Identity() for _ in range(nodes)
        )
        self.ups = [bool(rng.random() < 0.2) for _ in range(nodes)]

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for node, norm, up, reads in zip(self.nodes, self.norms, self.ups, self.reads, strict=True):
            y = torch.tanh(norm(sum(values[j] for j in reads)))
            if up:
                y = F.interpolate(F.max_pool2d(y, 2), scale_factor=2, mode="nearest")
            values.append(node(y))
        return self.head(torch.tanh(sum(values[j] for j in self.last)))


def influences(net: DeltaNet, layer: DeltaLayer, clip: Tensor) -> bool:
    """Whether the outputs of delta frames depend on what the layer gives there."""

    def shift(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output + 0.5 if net.context.phase == "delta" else output

    before = net(clip)
    hook = layer.register_forward_hook(shift)
    after = net(clip)
    hook.remove()
    return not torch.equal(before, after)


@pytest.mark.parametrize("seed", range(12))
def test_what_the_plan_calls_dead_has_no_influence_and_the_rest_has(seed: int) -> None:
    space = space_of(
        lambda: Dag(seed), size=(6, 6), candidates=("zero", "full"), min_share=0.0, skip_first=0, skip_last=0
    )  # fmt: skip
    clip = clips(space, 2, batch=1)
    open_to_zero = [n for n, v in space.variables.items() if "zero" in v]
    dead = 0
    for zeros in list(product((False, True), repeat=len(open_to_zero)))[-6:]:
        choices = {name: "zero" if zero else "full" for name, zero in zip(open_to_zero, zeros, strict=True)}
        arch = space.arch({"keyframe_interval": 3, **dict.fromkeys(space.variables, "full"), **choices})
        counted = count_flops(space.student(arch), space.example_input({"keyframe_interval": 3})).total
        assert space.cost_table({"keyframe_interval": 3}).total(arch.choices) == counted
        net = student(space, choices, noise=0.05)
        for name, layer in net.layers().items():
            assert influences(net, layer, clip) == (name in arch.choices), (choices, name)
            dead += name not in arch.choices
    space_has_conditions = any(frozenset() not in layer.alive for layer in space.plan.layers)
    assert bool(dead) == space_has_conditions


def test_mistakes_are_told_in_one_sentence() -> None:
    for candidates, message in (
        (("split4", "split4", "full"), "candidates must differ"),
        (("svd4", "full"), "unknown candidate 'svd4'"),
        (("split", "full"), "split takes a number of at least 2"),
        (("split4",), "candidates must contain 'full'"),
    ):
        with pytest.raises(ValueError, match=message):
            DeltaBlocksSettings(candidates=candidates)
    with pytest.raises(ValueError, match="keyframe_interval must ascend without repetition"):
        DeltaBlocksSettings(keyframe_interval=(3, 2))
    for interval in ((1,), 1, (1, 3)):
        with pytest.raises(
            ValidationError, match=r"keyframe_interval must be at least 2, but is 1; with 1 the"
        ) as caught:
            DeltaBlocksSettings(keyframe_interval=interval)  # type: ignore[arg-type]
        assert caught.value.error_count() == 1
    assert DeltaBlocksSettings(keyframe_interval=8).keyframe_interval == (8,)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        DeltaBlocksSettings(keyframe_interval=True)  # type: ignore[arg-type]
    assert DeltaBlocksSettings(candidates=CANDIDATES).candidates == CANDIDATES
