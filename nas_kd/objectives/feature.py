"""Feature distillation (Romero et al., FitNets, ICLR 2015, section 2.2), at the student's resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nas_kd.objectives.maps import matched_frames, resample


def feature(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of two maps of equal channels, each first scaled to unit norm over its channels.

    The teacher's map is resampled to the student's pixels. Deviation from FitNets: the maps are normalised (as in
    Zagoruyko and Komodakis, ICLR 2017, eq. 2), so that one weight serves teachers whose activations differ in size.
    A value of 2 / C would be that of unrelated maps; it is therefore multiplied by C.

    Args:
        student: (N, C, H_s, W_s) or (N, C, T_s, H_s, W_s), after the adapter.
        teacher: the same with the teacher's pixels and frames.
    """
    teacher, student = matched_frames(teacher, student)
    teacher = resample(teacher, student.shape[-2:])
    gap = F.normalize(student, dim=1) - F.normalize(teacher, dim=1)
    return gap.pow(2).sum(1).mean()
