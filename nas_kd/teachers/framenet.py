"""The package's teacher of frames: a small residual encoder (He et al., CVPR 2016) with a top-down decoder.

The decoder merges scales as a feature pyramid does (Lin et al., CVPR 2017): a 1×1 convolution of the encoder's map is
added to the map from above, upsampled to the nearest pixel, and a 3×3 convolution smooths the sum. Deviations: every
convolution has a BatchNorm, the smoothed map is the one that goes on down, and the head reads the largest map alone.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

Count = Annotated[int, Field(ge=1)]


class FrameNetSettings(BaseModel):
    """Settings of the net.

    Attributes:
        widths: channels of each stage; the first stage is at a quarter of the frame's sides, each other at half of the
            one before.
        depths: residual blocks of each stage.
        head_width: channels of the decoder and of the head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[Count, ...] = (32, 64, 96)
    depths: tuple[Count, ...] = (2, 2, 2)
    head_width: Count = 48

    @model_validator(mode="after")
    def _aligned(self) -> FrameNetSettings:
        if not len(self.widths) == len(self.depths) > 0:
            raise ValueError(
                f"widths and depths must name the same number of stages, at least 1, but name {len(self.widths)} and "
                f"{len(self.depths)}"
            )
        return self


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(c_out))


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(c_in, c_out, 3, stride), nn.ReLU(), *_conv(c_out, c_out, 3))
        self.shortcut = nn.Identity() if c_in == c_out and stride == 1 else _conv(c_in, c_out, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.relu(self.shortcut(x) + self.body(x)))


class FrameNet(nn.Module):
    """(N, 3, H, W) normalised frames -> (N, num_outputs, ⌈H/4⌉, ⌈W/4⌉) maps, for any H and W.

    Feature maps are `stages.0`, …, on the way up and `smooth.0`, …, on the way down, largest first. The first
    convolution is `stem.0`, the last one `head.3`.
    """

    def __init__(self, num_outputs: int, settings: FrameNetSettings | None = None) -> None:
        super().__init__()
        s = settings or FrameNetSettings()
        self.stem = nn.Sequential(*_conv(3, s.widths[0], 3, stride=2), nn.ReLU())
        inputs = (s.widths[0], *s.widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(c_in if i == 0 else c, c, 2 if i == 0 else 1) for i in range(n)))
            for c_in, c, n in zip(inputs, s.widths, s.depths, strict=True)
        )
        self.lateral = nn.ModuleList(_conv(c, s.head_width, 1) for c in s.widths)
        self.smooth = nn.ModuleList(
            nn.Sequential(*_conv(s.head_width, s.head_width, 3), nn.ReLU()) for _ in s.widths[:-1]
        )
        self.head = nn.Sequential(
            *_conv(s.head_width, s.head_width, 3), nn.ReLU(), nn.Conv2d(s.head_width, num_outputs, 1)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Maps."""
        x = self.stem(frames)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        sides = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        x = sides[-1]
        for side, smooth in zip(sides[-2::-1], list(self.smooth)[::-1], strict=True):
            x = smooth(side + F.interpolate(x, size=side.shape[-2:], mode="nearest"))
        return cast(Tensor, self.head(x))


def build_framenet(num_outputs: int, settings: dict[str, Any]) -> FrameNet:
    """The net from the channels that the task needs and the settings as JSON values.

    Raises:
        ValidationError: settings that make no net.
    """
    return FrameNet(num_outputs, FrameNetSettings.model_validate(settings))
