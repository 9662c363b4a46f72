"""Space `saliency`: small nets that say where people look in a video (Li, Fu, Zhao, Ge, TIP 2020, arXiv 1904.04992).

    (N, 3, 2, S, S), frames t and t + 1 → trunk `spatial`, `temporal`, or both → `decoder` → (N, 1, S, S), of frame t

A trunk has four stages of convolutions, with maxima over 2×2 pixels behind the first two:

    16, 16, (response norm) | 32 | 64, 64 | 128

and the decoder six layers, 1×1 → 32, 32, 32, 16, then two transposed convolutions → 8 → 1 without ReLU. The temporal
trunk runs up to its first 64 on each of both frames, with the same weights, and then reads [f_t, f_t − f_{t+1}].

The published net is the last choice of everything, at the published sides 32, 64, 96, 128 and 256. What is open: each
stage's width, the number of convolutions in the third stage, each convolution's operator, the decoder's widths and
operators. Which net, and the side of its input, are knobs. Deviations: no convolution before a BatchNorm has a bias;
the channels of [f_t, f_t − f_{t+1}] alternate, which is the same net with the next weights permuted; the response
norm's constants, which the paper does not give, are those of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.module_space import ModuleSpace
from nas_kd.search_spaces.saliency.net import SaliencyNet
from nas_kd.search_spaces.saliency.settings import SaliencySettings
from nas_kd.search_spaces.space import resampled


class SaliencySpace(ModuleSpace):
    """The space described at the top of this module."""

    def __init__(self, settings: SaliencySettings) -> None:
        super().__init__(
            partial(SaliencyNet, settings=settings),
            _example,
            "saliency",
            knobs={"net": settings.net, "side": settings.side},
            settings=settings.model_dump(mode="json"),
        )

    def fit_input(self, clip: Tensor, knobs: Mapping[str, Choice]) -> Tensor:
        """The first two frames, bilinearly resampled.

        Args:
            clip: (N, 3, T, H, W) normalised, T at least 2.

        Returns:
            (N, 3, 2, side, side).

        Raises:
            ValueError: the clip has only one frame.
        """
        if clip.shape[2] < 2:
            raise ValueError(
                f"the students of space saliency are given frames t and t + 1, those of net spatial too, but the clip "
                f"has {clip.shape[2]} frame; give clips of two frames or more (data.frames)"
            )
        return resampled(clip[:, :, :2] if clip.shape[2] > 2 else clip, int(knobs["side"]))


def _example(knobs: Mapping[str, Choice]) -> Tensor:
    side = int(knobs["side"])
    return torch.zeros(1, 3, 2, side, side)
