"""Boxes in each frame, without anchors: a heat map of centres and the distances to the edges.

Centres as in CenterNet (Zhou et al., Objects as Points, 2019, arXiv 1904.07850), edges as in FCOS (Tian et al., ICCV
2019, arXiv 1904.01355), with the logarithm of a distance in cells as the output. Deviations from CenterNet: no offset
of the centre within its cell is regressed, since four distances say it already, and boxes train with generalised IoU.

A distance is positive, so a box that does not hold the centre of its cell, which is smaller than a cell, is met only
nearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from nas_kd.data import DataInfo, Sample, Splits
from nas_kd.tasks.box_average_precision import FrameBoxes, box_average_precision, resampled_average_precision
from nas_kd.tasks.boxes import (
    Detections,
    boxes_at,
    centre_cells,
    decode,
    focal_loss,
    generalized_iou,
    heat_targets,
    owners,
)
from nas_kd.tasks.item_scores import ItemScores, Weights
from nas_kd.tasks.occurring import absent_classes
from nas_kd.tasks.offsets import Offset, frames_by_offset, over_offsets
from nas_kd.tasks.task import Batch, Outputs, Task, check_finite_outputs

__all__ = ["Detection", "DetectionConfig", "Detections", "decode"]


class DetectionConfig(BaseModel):
    """Options of detection.

    Attributes:
        box_weight: of 1 − generalised IoU, beside the focal loss of the heat.
        focal_alpha: α of the focal loss: weight of what is hard.
        focal_beta: β of the focal loss: how much lighter cells near a centre are punished.
        min_overlap: IoU that a box shifted within the Gaussian around its centre keeps; lower means wider Gaussians.
        max_detections: boxes a frame that count, those of the highest scores.
        score_threshold: boxes with a lower score are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    box_weight: float = Field(default=1.0, ge=0)
    focal_alpha: float = Field(default=2.0, ge=0)
    focal_beta: float = Field(default=4.0, ge=0)
    min_overlap: float = Field(default=0.7, gt=0, lt=1)
    max_detections: int = Field(default=100, ge=1)
    score_threshold: float = Field(default=0.01, ge=0, lt=1)


