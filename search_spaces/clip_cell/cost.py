"""Costs of the space `clip_cell`: each part measured at its real shape, parts of equal shape once a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from search_spaces.arch import Choice
from search_spaces.clip_cell.net import Head, Stem, candidate_op, projection
from search_spaces.clip_cell.settings import EDGES, ClipCellSettings
from search_spaces.cost import CostTable, CostTerm
from search_spaces.flops import FlopCount, count_flops

Ints = npt.NDArray[np.int64]


def clip_cell_costs(
    settings: ClipCellSettings, variables: Mapping[str, tuple[Choice, ...]], frames: int, side: int
) -> CostTable:
    """The cost table for clips of `frames` frames of `side` × `side` pixels."""
    meter = _Meter(settings, frames)
    stem = meter.flops("stem", 3, settings.stem_width, 2, side)
    side = -(-side // 2)
    terms: list[CostTerm] = []
    for stage, stride in enumerate(settings.strides):
        terms += meter.stage(stage, side)
        side = -(-side // stride)
    head = [meter.flops("head", width, settings.num_classes, 1, side) for width in settings.widths[-1]]
    terms.append(CostTerm("head", (f"stages.{len(settings.widths) - 1}.width",), np.array(head, dtype=np.int64)))
    return CostTable(variables, tuple(terms), stem, tuple(sorted(meter.free)))


class _Meter:
    """Terms of the stages, and the free operators met on the way."""

    def __init__(self, settings: ClipCellSettings, frames: int) -> None:
        self.settings, self.frames = settings, frames
        self.free: set[str] = set()

    def flops(self, part: str, c_in: int, c_out: int, stride: int, side: int) -> int:
        count = _measure(part, c_in, c_out, stride, self.frames, side)
        self.free.update(count.uncounted)
        return count.total

    def entry(self, part: str, stage: int, side: int) -> Ints:
        """(widths before, widths) FLOPs of a part that reads the stage's input; (widths) behind the stem."""
        widths, stride = self.settings.widths[stage], self.settings.strides[stage]
        before = self.settings.widths[stage - 1] if stage else (self.settings.stem_width,)
        table = np.array([[self.flops(part, a, b, stride, side) for b in widths] for a in before], dtype=np.int64)
        return table if stage else table[0]

    def inside(self, part: str, stage: int, side: int) -> Ints:
        """(widths of the stage) FLOPs of a part that keeps the width."""
        return np.array([self.flops(part, w, w, 1, side) for w in self.settings.widths[stage]], dtype=np.int64)

    def stage(self, stage: int, side: int) -> Iterator[CostTerm]:
        """Terms of one stage, whose input is `side` pixels wide."""
        width, depth, depths = f"stages.{stage}.width", f"stages.{stage}.depth", self.settings.depths[stage]
        entering = (f"stages.{stage - 1}.width", width) if stage else (width,)
        half = -(-side // self.settings.strides[stage])
        yield CostTerm(f"stages.{stage}.cells.0.shortcut", entering, self.entry("shortcut", stage, side))
        for cell in range(depths[-1]):
            runs = np.array([d > cell for d in depths])  # a cell beyond the depth costs nothing
            for edge in EDGES:
                name, ops = f"stages.{stage}.cells.{cell}.edges.{edge}", self.settings.edge_ops(edge)
                if cell == 0 and edge != "1_2":
                    axes, tables = entering, [self.entry(op, stage, side) for op in ops]
                else:
                    axes, tables = (width,), [self.inside(op, stage, half) for op in ops]
                flops = np.stack(tables, axis=-1)[..., None, :] * runs[:, None]
                yield CostTerm(name, (*axes, depth, name), flops)


@lru_cache(maxsize=65536)
def _measure(part: str, c_in: int, c_out: int, stride: int, frames: int, side: int) -> FlopCount:
    if part == "stem":
        module: nn.Module = Stem(c_out)
    elif part == "shortcut":
        module = projection(c_in, c_out, stride=stride)
    elif part == "head":
        module = Head(c_in, c_out)
    else:
        module = candidate_op(c_in, c_out, op=part, stride=stride)
    return count_flops(module, torch.zeros(1, c_in, frames, side, side))
