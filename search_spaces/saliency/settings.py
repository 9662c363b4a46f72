"""Settings of the space `saliency`, as in a campaign file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nas_kd.search_spaces.saliency.ops import frame_op

Net = Literal["spatial", "temporal", "fused"]
TRUNKS_OF: dict[str, tuple[str, ...]] = {
    "spatial": ("spatial",),
    "temporal": ("temporal",),
    "fused": ("spatial", "temporal"),
}
"""Net -> its trunks; every net has the decoder too."""
DEFAULT_OPS = ("conv_k1", "separable_k3", "conv_k3")
SIDES = (32, 256)


class TrunkSettings(BaseModel):
    """What one trunk leaves open; a single option is fixed.

    Attributes:
        widths: for each of the four stages, the channel counts to choose from; the last ones are the published net's.
        depths: numbers of convolutions to choose from for the third stage.
        ops: operators to choose from for every convolution, names in `nas_kd.search_spaces.saliency.ops.FRAME_OPS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[tuple[int, ...], ...] = ((4, 8, 12, 16), (8, 16, 24, 32), (16, 32, 48, 64), (32, 64, 96, 128))
    depths: tuple[int, ...] = (1, 2)
    ops: tuple[str, ...] = DEFAULT_OPS

    @model_validator(mode="after")
    def _valid(self) -> TrunkSettings:
        _rows(self.widths, "widths", 4, "stages")
        _ascending(self.depths, "depths")
        _ops(self.ops)
        return self


class DecoderSettings(BaseModel):
    """What the decoder leaves open; a single option is fixed.

    Attributes:
        widths: for the 1×1 convolution, the three convolutions behind it and the first of the two transposed
            convolutions, the channel counts to choose from; the last ones are the published net's.
        ops: operators to choose from for each of the three convolutions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[tuple[int, ...], ...] = ((8, 16, 32), (8, 16, 32), (8, 16, 32), (8, 16), (4, 8))
    ops: tuple[str, ...] = DEFAULT_OPS

    @model_validator(mode="after")
    def _valid(self) -> DecoderSettings:
        _rows(self.widths, "widths", 5, "layers")
        _ops(self.ops)
        return self


class SaliencySettings(BaseModel):
    """Settings of the space.

    Attributes:
        num_classes: maps that the net gives: one.
        net: the nets to choose from, `spatial` (one frame), `temporal` (two frames) or `fused` (both trunks).
        side: sides of the student's square input to choose from, in pixels; multiples of 4 from 32 to 256.
        response_norm: whether a local response normalisation follows the first two convolutions, as published.
        spatial: the trunk that reads frame t.
        temporal: the trunk that reads frames t and t + 1.
        decoder: what turns a trunk's map, or both, into the saliency map.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int = 1
    net: tuple[Net, ...] = ("fused",)
    side: tuple[int, ...] = (32,)
    response_norm: bool = True
    spatial: TrunkSettings = Field(default_factory=TrunkSettings)
    temporal: TrunkSettings = Field(default_factory=TrunkSettings)
    decoder: DecoderSettings = Field(default_factory=DecoderSettings)

    @model_validator(mode="after")
    def _valid(self) -> SaliencySettings:
        if self.num_classes != 1:
            raise ValueError(
                f"space saliency gives one map a frame, so num_classes must be 1, but is {self.num_classes}; choose "
                "the saliency task, or another space"
            )
        if not self.net or len(set(self.net)) != len(self.net):
            raise ValueError(f"net must hold at least one of {', '.join(TRUNKS_OF)}, each once, but is {self.net}")
        _ascending(self.side, "side")
        least, most = SIDES
        if odd := [side for side in self.side if side % 4 or not least <= side <= most]:
            raise ValueError(f"side must hold multiples of 4 from {least} to {most}, but holds {odd}")
        return self

    @property
    def trunks(self) -> tuple[str, ...]:
        """The trunks that any of the offered nets has."""
        wanted = {trunk for net in self.net for trunk in TRUNKS_OF[net]}
        return tuple(trunk for trunk in TRUNKS_OF["fused"] if trunk in wanted)

    def trunk(self, name: str) -> TrunkSettings:
        """The settings of that trunk."""
        return {"spatial": self.spatial, "temporal": self.temporal}[name]


def _rows(rows: tuple[tuple[int, ...], ...], name: str, number: int, of: str) -> None:
    if len(rows) != number:
        raise ValueError(f"{name} must be given for {number} {of}, but are given for {len(rows)}")
    for index, row in enumerate(rows):
        _ascending(row, f"{name} {index}")


def _ascending(values: tuple[int, ...], name: str) -> None:
    if not values or list(values) != sorted(set(values)) or values[0] < 1:
        raise ValueError(f"{name} must be positive numbers that ascend, at least one, but are {list(values)}")


def _ops(ops: tuple[str, ...]) -> None:
    if not ops or len(set(ops)) != len(ops):
        raise ValueError(f"ops must hold at least one operator, each once, but are {list(ops)}")
    for op in ops:
        frame_op(op)
