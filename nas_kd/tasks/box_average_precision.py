"""Average precision of boxes as COCO defines it, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
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
    evaluation = _matched(frames, num_classes, max_detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision: Array = evaluation.eval["precision"]  # (thresholds, recalls, classes, 1, 1); −1 without true boxes
    precision = precision[:, :, precision[0, 0, :, 0, 0] >= 0]
    return AveragePrecision(float(precision[0].mean()), float(precision.mean()))


def resampled_average_precision(
    frames: Sequence[FrameBoxes], num_classes: int, max_detections: int, weights: Array
) -> Array:
    """Average precision at an IoU of 0.5 of frames that count several times, or not at all.

    Args:
        frames: F, as above.
        num_classes: as above.
        max_detections: as above.
        weights: (R, F), how often each frame counts.

    Returns:
        (R,); NaN where no frame with a true box counts.
    """
    evaluation = _matched(frames, num_classes, max_detections)
    recalls = evaluation.params.recThrs
    values, number = np.zeros(len(weights)), np.zeros(len(weights))
    for category in range(num_classes):
        matches = evaluation.evalImgs[category * len(frames) : (category + 1) * len(frames)]
        frame, scores, right, true = [], [], [], np.zeros(len(frames))
        for index, match in enumerate(matches):
            if match is None:  # neither true nor found boxes
                continue
            true[index] = len(match["gtIds"])
            frame += [index] * len(match["dtScores"])
            scores += match["dtScores"]
            right += (match["dtMatches"][0] > 0).tolist()
        order = np.argsort(-np.asarray(scores), kind="mergesort")
        at, hit = np.asarray(frame, dtype=np.int64)[order], np.asarray(right, dtype=np.float64)[order]
        for row, weight in enumerate(weights):
            positives = float(weight @ true)
            if not positives:
                continue
            number[row] += 1
            found, rank = np.cumsum(weight[at] * hit), np.cumsum(weight[at])
            precision = np.divide(found, rank, out=np.zeros_like(found), where=rank > 0)
            best = np.maximum.accumulate(precision[::-1])[::-1]
            reached = np.searchsorted(found / positives, recalls, side="left")
            values[row] += float(np.append(best, 0.0)[reached].mean())
    means: Array = np.divide(values, number, out=np.full(len(weights), np.nan), where=number > 0)
    return means


def _matched(frames: Sequence[FrameBoxes], num_classes: int, max_detections: int) -> COCOeval:
    """An evaluation whose boxes are matched in every frame and class."""
    from pycocotools.cocoeval import COCOeval  # here: exported students do without it, and matplotlib with it

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(
            _dataset([frame.truth for frame in frames], num_classes),
            _dataset([frame.found for frame in frames], num_classes),
            "bbox",
        )
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, float("inf")]], ["all"]
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
    return evaluation


def _dataset(frames: Sequence[Array], num_classes: int) -> COCO:
    from pycocotools.coco import COCO

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
