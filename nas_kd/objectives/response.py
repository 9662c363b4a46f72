"""Response distillation (Hinton, Vinyals and Dean, 2015, arXiv 1503.02531, section 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def response(student: Tensor, teacher: Tensor, kd_temperature: float = 4.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the batch.

    T² keeps the gradient's size independent of T (section 2 of the paper).

    Args:
        student: (N, num_classes) logits.
        teacher: (N, num_classes) logits.
        kd_temperature: T.

    Raises:
        ValueError: the two have different shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"response distillation compares logits of one shape, but the student gives {tuple(student.shape)} and the "
            f"teacher {tuple(teacher.shape)}; both need the same classes"
        )
    log_p = F.log_softmax(student / kd_temperature, dim=-1)
    log_q = F.log_softmax(teacher / kd_temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * kd_temperature**2
