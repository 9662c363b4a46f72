"""Modules of the space `clip_cell`: the plain student, and the supernet whose parts carry the same names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.arch import Choice
from search_spaces.cells import Edge, Sliced, mix_widths
from search_spaces.clip_cell.ops import FrameConv, op_named
from search_spaces.clip_cell.settings import EDGES, ClipCellSettings
from search_spaces.gates import Gate, GateFactory, named_gate


def projection(c_in: int, c_out: int, *, stride: int) -> nn.Module:
    """The shortcut of a stage's first cell."""
    return nn.Sequential(FrameConv(c_in, c_out, 1, stride), nn.BatchNorm3d(c_out))


def candidate_op(c_in: int, c_out: int, *, op: str, stride: int) -> nn.Module:
    """The operator of that name; module-level, so that a supernet can be pickled."""
    return op_named(op)(c_in, c_out, stride)


class Stem(nn.Sequential):
    """A 3×3 convolution over each frame, at half the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__(FrameConv(3, width, 3, stride=2), nn.BatchNorm3d(width), nn.ReLU())


class Head(nn.Module):
    """Mean over frames and pixels, then a linear classifier; a narrower input uses the leading columns."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        pooled = features.mean(dim=(2, 3, 4))
        return F.linear(pooled, self.classifier.weight[:, : pooled.shape[1]], self.classifier.bias)


class StudentCell(nn.Module):
    """A cell of a student: only the edges that are there."""

    def __init__(self, c_in: int, c_out: int, stride: int, ops: Mapping[str, str], *, first: bool) -> None:
        super().__init__()
        self.shortcut = projection(c_in, c_out, stride=stride) if first else nn.Identity()
        self.edges = nn.ModuleDict()
        for edge, op in ops.items():
            if op != "zero":
                source, step = (c_out, 1) if edge == "1_2" else (c_in, stride)
                self.edges[edge] = candidate_op(source, c_out, op=op, stride=step)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, T, H, W) -> (N, C_out, T, H', W')."""
        out = self.shortcut(x) + self.edges["1_2"](F.relu(self.edges["0_1"](x)))
        if "0_2" in self.edges:
            out = out + self.edges["0_2"](x)
        return F.relu(out)


class ClipStudent(nn.Module):
    """A student of the space `clip_cell`: (N, 3, T, H, W) -> logits (N, num_classes)."""

    def __init__(self, settings: ClipCellSettings, choices: Mapping[str, Choice]) -> None:
        super().__init__()
        self.stem = Stem(settings.stem_width)
        width, stages = settings.stem_width, []
        for s, stride in enumerate(settings.strides):
            cells = []
            for j in range(int(choices[f"stages.{s}.depth"])):
                prefix = f"stages.{s}.cells.{j}.edges."
                ops = {edge: str(choices[prefix + edge]) for edge in EDGES}
                target = int(choices[f"stages.{s}.width"])
                cells.append(StudentCell(width, target, stride if j == 0 else 1, ops, first=j == 0))
                width = target
            stages.append(nn.Sequential(*cells))
        self.stages = nn.ModuleList(stages)
        self.head = Head(width, settings.num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of normalised clips."""
        x = self.stem(clip.contiguous(memory_format=torch.channels_last_3d))
        for stage in self.stages:
            x = stage(x)
        return cast(Tensor, self.head(x))


class SearchCell(nn.Module):
    """A cell with all candidates, at any width up to the largest."""

    def __init__(
        self,
        settings: ClipCellSettings,
        c_in: int,
        c_out: int,
        stride: int,
        prefix: str,
        make: GateFactory,
        first: bool,
    ) -> None:
        super().__init__()
        self.shortcut = Sliced(partial(projection, stride=stride), c_in, c_out) if first else None
        self.edges = nn.ModuleDict()
        for edge in EDGES:
            source, step = (c_out, 1) if edge == "1_2" else (c_in, stride)
            build = {op: partial(candidate_op, op=op, stride=step) for op in settings.edge_ops(edge)}
            self.edges[edge] = Edge({op: Sliced(make_op, source, c_out) for op, make_op in build.items()}, make)
            cast(Gate, self.edges[edge].gate).name = f"{prefix}.edges.{edge}"

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C_in, T, H, W) -> (N, width, T, H', W')."""
        out = x if self.shortcut is None else self.shortcut(x, width)
        out = out + self.edges["1_2"](F.relu(self.edges["0_1"](x, width)), width)
        return F.relu(out + self.edges["0_2"](x, width))


class SearchStage(nn.Module):
    """Cells of one stage under a width gate and a depth gate."""

    def __init__(self, settings: ClipCellSettings, stage: int, c_in: int, make: GateFactory) -> None:
        super().__init__()
        widths, depths = settings.widths[stage], settings.depths[stage]
        self.width = named_gate(make, widths, f"stages.{stage}.width")
        self.depth = named_gate(make, depths, f"stages.{stage}.depth")
        self.cells = nn.ModuleList(
            SearchCell(
                settings,
                c_in if j == 0 else widths[-1],
                widths[-1],
                settings.strides[stage] if j == 0 else 1,
                f"stages.{stage}.cells.{j}",
                make,
                first=j == 0,
            )
            for j in range(depths[-1])
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, T, H, W) -> (N, widest drawn, T, H', W')."""

        def at_width(width: int) -> Tensor:
            draw = self.depth.draw()
            depths = [int(self.depth.choices[i]) for i in draw.indices]
            outputs: dict[int, Tensor] = {}
            hidden = x
            for j in range(max(depths)):
                hidden = self.cells[j](hidden, width)
                outputs[j + 1] = hidden
            return draw.combine(lambda i: outputs[int(self.depth.choices[i])])

        return mix_widths(self.width, at_width)


class ClipSupernet(nn.Module):
    """All students of the space at once; module names match those of `ClipStudent`."""

    def __init__(self, settings: ClipCellSettings, make_gate: GateFactory) -> None:
        super().__init__()
        self.stem = Stem(settings.stem_width)
        inputs = [settings.stem_width, *(widths[-1] for widths in settings.widths)]
        self.stages = nn.ModuleList(
            SearchStage(settings, s, inputs[s], make_gate) for s in range(len(settings.strides))
        )
        self.head = Head(inputs[-1], settings.num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of normalised clips."""
        x = self.stem(clip.contiguous(memory_format=torch.channels_last_3d))
        for stage in self.stages:
            x = stage(x)
        return cast(Tensor, self.head(x))
