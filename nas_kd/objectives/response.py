"""Response distillation (Hinton, Vinyals and Dean, 2015, arXiv 1503.02531, section 2)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nas_kd.objectives.term import DistillationTerm, TermConfig, TermContext
from nas_kd.taps import ModelOutput
from nas_kd.tasks import Batch


def response(student: Tensor, teacher: Tensor, kd_temperature: float = 4.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the batch and over pixels.

    T² keeps the gradient's size independent of T (section 2 of the paper).

    Args:
        student: (N, num_classes) logits, or (N, T, num_classes, h, w) of every pixel.
        teacher: logits of the same shape.
        kd_temperature: T.

    Raises:
        ValueError: the two have different shapes.
    """
    _check_shapes(student, teacher)
    class_dim = _class_dim(student)
    log_p = F.log_softmax(student / kd_temperature, dim=class_dim)
    log_q = F.log_softmax(teacher / kd_temperature, dim=class_dim)
    summed = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    return summed * (student.shape[class_dim] / student.numel()) * kd_temperature**2


def multilabel_response(student: Tensor, teacher: Tensor, kd_temperature: float = 4.0) -> Tensor:
    """Response distillation of multi-label tasks: T² · Σ_c KL(σ(teacher_c / T) ‖ σ(student_c / T)).

    Args:
        student: (N, num_classes) logits.
        teacher: (N, num_classes) logits.
        kd_temperature: T.

    Raises:
        ValueError: the two have different shapes.
    """
    _check_shapes(student, teacher)
    student, teacher = student / kd_temperature, teacher / kd_temperature
    present = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (present + absent).sum(-1).mean() * kd_temperature**2


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    """Raise `ValueError` with both shapes, what differs between them, and what to do about it."""
    if student.shape == teacher.shape:
        return
    way_out = "or set the weight of the term to 0"
    if student.ndim != teacher.ndim:
        difference = "numbers of dimensions"
        way_out = f"compare nets with the same kind of output, {way_out}"
    elif student.shape[_class_dim(student)] != teacher.shape[_class_dim(teacher)]:
        difference = "numbers of classes"
        way_out = f"build both nets for the same classes, {way_out}"
    elif student.ndim > 2 and student.shape[-2:] != teacher.shape[-2:]:
        difference = "heights or widths of the maps"
        way_out = f"give both nets the same output stride, distil feature maps, which are resampled, {way_out}"
    else:
        difference = "numbers of items or frames"
        way_out = f"give both nets the same batch, {way_out}"
    raise ValueError(
        f"response distillation needs logits of equal shape, but the student's are {tuple(student.shape)} and the "
        f"teacher's {tuple(teacher.shape)}: their {difference} differ; {way_out}"
    )


def _of_one_item(logits: Tensor) -> Tensor:
    """Those of the first item or frame: for one example, students with key frames return several frames."""
    return logits.flatten(0, -4)[:1] if logits.ndim > 4 else logits[:1]


def _class_dim(logits: Tensor) -> int:
    return -1 if logits.ndim == 2 else -3


class ResponseConfig(TermConfig):
    """Distillation of the teacher's logits.

    Attributes:
        kd_temperature: by which both nets' logits are divided.
    """

    free_options: ClassVar[tuple[str, ...]] = ("kd_temperature",)

    kd_temperature: float = Field(default=4.0, gt=0)

    def build(self, context: TermContext) -> DistillationTerm:
        return ResponseTerm(self, context)


class ResponseTerm(DistillationTerm):
    """The teacher's logits, softened."""

    def __init__(self, config: ResponseConfig, context: TermContext) -> None:
        super().__init__(context.name, config.weight)
        self._distance = multilabel_response if context.task.outputs == "multilabel" else response
        self._kd_temperature = config.kd_temperature
        if context.task.outputs == "other":
            raise ValueError(
                f"response: task {type(context.task).__name__.lower()} has no logits of classes that could be "
                "softened; set response.weight to 0 and distil maps"
            )

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        _check_shapes(_of_one_item(student.logits), _of_one_item(teacher.logits))

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        return {self.name: self._distance(student.logits, teacher.logits, self._kd_temperature)}
