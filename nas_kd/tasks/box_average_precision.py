"""Average precision of boxes as COCO defines it, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Array = npt.NDArray[np.float64]


class FrameBoxes(NamedTuple):
    """One frame's boxes, true and found.

    Attributes:
        truth: (G, 5) of x0, y0, x1, y1, class.
        found: (D, 6) of x0, y0, x1, y1, class, score.
    """

    truth: Array
    found: Array


class AveragePrecision(NamedTuple):
    """Mean over classes: at an IoU of 0.5, and over the thresholds 0.5, 0.55, …, 0.95."""

    map50: float
    map: float


def box_average_precision(
    frames: Sequence[FrameBoxes], num_classes: int, max_detections: int
) -> AveragePrecision | None:
    """Average precision over frames (Lin et al., Microsoft COCO, ECCV 2014, and its evaluation code).

    In each frame and class, the highest score first, a found box takes the free true box that it overlaps most, if it
    does so by the threshold; all others are false. Over the found boxes of all frames by score, precision is made
    monotone and averaged at the recalls 0, 0.01, …, 1. Boxes of every size count; classes without a true box are no
    part of the mean. A frame without true boxes contributes what is wrongly found in it.

    Args:
        frames: truth and finds of each frame.
        num_classes: number of classes, those that do not occur included.
        max_detections: found boxes a frame and class that count, the highest scores first.

    Returns:
        None where no frame has a true box.
    """
    if not any(len(frame.truth) for frame in frames):
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(
            _dataset([frame.truth for frame in frames], num_classes),
            _dataset([frame.found for frame in frames], num_classes),
            "bbox",
        )
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, float("inf")]], ["all"]
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: Array = evaluation.eval["precision"]  # (thresholds, recalls, classes, 1, 1); −1 without true boxes
    precision = precision[:, :, precision[0, 0, :, 0, 0] >= 0]
    return AveragePrecision(float(precision[0].mean()), float(precision.mean()))


def _dataset(frames: Sequence[Array], num_classes: int) -> COCO:
    coco = COCO()
    annotations: list[dict[str, Any]] = []
    for image, rows in enumerate(frames):
        for x0, y0, x1, y1, category, *score in rows.tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,  # from 1 on: to COCOeval a match with box 0 is no match
                    "image_id": image,
                    "category_id": int(category),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    **({"score": score[0]} if score else {}),
                }
            )
    coco.dataset = {
        "images": [{"id": image} for image in range(len(frames))],
        "categories": [{"id": category} for category in range(num_classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
