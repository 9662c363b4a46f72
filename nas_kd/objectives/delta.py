"""Delta distillation (Habibian et al., ECCV 2022, arXiv 2203.09594): every delta layer against its teacher.

The loss of a layer is the mean squared error of the predicted change, Δẑ − Δz with Δz = f(x_t) − f(x_0) from a full
pass of the frozen teacher. Student and teacher share the key frame, so z_0 cancels and the error is ẑ_t − f(x_t):
that of the two maps at frame t.

Deviation: the released code divides by a loss's value at the start of training. Here it is divided by the value that it
has for a student that predicts no change, E[Δz²], measured on the first batch: it does not depend on which candidates a
supernet happens to draw first, and a copy of the teacher's layer, whose loss starts at 0, stays finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nas_kd.objectives.term import DistillationTerm, TermConfig, TermContext
from nas_kd.search_spaces.delta_blocks import delta_net_of
from nas_kd.taps import ModelOutput
from nas_kd.tasks import Batch

Normalize = Literal["layer", "overall", "none"]
Reference = Literal["keyframe", "previous"]
LEAST_CHANGE = 1e-4  # of E[z²]: the least scale of a layer


class DeltaLoss(nn.Module):
    """The mean over layers; its scales are part of the state, so that a resumed training goes on with them.

    Args:
        num_layers: number of delta layers.
        normalize: `layer` divides each layer's error by its own scale, `overall` all by their mean, `none` by 1.
        reference: of the changes that are compared, see `DeltaConfig`. With `previous`, maps hold two frames of each
            clip: the rows of all frames t − 1, then those of all frames t.
    """

    scales: Tensor
    calibrated: Tensor

    def __init__(self, num_layers: int, normalize: Normalize = "layer", reference: Reference = "keyframe") -> None:
        super().__init__()
        self.normalize, self.reference = normalize, reference
        self._ready = normalize == "none"
        self.register_buffer("scales", torch.ones(num_layers))
        self.register_buffer("calibrated", torch.tensor(normalize == "none"))

    def calibrate(self, key: Sequence[Tensor], frame: Sequence[Tensor]) -> None:
        """Measure the scales.

        Args:
            key: for each layer, the teacher's output for the key frames.
            frame: for each layer, the teacher's output for the frames after them, as in `forward`.
        """
        if self.reference == "previous":
            key, frame = zip(*(f.chunk(2) for f in frame), strict=True)
        pairs = list(zip(key, frame, strict=True))
        changes = torch.stack([(f.float() - k.float()).square().mean() for k, f in pairs])
        # Clips that hardly move say nothing about the scale: then a layer's size does, and not a division by nearly 0.
        sizes = torch.stack([f.float().square().mean() for _, f in pairs])
        scales = torch.maximum(changes, LEAST_CHANGE * sizes)
        scales = scales if self.normalize == "layer" else scales.mean().expand_as(scales)
        self.scales.copy_(torch.where(scales > 0, scales, torch.ones_like(scales)))
        self.calibrated.fill_(True)
        self._ready = True

    @property
    def ready(self) -> bool:
        """Whether the scales were measured, here or before a checkpoint."""
        self._ready = self._ready or bool(self.calibrated)  # asked of the device only until it is true
        return self._ready

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """A scalar; 1 is what predicting no change costs, where it is normalised.

        Args:
            student: for each layer, its output for frame t.
            teacher: for each layer, the teacher's output for frame t, of the same shape.

        Raises:
            ValueError: the scales were not measured.
        """
        if not self.ready:
            raise ValueError("the delta objective must be calibrated on a batch before its first use")
        errors = []
        for student_map, teacher_map, scale in zip(student, teacher, self.scales, strict=True):
            gap = student_map - teacher_map.detach()
            if self.reference == "previous":  # (ẑ_t − ẑ_{t−1}) − (z_t − z_{t−1})
                before, now = gap.chunk(2)
                gap = now - before
            errors.append(gap.square().mean() / scale)
        return torch.stack(errors).mean()


class DeltaConfig(TermConfig):
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

    def build(self, context: TermContext) -> DistillationTerm:
        return DeltaTerm(self, context)

    def check_alone(self) -> None:
        if self.active_share < 1:
            raise ValueError(
                f"delta.active_share must be 1 where delta is the only term, but it is {self.active_share:.3g}"
            )

    def slow_parameters(self, student: nn.Module) -> tuple[list[nn.Parameter], float]:
        """Those that were the teacher's; the space leaves them frozen."""
        net = delta_net_of(student)
        slow = net.teacher_parameters() if net is not None and self.teacher_lr_scale > 0 else []
        return slow, self.teacher_lr_scale


class DeltaTerm(DistillationTerm):
    """Every delta layer against the teacher's."""

    def __init__(self, config: DeltaConfig, context: TermContext) -> None:
        super().__init__(context.name, config.weight)
        net = delta_net_of(context.student)
        if net is None:
            raise ValueError("the delta objective needs a student of space delta_blocks; set delta.weight to 0")
        layers = [name for name, layer in net.layers().items() if layer.student is not None]
        self.tap((f"net.{name}", name) for name in layers)
        self.loss = DeltaLoss(len(self.pairs), config.normalize, config.reference)
        self.needs_previous_frame = config.reference == "previous"
        self._active_share = config.active_share

    def is_active(self, progress: float) -> bool:
        return progress < self._active_share

    @property
    def needs_calibration(self) -> bool:
        return not self.loss.ready

    def calibrate(self, key: ModelOutput, frame: ModelOutput) -> None:
        self.loss.calibrate(
            [key.features[name] for name in self.teacher_taps], [frame.features[name] for name in self.teacher_taps]
        )

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        student_maps = [student.features[name] for name in self.student_taps]
        return {self.name: self.loss(student_maps, [teacher.features[name] for name in self.teacher_taps])}
