"""Candidate operators for clips: a plain dict, name -> builder, and what operators of users must keep to.

Shapes: N clips, C channels, T frames, H and W pixels; every operator maps (N, C_in, T, H, W) to
(N, C_out, T, ceil(H / stride), ceil(W / stride)) and ends with BatchNorm, without activation: the cell adds first.

All widths inside an operator grow with its channels, so that an operator of smaller width is the leading slice of a
larger one's weights (see `nas_kd.search_spaces.cells.Sliced`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.operators import built, check_export, check_output, check_slices, is_reference

OpBuilder = Callable[[int, int, int], nn.Module]
"""(in_channels, out_channels, spatial stride) -> module."""


class FrameConv(nn.Conv2d):
    """A convolution over each frame: (1, k, k). Frames join the batch, a free view when channels are last."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, clip: Tensor) -> Tensor:
        """(N, C_in, T, H, W) -> (N, C_out, T, H', W')."""
        frames = super().forward(clip.transpose(1, 2).flatten(0, 1))
        return frames.view(-1, clip.shape[2], *frames.shape[1:]).transpose(1, 2)


class TimeConv(nn.Conv2d):
    """A convolution over time: (k, 1, 1). Pixels are one axis, a free view: 2 to 9 times faster on CPU than Conv3d."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, (kernel, 1), padding=(kernel // 2, 0), groups=groups, bias=False)

    def forward(self, clip: Tensor) -> Tensor:
        """(N, C_in, T, H, W) -> (N, C_out, T, H, W)."""
        out = super().forward(clip.flatten(3))
        return out.view(*out.shape[:3], *clip.shape[3:])


class TemporalShift(nn.Module):
    """One eighth of the channels takes the next frame's values, one eighth the previous one's, zeros at the ends.

    Lin et al., TSM, ICCV 2019, section 3 (the two-directional shift).
    """

    def forward(self, clip: Tensor) -> Tensor:
        """(N, C, T, H, W) -> the same shape."""
        fold = max(clip.shape[1] // 8, 1)
        gap = torch.zeros_like(clip[:, :fold, :1])
        ahead = torch.cat([clip[:, :fold, 1:], gap], dim=2)
        behind = torch.cat([gap, clip[:, fold : 2 * fold, :-1]], dim=2) if clip.shape[1] > 1 else clip[:, :0]
        return torch.cat([ahead, behind, clip[:, 2 * fold :]], dim=1)


class Zero(nn.Module):
    """No connection: zeros of the shape that the other candidates give."""

    def __init__(self, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, clip: Tensor) -> Tensor:
        """(N, C_in, T, H, W) -> zeros (N, C_out, T, H', W')."""
        n, _, t, h, w = clip.shape
        return clip.new_zeros((n, self.out_channels, t, -(-h // self.stride), -(-w // self.stride)))


def conv2d(c_in: int, c_out: int, stride: int, *, kernel: int) -> nn.Module:
    """A convolution over each frame."""
    return nn.Sequential(FrameConv(c_in, c_out, kernel, stride), nn.BatchNorm3d(c_out))


def conv2plus1d(c_in: int, c_out: int, stride: int, *, kernel: int) -> nn.Module:
    """Space, then time: Tran et al., R(2+1)D, CVPR 2018. Deviation: the middle width is c_out, not matched to 3-D."""
    return nn.Sequential(
        FrameConv(c_in, c_out, kernel, stride),
        nn.BatchNorm3d(c_out),
        nn.ReLU(),
        TimeConv(c_out, c_out, 3),
        nn.BatchNorm3d(c_out),
    )


def conv3d(c_in: int, c_out: int, stride: int, *, kernel: int) -> nn.Module:
    """A full convolution over 3 frames and kernel × kernel pixels."""
    conv = nn.Conv3d(c_in, c_out, (3, kernel, kernel), (1, stride, stride), (1, kernel // 2, kernel // 2), bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(c_out))


def separable(c_in: int, c_out: int, stride: int, *, kernel: int, expansion: int, temporal: bool = False) -> nn.Module:
    """Depthwise-separable with expansion: Sandler et al., MobileNetV2, CVPR 2018.

    Args:
        c_in: input channels.
        c_out: output channels.
        stride: in space.
        kernel: side of the depthwise convolution over each frame.
        expansion: middle channels are expansion · c_in; without expansion there is no first 1×1 convolution.
        temporal: add a depthwise convolution over 3 frames.
    """
    middle = expansion * c_in
    layers: list[nn.Module] = []
    if expansion > 1:
        layers += [FrameConv(c_in, middle, 1), nn.BatchNorm3d(middle), nn.ReLU()]
    layers += [FrameConv(middle, middle, kernel, stride, groups=middle), nn.BatchNorm3d(middle)]
    if temporal:
        layers += [TimeConv(middle, middle, 3, groups=middle), nn.BatchNorm3d(middle)]
    return nn.Sequential(*layers, nn.ReLU(), FrameConv(middle, c_out, 1), nn.BatchNorm3d(c_out))


def shifted(c_in: int, c_out: int, stride: int, *, inner: OpBuilder) -> nn.Module:
    """A temporal shift before `inner`."""
    return nn.Sequential(TemporalShift(), inner(c_in, c_out, stride))


def identity(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The input itself, where the shape is kept.

    Raises:
        ValueError: the operator would have to change the shape.
    """
    if c_in != c_out or stride != 1:
        raise ValueError(f"identity keeps the shape, but here {c_in} channels become {c_out} at stride {stride}")
    return nn.Identity()


