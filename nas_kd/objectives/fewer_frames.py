"""Distillation to a student that sees fewer frames (Bhardwaj, Srinivasan and Khapra, CVPR 2019, arXiv 1902.10640).

The teacher encodes all frames of a video, the student k of them; each has a classifier of its own. Two terms:
L_rep = ‖E_T − E_S‖² of the encodings, and L_pred = d(P_T, P_S) of the class vectors.

The sources differ on d: the squared error of the probabilities, or a Kullback-Leibler divergence of the class vectors.
Where several classes can hold at once, the class vector is brought to the sum 1 for the divergence.

Deviations: encodings of unequal size are compared through a linear adapter of the student's, as a searched width needs.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nas_kd.objectives.maps import adapter_for
from nas_kd.objectives.term import DistillationTerm, TermConfig, TermContext
from nas_kd.taps import ModelOutput, shapes_given
from nas_kd.tasks import Batch

_ENCODER = "encoder"
_NUM_DIMS = 2  # of an encoding, (N, E)


def representation(student: Tensor, teacher: Tensor) -> Tensor:
    """‖E_T − E_S‖², summed over the encoding, the mean over the batch.

    Args:
        student: (N, E), after the adapter.
        teacher: (N, E).

    Raises:
        ValueError: the two have different shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"encodings must have equal shapes, but the student's is {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}; bring the student's to the teacher's size with `adapter_for`"
        )
    return (student - teacher).square().sum(-1).mean()


def prediction_squared(student: Tensor, teacher: Tensor, *, several: bool) -> Tensor:
    """Σ_c (P_T − P_S)², the mean over the batch.

    Args:
        student: (N, C) logits.
        teacher: (N, C) logits.
        several: whether several classes may hold at once: P is their sigmoid, else their softmax.
    """
    if several:
        student, teacher = student.sigmoid(), teacher.sigmoid()
    else:
        student, teacher = student.softmax(-1), teacher.softmax(-1)
    return (student - teacher).square().sum(-1).mean()


def prediction_kl(student: Tensor, teacher: Tensor, *, several: bool) -> Tensor:
    """KL(P_T ‖ P_S) of the class vectors, the mean over the batch.

    Args:
        student: (N, C) logits.
        teacher: (N, C) logits.
        several: whether several classes may hold at once: then P is their sigmoid, divided by its sum.
    """
    log_p, log_q = (_log_vector(logits, several) for logits in (student, teacher))
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def _log_vector(logits: Tensor, several: bool) -> Tensor:
    if not several:
        return F.log_softmax(logits, -1)
    logs = F.logsigmoid(logits)
    return logs - torch.logsumexp(logs, -1, keepdim=True)


class FewerFramesConfig(TermConfig):
    """Distillation from a teacher that sees all frames to a student that sees few of them.

    Attributes:
        representation: weight of the squared distance of the two encodings; 0 leaves it out.
        prediction: weight of the distance of the two class vectors; 0 leaves it out.
        distance: of class vectors, `squared` or `kl`.
        training: `serial` uses a trained teacher; `parallel` trains a new one beside the student, on the
            labels alone.
        student: name of the student's module that returns the encoding.
        teacher: name of the teacher's module that returns the encoding; by default `encoder`, and where no module of
            that name returns one, the encodings are not compared.
    """

    representation: float = Field(default=1.0, ge=0)
    prediction: float = Field(default=1.0, ge=0)
    distance: Literal["squared", "kl"] = "squared"
    training: Literal["serial", "parallel"] = "serial"
    student: str = _ENCODER
    teacher: str | None = None

    @property
    def co_trains_teacher(self) -> bool:
        return self.training == "parallel"

    @property
    def why_empty(self) -> str:
        is_empty = max(self.representation, self.prediction) == 0
        return "both its representation and its prediction at 0" if is_empty else ""

    def build(self, context: TermContext) -> DistillationTerm:
        return FewerFramesTerm(self, context)


def _gives_encoding(context: TermContext) -> bool:
    """Whether the teacher has a module of the usual name with an output for the whole video."""
    return len(shapes_given(context.teacher, context.teacher_example).get(_ENCODER, ())) == _NUM_DIMS


class FewerFramesTerm(DistillationTerm):
    """Both distances; either may be left out."""

    def __init__(self, config: FewerFramesConfig, context: TermContext) -> None:
        super().__init__(context.name, config.weight)
        task = context.task
        if task.outputs == "other" or task.framewise:
            raise ValueError(
                f"fewer_frames: it compares the classes of whole videos, but task {type(task).__name__.lower()} "
                "gives something else; set fewer_frames.weight to 0"
            )
        shares = {"representation": config.representation, "prediction": config.prediction}
        self.weights = {f"fewer_frames.{name}": config.weight * share for name, share in shares.items() if share > 0}
        self._several = task.outputs == "multilabel"
        self._distance = prediction_kl if config.distance == "kl" else prediction_squared
        self._varying_width = context.varying_width
        self.needs_teacher = bool(self.weights)
        self.adapter: nn.Module | None = None
        if config.representation > 0 and (config.teacher or _gives_encoding(context)):
            self.tap([(config.student, config.teacher or _ENCODER)], "fewer_frames.student", "fewer_frames.teacher")
            self.ndims = (_NUM_DIMS,)
        elif config.representation > 0:
            del self.weights["fewer_frames.representation"]
            reason = f"no module of the teacher is called {_ENCODER!r} and gives an encoding (N, E)"
            self.left_out = {"fewer_frames.representation": (reason, "teacher")}
            self.needs_teacher = bool(self.weights)

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        for student_module, teacher_module in self.pairs:
            student_encoding, teacher_encoding = student.features[student_module], teacher.features[teacher_module]
            for who, name, found in (
                ("student", student_module, student_encoding),
                ("teacher", teacher_module, teacher_encoding),
            ):
                if found.ndim != _NUM_DIMS:
                    raise ValueError(
                        f"fewer_frames.{who}: an encoding has the form (N, E), but module {name!r} gives "
                        f"{tuple(found.shape)}; name the module that encodes the whole video"
                    )
            self.adapter = adapter_for(student_encoding, teacher_encoding, always=self._varying_width)
        if "fewer_frames.prediction" in self.weights and student.logits.shape[-1] != teacher.logits.shape[-1]:
            raise ValueError(
                f"fewer_frames.prediction: both nets must have the same number of classes, but the student's logits "
                f"are {tuple(student.logits.shape)} and the teacher's {tuple(teacher.logits.shape)}; build both for "
                "the same classes, or set fewer_frames.prediction to 0"
            )

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        if not self.weights:
            return {}
        assert teacher is not None
        terms: dict[str, Tensor] = {}
        if self.adapter is not None:
            ((student_module, teacher_module),) = self.pairs
            encoding = self.adapter(student.features[student_module])
            terms["fewer_frames.representation"] = representation(encoding, teacher.features[teacher_module])
        if "fewer_frames.prediction" in self.weights:
            terms["fewer_frames.prediction"] = self._distance(student.logits, teacher.logits, several=self._several)
        return terms
