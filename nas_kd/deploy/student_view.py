"""`StudentView`: which frames of an item a student reads and at which size, stated without code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nas_kd.search_spaces import SearchSpace
from nas_kd.search_spaces.arch import Choice

ITEMS = 8  # looked at together, so that a choice of frames that differs from item to item is seen


class StudentView(BaseModel):
    """What a student reads of a normalised item, as a bundle says it.

    Attributes:
        frames: positions of the frames that are taken out of an item's, ascending.
        size: (h, w) of what the student reads; None for frame features.
        resize: how frames come to that size: bilinearly between the centres of pixels, without smoothing before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: tuple[int, ...]
    size: tuple[int, int] | None
    resize: Literal["bilinear"] = "bilinear"

    def of(self, items: Tensor) -> Tensor:
        """The student's view.

        Args:
            items: normalised clips (N, 3, T, H, W), or frame features (N, T, D); T is that of the training data.

        Returns:
            (N, 3, t, h, w), or (N, t, D).
        """
        along = 1 if self.size is None else 2
        if self.frames != tuple(range(items.shape[along])):
            items = items.index_select(along, torch.tensor(self.frames, device=items.device))
        if self.size is None or tuple(items.shape[3:]) == self.size:
            return items
        frames = items.transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, size=self.size, mode="bilinear", align_corners=False)
        return frames.reshape(-1, items.shape[2], *frames.shape[1:]).transpose(1, 2)


def view_of(space: SearchSpace, knobs: Mapping[str, Choice], item_shape: Sequence[int]) -> StudentView | None:
    """The view that a space gives its students; None where it is no fixed choice of frames and a bilinear resize.

    Args:
        space: of the student.
        knobs: of the student.
        item_shape: of one item of the data, (3, T, H, W) or (T, D).
    """
    along = 0 if len(item_shape) == 2 else 1
    numbers = torch.arange(item_shape[along], dtype=torch.float32)
    shape = [1] * len(item_shape)
    shape[along] = -1
    items = torch.randn(ITEMS, *item_shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):  # a space may choose frames at random
        seen = space.fit_input(numbers.reshape(shape).expand(ITEMS, *item_shape), knobs)  # a frame shows its number
        fitted = space.fit_input(items, knobs)
    if seen.ndim != items.ndim:
        return None
    frames = seen[0].movedim(along, 0).flatten(1)[:, 0].round().long().tolist()
    if not all(0 <= number < item_shape[along] for number in frames):
        return None
    view = StudentView(frames=tuple(frames), size=None if along == 0 else (seen.shape[-2], seen.shape[-1]))
    return view if torch.equal(view.of(items), fitted) else None
