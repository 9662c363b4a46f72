"""A task of your own on single frames: joints as heat maps (docs/extending.md).

`task: "pose:Pose"`; the mask of a frame holds the number of a joint at its pixel and 0 elsewhere (`points: true`).
"""

from collections import Counter

import torch
import torch.nn.functional as F

from nas_kd.tasks import Task, frames_by_offset, over_offsets


class Pose(Task):
    """Squared error of heat maps; `pck` is the share of joints found within a tenth of the map's longer side."""

    metric, percent, framewise, outputs, keys = "pck", ("pck",), True, "other", ("mask",)

    def __init__(self, info, config=None):
        super().__init__(info, config)
        self.right, self.seen = Counter(), Counter()

    @property
    def class_names(self):
        return self.info.mask_names[1:]  # one map a joint

    def joints(self, mask, size):
        """0 or 1 at each pixel of a map, (N, T, joints, h, w)."""
        one_hot = torch.stack([mask == k for k in range(1, self.num_outputs + 1)], 2).float()
        return F.adaptive_max_pool2d(one_hot.flatten(0, 1), size).view(*one_hot.shape[:3], *size)

    def loss(self, outputs, batch):
        target = self.joints(batch["mask"], outputs.shape[-2:])
        return F.mse_loss(outputs, F.avg_pool2d(target.flatten(0, 1), 3, 1, 1).view_as(target) * 9)

    def update(self, outputs, batch, offsets=None):
        target = self.joints(batch["mask"], outputs.shape[-2:]).flatten(3)
        width, seen = outputs.shape[-1], target.amax(-1) > 0
        found, truth = outputs.flatten(3).argmax(-1), target.argmax(-1)
        gap = torch.hypot((found // width - truth // width).float(), (found % width - truth % width).float())
        right = seen & (gap <= max(outputs.shape[-2:]) / 10)
        for offset, frames in frames_by_offset(offsets, outputs.shape[1]).items():  # frames after their key frame
            self.right[offset] += int(right[:, frames].sum())
            self.seen[offset] += int(seen[:, frames].sum())

    def compute(self):
        if not sum(self.seen.values()):
            raise ValueError("metrics need at least one joint, but the split has none")
        shares = {offset: self.right[offset] / max(count, 1) for offset, count in self.seen.items()}
        self.right, self.seen = Counter(), Counter()
        return over_offsets("pck", shares)
