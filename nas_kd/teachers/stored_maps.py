"""Stored maps as a teacher: computed before and read with the data, so that no net runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from nas_kd.data import Batch, DataInfo


class StoredMapsSettings(BaseModel):
    """Settings of the teacher.

    Attributes:
        names: of the maps that are averaged; by default all that come with the data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] = ()


class StoredMaps(nn.Module):
    """Maps (N, S, H, W), as `take` returns them -> their mean (N, 1, H, W).

    It has nothing to train, and what its maps cost is not known.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def take(self, batch: Batch) -> Tensor:
        """The maps of the first frames of a batch: float32 (N, S, H, W) in [0, 1]."""
        return torch.stack([batch[f"map.{name}"][:, 0].float() for name in self.names], 1)

    def example(self, info: DataInfo) -> Tensor:
        """Zeros of shape (1, S, H, W)."""
        return torch.zeros(1, len(self.names), info.height, info.width)

    def forward(self, maps: Tensor) -> Tensor:
        """The mean of the maps."""
        return maps.mean(1, keepdim=True)


def build_stored_maps(num_outputs: int, settings: dict[str, Any]) -> StoredMaps:
    """The teacher from the channels that the task needs and the settings as JSON values.

    Raises:
        ValidationError: settings that do not exist.
        ValueError: there are no maps, or the task needs other outputs than one map.
    """
    names = StoredMapsSettings.model_validate(settings).names
    if not names:
        raise ValueError(
            "teacher.model maps needs precomputed maps, but the data have none; name their folders in "
            "data.maps, or choose another teacher"
        )
    if num_outputs != 1:
        raise ValueError(
            f"teacher.model maps returns one map a frame, but the task needs {num_outputs} outputs; choose the "
            "saliency task, or another teacher"
        )
    return StoredMaps(names)


def with_map_names(settings: Mapping[str, Any], info: DataInfo | None) -> dict[str, Any]:
    """The settings with the names of all maps of the data where they name none.

    Raises:
        ValidationError: settings that do not exist.
        ValueError: they name a map that the data lack.
    """
    names = StoredMapsSettings.model_validate(settings).names
    known = info.map_names if info is not None else ()
    missing = sorted(set(names) - set(known))
    if missing:
        raise ValueError(f"teacher.settings.names must be names of data.maps, but {', '.join(missing)} is none of them")
    return {"names": known, **settings}
