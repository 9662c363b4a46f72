"""Streams frame by frame: every schedule gives what clip mode gives, and nothing runs that was replaced."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas_kd.deploy.passes import DeltaPass, KeyPass, layout_of
from nas_kd.deploy.streaming import StreamingStudent
from nas_kd.search_spaces import DeltaBlocksSettings, DeltaBlocksSpace, DeltaNet, Supernet, count_flops
from nas_kd.search_spaces.delta_blocks import CANDIDATES
from nas_kd.search_spaces.delta_blocks.net import DeltaLayer, PassContext
from nas_kd.search_spaces.delta_blocks.ops import LinearDelta, PairDelta
from nas_kd.search_spaces.delta_blocks.residual import ResidualLayer, residual_form
from nas_kd.teachers import FrameNet, FrameNetSettings

SIZE = (16, 24)
TRIED = tuple("pair2" if name == "pair8" else name for name in CANDIDATES)  # a single unit of eight may be dead


def framenet() -> nn.Module:
    net = FrameNet(3, FrameNetSettings(widths=(8, 16), depths=(1, 2), head_width=8)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(1, 3)
            module.bias.data.normal_()
    return net


class Windows(nn.Module):
    """Layers on windows of 4×4 pixels: several rows a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.tokens, self.pixels = nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.stem(frames)
        n, c, h, w = x.shape
        rows = x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        x = self.tokens(rows).reshape(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        return self.head(x + self.pixels(x).relu())  # type: ignore[no-any-return]


def windowed() -> DeltaNet:
    """A net whose delta layers see 24 rows a stream, and one."""
    torch.manual_seed(0)
    net, context = Windows(), PassContext()
    net.tokens = DeltaLayer(  # type: ignore[assignment]
        net.tokens, LinearDelta(nn.Linear(8, 8, bias=False)), "tokens", context, (16, 8)
    )
    h = nn.Sequential(nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1))
    net.pixels = DeltaLayer(net.pixels, PairDelta(h), "pixels", context, (8, *SIZE))  # type: ignore[assignment]
    return DeltaNet(net, 4).eval()


@pytest.fixture(scope="module")
def space() -> DeltaBlocksSpace:
    torch.manual_seed(0)
    return DeltaBlocksSpace(DeltaBlocksSettings(keyframe_interval=(3, 4), candidates=TRIED), framenet(), SIZE)


