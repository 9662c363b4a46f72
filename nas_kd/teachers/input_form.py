"""How clips of a campaign become the input of a net: size, frames, normalisation, layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nas_kd.search_spaces.frame_selectors import uniform
from nas_kd.settings.normalize import NormalizeConfig
from nas_kd.teachers.layouts import Layout

_DEFAULT = NormalizeConfig()
_BYTES = NormalizeConfig(mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))


@dataclass(frozen=True)
class InputForm:
    """What a teacher makes of a clip before its net sees it.

    Attributes:
        layout: `auto` tries all of them.
        strides: of the frames of each pathway, for `pathways`.
        size: (H, W) that the net wants; None for that of the data.
        frames: that the net wants; None for those of the data.
        normalize: of the net, where it is another one than the campaign's.
        given: the campaign's.
        as_bytes: whether the net wants bytes, uint8 from 0 to 255, instead of normalised numbers.
    """

    layout: Layout | Literal["auto"] = "auto"
    strides: tuple[int, ...] = (4, 1)
    size: tuple[int, int] | None = None
    frames: int | None = None
    normalize: NormalizeConfig | None = None
    given: NormalizeConfig = _DEFAULT
    as_bytes: bool = False

    def fit(self, clip: Tensor) -> Tensor:
        """A clip (N, 3, T, H, W), or frames (N, 3, H, W), with the numbers, frames and size that the net wants."""
        if self.frames is not None and clip.ndim == 5 and clip.shape[2] != self.frames:
            clip = clip[:, :, _nearest_frames(clip.shape[2], self.frames)]
        if self.size is not None and clip.shape[-2:] != self.size:
            frames = clip.transpose(1, 2).flatten(0, 1) if clip.ndim == 5 else clip
            frames = F.interpolate(frames, size=self.size, mode="bilinear", align_corners=False, antialias=True)
            clip = frames.reshape(len(clip), -1, *frames.shape[1:]).transpose(1, 2) if clip.ndim == 5 else frames
            clip = normalized(brightness(clip, self.given), self.given)
        normalize = _BYTES if self.as_bytes else self.normalize
        if normalize is not None and normalize != self.given:
            clip = normalized(brightness(clip, self.given), normalize)
        return clip.round().clamp(0, 255).to(torch.uint8) if self.as_bytes else clip


def brightness(clip: Tensor, normalize: NormalizeConfig) -> Tensor:
    """Pixels of a normalised clip (N, 3, T, H, W), or frames (N, 3, H, W), in shares of full brightness.

    They are from 0 to 1, since rounding would take black a little below 0, which some nets refuse.
    """
    mean, std = _of_colors(clip, normalize)
    return (clip * std + mean).clamp(0, 1)


def normalized(pixels: Tensor, normalize: NormalizeConfig) -> Tensor:
    """Pixels in shares of full brightness, (N, 3, T, H, W) or (N, 3, H, W), normalised."""
    mean, std = _of_colors(pixels, normalize)
    return (pixels - mean) / std


def _of_colors(pixels: Tensor, normalize: NormalizeConfig) -> tuple[Tensor, Tensor]:
    shape = (3,) + (1,) * (pixels.ndim - 2)
    return pixels.new_tensor(normalize.mean).reshape(shape), pixels.new_tensor(normalize.std).reshape(shape)


def _nearest_frames(total: int, wanted: int) -> list[int]:
    """Frames that are taken of a clip, uniformly; where it has too few, some are repeated."""
    return uniform(total, wanted) if wanted <= total else [i * total // wanted for i in range(wanted)]
