"""The package's teacher of saliency: two branches at the full resolution of the data, whose maps are averaged.

Each branch is a small U-Net (Ronneberger et al., MICCAI 2015): maps of the way down are joined, at equal scale, to
those of the way up. One branch reads frame t, the other frame t and its difference to frame t + 1: space and time, as
the two teachers of Li et al. (TIP 2020, arXiv 1904.04992). Deviations from the U-Net: convolutions are padded and have
a BatchNorm, scales change by a stride of 2 and by bilinear upsampling to the size of the map that is joined, so any H
and W do, and the head is linear.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Count = Annotated[int, Field(ge=1)]


class SaliencyTeacherSettings(BaseModel):
    """Settings of both branches.

    Attributes:
        widths: channels of each scale; the first is that of the frame, each other has half the sides of the one before.
        depth: convolutions at each scale, on the way down and on the way up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: Annotated[tuple[Count, ...], Field(min_length=2)] = (16, 32, 64, 96)
    depth: Count = 2


def _convs(c_in: int, c_out: int, depth: int, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        conv = nn.Conv2d(c_out if i else c_in, c_out, 3, 1 if i else stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers)


class Branch(nn.Module):
    """(N, 3, H, W), or (N, 3, 2, H, W) with `motion` -> saliency map (N, 1, H, W), linear, for any H and W.

    Feature maps are `down.0`, …, largest first, and `up.0`, …, smallest first.
    """

    def __init__(self, settings: SaliencyTeacherSettings, *, motion: bool) -> None:
        super().__init__()
        widths, depth = settings.widths, settings.depth
        self.motion = motion
        inputs = (6 if motion else 3, *widths[:-1])
        self.down = nn.ModuleList(
            _convs(a, b, depth, stride=2 if i else 1) for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.up = nn.ModuleList(_convs(a + b, a, depth) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """The map of frame t."""
        if self.motion:
            now, later = frames[:, :, 0], frames[:, :, 1]
            frames = torch.cat([now, now - later], dim=1)
        x, sides = frames, []
        for down in self.down:
            x = down(x)
            sides.append(x)
        for up, side in zip(self.up, sides[-2::-1], strict=True):
            x = F.interpolate(x, size=side.shape[-2:], mode="bilinear", align_corners=False)
            x = up(torch.cat([side, x], dim=1))
        return cast(Tensor, self.head(x))


class TwoBranch(nn.Module):
    """(N, 3, T, H, W) normalised clips, T at least 2 -> saliency maps (N, 1, H, W) of their first frame, linear.

    Its parts are `spatial`, which reads frame t, and `temporal`, which reads frames t and t + 1.
    """

    def __init__(self, settings: SaliencyTeacherSettings | None = None) -> None:
        super().__init__()
        s = settings or SaliencyTeacherSettings()
        self.spatial = Branch(s, motion=False)
        self.temporal = Branch(s, motion=True)

    def forward(self, clip: Tensor) -> Tensor:
        """The mean of both maps."""
        maps = self.branches(clip)
        return 0.5 * (maps["spatial"] + maps["temporal"])

    def branches(self, clip: Tensor) -> dict[str, Tensor]:
        """The map of each branch, (N, 1, H, W), so that each can be trained on its own.

        Raises:
            ValueError: the clip has only one frame.
        """
        if clip.shape[2] < 2:
            raise ValueError(
                f"the saliency teacher reads frames t and t + 1, whatever its students read, but the clip has "
                f"{clip.shape[2]} frame; give clips of two frames or more (data.frames)"
            )
        return {"spatial": self.spatial(clip[:, :, 0]), "temporal": self.temporal(clip[:, :, :2])}


def build_saliency_teacher(num_outputs: int, settings: dict[str, Any]) -> TwoBranch:
    """The teacher from the channels that the task needs and the settings as JSON values.

    Raises:
        ValueError: the task does not want one map, or the settings do not fit.
    """
    if num_outputs != 1:
        raise ValueError(
            f"teacher.model saliency returns one map a frame, but the task needs {num_outputs} outputs; choose the "
            "saliency task, or another teacher"
        )
    return TwoBranch(SaliencyTeacherSettings(**settings))
