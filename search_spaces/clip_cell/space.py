"""Space `clip_cell`: students for clips, from cells whose edges hold gated candidates.

    clip (N, 3, T, H, W) → stem (3×3, stride 2) → stages → mean over T, H, W → linear → (N, num_classes)

A stage has a searchable width and depth; its first cell changes width and stride. A cell has an inner node h:

    h = relu(e_0_1(x));  out = relu(shortcut(x) + e_1_2(h) + e_0_2(x))

The shortcut is a 1×1 convolution in the first cell of a stage and the input itself in the others. Of the candidates,
`identity` is offered on e_1_2 (the cell becomes one layer deep) and `zero` on e_0_2 (it loses a branch); a whole cell
is skipped by the depth of its stage. Edges of cells beyond the chosen depth are left out of the `ArchSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from search_spaces.arch import Choice
from search_spaces.cells import Edge, Sliced
from search_spaces.clip_cell.cost import clip_cell_costs
from search_spaces.clip_cell.net import ClipStudent, ClipSupernet, SearchCell, SearchStage, StudentCell
from search_spaces.clip_cell.settings import EDGES, ClipCellSettings
from search_spaces.cost import CostTable
from search_spaces.frame_selectors import uniform
from search_spaces.gates import GateFactory
from search_spaces.space import SearchSpace, resampled


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
            for j, edge in product(range(depths[-1]), EDGES):
                variables[f"stages.{s}.cells.{j}.edges.{edge}"] = settings.edge_ops(edge)
        self.variables = variables
        self._tables: dict[tuple[int, int], CostTable] = {}

    def network(self, knobs: Mapping[str, Choice], make_gate: GateFactory) -> nn.Module:
        return ClipSupernet(self._s, make_gate)

    def build_student(self, choices: Mapping[str, Choice]) -> nn.Module:
        return ClipStudent(self._s, choices)

    def active(self, choices: Mapping[str, Choice]) -> set[str]:
        active = set()
        for s in range(len(self._s.strides)):
            active |= {f"stages.{s}.width", f"stages.{s}.depth"}
            for j in range(int(choices.get(f"stages.{s}.depth", 0))):
                active |= {f"stages.{s}.cells.{j}.edges.{edge}" for edge in EDGES}
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
        key = int(knobs["frames"]), int(knobs["resolution"])
        if key not in self._tables:
            self._tables[key] = clip_cell_costs(self._s, self.variables, *key)
        return self._tables[key]

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
            clip = clip[:, :, uniform(clip.shape[2], frames)]
        return resampled(clip, side)

    def size(self) -> int:
        """Number of canonical architectures."""
        cell = prod(len(self._s.edge_ops(edge)) for edge in EDGES)
        stages = [
            len(widths) * sum(cell**depth for depth in depths)
            for widths, depths in zip(self._s.widths, self._s.depths, strict=True)
        ]
        return int(prod(stages)) * len(self._s.resolution) * len(self._s.frames)
