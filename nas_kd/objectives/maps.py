"""Helpers of feature distillation: bring a student's map to the teacher's channels, pixels and frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_kd.search_spaces.frame_selectors import uniform


class Adapter(nn.Module):
    """1×1 convolution to the teacher's channels. A narrower map, as a supernet gives, uses the leading columns.

    Args:
        student_channels: of the student's map at its widest.
        teacher_channels: of the teacher's map.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(teacher_channels, student_channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C_s, ...) -> (N, C_t, ...)."""
        weight = self.weight[:, : features.shape[1]]
        return F.linear(features.movedim(1, -1), weight).movedim(-1, 1)


def adapter_for(student: Tensor, teacher: Tensor, *, always: bool = False) -> nn.Module:
    """The identity where the channels agree, else an `Adapter` on the student's device; `always` for maps whose width
    varies."""
    if student.shape[1] == teacher.shape[1] and not always:
        return nn.Identity()
    return Adapter(student.shape[1], teacher.shape[1]).to(student.device)


def resample(features: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear over H and W only, frame by frame; the last two dimensions become `size`.

    Args:
        features: (N, C, H, W) or (N, C, T, H, W).
        size: (H', W').
    """
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    if features.ndim == 4:
        return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)
    frames = features.shape[2]
    folded = F.interpolate(
        features.transpose(1, 2).flatten(0, 1), size=tuple(size), mode="bilinear", align_corners=False
    )
    return folded.reshape(-1, frames, *folded.shape[1:]).transpose(1, 2)


def check_channels(student: Tensor, teacher: Tensor) -> None:
    """Raise `ValueError` where two maps (N, C, ...) differ in their channels, which would broadcast or fail later."""
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"maps must have equal channels, but the student's is {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}; bring the student's map to the teacher's channels with `adapter_for`"
        )


def matched_frames(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the frames of the one that has fewer, taken uniformly as the student's input frames are.

    Raises:
        ValueError: one map has frames and the other has none, or one is no map of channels and pixels.
    """
    for whose, features in (("teacher", teacher), ("student", student)):
        if features.ndim not in (4, 5):
            raise ValueError(
                f"a map must be (N, C, H, W) or (N, C, T, H, W), but the {whose}'s is {tuple(features.shape)}; wrap "
                "the module so that it returns its tokens on their grid, channels first (docs/cross-resolution.md)"
            )
    if teacher.ndim != student.ndim:
        raise ValueError(
            f"maps must have equal rank, but the teacher's is {tuple(teacher.shape)} and the student's "
            f"{tuple(student.shape)}; name modules that return maps of the same kind"
        )
    if teacher.ndim == 4 or teacher.shape[2] == student.shape[2]:
        return teacher, student
    frames = min(teacher.shape[2], student.shape[2])
    return tuple(  # type: ignore[return-value]
        m if m.shape[2] == frames else m[:, :, uniform(m.shape[2], frames)] for m in (teacher, student)
    )
