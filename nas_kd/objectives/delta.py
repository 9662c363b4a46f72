"""Delta distillation (Habibian et al., ECCV 2022, arXiv 2203.09594): every delta layer against its teacher.

The loss of a layer is the mean squared error of the predicted change, Δẑ − Δz with Δz = f(x_t) − f(x_0) from a full
pass of the frozen teacher. Student and teacher share the key frame, so z_0 cancels and the error is ẑ_t − f(x_t):
that of the two maps at frame t.

Deviation: the released code divides by a loss's value at the start of training. Here it is divided by the value that it
has for a student that predicts no change, E[Δz²], measured on the first batch: it does not depend on which candidates a
supernet happens to draw first, and a copy of the teacher's layer, whose loss starts at 0, stays finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Normalize = Literal["layer", "overall", "none"]
Reference = Literal["keyframe", "previous"]
LEAST_CHANGE = 1e-4  # of E[z²]: the least scale of a layer


class DeltaLoss(nn.Module):
    """The mean over layers; its scales are part of the state, so that a resumed training goes on with them.

    Args:
        num_layers: number of delta layers.
        normalize: `layer` divides each layer's error by its own scale, `overall` all by their mean, `none` by 1.
        reference: of the changes that are compared, see `DeltaTerm`. With `previous`, maps hold two frames of each
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
            frame: likewise for the frames after them, as in `forward`.
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
            teacher: likewise.

        Raises:
            ValueError: the scales were not measured.
        """
        if not self.ready:
            raise ValueError("the delta objective must be calibrated on a batch before its first use")
        errors = []
        for ours, theirs, scale in zip(student, teacher, self.scales, strict=True):
            gap = ours - theirs.detach()
            if self.reference == "previous":  # (ẑ_t − ẑ_{t−1}) − (z_t − z_{t−1})
                before, now = gap.chunk(2)
                gap = now - before
            errors.append(gap.square().mean() / scale)
        return torch.stack(errors).mean()


def delta_pairs(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(module of a `DeltaNet`, module of the teacher) for modules by their names in the teacher."""
    return tuple((f"net.{name}", name) for name in names)
