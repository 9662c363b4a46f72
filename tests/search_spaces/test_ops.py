"""Operators: shapes, and equality with slow, obvious twins."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from nas_kd.search_spaces import OPS, SPACES, Supernet, count_flops
from nas_kd.search_spaces.clip_cell.ops import EdgeShape, FrameConv, TemporalShift, TimeConv, check_name, check_own_op


def clip(channels: int, frames: int = 3, height: int = 7, width: int = 6) -> Tensor:
    return torch.randn(2, channels, frames, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", OPS)
def test_shapes_gradients_and_countability(name: str) -> None:
    for stride, (c_in, c_out) in [(1, (6, 6)), (1, (4, 6)), (2, (4, 6)), (2, (6, 6))]:
        if name == "identity" and (stride != 1 or c_in != c_out):
            with pytest.raises(ValueError, match="identity keeps the shape"):
                OPS[name](c_in, c_out, stride)
            continue
        op, x = OPS[name](c_in, c_out, stride), clip(c_in)
        out = op(x)
        assert out.shape == (2, c_out, 3, -(-7 // stride), -(-6 // stride))
        assert op(x.contiguous(memory_format=torch.channels_last_3d)).shape == out.shape
        flops = count_flops(op, x[:1]).total
        assert (flops == 0) == (name in ("identity", "zero"))
        if parameters := list(op.parameters()):
            out.square().sum().backward()
            assert all(p.grad is not None for p in parameters)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_frame_conv_is_a_flat_conv3d(stride: int, groups: int, channels_last: bool) -> None:
    ours = FrameConv(4, 8, 5, stride, groups)
    twin = nn.Conv3d(4, 8, (1, 5, 5), (1, stride, stride), (0, 2, 2), groups=groups, bias=False)
    twin.weight.data.copy_(ours.weight.data.unsqueeze(2))
    x = clip(4).contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    torch.testing.assert_close(ours(x), twin(x), rtol=1e-4, atol=1e-5)
    assert count_flops(ours, x).total == count_flops(twin, x).total


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_time_conv_is_a_conv3d_along_time(groups: int, channels_last: bool) -> None:
    ours = TimeConv(4, 8, 3, groups)
    twin = nn.Conv3d(4, 8, (3, 1, 1), padding=(1, 0, 0), groups=groups, bias=False)
    twin.weight.data.copy_(ours.weight.data.unsqueeze(-1))
    x = clip(4, frames=5).contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    torch.testing.assert_close(ours(x), twin(x), rtol=1e-4, atol=1e-5)
    assert count_flops(ours, x).total == count_flops(twin, x).total


@pytest.mark.parametrize(("channels", "frames"), [(16, 4), (9, 3), (8, 1), (2, 4), (1, 3)])
def test_temporal_shift_moves_an_eighth_each_way(channels: int, frames: int) -> None:
    x = clip(channels, frames)
    expected, fold = x.clone(), max(channels // 8, 1)
    for c in range(min(2 * fold, channels)):
        for t in range(frames):
            source = t + 1 if c < fold else t - 1
            expected[:, c, t] = x[:, c, source] if 0 <= source < frames else 0
    assert torch.equal(TemporalShift()(x), expected)


def test_an_unknown_op_lists_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="unknown op 'dwconv5'; choose from identity, zero, conv2d_k1, conv2d_k3"):
        check_name("dwconv5")
    check_name("my_package.ops:dwconv5")


class Own(nn.Module):
    """An operator of a user's, broken in the way that is asked for."""

    def __init__(self, c_in: int, c_out: int, stride: int, *, broken: str) -> None:
        super().__init__()
        kernel = 13 - c_in if broken == "width" else 1
        self.conv = nn.Conv3d(c_in, c_out, kernel, (1, stride, stride), kernel // 2, bias=False)
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        if self.broken == "uncounted":
            x = torch.linalg.matrix_exp(x)
        if self.broken == "branches" and bool(x.sum() > 0):
            x = -x
        return self.conv(x)[..., self.broken == "shape" :]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("shape", r"must map an input of shape \(2, 4, 2, 8, 8\) to \(2, 4, 2, 8, 8\), but gives \(2, 4, 2, 8, 7\)"),
        ("uncounted", "operator 'm:own': the FLOPs of Own would miss aten::linalg_matrix_exp"),
        ("width", r"conv.weight is \(4, 4, 9, 9, 9\) there and \(6, 6, 7, 7, 7\) in the widest form"),
        ("branches", "operator 'm:own' cannot be exported: .*; write its forward pass so that torch.export takes it"),
    ],
)
def test_what_an_operator_of_ones_own_breaks_is_one_sentence(broken: str, sentence: str) -> None:
    edge = EdgeShape(narrow=(4, 4), wide=(6, 6), stride=1, frames=2, side=8)
    with pytest.raises(ValueError, match=sentence) as caught:
        check_own_op("m:own", partial(Own, broken=broken), [edge])
    assert "\n" not in str(caught.value)


def test_an_operator_of_ones_own_must_be_given_to_the_space() -> None:
    settings = {"num_classes": 2, "ops": ["m:own"], "widths": [[4, 6]], "depths": [[1, 2]], "strides": [2]}
    entry = SPACES["clip_cell"]
    assert entry.own_operators(settings) == ["m:own"]
    with pytest.raises(ValueError, match="operator 'm:own' is your own: import its function and give it to the space"):
        entry.make(settings)
    space = entry.make(settings, operators={"m:own": partial(Own, broken="")})
    arch = space.widest({})
    plain = entry.make({**settings, "ops": ["conv2d_k1"]})  # of the same shape
    assert space.cost(arch) == count_flops(space.student(arch), space.example_input(arch.choices)).total
    assert space.cost(arch) < plain.cost(plain.widest({})), "there is no normalisation that is counted"


class Holding(Own):
    """Holds what cannot be copied."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__(c_in, c_out, stride, broken="")
        self.lock, self.numbers = threading.Lock(), (number for number in range(3))


def test_an_operator_that_cannot_be_copied_is_searched_and_derived() -> None:
    settings = {"num_classes": 2, "ops": ["m:own"], "widths": [[4, 6]], "depths": [[1, 2]], "strides": [2]}
    space = SPACES["clip_cell"].make({**settings, "frames": [2], "resolution": [8]}, operators={"m:own": Holding})
    torch.manual_seed(0)
    supernet = Supernet(space).eval()
    student, example = supernet.derive(), torch.randn(space.example_input(supernet.knobs).shape)
    assert any(isinstance(module, Holding) for module in student.modules())
    with torch.no_grad():
        torch.testing.assert_close(student(example), supernet(example))
