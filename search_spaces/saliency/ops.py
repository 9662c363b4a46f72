"""Layers of the space `saliency`: candidate operators for frames, the response normalisation, the decoder.

Shapes: N frames, C channels, H and W pixels; every operator maps (N, C_in, H, W) to (N, C_out, H, W) and ends with
BatchNorm and ReLU. An operator of smaller width is the leading slice of a larger one's weights (`slices.Sliced`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nas_kd.search_spaces.choices import Choices, FixedChoices

FrameOp = Callable[[int, int], nn.Module]
"""(in_channels, out_channels) -> module."""


def conv(c_in: int, c_out: int, *, kernel: int) -> nn.Sequential:
    """A convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


def separable(c_in: int, c_out: int, *, kernel: int) -> nn.Sequential:
    """A depthwise convolution and a 1×1 convolution, each with BatchNorm and ReLU: Howard et al., MobileNets, 2017."""
    depthwise = nn.Conv2d(c_in, c_in, kernel, padding=kernel // 2, groups=c_in, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(c_in), nn.ReLU(), *conv(c_in, c_out, kernel=1))


FRAME_OPS: dict[str, FrameOp] = {
    **{f"conv_k{k}": partial(conv, kernel=k) for k in (1, 3, 5)},
    **{f"separable_k{k}": partial(separable, kernel=k) for k in (3, 5)},
}


def frame_op(name: str) -> FrameOp:
    """The builder of that name.

    Raises:
        ValueError: no such operator; the sentence lists those that there are.
    """
    if name not in FRAME_OPS:
        raise ValueError(f"unknown op {name!r}; choose from {', '.join(FRAME_OPS)}")
    return FRAME_OPS[name]


def frame_layer(c_in: int, c_out: int, *, op: str) -> nn.Module:
    """The operator of that name."""
    return frame_op(op)(c_in, c_out)


def deconv(c_in: int, c_out: int) -> nn.Module:
    """A transposed convolution that doubles the sides, linear: the published net has no ReLU here."""
    return nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1)


class ResponseNorm(nn.Module):
    """Each value over (1 + α · mean of the squares in a window of 5 channels) to the power of 3/4, with α = 1e-4.

    Krizhevsky et al., NeurIPS 2012, section 3.3, with k = 1 and α over the window's mean as in `nn.LocalResponseNorm`,
    whose values these are; beyond the first and last channel there are zeros. Five shifted additions in place of its
    pooling take a sixth of the time on a CPU. There are no weights, so it has no width either.
    """

    alpha, size = 1e-4, 5

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        width, reach = x.shape[1], self.size // 2
        squares = F.pad(x * x, (0, 0, 0, 0, reach, reach))
        total = squares[:, :width]
        for shift in range(1, self.size):
            total = total + squares[:, shift : shift + width]
        root = (1 + self.alpha / self.size * total).rsqrt()  # the power is this root times its own root
        return x * root * root.sqrt()


class LeadingConv(nn.Conv2d):
    """A 1×1 convolution without bias that reads inputs of fewer channels by its leading columns."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, at most C_in, H, W) -> (N, C_out, H, W)."""
        return F.conv2d(x, self.weight[:, : x.shape[1]])


def decoder(choose: Choices, c_in: Any, widths: Sequence[Any], ops: Sequence[Any]) -> nn.Sequential:
    """(N, C_in, s, s) -> (N, 1, 4s, 4s): a 1×1 convolution, three operators, two transposed convolutions.

    Args:
        choose: builds the layers; the other arguments may be choices.
        c_in: channels of the input.
        widths: channels behind each layer but the last, which gives one map.
        ops: the three operators.
    """
    layers = [choose.layer(conv, c_in, widths[0], kernel=1)]
    for a, b, op in zip(widths[:3], widths[1:4], ops, strict=True):
        layers.append(choose.layer(frame_layer, a, b, op=op))
    return nn.Sequential(*layers, choose.layer(deconv, widths[3], widths[4]), choose.layer(deconv, widths[4], 1))


def make_decoder(channels_in: int, widths: Sequence[int] = (32, 32, 32, 16, 8)) -> nn.Module:
    """The published decoder, for any map that needs one: (N, C, s, s) -> (N, 1, 4s, 4s), linear at its end.

    Its first layer reads inputs of fewer channels than `channels_in` by the leading columns of its weights, so one
    decoder fits a trunk whose width is searched.

    Raises:
        ValueError: there are not five widths.
    """
    if len(widths) != 5:
        raise ValueError(f"a decoder needs five widths, one a layer but the last, but got {list(widths)}")
    published = decoder(FixedChoices({}), channels_in, widths, ("conv_k3",) * 3)
    first = published[0]
    assert isinstance(first, nn.Sequential)
    first[0] = LeadingConv(channels_in, widths[0])
    return published
