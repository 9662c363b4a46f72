"""The objective of a trial: named terms from the modules beside this one, weighted and summed here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from nas_kd.objectives.cross_resolution import cross_resolution
from nas_kd.objectives.delta import DeltaLoss, Normalize, Reference, delta_pairs
from nas_kd.objectives.feature import feature
from nas_kd.objectives.maps import adapter_for
from nas_kd.objectives.response import response
from nas_kd.taps import ModelOutput, Taps, last_maps
from nas_kd.tasks import Batch, Task
from search_spaces.supernet import delta_net_of


class _Term(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class TaskTerm(_Term):
    """The task's own loss on the labels."""

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)


class ResponseTerm(_Term):
    """Distillation of the teacher's logits."""

    kd_temperature: float = Field(default=4.0, gt=0)


class FeatureTerm(_Term):
    """Distillation of feature maps, the mean over pairs.

    Attributes:
        pairs: [student module, teacher module] each; without them, the last map of each scale of the one with the last
            map of the same scale of the other, counted from the smallest. Distilling every scale is what makes a short
            gate search work: candidates of an edge learn one function soon (Li et al., Blockwisely Supervised NAS,
            CVPR 2020).
    """

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    pairs: tuple[tuple[str, str], ...] | None = None


class CrossResolutionTerm(_Term):
    """Distillation of one feature map at the teacher's resolution; the paper's weight is 100.

    Attributes:
        student: name of the module; the last map by default.
        teacher: likewise.
    """

    student: str | None = None
    teacher: str | None = None


class DeltaTerm(_Term):
    """Delta distillation of every delta layer, for students of `delta_blocks`.

    Attributes:
        normalize: `layer` measures each layer's error in units of its own change, `overall` all of them in units of
            their mean change, `none` not at all.
        active_share: share of the training in which the term counts; later the task decides alone (a third in the
            released code).
        teacher_lr_scale: learning rate of the layers that were the teacher's, in shares of that of the students; 0
            keeps them frozen. They learn in the student's copy: the teacher itself never changes.
        reference: `keyframe` compares the changes since the key frame, `previous` those since the frame before, which
            asks for the right motion and forgives an offset that stays. What a student computes is the same.
    """

    normalize: Normalize = "layer"
    active_share: float = Field(default=1 / 3, gt=0, le=1)
    teacher_lr_scale: float = Field(default=0.0, ge=0, le=1)
    reference: Reference = "keyframe"


