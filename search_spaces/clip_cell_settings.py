"""Settings of the space `clip_cell`, as a campaign file gives them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from search_spaces.ops import op_named

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
