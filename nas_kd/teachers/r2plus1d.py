"""The package's teacher of clips: a small residual net of (2+1)-D convolutions (Tran et al., CVPR 2018).

Deviation: the width between the spatial and the temporal convolution is the block's own, not matched to the parameters
of a 3-D convolution, and there is no temporal stride, so every map has the clip's number of frames.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from nas_kd.search_spaces.clip_cell.ops import FrameConv, TimeConv


class R2Plus1DSettings(BaseModel):
    """Settings of the net.

    Attributes:
        widths: channels of each stage.
        blocks: residual blocks of each stage.
        strides: spatial stride of each stage's first block; the stem halves the sides before.
        dropout: before the classifier.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (1, 1, 1)
    strides: tuple[int, ...] = (1, 2, 2)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _aligned(self) -> R2Plus1DSettings:
        if not len(self.widths) == len(self.blocks) == len(self.strides) > 0:
            raise ValueError(
                "widths, blocks and strides must name the same number of stages, but name "
                f"{len(self.widths)}, {len(self.blocks)} and {len(self.strides)}"
            )
        return self


def _conv(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(FrameConv(c_in, c_out, 3, stride), nn.BatchNorm3d(c_out), nn.ReLU(), TimeConv(c_out, c_out, 3))


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(c_in, c_out, stride),
            nn.BatchNorm3d(c_out),
            nn.ReLU(),
            _conv(c_out, c_out, 1),
            nn.BatchNorm3d(c_out),
        )
        same = c_in == c_out and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(FrameConv(c_in, c_out, 1, stride), nn.BatchNorm3d(c_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


class R2Plus1D(nn.Module):
    """(N, 3, T, H, W) normalised clips -> (N, num_classes) logits; feature maps are `layers.0`, `layers.1`, …"""

    def __init__(self, num_classes: int, settings: R2Plus1DSettings | None = None) -> None:
        super().__init__()
        s = settings or R2Plus1DSettings()
        self.stem = nn.Sequential(FrameConv(3, s.widths[0], 5, stride=2), nn.BatchNorm3d(s.widths[0]), nn.ReLU())
        inputs = (s.widths[0], *s.widths[:-1])
        self.layers = nn.ModuleList(
            nn.Sequential(*(_Block(c_in if i == 0 else c, c, stride if i == 0 else 1) for i in range(n)))
            for c_in, c, n, stride in zip(inputs, s.widths, s.blocks, s.strides, strict=True)
        )
        self.dropout = nn.Dropout(s.dropout)
        self.classifier = nn.Linear(s.widths[-1], num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(clip.contiguous(memory_format=torch.channels_last_3d))
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.classifier(self.dropout(x.mean(dim=(2, 3, 4)))))


def build_r2plus1d(num_classes: int, settings: dict[str, Any]) -> R2Plus1D:
    """The net from the channels that the task needs and the settings as JSON values.

    Raises:
        ValidationError: settings that make no net.
    """
    return R2Plus1D(num_classes, R2Plus1DSettings.model_validate(settings))
