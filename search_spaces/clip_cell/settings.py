"""Settings of the space `clip_cell`, as a campaign file gives them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nas_kd.search_spaces.clip_cell.ops import check_name

DEFAULT_OPS = (
    "conv2d_k3",
    "conv2plus1d_k3",
    "conv3d_k3",
    "separable_k3_e1",
    "separable3d_k3_e2",
    "separable3d_k5_e1",
    "shift_k1",
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
        ops: candidates of the edges, names in `clip_cell.ops.OPS` or `module:function`; see `edge_ops` for
            `identity` and `zero`.
        resolution: sides of the student's square input to choose from, in pixels.
        frames: numbers of frames to choose from, taken uniformly from the teacher's clip.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int = Field(ge=1)
    stem_width: int = Field(default=8, ge=1)
    widths: tuple[tuple[int, ...], ...] = ((8, 12, 16), (16, 24, 32), (32, 48, 64))
    depths: tuple[tuple[int, ...], ...] = ((1, 2), (1, 2), (1, 2))
    strides: tuple[int, ...] = (1, 2, 2)
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
            check_name(op)
        if len(set(self.ops)) != len(self.ops) or not set(self.ops) - {"identity", "zero"}:
            raise ValueError(f"ops must hold no duplicates and at least one convolution, but are {list(self.ops)}")
        return self

    def edge_ops(self, edge: str) -> tuple[str, ...]:
        """Candidates of an edge of a cell.

        All edges take the convolutions. `identity` is for the edge from the inner node (beside the shortcut it would
        only double it), `zero` for the second edge from the input: so every cell keeps a convolution, and a search
        that is pressed for FLOPs cannot collapse to skip connections.
        """
        idle = {"0_1": {"identity", "zero"}, "0_2": {"identity"}, "1_2": {"zero"}}[edge]
        return tuple(op for op in self.ops if op not in idle)


EDGES = ("0_1", "0_2", "1_2")
"""Edges of a cell: input to inner node, input to output, inner node to output."""
