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
from functools import partial

import torch
from torch import Tensor

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.clip_cell.net import ClipNet
from nas_kd.search_spaces.clip_cell.ops import CandidateOps, EdgeShape, check_own_op
from nas_kd.search_spaces.clip_cell.settings import ClipCellSettings
from nas_kd.search_spaces.frame_selectors import uniform
from nas_kd.search_spaces.module_space import ModuleSpace
from nas_kd.search_spaces.operators import NO_OPERATORS, Operators, needed
from nas_kd.search_spaces.space import resampled


class ClipCellSpace(ModuleSpace):
    """The space described at the top of this module.

    Args:
        settings: what is searched.
        operators: functions of the user's operators among `settings.ops`, by `module:function`.

    Raises:
        ValueError: one of them is not given.
    """

    def __init__(self, settings: ClipCellSettings, operators: Operators = NO_OPERATORS) -> None:
        self._settings, self._own = settings, needed(settings.ops, operators)
        super().__init__(
            partial(ClipNet, settings=settings, ops=CandidateOps(tuple(self._own.items()))),
            _example,
            "clip_cell",
            knobs={"resolution": settings.resolution, "frames": settings.frames},
            settings=settings.model_dump(mode="json"),
        )

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

    def check_operators(self) -> None:
        """Build, run and export the user's operators at the shapes of this space.

        Raises:
            ValueError: one does not keep the contract of `clip_cell.ops`.
        """
        settings = self._settings
        sources: tuple[int, ...] = (settings.stem_width,)
        frames, side = settings.frames[-1], -(-settings.resolution[-1] // 2)  # after the stem
        edges = []
        for widths, stride in zip(settings.widths, settings.strides, strict=True):
            narrow, wide = (sources[0], widths[0]), (sources[-1], widths[-1])
            edges.append(EdgeShape(narrow, wide, stride, frames, side))
            side = -(-side // stride)
            edges.append(EdgeShape((widths[0], widths[0]), (widths[-1], widths[-1]), 1, frames, side))
            sources = widths
        for name, build in self._own.items():
            check_own_op(name, build, edges)


def _example(knobs: Mapping[str, Choice]) -> Tensor:
    side = int(knobs["resolution"])
    return torch.zeros(1, 3, int(knobs["frames"]), side, side)