def zero(c_in: int, c_out: int, stride: int) -> nn.Module:
    """No connection."""
    return Zero(c_out, stride)


KERNELS = (3, 5, 7)
EXPANSIONS = (1, 2, 4, 6)

OPS: dict[str, OpBuilder] = {
    "identity": identity,
    "zero": zero,
    **{f"conv2d_k{k}": partial(conv2d, kernel=k) for k in (1, *KERNELS)},
    **{f"conv2plus1d_k{k}": partial(conv2plus1d, kernel=k) for k in KERNELS},
    **{f"conv3d_k{k}": partial(conv3d, kernel=k) for k in (1, *KERNELS)},
    **{f"shift_k{k}": partial(shifted, inner=partial(conv2d, kernel=k)) for k in (1, *KERNELS)},
    **{f"separable_k{k}_e{e}": partial(separable, kernel=k, expansion=e) for k in KERNELS for e in EXPANSIONS},
    **{
        f"separable3d_k{k}_e{e}": partial(separable, kernel=k, expansion=e, temporal=True)
        for k in KERNELS
        for e in EXPANSIONS
    },
    **{
        f"shift_separable_k{k}_e{e}": partial(shifted, inner=partial(separable, kernel=k, expansion=e))
        for k in KERNELS
        for e in EXPANSIONS
    },
}


def check_name(name: str) -> None:
    """Raise `ValueError` where a name is neither in `OPS` nor a `module:function` of the user's."""
    if name not in OPS and not is_reference(name):
        raise ValueError(f"unknown op {name!r}; choose from {', '.join(OPS)}, or give your own as module:function")


@dataclass(frozen=True)
class CandidateOps:
    """Builds candidates by name.

    Attributes:
        own: name and function of the user's operators.
    """

    own: tuple[tuple[str, OpBuilder], ...] = ()

    def __call__(self, c_in: int, c_out: int, *, op: str, stride: int) -> nn.Module:
        """The operator of that name."""
        build = dict(self.own).get(op) or OPS[op]
        return build(c_in, c_out, stride)


class EdgeShape(NamedTuple):
    """Where an operator is offered.

    Attributes:
        narrow: (input, output) channels at the smallest widths.
        wide: (input, output) channels at the largest widths.
        stride: in space.
        frames: of the input.
        side: height and width of the input.
    """

    narrow: tuple[int, int]
    wide: tuple[int, int]
    stride: int
    frames: int
    side: int


def check_own_op(name: str, build: OpBuilder, edges: Sequence[EdgeShape]) -> None:
    """Raise where an operator does not keep the contract at the top of this module.

    Args:
        name: of the operator, for the sentence.
        build: the operator.
        edges: that it is offered on.

    Raises:
        ValueError: it cannot be built, gives another shape, cannot run at several widths, has an operation whose FLOPs
            nobody counts, or cannot be exported.
    """
    exported: set[int] = set()
    for edge in edges:
        small = -(-edge.side // edge.stride)
        modules = []
        for c_in, c_out in (edge.narrow, edge.wide):
            modules.append(built(name, build, c_in, c_out, edge.stride))
            x = torch.zeros(2, c_in, edge.frames, edge.side, edge.side)
            check_output(name, modules[-1], x, (2, c_out, edge.frames, small, small))
        check_slices(name, *modules)
        if edge.stride not in exported:
            check_export(name, modules[-1], x)
            exported.add(edge.stride)
