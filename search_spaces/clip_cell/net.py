"""The definition of the space `clip_cell`: a student for clips from choices."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_kd.search_spaces.choices import Choices
from nas_kd.search_spaces.clip_cell.ops import CandidateOps, FrameConv
from nas_kd.search_spaces.clip_cell.settings import EDGES, ClipCellSettings


def projection(c_in: int, c_out: int, *, stride: int) -> nn.Module:
    """The shortcut of a stage's first cell."""
    return nn.Sequential(FrameConv(c_in, c_out, 1, stride), nn.BatchNorm3d(c_out))


class Stem(nn.Sequential):
    """A 3×3 convolution over each frame, at half the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__(FrameConv(3, width, 3, stride=2), nn.BatchNorm3d(width), nn.ReLU())


class Head(nn.Module):
    """Mean over frames and pixels, then a linear classifier."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, T, H, W) -> logits (N, num_classes)."""
        return cast(Tensor, self.classifier(features.mean(dim=(2, 3, 4))))


class Cell(nn.Module):
    """A cell: only the edges that are there.

    Args:
        choose: makes the choices.
        settings: of the space.
        ops: builds the candidates.
        name: of the cell, which the names of its variables begin with.
        c_in: channels of its input.
        c_out: channels of its output.
        stride: in space.
        first: whether it is the first one of its stage, which changes the width.
    """

    def __init__(
        self,
        choose: Choices,
        settings: ClipCellSettings,
        ops: CandidateOps,
        name: str,
        c_in: int,
        c_out: int,
        stride: int,
        *,
        first: bool,
    ) -> None:
        super().__init__()
        self.shortcut = choose.layer(projection, c_in, c_out, stride=stride) if first else nn.Identity()
        self.edges = nn.ModuleDict()
        for edge in EDGES:
            op = choose.op(f"{name}.edges.{edge}", settings.edge_ops(edge))
            source, step = (c_out, 1) if edge == "1_2" else (c_in, stride)
            if op != "zero":
                self.edges[edge] = choose.layer(ops, source, c_out, op=op, stride=step)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, T, H, W) -> (N, C_out, T, H', W')."""
        out = self.shortcut(x) + self.edges["1_2"](F.relu(self.edges["0_1"](x)))
        if "0_2" in self.edges:
            out = out + self.edges["0_2"](x)
        return F.relu(out)


def stage(choose: Choices, settings: ClipCellSettings, ops: CandidateOps, s: int, c_in: int) -> tuple[nn.Module, int]:
    """The cells of one stage, and their width."""
    width = choose.number(f"stages.{s}.width", settings.widths[s])
    depth = choose.depth(f"stages.{s}.depth", settings.depths[s])

    def cell(j: int) -> nn.Module:
        source, stride = (c_in, settings.strides[s]) if j == 0 else (width, 1)
        return Cell(choose, settings, ops, f"stages.{s}.cells.{j}", source, width, stride, first=j == 0)

    return choose.cells(depth, cell, whole=width), width


class ClipNet(nn.Module):
    """A net of the space `clip_cell`: (N, 3, T, H, W) -> logits (N, num_classes)."""

    def __init__(self, choose: Choices, settings: ClipCellSettings, ops: CandidateOps) -> None:
        super().__init__()
        self.stem = Stem(settings.stem_width)
        width, stages = settings.stem_width, []
        for s in range(len(settings.strides)):
            cells, width = stage(choose, settings, ops, s, width)
            stages.append(cells)
        self.stages = nn.ModuleList(stages)
        self.head = choose.layer(Head, width, settings.num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of normalised clips."""
        x = self.stem(clip.contiguous(memory_format=torch.channels_last_3d))
        for cells in self.stages:
            x = cells(x)
        return cast(Tensor, self.head(x))
