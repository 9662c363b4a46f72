"""What sources of frame features have in common: how many frames of an item are kept, and how many nets see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from nas_kd.data.sample import DataError
from nas_kd.data.source import CachedConfig
from nas_kd.data.splits import Splits


class FeatureFramesConfig(CachedConfig):
    """The `data` section of a source of frame features, whose data sets list their `entries` of the cache."""

    stored_by: ClassVar[str] = "data.stored_frames"

    frames: int | None = Field(
        default=None,
        ge=1,
        description="Frames an item, taken uniformly over all it has; frames repeat where it has fewer. Without it "
        "items must have equally many, and all are taken.",
    )
    stored_frames: int | None = Field(
        default=None,
        ge=1,
        description="Frames of an item that are kept, for windows in time (`augment.temporal`); nets see `frames` of "
        "them. By default `frames`.",
    )

    @classmethod
    def gives_features(cls, section: Mapping[str, object]) -> bool:
        return True

    @model_validator(mode="after")
    def _stores_what_is_seen(self) -> Self:
        stored, frames = self.stored_frames, self.frames
        if stored is not None and (frames is None or stored < frames):
            raise ValueError(
                f"stored_frames must come with frames, and be at least as many, but stored_frames is {stored} and "
                f"frames {frames}; set frames, raise stored_frames, or leave it out"
            )
        return self

    def decoded_bytes(self, splits: Splits) -> int:
        parts = (splits.weights.base, splits.val, splits.test)
        return sum(math.prod(entry.shape) for part in parts for entry in getattr(part, "entries", ()))


def frames_of(lengths: Sequence[int], wanted: int | None) -> int:
    """T of a data set: as wanted, or that of all its items.

    Args:
        lengths: Frames of each item.
        wanted: Frames that the config asks for, if it does.

    Raises:
        DataError: It asks for none and items differ, or there is no item.
    """
    if wanted is not None:
        return wanted
    if not lengths or min(lengths) != max(lengths):
        raise DataError(
            f"frames must say how many frames each item is brought to where items differ, but it is not given and "
            f"they have {min(lengths, default=0)} to {max(lengths, default=0)}; set for example frames: "
            f"{int(np.median(lengths)) if lengths else 300}"
        )
    return lengths[0]
