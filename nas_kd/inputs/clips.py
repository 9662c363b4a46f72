"""Whole clips: teacher and students see the same crop, students perhaps fewer frames of it and fewer pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from nas_kd.data import Batch, DataInfo, normalize
from nas_kd.inputs.input_type import InputType
from nas_kd.search_spaces import SearchSpace
from nas_kd.tasks import Task


class ClipInput(InputType):
    """Nets read normalised clips (N, 3, T, H, W)."""

    reads: ClassVar[str] = "clips"

    @classmethod
    def matches(cls, info: DataInfo, task: type[Task], space: SearchSpace) -> bool:
        return not task.framewise and info.input_key == cls.key

    def read(self, batch: Batch) -> Tensor:
        return normalize(batch["clip"], self.mean, self.std)

    def examples_of(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        frames = pixels if len(shape) == len("NCTHW") else pixels.unsqueeze(2)
        return normalize(frames, self.mean, self.std).reshape(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.info.frames, self.info.height, self.info.width)

    @classmethod
    def prepare(
        cls,
        items: Tensor,
        shape: Sequence[int],
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
    ) -> Tensor:
        assert mean is not None, "a bundle of clips has a mean"
        assert std is not None, "a bundle of clips has a standard deviation"
        check_bytes(items, ndim=5)
        return normalize(items, mean, std)


def check_bytes(items: Tensor, *, ndim: int) -> None:
    """Raise `ValueError` where clips (5 dimensions) or frames (4 dimensions) are not bytes of three colours."""
    if items.ndim != ndim or items.shape[1] != 3 or items.dtype != torch.uint8:
        raise ValueError(
            "the student reads clips, (N, 3, T, H, W) in bytes (uint8), which are normalised here, but got "
            f"{tuple(items.shape)} of {items.dtype}"
        )
