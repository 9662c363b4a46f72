"""Feature distillation (Romero et al., FitNets, ICLR 2015, section 2.2), at the student's resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nas_kd.objectives.maps import matched_frames, resample


def feature(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two maps of equal channels, each scaled to unit norm over its channels; mean over positions.

    That is 2 − 2 · cosine at each position: 0 for maps that agree but for their size, 2 for unrelated ones. The
    teacher's map is resampled to the student's pixels. Deviation from FitNets: the maps are normalised (as Zagoruyko
    and Komodakis do, ICLR 2017, eq. 2), so that one weight serves teachers whose activations differ in size.

    Args:
        student: (N, C, H_s, W_s) or (N, C, T_s, H_s, W_s), after the adapter.
        teacher: the same with the teacher's pixels and frames.
    """
    teacher, student = matched_frames(teacher, student)
    teacher = resample(teacher, student.shape[-2:])
    gap = F.normalize(student, dim=1) - F.normalize(teacher, dim=1)
    return gap.pow(2).sum(1).mean()
