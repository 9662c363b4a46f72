"""How a clip (N, 3, T, H, W) is laid out for a net that wants it in another form.

Shape legend: N clips, T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["NCTHW", "NTCHW", "NTHWC", "frames", "stacked", "pathways"]
Inputs = Tensor | list[Tensor]


def _frames(clip: Tensor) -> Tensor:
    return clip.transpose(1, 2).flatten(0, 1)


def _stacked(clip: Tensor) -> Tensor:
    return clip.transpose(1, 2).flatten(1, 2)


LAYOUTS: Mapping[Layout, Callable[[Tensor], Tensor]] = {
    "NCTHW": lambda clip: clip,
    "NTCHW": lambda clip: clip.transpose(1, 2).contiguous(),
    "NTHWC": lambda clip: clip.permute(0, 2, 3, 4, 1).contiguous(),
    "frames": _frames,
    "stacked": _stacked,
}
"""Layouts of one tensor: `frames` is (N · T, 3, H, W), all frames of the first clip first; `stacked` is
(N, T · 3, H, W), the channels of the first frame first."""


def lay_out(clip: Tensor, layout: Layout, strides: Sequence[int]) -> Inputs:
    """A clip in a layout.

    Args:
        clip: (N, 3, T, H, W).
        layout: wanted.
        strides: of `pathways`, a list of clips (N, 3, T / stride, H, W): frames are taken uniformly, the first and the
            last one included, as SlowFast does (Feichtenhofer et al., ICCV 2019, in its released code).
    """
    if layout != "pathways":
        return LAYOUTS[layout](clip)
    frames = clip.shape[2]
    chosen = [torch.linspace(0, frames - 1, max(frames // stride, 1)).long().to(clip.device) for stride in strides]
    return [clip if stride == 1 else clip[:, :, index] for stride, index in zip(strides, chosen, strict=True)]
