"""Settings of the space `delta_blocks`, as in a campaign file."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nas_kd.search_spaces.delta_blocks.ops import parse_candidate
from nas_kd.search_spaces.operators import is_reference

CANDIDATES = (
    "zero", "lowres4", "pointwise8", "lowres2", "split8", "bottleneck8", "shuffle4", "pair8", "pointwise2", "grouped4",
    "split4", "separable", "bottleneck4", "split2", "full",
)  # fmt: skip


class DeltaBlocksSettings(BaseModel):
    """What of a teacher is searched.

    Attributes:
        keyframe_interval: intervals K to choose from, or the only one; a student has one.
        candidates: of every layer, names of the package or `module:function`; one that a layer cannot have, or that
            costs no less than its full copy, is left out there.
        include: patterns (`*`, `?`) of module names; only these layers become delta layers.
        exclude: patterns of layers that stay as they are.
        blocks: patterns of modules that become one delta layer as a whole.
        skip_first: number of layers at the start of the teacher that stay as they are.
        skip_last: number of layers at the end that stay as they are.
        min_share: layers with less than this share of the teacher's FLOPs stay as they are.

    Examples:
        >>> nas_kd.DeltaBlocksSettings(keyframe_interval=(3, 6)).keyframe_interval
        (3, 6)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keyframe_interval: tuple[int, ...] = Field(default=(3,), min_length=1)
    candidates: tuple[str, ...] = Field(default=CANDIDATES, min_length=1)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    skip_first: int = Field(default=1, ge=0)
    skip_last: int = Field(default=1, ge=0)
    min_share: float = Field(default=0.001, ge=0, lt=1)

    @field_validator("candidates")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"candidates must differ, but they are {list(value)}")
        for name in value:
            if name != "zero" and not is_reference(name):
                parse_candidate(name)
        if "full" not in value:
            raise ValueError(
                "candidates must contain 'full', a copy of the teacher's layer, which every layer can have"
            )
        return value

    @field_validator("keyframe_interval", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("keyframe_interval")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 2:
            raise ValueError(
                f"keyframe_interval must be at least 2, but is {min(value)}; with 1 the teacher runs on every frame"
            )
        if list(value) != sorted(set(value)):
            raise ValueError(f"keyframe_interval must ascend without repetition, but is {list(value)}")
        return value