def loud(student: DeltaNet) -> DeltaNet:
    """Every student gets random weights; some start at no change at all."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in student.layers().values():
            for p in layer.student.parameters() if layer.student is not None else ():
                p.normal_(0, 0.4, generator=generator)
    return student.eval()


def uniform(space: DeltaBlocksSpace, candidate: str) -> DeltaNet:
    choices: dict[str, Any] = {"keyframe_interval": 3}
    for name, variable in space.variables.items():
        choices[name] = candidate if candidate in variable else "full"
    student = space.build_student(space.arch(choices).choices if candidate == "zero" else choices)
    assert isinstance(student, DeltaNet)
    return loud(student)


def sampled(space: DeltaBlocksSpace, seed: int) -> DeltaNet:
    student = space.student(space.sample(np.random.default_rng(seed)))
    assert isinstance(student, DeltaNet)
    return loud(student)


def clip_of(streams: int, frames: int, seed: int = 0) -> Tensor:
    return torch.randn(streams, 3, frames, *SIZE, generator=torch.Generator().manual_seed(seed))


def streamed(runtime: StreamingStudent, clip: Tensor) -> Tensor:
    state, outputs = runtime.start(len(clip)), []
    for t in range(clip.shape[2]):
        output, state = runtime.step(clip[:, :, t], state)
        outputs.append(output)
    return torch.stack(outputs, 1)


def close(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1)  # random weights grow inside


@pytest.mark.parametrize("candidate", TRIED)
def test_streams_give_what_clips_give(space: DeltaBlocksSpace, candidate: str) -> None:
    student, clip = uniform(space, candidate), clip_of(2, 7)
    with torch.no_grad():
        expected = student(clip)
    assert (expected[:, 1] - expected[:, 0]).abs().max() > 0.01
    close(streamed(StreamingStudent(student), clip), expected)
    close(streamed(StreamingStudent(student, reference="previous"), clip), expected)
    residual = residual_form(student)
    with torch.no_grad():
        close(residual(clip), expected)
    close(streamed(StreamingStudent(residual), clip), expected)
    close(streamed(StreamingStudent(residual, reference="previous"), clip), expected)


def test_a_layer_that_was_replaced_does_not_run_on_delta_frames(
    space: DeltaBlocksSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for student in (uniform(space, "bottleneck4"), residual_form(uniform(space, "zero"))):
        runtime, clip = StreamingStudent(student), clip_of(1, 3)
        first, state = runtime.step(clip[:, :, 0], runtime.start(1))

        def forbidden(*_: Any) -> Tensor:
            raise AssertionError("a layer of the teacher ran")

        replaced = [layer.teacher for layer in runtime.student.layers().values()]
        assert len(replaced) == len(space.plan.layers)
        for module in replaced:
            assert module is not None
            monkeypatch.setattr(module, "forward", forbidden)
        for t in (1, 2):
            output, state = runtime.step(clip[:, :, t], state)
        assert output.shape == first.shape
        with pytest.raises(AssertionError, match="a layer of the teacher ran"):
            runtime.step(clip[:, :, 0], state)


def test_a_static_clip_keeps_the_key_frames_output_bit_by_bit(space: DeltaBlocksSpace) -> None:
    still = clip_of(2, 1).expand(-1, -1, 4, -1, -1)
    for candidate in ("bottleneck4", "pair2", "lowres2", "zero", "full"):
        student = uniform(space, candidate)
        for reference in ("keyframe", "previous"):
            runtime = StreamingStudent(student, keyframe_interval=4, reference=reference)  # type: ignore[arg-type]
            outputs = streamed(runtime, still)
            assert all(torch.equal(outputs[:, t], outputs[:, 0]) for t in range(4))
        outputs = streamed(StreamingStudent(residual_form(student), keyframe_interval=4), still)
        close(outputs[:, 3], outputs[:, 0])


def test_an_interval_of_one_is_the_teacher(space: DeltaBlocksSpace) -> None:
    clip = clip_of(2, 3)
    outputs = streamed(StreamingStudent(uniform(space, "lowres4"), keyframe_interval=1), clip)
    with torch.no_grad():
        for t in range(3):
            close(outputs[:, t], space.teacher(clip[:, :, t]))


@pytest.mark.parametrize("reference", ["keyframe", "previous"])
@pytest.mark.parametrize("residual", [False, True])
def test_mixed_phases_and_resets_give_what_separate_streams_give(
    space: DeltaBlocksSpace, reference: Any, residual: bool
) -> None:
    for student in (sampled(space, 5), windowed()):
        net = residual_form(student) if residual else student
        runtime, clip = StreamingStudent(net, keyframe_interval=4, reference=reference), clip_of(3, 9, seed=1)
        resets = {2: [0], 5: [1, 2], 6: [1]}
        together, alone = runtime.start(3), [runtime.start(1) for _ in range(3)]
        mixed = 0
        for t in range(9):
            for i in resets.get(t, []):
                alone[i].reset()
            together.reset(resets.get(t, []))
            mixed += len(set(together.due)) > 1
            output, together = runtime.step(clip[:, :, t], together)
            for i in range(3):
                single, alone[i] = runtime.step(clip[i : i + 1, :, t], alone[i])
                close(output[i : i + 1], single)
            assert together.ages == tuple(a for state in alone for a in state.ages)
        assert mixed >= 5


def test_what_windows_keep_has_several_rows_a_stream() -> None:
    runtime = StreamingStudent(windowed())
    _, state = runtime.step(clip_of(2, 1)[:, :, 0], runtime.start(2))
    assert {len(tensor) for name, tensor in state.named().items() if name.startswith("tokens")} == {2 * 24}


def test_a_stagger_spreads_the_key_frames(space: DeltaBlocksSpace) -> None:
    runtime, clip = StreamingStudent(uniform(space, "split4")), clip_of(3, 9)
    state = runtime.start(3, stagger=True)
    keys = []
    for t in range(9):
        _, state = runtime.step(clip[:, :, t], state)
        keys.append([i for i, age in enumerate(state.ages) if age == 0])
    assert keys == [[0, 1, 2], [1], [2], [0], [1], [2], [0], [1], [2]]


def test_a_change_of_scene_asks_for_a_key_frame(space: DeltaBlocksSpace) -> None:
    runtime = StreamingStudent(uniform(space, "split4"), keyframe_interval=10, scene_change=0.5)
    frames = torch.zeros(6, 2, 3, *SIZE)
    frames[3:, 1] = 1.0  # the second stream cuts
    frames[:, 0] += torch.linspace(0, 0.4, 6)[:, None, None, None]  # the first one drifts below the threshold
    state, ages = runtime.start(2), []
    for frame in frames:
        _, state = runtime.step(frame, state)
        ages.append(state.ages)
    assert ages == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 2)]


def test_states_are_values(space: DeltaBlocksSpace) -> None:
    runtime, clip = StreamingStudent(uniform(space, "bottleneck4")), clip_of(2, 4)
    _, state = runtime.step(clip[:, :, 0], runtime.start(2))
    saved, moved = copy.deepcopy(state), state.to("cpu")
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.named().values()}
    assert state.bytes == sum(storages.values()) == saved.bytes
    assert state.bytes_per_stream == state.bytes // 2
    assert len(storages) < len(state.named())  # the output of a layer is the input of another one
    assert moved.to("meta").thumbnails is None
    outputs = [runtime.step(clip[:, :, 1], s)[0] for s in (state, saved, moved)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    saved.reset([1])
    _, saved = runtime.step(clip[:, :, 1], saved)
    _, again = runtime.step(clip[:, :, 1], state)
    assert (saved.ages, again.ages) == ((1, 0), (1, 1))
    assert saved.bytes == state.bytes  # what shared memory still does
    residual = StreamingStudent(residual_form(runtime.student))
    _, small = residual.step(clip[:, :, 0], residual.start(2))
    assert small.bytes < state.bytes


def test_the_residual_form_costs_what_it_says(space: DeltaBlocksSpace) -> None:
    for candidate, linear in (("bottleneck4", True), ("pair2", False)):
        student = uniform(space, candidate)
        residual = residual_form(student)
        frame = torch.zeros(1, 3, *SIZE)
        with torch.no_grad():
            state = student.key(frame)[1]
        named = student.layers().items()
        pairs = {name for name, layer in named if isinstance(layer.student, PairDelta)}
        assert bool(pairs) != linear
        saved = sum(state[name][1].numel() for name in state)  # x of linear students, h(x_0) of others
        assert student.delta_flops(frame) - residual.delta_flops(frame) == saved
        assert all(isinstance(layer, ResidualLayer) for layer in residual.layers().values())
        clip = torch.zeros(1, 3, 3, *SIZE)
        key = [count_flops(net, clip).total - 2 * net.delta_flops(frame) for net in (student, residual)]
        assert key[0] < key[1]


def test_a_supernet_has_no_residual_form(space: DeltaBlocksSpace) -> None:
    network = Supernet(space).network
    assert isinstance(network, DeltaNet)
    with pytest.raises(ValueError, match=r"holds a Edge; call supernet\.derive\(\) first"):
        residual_form(network)


def test_passes_of_plain_tensors_give_the_same(space: DeltaBlocksSpace) -> None:
    clip = clip_of(2, 3)
    for reference in ("keyframe", "previous"):
        student = sampled(space, 3)
        student.context.reference = reference  # type: ignore[assignment]
        layout = layout_of(student, clip[:, :, 0])
        key, delta = KeyPass(student, layout), DeltaPass(student, layout)
        with torch.no_grad():
            expected = student(clip)
            output, *state = key(clip[:, :, 0])
            close(output, expected[:, 0])
            for t in (1, 2):
                result = delta(clip[:, :, t], *state)
                if reference == "previous":
                    result, *state = result
                close(result, expected[:, t])
        assert len({t.data_ptr() for t in state}) == len(state)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_passes_give_the_same() -> None:
    student, clip = windowed(), clip_of(1, 3)
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        close(streamed(StreamingStudent(student, compile=True), clip), student(clip))


def test_the_runtime_leaves_the_student_alone(space: DeltaBlocksSpace) -> None:
    student = sampled(space, 1).train()
    before = {name: p.clone() for name, p in student.named_parameters()}
    runtime = StreamingStudent(student, reference="previous")
    output, _ = runtime.step(clip_of(1, 1)[:, :, 0], runtime.start())
    assert not output.requires_grad
    assert student.training
    assert student.context.reference == "keyframe"
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())
    assert not any(isinstance(m, DeltaLayer) and m.context is student.context for m in runtime.student.modules())


def test_a_state_without_thumbnails_begins_anew_where_scenes_are_looked_for(space: DeltaBlocksSpace) -> None:
    student, still = uniform(space, "split4"), torch.zeros(2, 3, *SIZE)
    blind, looking = (StreamingStudent(student, keyframe_interval=9, scene_change=c) for c in (None, 0.5))
    _, state = blind.step(still, blind.start(2))
    output, state = looking.step(still + 5, state)  # far from the key frame, which nobody remembers
    assert state.ages == (0, 0)
    with torch.no_grad():
        close(output, space.teacher(still + 5))
    _, state = looking.step(still + 5, state)
    assert state.ages == (1, 1)
    _, state = looking.step(torch.stack([still[0], still[1] + 5]), state)
    assert state.ages == (0, 2)


def test_mistakes_are_named(space: DeltaBlocksSpace) -> None:
    student = uniform(space, "split4")
    for arguments, sentence in (
        ({"keyframe_interval": 0}, "keyframe_interval must be a whole number of at least 1, but it is 0"),
        ({"keyframe_interval": 2.5}, r"keyframe_interval must be a whole number of at least 1, but it is 2\.5"),
        ({"keyframe_interval": True}, "keyframe_interval must be a whole number of at least 1, but it is True"),
        ({"reference": "first"}, "reference must be keyframe or previous, but is 'first'"),
        ({"scene_change": 0.0}, r"scene_change must be above 0, or None to leave it out, but is 0\.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            StreamingStudent(student, **arguments)  # type: ignore[arg-type]
    network = Supernet(space).network
    for module, sentence in (
        (space.teacher, "but this is a FrameNet; take one from load_bundle"),
        (
            network,
            r"needs a derived student, but layer .* still has several candidates; call supernet\.derive\(\) first",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            StreamingStudent(module)  # type: ignore[arg-type]
    runtime = StreamingStudent(student)
    for frame, sentence in (
        (
            torch.zeros(1, 1, *SIZE),
            r"frames must have the 3 channels R, G, B first, .* but are \(1, 1, 16, 24\); permute",
        ),
        (
            torch.zeros(1, 3, *SIZE, dtype=torch.uint8),
            r"normalised floating-point numbers, but are torch\.uint8; give \(fr",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            runtime.step(frame, runtime.start())
    with pytest.raises(ValueError, match="num_streams must be at least 1, but is 0"):
        runtime.start(0)
    state = runtime.start(2)
    with pytest.raises(ValueError, match=r"frames must be \(2, 3, H, W\), .* but are \(1, 3, 16, 24\)"):
        runtime.step(torch.zeros(1, 3, *SIZE), state)
    _, state = runtime.step(torch.zeros(2, 3, *SIZE), state)
    with pytest.raises(ValueError, match=r"this one is \(3, 20, 24\); another size needs a new state"):
        runtime.step(torch.zeros(2, 3, 20, 24), state)
    with pytest.raises(ValueError, match=r"streams are numbered from 0 to 1, but got \[2\]"):
        state.reset([0, 2])
