"""Cross-resolution distillation for CNNs (Ma et al., ResKD, NeurIPS 2022, arXiv 2209.12797)."""

from __future__ import annotations

from torch import Tensor

from nas_kd.objectives.maps import matched_frames, resample


def cross_resolution(student: Tensor, teacher: Tensor) -> Tensor:
    """mean[(Up(student) − teacher)²] over all elements: the student's map is upsampled bilinearly to the teacher's.

    The paper weights it with 100. Maps of clips are resampled over H and W only; where the student sees fewer frames
    (outside the paper), the teacher's frames nearest to the student's are compared.

    Args:
        student: (N, C, H_s, W_s) or (N, C, T_s, H_s, W_s), after the adapter.
        teacher: the same with the teacher's pixels and frames.
    """
    teacher, student = matched_frames(teacher, student)
    return (resample(student, teacher.shape[-2:]) - teacher).pow(2).mean()
