"""Frame features that another network extracted before: the teacher sees all frames, students perhaps a few of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nas_kd.data import Batch, DataInfo
from nas_kd.inputs.input_type import InputType
from nas_kd.search_spaces import SearchSpace
from nas_kd.tasks import Task

_FEWER_FRAMES = {"feature": {"weight": 0.0}, "response": {"weight": 0.0}, "fewer_frames": {"weight": 1.0}}


class FeatureInput(InputType):
    """Nets read frame features (N, T, D), in float32."""

    reads: ClassVar[str] = "frame features"
    key: ClassVar[str] = "features"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "teacher": {"model": "frame_sequence"},
        "space": {"name": "frame_sequence"},
        "budget": {"max_flops": ["6M", "8M", "10M"]},  # what the space has of 256 features and of 1,152
        "objective": _FEWER_FRAMES,
        "search": {"objective": _FEWER_FRAMES},
    }

    @classmethod
    def matches(cls, info: DataInfo, task: type[Task], space: SearchSpace) -> bool:
        return not task.framewise and info.input_key == cls.key

    def read(self, batch: Batch) -> Tensor:
        return batch["features"].float()

    def examples_of(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=generator)  # features have any range; of most, these numbers are a part

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.info.frames, self.info.feature_size)

    def bundle_fields(self, cost: Mapping[str, Any]) -> dict[str, Any]:
        return {"mean": None, "std": None}  # features are read as they are

    @classmethod
    def space_settings(cls, shape: Sequence[int], frames: int) -> dict[str, Any]:
        return {"feature_size": shape[-1], "frames": frames}

    @classmethod
    def prepare(
        cls,
        items: Tensor,
        shape: Sequence[int],
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
    ) -> Tensor:
        if items.ndim != 3 or items.shape[2] != shape[1] or not items.is_floating_point():
            raise ValueError(
                f"the student reads frame features, (N, T, {shape[1]}) floating-point numbers, but got "
                f"{tuple(items.shape)} of {items.dtype}"
            )
        return items.float()
