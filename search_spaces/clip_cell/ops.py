"""Candidate operators for clips: a plain dict, name -> builder.

Shapes: N clips, C channels, T frames, H and W pixels; every operator maps (N, C_in, T, H, W) to
(N, C_out, T, ceil(H / stride), ceil(W / stride)) and ends with BatchNorm, without activation: the cell adds first.

All widths inside an operator grow with its channels, so that an operator of smaller width is the leading slice of a
larger one's weights (see `nas_kd.search_spaces.cells.Sliced`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

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


def op_named(name: str) -> OpBuilder:
    """The builder of that name.

    Raises:
        ValueError: no such operator; the sentence lists those that there are.
    """
    if name not in OPS:
        raise ValueError(f"unknown op {name!r}; choose from {', '.join(OPS)}")
    return OPS[name]
