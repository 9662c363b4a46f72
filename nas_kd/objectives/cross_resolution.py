"""Cross-resolution distillation (Ma et al., ResKD, NeurIPS 2022, arXiv 2209.12797), for CNNs and for transformers."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nas_kd.objectives.map_term import MapTerm, module_of_student, pairs_by_scale
from nas_kd.objectives.maps import check_channels, matched_frames, resample
from nas_kd.objectives.term import DistillationTerm, TermConfig, TermContext
from nas_kd.settings.mistakes import choose
from nas_kd.taps import ModelOutput, tappable
from nas_kd.tasks import Batch


def cross_resolution(student: Tensor, teacher: Tensor) -> Tensor:
    """mean[(Up(student) − teacher)²] over all elements: the student's map is upsampled bilinearly to the teacher's.

    The paper's form for CNNs, weighted with 100. Maps of clips are resampled over H and W only; where the student sees
    fewer frames (outside the paper), the teacher's frames nearest to the student's are compared.

    Args:
        student: (N, C, H_s, W_s) or (N, C, T_s, H_s, W_s), after the adapter.
        teacher: the same with the teacher's pixels and frames.

    Raises:
        ValueError: the maps differ in their channels or in their number of dimensions.
    """
    teacher, student = matched_frames(teacher, student)
    check_channels(student, teacher)
    return (resample(student, teacher.shape[-2:]) - teacher).pow(2).mean()


def cross_resolution_logits(
    student_map: Tensor,
    teacher_map: Tensor,
    student_classifier: nn.Module,
    teacher_classifier: nn.Module,
    kd_temperature: float = 2.0,
) -> Tensor:
    """T² · mean of the elements of KL(softmax(W_t F_t / T) ‖ softmax(W_s Up(F_s) / T)), position by position.

    The paper's form for Swin, weighted with 200. Each map goes through its own net's classifier at every position, so
    channels need not agree and there is no adapter; the student's classifier learns from this too, the teacher's does
    not. As in the released code the mean is over *all* elements, classes included: the sum of the positions'
    divergences over N · (T ·) H_t · W_t · num_classes. So the term is num_classes times smaller than a mean over
    positions, such as `response`: the paper's 200, for 400 classes, weighs the mean over positions with 0.5.

    Frames and pixels are matched as in `cross_resolution`.

    Args:
        student_map: (N, C_s, H_s, W_s) or (N, C_s, T_s, H_s, W_s); may be narrower than its classifier, see
            `apply_classifier`.
        teacher_map: the same with the teacher's channels, pixels and frames.
        student_classifier: (..., C_s) -> (..., num_classes), such as an `nn.Linear` or a LayerNorm before one.
        teacher_classifier: (..., C_t) -> (..., num_classes).
        kd_temperature: T.

    Raises:
        ValueError: the maps are of different kinds, a classifier does not fit its map, or the two classifiers have
            different numbers of classes.
    """
    teacher_map, student_map = matched_frames(teacher_map, student_map)
    student_logits = apply_classifier(student_classifier, resample(student_map, teacher_map.shape[-2:]))
    with torch.no_grad():
        teacher_logits = apply_classifier(teacher_classifier, teacher_map)
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise ValueError(
            f"both classifiers must have the same number of classes, but the student's logits are "
            f"{tuple(student_logits.shape)} and the teacher's {tuple(teacher_logits.shape)}; name the last layer of "
            "each net"
        )
    log_p = F.log_softmax(student_logits / kd_temperature, dim=-1)
    log_q = F.log_softmax(teacher_logits / kd_temperature, dim=-1)
    # A sum over all elements: torch is about to change what its own "mean" divides by.
    summed = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    return summed / log_p.numel() * kd_temperature**2


def apply_classifier(classifier: nn.Module, features: Tensor) -> Tensor:
    """The logits at every position of a map.

    A map narrower than the classifier, as a supernet gives, uses the leading columns of the weight of an `nn.Linear`;
    of an `nn.LayerNorm` before it, the leading scales and shifts. Both are found through any `nn.Sequential`.

    Args:
        classifier: (..., C) -> (..., num_classes).
        features: (N, C, H, W) or (N, C, T, H, W).

    Returns:
        (N, H, W, num_classes) or (N, T, H, W, num_classes).

    Raises:
        ValueError: the classifier does not take the map's channels, or does not give one tensor of logits.
    """
    rows = features.movedim(1, -1)
    try:
        logits = _at_width(classifier, rows)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"a classifier must take rows of the {features.shape[1]} channels of its map {tuple(features.shape)}, but "
            f"the {type(classifier).__name__} does not; name the last layer of the net that the map belongs to"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape[:-1] != rows.shape[:-1]:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"a classifier must give logits at every position, {(*rows.shape[:-1], 'num_classes')}, but the "
            f"{type(classifier).__name__} gives {got}; name the layer that follows the pooling"
        )
    return logits


def _at_width(module: nn.Module, rows: Tensor) -> Tensor:
    """`module` of (..., C), with its leading channels where C is less than it was built for."""
    width = rows.shape[-1]
    if isinstance(module, nn.Sequential):
        for child in module:
            rows = _at_width(child, rows)
        return rows
    if isinstance(module, nn.Linear) and width < module.in_features:
        return F.linear(rows, module.weight[:, :width], module.bias)
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1 and width < module.normalized_shape[0]:
        weight, bias = (None if p is None else p[:width] for p in (module.weight, module.bias))
        return F.layer_norm(rows, (width,), weight, bias, module.eps)
    output: Tensor = module(rows)
    return output


def find_classifier(module: nn.Module, num_outputs: int) -> str:
    """Name of the last `nn.Linear`, in the order of `named_modules()`, that has so many outputs.

    Args:
        module: a net; of a `Supernet`, its network is looked at, whose names are those of its students.
        num_outputs: what the task reads.

    Raises:
        ValueError: there is none.
    """
    modules = tappable(module)
    names = [
        name
        for name, child in modules.items()
        if name and isinstance(child, nn.Linear) and child.out_features == num_outputs
    ]
    if not names:
        raise ValueError(
            f"{type(modules['']).__name__} has no nn.Linear with {num_outputs} outputs to classify its map with; name "
            "its classifier, or use form: maps"
        )
    return names[-1]


class CrossResolutionConfig(TermConfig):
    """Distillation of one feature map at the teacher's resolution; the paper's weight is 100, of its `logits` form 200.

    Attributes:
        form: `maps` compares the maps themselves (CNNs), `logits` the outputs of both classifiers at every position
            (transformers).
        kd_temperature: of the `logits` form.
        student: name of the student's module that returns the map; the last map by default.
        teacher: name of the teacher's module that returns the map; the last map by default.
        student_classifier: name of the linear layer that reads the map, for the `logits` form; the last one with as
            many outputs as the task has classes by default.
        teacher_classifier: name of the linear layer that reads the teacher's map, with the same default.
        teacher_norm: `running` keeps the teacher's BatchNorm as in evaluation; `batch` gives it the statistics of the
            batch, as the released code does, and leaves its buffers as they are. Such answers are never cached.
    """

    free_options: ClassVar[tuple[str, ...]] = ("kd_temperature",)

    form: Literal["maps", "logits"] = "maps"
    kd_temperature: float = Field(default=2.0, gt=0)
    student: str | None = None
    teacher: str | None = None
    student_classifier: str | None = None
    teacher_classifier: str | None = None
    teacher_norm: Literal["running", "batch"] = "running"

    @property
    def uses_batch_statistics(self) -> bool:
        return self.teacher_norm == "batch"

    def build(self, context: TermContext) -> DistillationTerm:
        keys = (f"{context.name}.student", f"{context.name}.teacher")
        student_module = module_of_student(context.student, self.student) if self.student else None
        if student_module is None or self.teacher is None:
            last = pairs_by_scale(context, keys)[-1]
            pair = (student_module or last[0], self.teacher or last[1])
        else:
            pair = (student_module, self.teacher)
        if self.form == "logits":
            return PositionLogitsTerm(self, pair, keys, context)
        return MapTerm(context, self.weight, (pair,), keys, cross_resolution)


class PositionLogitsTerm(DistillationTerm):
    """Logits of both classifiers at every position of two maps: the form for transformers."""

    def __init__(
        self, config: CrossResolutionConfig, pair: tuple[str, str], keys: tuple[str, str], context: TermContext
    ) -> None:
        super().__init__(context.name, config.weight)
        self.tap([pair], *keys)
        self.ndims = (4, 5)
        self._kd_temperature = config.kd_temperature
        # In a tuple, so that they are not parts of this module: both belong to their nets.
        num_outputs = context.task.num_outputs
        self._classifiers = (
            _classifier("student", context.student, config.student_classifier, num_outputs),
            _classifier("teacher", context.teacher, config.teacher_classifier, num_outputs),
        )

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        ((student_module, teacher_module),) = self.pairs
        maps = (student.features[student_module], teacher.features[teacher_module])
        key = "cross_resolution"
        try:
            matched_frames(maps[1], maps[0])
            for who, features, classifier in zip(("student", "teacher"), maps, self._classifiers, strict=True):
                key = f"cross_resolution.{who}_classifier"
                apply_classifier(classifier, features)
            self(student, teacher, {})
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        ((student_module, teacher_module),) = self.pairs
        value = cross_resolution_logits(
            student.features[student_module], teacher.features[teacher_module], *self._classifiers, self._kd_temperature
        )
        return {self.name: value}


def _classifier(who: str, net: nn.Module, name: str | None, num_outputs: int) -> nn.Module:
    modules, key = tappable(net), f"cross_resolution.{who}_classifier"
    if name is None:
        try:
            name = find_classifier(net, num_outputs)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    if name not in modules:
        linear = [n for n, module in modules.items() if isinstance(module, nn.Linear)]
        raise ValueError(f"{key}: the {who} has no module {name!r}; {choose(name, linear)}")
    return modules[name]
