"""A task of your own: ejection fraction from video, one number a clip (docs/extending.md).

`task: "ejection_fraction:EjectionFraction"`; samples hold `clip` and `ejection_fraction`, a float in [0, 1], and the
data have no classes (`num_classes: 0`).
"""

import torch
import torch.nn.functional as F

from nas_kd.tasks import Task


class EjectionFraction(Task):
    """Mean squared error; `mae` is the mean absolute error."""

    metric, maximize, outputs = "mae", False, "other"
    keys = ("ejection_fraction",)  # that a batch must hold
    defaults = {"search": {"objective": {"response": {"weight": 0.0}}}}  # there are no class logits to soften

    def __init__(self, info, config=None):
        super().__init__(info, config)
        self.errors = []

    @property
    def class_names(self):
        return ("ejection_fraction",)  # one output

    def loss(self, outputs, batch):
        return F.mse_loss(outputs[:, 0], batch["ejection_fraction"])

    def update(self, outputs, batch, offsets=None):
        self.errors.append((outputs[:, 0] - batch["ejection_fraction"]).abs().cpu())

    def compute(self):
        if not self.errors:
            raise ValueError("metrics need at least one clip, but the split is empty")
        errors, self.errors = torch.cat(self.errors), []
        return {"mae": float(errors.mean())}