class ObjectiveConfig(BaseModel):
    """Terms of the loss, each with its weight; a weight of 0 leaves the term out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: TaskTerm = TaskTerm()
    response: ResponseTerm = ResponseTerm()
    feature: FeatureTerm = FeatureTerm()
    cross_resolution: CrossResolutionTerm = CrossResolutionTerm()
    delta: DeltaTerm = DeltaTerm()

    @model_validator(mode="after")
    def _some(self) -> ObjectiveConfig:
        if not (self.task.weight > 0 or self.distils):
            raise ValueError("at least one term must have a weight above 0, but all are 0")
        others = (self.task, self.response, self.feature, self.cross_resolution)
        if self.delta.active_share < 1 and not any(t.weight > 0 for t in others):
            raise ValueError(
                f"delta.active_share must be 1 where delta is the only term, but it is {self.delta.active_share:.3g}"
            )
        return self

    @property
    def distils(self) -> bool:
        """Whether any term needs the teacher."""
        return any(t.weight > 0 for t in (self.response, self.feature, self.cross_resolution, self.delta))


MAP_OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "feature": feature,
    "cross_resolution": cross_resolution,
}
"""Name -> function of (adapted student map, teacher map). A new objective on maps is an entry and a config field."""


class Objective(nn.Module):
    """Function of student, teacher and batch that returns named, unweighted terms; `total` weighs and sums them.

    It owns the adapters, which train with the student's weights.

    Args:
        config: terms and weights.
        task: loss on the labels.
        student: the net that will be trained (a supernet or a student); must return its widest maps when `example`
            runs through it.
        teacher: frozen model, or None where nothing is distilled.
        example: one student input.
        teacher_example: one teacher input.
        varying_width: the student's maps may be narrower later, so an adapter is always there.

    Raises:
        ValueError: a tapped module does not exist, or two maps cannot be compared.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        task: Task,
        student: nn.Module,
        teacher: nn.Module | None,
        example: Tensor,
        teacher_example: Tensor,
        *,
        varying_width: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.task = config, task
        self.pairs: dict[str, tuple[tuple[str, str], ...]] = {}
        self.delta_pairs: tuple[tuple[str, str], ...] = ()
        self.adapters = nn.ModuleDict()
        self.progress = 0.0
        self.delta: DeltaLoss | None = None
        if config.distils and teacher is None:
            raise ValueError("the objective distils, but there is no teacher; set the distillation weights to 0")
        if teacher is None:
            return
        if config.delta.weight > 0:
            self.delta_pairs = delta_pairs(_trained_layers(student))
            self.delta = DeltaLoss(len(self.delta_pairs), config.delta.normalize, config.delta.reference)
        if config.feature.weight > 0:
            named = tuple((_in_student(student, ours), theirs) for ours, theirs in config.feature.pairs or ())
            self.pairs["feature"] = named or _scale_pairs(student, example, teacher, teacher_example)
        if config.cross_resolution.weight > 0:
            last = _scale_pairs(student, example, teacher, teacher_example)[-1]
            chosen = config.cross_resolution
            ours = _in_student(student, chosen.student) if chosen.student else last[0]
            self.pairs["cross_resolution"] = ((ours, chosen.teacher or last[1]),)
        student_maps = _maps(student, example, self.student_taps)
        teacher_maps = _maps(teacher, teacher_example, self.teacher_taps)
        for name, pairs in self.pairs.items():
            adapters = [adapter_for(student_maps[s], teacher_maps[t], always=varying_width) for s, t in pairs]
            for adapter, (ours, theirs) in zip(adapters, pairs, strict=True):
                MAP_OBJECTIVES[name](adapter(student_maps[ours]), teacher_maps[theirs])  # fails here, not in training
            self.adapters[name] = nn.ModuleList(adapters)

    @property
    def student_taps(self) -> tuple[str, ...]:
        """Modules of the student whose maps are needed."""
        return tuple(dict.fromkeys(ours for ours, _ in self._all_pairs))

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """Modules of the teacher whose maps are needed."""
        return tuple(dict.fromkeys(theirs for _, theirs in self._all_pairs))

    @property
    def _all_pairs(self) -> tuple[tuple[str, str], ...]:
        return (*self.delta_pairs, *(pair for pairs in self.pairs.values() for pair in pairs))

    @property
    def uses_delta(self) -> bool:
        """Whether the delta term counts at the present progress."""
        return self.delta is not None and self.progress < self.config.delta.active_share

    @property
    def uses_teacher(self) -> bool:
        """Whether any term needs the teacher at the present progress."""
        return self.uses_delta or bool(self.pairs) or self.config.response.weight > 0

    def advance(self, progress: float) -> None:
        """Say how far the training is, from 0 to 1."""
        self.progress = progress

    def calibrate(self, key: ModelOutput, frame: ModelOutput) -> None:
        """Measure the scales of the delta term, once, from the teacher's maps at key frames and at later ones."""
        assert self.delta is not None
        theirs = [name for _, name in self.delta_pairs]
        self.delta.calibrate([key.features[n] for n in theirs], [frame.features[n] for n in theirs])

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        """Unweighted terms by name, each a scalar."""
        terms: dict[str, Tensor] = {}
        if self.config.task.weight > 0:
            terms["task"] = self.task.loss(student.logits, batch)
        if teacher is not None:
            if self.config.response.weight > 0:
                terms["response"] = response(student.logits, teacher.logits, self.config.response.kd_temperature)
            if self.delta is not None and self.uses_delta:
                ours = [student.features[name] for name, _ in self.delta_pairs]
                terms["delta"] = self.delta(ours, [teacher.features[name] for _, name in self.delta_pairs])
            for name, pairs in self.pairs.items():
                adapters = cast(nn.ModuleList, self.adapters[name])
                values = [
                    MAP_OBJECTIVES[name](adapter(student.features[ours]), teacher.features[theirs])
                    for adapter, (ours, theirs) in zip(adapters, pairs, strict=True)
                ]
                terms[name] = torch.stack(values).mean()
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Σ weight · term."""
        return torch.stack([getattr(self.config, name).weight * value for name, value in terms.items()]).sum()


def _in_student(student: nn.Module, name: str) -> str:
    """The student's module of that name; a delta student has the modules of its teacher, below `net`."""
    return name if delta_net_of(student) is None or name.startswith("net.") else f"net.{name}"


def _trained_layers(student: nn.Module) -> dict[str, object]:
    """Delta layers that have a student.

    Raises:
        ValueError: the net has none.
    """
    net = delta_net_of(student)
    if net is None:
        raise ValueError("the delta objective needs a student of space delta_blocks; set delta.weight to 0")
    return {name: layer for name, layer in net.layers().items() if layer.student is not None}


def _scale_pairs(
    student: nn.Module, example: Tensor, teacher: nn.Module, teacher_example: Tensor
) -> tuple[tuple[str, str], ...]:
    theirs = last_maps(teacher, teacher_example)
    if delta_net_of(student) is not None:
        return delta_pairs(theirs)  # the teacher's own modules, with delta layers among them
    ours = last_maps(student, example)
    count = min(len(ours), len(theirs))
    return tuple(zip(ours[-count:], theirs[-count:], strict=True))


def _maps(module: nn.Module, example: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
    mode = module.training
    with torch.no_grad(), Taps(module, names) as taps:
        module.eval()
        output = taps(example)
    module.train(mode)
    return output.features