class Detection(Task):
    """Focal loss of centres and generalised IoU of boxes; `map50` is COCO's average precision at an IoU of 0.5.

    Raises:
        ValueError: the data have no boxes.
    """

    metric: ClassVar[str] = "map50"
    metrics: ClassVar[tuple[str, ...]] = ("map50", "map")
    percent: ClassVar[tuple[str, ...]] = ("map50", "map")
    framewise: ClassVar[bool] = True
    hints_read: ClassVar[bool] = True
    outputs: ClassVar[Outputs] = "other"
    keys: ClassVar[tuple[str, ...]] = ("boxes",)
    needs: ClassVar[str] = "a box"
    extra_outputs: ClassVar[int] = 4  # the distances to the edges
    options: ClassVar[type[BaseModel]] = DetectionConfig

    def __init__(self, info: DataInfo, config: DetectionConfig | None = None) -> None:
        super().__init__(info, config)
        if not info.box_names:
            raise ValueError(
                f"the data have no boxes to detect: box_names must name at least 1 class, but {info.name!r} names "
                "none; set data.boxes: true for labelled frames (source sequences), give boxes and box_names with data "
                "of your own, or choose another task"
            )
        self.config = config or DetectionConfig()
        self._found: dict[Offset, list[FrameBoxes]] = {}
        self._num_items = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.info.box_names

    def is_labelled(self, sample: Sample) -> bool:
        return bool((sample["boxes"][..., 4] >= 0).any())

    def hints(self, splits: Splits) -> list[str]:
        return absent_classes(splits, "boxes", self._boxes, self.class_names, "box")

    def _boxes(self, boxes: Tensor) -> Tensor:
        """[C] number of boxes of each class."""
        numbers = boxes[..., 4].flatten().long()
        return torch.bincount(numbers[numbers >= 0], minlength=len(self.class_names))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Focal loss a centre, plus `box_weight` times the mean of 1 − generalised IoU over boxes.

        Each box trains the distances of the cell of its centre; where several centres fall into one cell, the smallest
        box does. A frame without boxes has heat to learn only.
        """
        terms = self.losses(outputs, batch)
        return terms["heat"] + self.config.box_weight * terms["boxes"]

    def losses(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, unweighted: `heat` and `boxes`."""
        maps, boxes = self._frames(outputs, batch)
        size, (h, w) = (self.info.height, self.info.width), maps.shape[-2:]
        target = heat_targets(boxes, self.num_outputs - 4, h, w, *size, min_overlap=self.config.min_overlap)
        heat = focal_loss(maps[:, :-4], target, self.config.focal_alpha, self.config.focal_beta)
        row, column = centre_cells(boxes, h, w, *size)
        mine = owners(boxes, row, column)
        distances = 1 - generalized_iou(boxes_at(maps[:, -4:], row, column, *size), boxes[..., :4])
        return {"heat": heat, "boxes": (distances * mine).sum() / mine.sum().clamp_min(1)}

    @torch.no_grad()
    def update(self, outputs: Tensor, batch: Batch, offsets: Sequence[int] | None = None) -> None:
        check_finite_outputs(outputs)
        maps, boxes = self._frames(outputs, batch)
        clips, frames = outputs.shape[:2]
        self._num_items += clips
        decoded = decode(
            maps,
            self.info.height,
            self.info.width,
            max_detections=self.config.max_detections,
            score_threshold=self.config.score_threshold,
        )
        truths = boxes.double().cpu().numpy()
        both = [FrameBoxes(t[t[:, 4] >= 0], _rows(found)) for t, found in zip(truths, decoded, strict=True)]
        for offset, chosen in frames_by_offset(offsets, frames).items():
            self._found.setdefault(offset, []).extend(both[n * frames + t] for n in range(clips) for t in chosen)

    def item_scores(self) -> ItemScores:
        found = [frames for frames in self._found.values() if any(len(frame.truth) for frame in frames)]
        num_items, num_classes = self._num_items, len(self.info.box_names)

        def resample(weights: Weights) -> Weights:
            of_offsets = []
            for frames in found:
                of_frames = weights.repeat(len(frames) // num_items, axis=1)
                most = self.config.max_detections
                of_offsets.append(resampled_average_precision(frames, num_classes, most, of_frames))
            mean: Weights = np.mean(of_offsets, axis=0)
            return mean

        return ItemScores(num_items, resample, chance=0.0, span=(0, 1))

    def compute(self) -> dict[str, float]:
        """The metrics since the last call: `map50`, `map50@k`, and `map`, the mean over IoUs of 0.5, 0.55, …, 0.95.

        Where there are offsets, `map` too is the mean over them. Offsets without a true box are left out.
        """
        values: dict[Offset, tuple[float, float]] = {}
        for offset, frames in self._found.items():
            precision = box_average_precision(frames, len(self.info.box_names), self.config.max_detections)
            if precision is not None:
                values[offset] = precision
        if not values:
            raise ValueError("metrics need at least one box, but the split has none")
        self._found, self._num_items = {}, 0
        result = over_offsets("map50", {offset: at_half for offset, (at_half, _) in values.items()})
        result["map"] = over_offsets("map", {offset: mean for offset, (_, mean) in values.items()})["map"]
        return result

    def _frames(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Maps (N·T, C + 4, h, w) in float32 and boxes (N·T, B, 5)."""
        boxes = batch["boxes"]
        if outputs.ndim != 5 or outputs.shape[:3] != (*boxes.shape[:2], self.num_outputs):
            wanted = (*boxes.shape[:2], self.num_outputs, "h", "w")
            raise ValueError(
                f"detection needs maps of shape {wanted}, a channel for each of {', '.join(self.info.box_names)} and "
                f"4 for the edges, but the model gives {tuple(outputs.shape)}"
            )
        return outputs.flatten(0, 1).float(), boxes.flatten(0, 1).to(outputs.device)


def _rows(found: Detections) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(K, 6) of box, class, score."""
    rows = torch.cat([found.boxes.double(), found.classes[:, None].double(), found.scores[:, None].double()], 1)
    array: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = rows.cpu().numpy()
    return array
