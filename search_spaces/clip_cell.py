"""Space `clip_cell`: students for clips, from cells whose edges hold gated candidates.

    clip (N, 3, T, H, W) → stem (3×3, stride 2) → stages → mean over T, H, W → linear → (N, num_classes)

A stage has a searchable width and depth; its first cell changes width and stride. A cell adds its edges to a shortcut:

    one node:   out = relu(shortcut(x) + e_0_1(x))
    two nodes:  h = relu(e_0_1(x));  out = relu(shortcut(x) + e_0_2(x) + e_1_2(h))

The shortcut is a 1×1 convolution in the first cell of a stage and the input itself in the others, so `zero` on all edges
skips a cell. With two nodes `identity` is offered on the edge between them (elsewhere it would double the shortcut), and
an edge e_0_1 whose result `zero` on e_1_2 discards has no effect: it does not run, costs nothing and is left out of the
`ArchSpec`, as are the edges of cells beyond the chosen depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from search_spaces.arch import Choice
from search_spaces.cells import Edge, Sliced, mix_widths
from search_spaces.cost import CostTable, CostTerm
from search_spaces.flops import FlopCount, count_flops
from search_spaces.gates import Gate, GateFactory
from search_spaces.ops import FrameConv, op_named
from search_spaces.space import SearchSpace

DEFAULT_OPS = (
    "conv2d_k3",
    "conv2plus1d_k3",
    "conv3d_k3",
    "separable_k3_e2",
    "separable3d_k3_e2",
    "separable3d_k5_e1",
    "shift_k3",
    "identity",
    "zero",
)


class ClipCellSettings(BaseModel):
    """Settings of the space.

    Attributes:
        num_classes: outputs of the classifier.
        stem_width: channels after the stem.
        widths: for each stage, the channel counts to choose from.
        depths: for each stage, the numbers of cells to choose from.
        strides: for each stage, the spatial stride of its first cell.
        nodes: nodes of a cell after its input: 1 (one edge) or 2 (three edges).
        ops: candidates of the edges, names in `search_spaces.ops.OPS`.
        resolution: sides of the student's square input to choose from, in pixels.
        frames: numbers of frames to choose from, taken uniformly from the teacher's clip.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int = Field(ge=2)
    stem_width: int = Field(default=8, ge=1)
    widths: tuple[tuple[int, ...], ...] = ((8, 12, 16), (16, 24, 32), (32, 48, 64))
    depths: tuple[tuple[int, ...], ...] = ((1, 2), (1, 2), (1, 2))
    strides: tuple[int, ...] = (1, 2, 2)
    nodes: Literal[1, 2] = 2
    ops: tuple[str, ...] = DEFAULT_OPS
    resolution: tuple[int, ...] = (32,)
    frames: tuple[int, ...] = (8,)

    @model_validator(mode="after")
    def _valid(self) -> ClipCellSettings:
        if not len(self.widths) == len(self.depths) == len(self.strides) > 0:
            raise ValueError(
                "widths, depths and strides must name the same number of stages, but name "
                f"{len(self.widths)}, {len(self.depths)} and {len(self.strides)}"
            )
        for name in ("resolution", "frames", "strides"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must hold at least one number, all 1 or more, but is {getattr(self, name)}")
        for name in ("resolution", "frames"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name} must ascend without repetition, but is {list(values)}")
        for name in ("widths", "depths"):
            for stage, values in enumerate(getattr(self, name)):
                if not values or list(values) != sorted(set(values)) or values[0] < 1:
                    raise ValueError(
                        f"{name} of stage {stage} must be positive numbers that ascend, but are {list(values)}"
                    )
        for op in self.ops:
            op_named(op)
        if len(set(self.ops)) != len(self.ops) or not set(self.ops) - {"identity", "zero"}:
            raise ValueError(f"ops must hold no duplicates and at least one convolution, but are {list(self.ops)}")
        if self.nodes == 1 and "identity" in self.ops:
            raise ValueError("identity needs nodes=2: in a cell of one edge it would only double the shortcut")
        return self

    def edge_ops(self, edge: str) -> tuple[str, ...]:
        """Candidates of an edge `0_1`, `0_2` or `1_2`."""
        return self.ops if edge == "1_2" else tuple(op for op in self.ops if op != "identity")

    @property
    def edges(self) -> tuple[str, ...]:
        """Edges of a cell; the one that decides whether another one matters comes first."""
        return ("0_1",) if self.nodes == 1 else ("1_2", "0_1", "0_2")


def _projection(c_in: int, c_out: int, *, stride: int) -> nn.Module:
    return nn.Sequential(FrameConv(c_in, c_out, 1, stride), nn.BatchNorm3d(c_out))


def _candidate(c_in: int, c_out: int, *, op: str, stride: int) -> nn.Module:
    return op_named(op)(c_in, c_out, stride)


class _Stem(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(FrameConv(3, width, 3, stride=2), nn.BatchNorm3d(width), nn.ReLU())


class _Head(nn.Module):
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
        self.shortcut = _projection(c_in, c_out, stride=stride) if first else nn.Identity()
        self.edges = nn.ModuleDict(
            {
                edge: _candidate(c_out if edge == "1_2" else c_in, c_out, op=op, stride=1 if edge == "1_2" else stride)
                for edge, op in sorted(ops.items())
                if op != "zero"
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, T, H, W) -> (N, C_out, T, H', W')."""
        out = self.shortcut(x)
        if "1_2" in self.edges:
            # A cell whose first edge is zero still runs the second one, on zeros of the right shape.
            inner = F.relu(self.edges["0_1"](x)) if "0_1" in self.edges else torch.zeros_like(out)
            out = out + self.edges["1_2"](inner)
            if "0_2" in self.edges:
                out = out + self.edges["0_2"](x)
        else:
            for edge in self.edges.values():
                out = out + edge(x)
        return F.relu(out)


class ClipStudent(nn.Module):
    """A student of the space `clip_cell`: (N, 3, T, H, W) -> logits (N, num_classes)."""

    def __init__(self, settings: ClipCellSettings, choices: Mapping[str, Choice]) -> None:
        super().__init__()
        self.stem = _Stem(settings.stem_width)
        width, stages = settings.stem_width, []
        for s, stride in enumerate(settings.strides):
            cells = []
            for j in range(int(choices[f"stages.{s}.depth"])):
                prefix = f"stages.{s}.cells.{j}.edges."
                ops = {e: str(choices[prefix + e]) for e in settings.edges if prefix + e in choices}
                target = int(choices[f"stages.{s}.width"])
                cells.append(StudentCell(width, target, stride if j == 0 else 1, ops, first=j == 0))
                width = target
            stages.append(nn.Sequential(*cells))
        self.stages = nn.ModuleList(stages)
        self.head = _Head(width, settings.num_classes)

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
        self.shortcut = Sliced(partial(_projection, stride=stride), c_in, c_out) if first else None
        self.edges = nn.ModuleDict()
        for edge in settings.edges:
            inner = edge == "1_2"
            self.edges[edge] = Edge(
                {
                    op: Sliced(
                        partial(_candidate, op=op, stride=1 if inner else stride), c_out if inner else c_in, c_out
                    )
                    for op in settings.edge_ops(edge)
                },
                make,
            )
            cast(Gate, self.edges[edge].gate).name = f"{prefix}.edges.{edge}"

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(N, C_in, T, H, W) -> (N, width, T, H', W')."""
        out = x if self.shortcut is None else self.shortcut(x, width)
        if "1_2" not in self.edges:
            return F.relu(out + self.edges["0_1"](x, width))
        last = cast(Edge, self.edges["1_2"])
        single = last.gate.draw().single
        if single is None or last.gate.choices[single] != "zero":  # otherwise nobody reads the inner node
            out = out + last(F.relu(self.edges["0_1"](x, width)), width)
        elif last.gate.draw().weights.requires_grad:
            out = out + 0.0 * last.gate.draw().weights[0].to(out.dtype)  # keeps the gate in the graph
        return F.relu(out + self.edges["0_2"](x, width))


class SearchStage(nn.Module):
    """Cells of one stage under a width gate and a depth gate."""

    def __init__(self, settings: ClipCellSettings, stage: int, c_in: int, make: GateFactory) -> None:
        super().__init__()
        widths, depths = settings.widths[stage], settings.depths[stage]
        self.width, self.depth = make(widths), make(depths)
        self.width.name, self.depth.name = f"stages.{stage}.width", f"stages.{stage}.depth"
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

        def at_width(index: int) -> Tensor:
            draw = self.depth.draw()
            depths = [int(self.depth.choices[i]) for i in draw.indices]
            outputs: dict[int, Tensor] = {}
            hidden = x
            for j in range(max(depths)):
                hidden = self.cells[j](hidden, int(self.width.choices[index]))
                outputs[j + 1] = hidden
            return draw.combine(lambda i: outputs[int(self.depth.choices[i])])

        return mix_widths(self.width.draw(), at_width)


class ClipSupernet(nn.Module):
    """All students of the space at once; module names match those of `ClipStudent`."""

    def __init__(self, settings: ClipCellSettings, make_gate: GateFactory) -> None:
        super().__init__()
        self.stem = _Stem(settings.stem_width)
        inputs = [settings.stem_width, *(widths[-1] for widths in settings.widths)]
        self.stages = nn.ModuleList(
            SearchStage(settings, s, inputs[s], make_gate) for s in range(len(settings.strides))
        )
        self.head = _Head(inputs[-1], settings.num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of normalised clips."""
        x = self.stem(clip.contiguous(memory_format=torch.channels_last_3d))
        for stage in self.stages:
            x = stage(x)
        return cast(Tensor, self.head(x))


class ClipCellSpace(SearchSpace):
    """The space described at the top of this module."""

    name = "clip_cell"

    def __init__(self, settings: ClipCellSettings) -> None:
        self._s = settings
        self.settings = settings.model_dump(mode="json")
        self.knobs = {"resolution": settings.resolution, "frames": settings.frames}
        variables: dict[str, tuple[Choice, ...]] = {}
        for s, (widths, depths) in enumerate(zip(settings.widths, settings.depths, strict=True)):
            variables[f"stages.{s}.width"] = widths
            variables[f"stages.{s}.depth"] = depths
            for j, edge in product(range(depths[-1]), settings.edges):
                variables[f"stages.{s}.cells.{j}.edges.{edge}"] = settings.edge_ops(edge)
        self.variables = variables

    def network(self, knobs: Mapping[str, Choice], make_gate: GateFactory) -> nn.Module:
        return ClipSupernet(self._s, make_gate)

    def build_student(self, choices: Mapping[str, Choice]) -> nn.Module:
        return ClipStudent(self._s, choices)

    def active(self, choices: Mapping[str, Choice]) -> set[str]:
        active = set()
        for s in range(len(self._s.strides)):
            active |= {f"stages.{s}.width", f"stages.{s}.depth"}
            for j in range(int(choices.get(f"stages.{s}.depth", 0))):
                prefix = f"stages.{s}.cells.{j}.edges."
                dead = {"0_1"} if choices.get(f"{prefix}1_2") == "zero" else set()
                active |= {prefix + edge for edge in self._s.edges if edge not in dead}
        return active

    def inherit(self, network: nn.Module, student: nn.Module, choices: Mapping[str, Choice]) -> None:
        supernet, target = cast(ClipSupernet, network), cast(ClipStudent, student)
        target.stem.load_state_dict(supernet.stem.state_dict())
        width = self._s.stem_width
        for s, stage in enumerate(target.stages):
            chosen = int(choices[f"stages.{s}.width"])
            for j, module in enumerate(cast(nn.Sequential, stage)):
                cell = cast(StudentCell, module)
                source = cast(SearchCell, cast(SearchStage, supernet.stages[s]).cells[j])
                if source.shortcut is not None:
                    cell.shortcut.load_state_dict(source.shortcut.narrowed(width, chosen))
                for edge, op in cell.edges.items():
                    name = str(choices[f"stages.{s}.cells.{j}.edges.{edge}"])
                    candidate = cast(Sliced, cast(Edge, source.edges[edge]).candidates[name])
                    op.load_state_dict(candidate.narrowed(chosen if edge == "1_2" else width, chosen))
                width = chosen
        with torch.no_grad():
            target.head.classifier.weight.copy_(supernet.head.classifier.weight[:, :width])
            target.head.classifier.bias.copy_(supernet.head.classifier.bias)

    def cost_table(self, knobs: Mapping[str, Choice]) -> CostTable:
        s_, frames = self._s, int(knobs["frames"])
        side = int(knobs["resolution"])
        free: set[str] = set()

        def flops(count: FlopCount) -> int:
            free.update(count.uncounted)
            return count.total

        constant = flops(_measure("stem", 3, s_.stem_width, 2, frames, side))
        side = -(-side // 2)
        terms: list[CostTerm] = []
        before: tuple[str | None, tuple[int, ...]] = (None, (s_.stem_width,))
        for s, stride in enumerate(s_.strides):
            width, depth, widths = f"stages.{s}.width", f"stages.{s}.depth", s_.widths[s]
            half = -(-side // stride)
            for j in range(s_.depths[s][-1]):
                first = j == 0
                name, sources = before if first else (None, widths)
                pairs = [(a, b) for a, b in product(sources, widths) if first or a == b]
                step, at = (stride, side) if first else (1, half)
                runs = np.array([d > j for d in s_.depths[s]])
                prefix = f"stages.{s}.cells.{j}"

                def table(op: str, step: int = step, at: int = at, pairs: list[tuple[int, int]] = pairs) -> np.ndarray:
                    return np.array([flops(_measure(op, a, b, step, frames, at)) for a, b in pairs], dtype=np.int64)

                # Axes: [width before,] width — the first only where the stage is entered.
                axes = ((name, width) if name else (width,)) if first else (width,)
                shape = tuple(len(v) for v in ((sources, widths) if first and name else (widths,)))
                if first:
                    terms.append(CostTerm(f"{prefix}.shortcut", axes, table("shortcut").reshape(shape)))
                for edge in s_.edges:
                    ops = s_.edge_ops(edge)
                    if edge == "1_2":
                        inner = [(w, w) for w in widths]
                        cost = np.stack([table(op, 1, half, inner) for op in ops], -1)
                        own: tuple[str, ...] = (width,)
                    else:
                        cost = np.stack([table(op).reshape(shape) for op in ops], -1)
                        own = axes
                    # Depth is the axis before the ops: a cell beyond the depth costs nothing.
                    cost = cost[..., None, :] * runs[:, None]
                    names = (*own, depth, f"{prefix}.edges.{edge}")
                    if edge == "0_1" and "1_2" in s_.edges:
                        alive = np.array([op != "zero" for op in s_.edge_ops("1_2")])
                        cost = cost[..., None] * alive
                        names = (*names, f"{prefix}.edges.1_2")
                    terms.append(CostTerm(f"{prefix}.edges.{edge}", names, cost))
            before, side = (width, widths), half
        head = [flops(_measure("head", w, s_.num_classes, 1, frames, side)) for w in before[1]]
        terms.append(CostTerm("head", (cast(str, before[0]),), np.array(head, dtype=np.int64)))
        return CostTable(self.variables, tuple(terms), constant, tuple(sorted(free)))

    def example_input(self, knobs: Mapping[str, Choice]) -> Tensor:
        side = int(knobs["resolution"])
        return torch.zeros(1, 3, int(knobs["frames"]), side, side)

    def fit_input(self, clip: Tensor, knobs: Mapping[str, Choice]) -> Tensor:
        """Uniformly spaced frames, then bilinear resampling of the same normalised crop (ResKD, section 3).

        Args:
            clip: (N, 3, T, H, W) normalised, T at least the frames wanted.

        Returns:
            (N, 3, frames, resolution, resolution).

        Raises:
            ValueError: the clip has fewer frames than the student wants.
        """
        frames, side = int(knobs["frames"]), int(knobs["resolution"])
        if frames > clip.shape[2]:
            raise ValueError(f"the student wants {frames} frames, but the clip has {clip.shape[2]}; lower space.frames")
        if frames < clip.shape[2]:
            clip = clip[:, :, frame_indices(clip.shape[2], frames)]
        if clip.shape[3:] != (side, side):
            folded = clip.transpose(1, 2).flatten(0, 1)
            folded = F.interpolate(folded, size=(side, side), mode="bilinear", align_corners=False)
            clip = folded.unflatten(0, (-1, frames)).transpose(1, 2)
        return clip

    def size(self) -> int:
        """Number of canonical architectures."""
        ops = {edge: len(self._s.edge_ops(edge)) for edge in self._s.edges}
        if self._s.nodes == 1:
            cell = ops["0_1"]
        else:
            dead = int("zero" in self._s.ops)
            cell = ops["0_2"] * ((ops["1_2"] - dead) * ops["0_1"] + dead)
        stages = [
            len(widths) * sum(cell**depth for depth in depths)
            for widths, depths in zip(self._s.widths, self._s.depths, strict=True)
        ]
        return prod(stages) * len(self._s.resolution) * len(self._s.frames)


def frame_indices(total: int, wanted: int) -> list[int]:
    """Centres of `wanted` equal parts of `total` frames.

    Bhardwaj et al. (CVPR 2019) take every (total / wanted)-th frame; centres also fit where that is no integer.
    """
    return [int((i + 0.5) * total / wanted) for i in range(wanted)]


@lru_cache(maxsize=65536)
def _measure(part: str, c_in: int, c_out: int, stride: int, frames: int, side: int) -> FlopCount:
    """FLOPs of one part at its real shape; parts of equal shape are measured once a process."""
    if part == "stem":
        module: nn.Module = _Stem(c_out)
    elif part == "shortcut":
        module = _projection(c_in, c_out, stride=stride)
    elif part == "head":
        module = _Head(c_in, c_out)
    else:
        module = _candidate(c_in, c_out, op=part, stride=stride)
    return count_flops(module, torch.zeros(1, c_in, frames, side, side))
