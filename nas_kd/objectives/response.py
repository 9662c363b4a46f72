"""Response distillation (Hinton, Vinyals and Dean, 2015, arXiv 1503.02531, section 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def response(student: Tensor, teacher: Tensor, kd_temperature: float = 4.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the batch and over pixels.

    T² keeps the gradient's size independent of T (section 2 of the paper).

    Args:
        student: (N, num_classes) logits, or (N, T, num_classes, h, w) of every pixel.
        teacher: likewise.
        kd_temperature: T.

    Raises:
        ValueError: the two have different shapes.
    """
    _check_shapes(student, teacher)
    channels = -1 if student.ndim == 2 else -3
    log_p = F.log_softmax(student / kd_temperature, dim=channels)
    log_q = F.log_softmax(teacher / kd_temperature, dim=channels)
    summed = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    return summed * (student.shape[channels] / student.numel()) * kd_temperature**2


def response_of_labels(student: Tensor, teacher: Tensor, kd_temperature: float = 4.0) -> Tensor:
    """The same where several classes may hold at once: T² · Σ_c KL(σ(teacher_c / T) ‖ σ(student_c / T)).

    Args:
        student: (N, num_classes) logits.
        teacher: likewise.
        kd_temperature: T.

    Raises:
        ValueError: the two have different shapes.
    """
    _check_shapes(student, teacher)
    ours, theirs = student / kd_temperature, teacher / kd_temperature
    yes = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    no = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return (yes + no).sum(-1).mean() * kd_temperature**2


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"response distillation compares logits of one shape, but the student gives {tuple(student.shape)} and the "
            f"teacher {tuple(teacher.shape)}; both need the same classes"
        )
