"""Boxes on a grid of cells: where their centres are, the heat around them, losses and decoding.

Shape legend: F frames, B rows of boxes a frame, C classes, h and w cells of a map, H and W pixels of a frame.

A cell is H/h × W/w pixels. The map of a frame has C + 4 channels: C logits of heat, then the logarithms of the
distances from the cell's centre to the left, top, right and bottom edge, in cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_LOG_DISTANCE = 8.0  # about 3000 cells; beyond it, exp would overflow before training has begun


class Detections(NamedTuple):
    """What was found in one frame, the highest score first.

    Attributes:
        boxes: float32 (K, 4) of x0, y0, x1, y1 in pixels, cut at the frame.
        scores: float32 (K,) in (0, 1).
        classes: int64 (K,).
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def decode(
    outputs: Tensor, height: int, width: int, *, max_detections: int = 100, score_threshold: float = 0.01
) -> list[Detections]:
    """Boxes of maps: cells whose heat no neighbour exceeds (Zhou et al., Objects as Points, 2019, section 4.1).

    A cell counts as a peak of a class where the 3×3 maximum of its heat is its own; no other suppression takes place.

    Args:
        outputs: (…, C + 4, h, w); leading dimensions are frames, in row-major order.
        height: H of the frames in pixels.
        width: W of the frames in pixels.
        max_detections: boxes a frame over all classes, those of the highest scores.
        score_threshold: boxes with a lower score are left out.

    Returns:
        One entry a frame.

    Raises:
        ValueError: the maps have no channel for a class.
    """
    if outputs.ndim < 3 or outputs.shape[-3] < 5:
        raise ValueError(
            f"detections need maps of shape (…, classes + 4, h, w), with at least 5 channels, but got "
            f"{tuple(outputs.shape)}"
        )
    maps = outputs.reshape(-1, *outputs.shape[-3:]).float()
    heat = maps[:, :-4].sigmoid()
    peaks = heat * (F.max_pool2d(heat, 3, stride=1, padding=1) == heat)
    cells = maps.shape[-2] * maps.shape[-1]
    scores, best = peaks.flatten(1).topk(min(max_detections, peaks[0].numel()))
    classes, cell = best // cells, best % cells
    boxes = boxes_at(maps[:, -4:], cell // maps.shape[-1], cell % maps.shape[-1], height, width)
    limit = boxes.new_tensor([width, height, width, height])
    boxes = boxes.clamp_min(0.0).minimum(limit)
    kept = (scores >= score_threshold) & (scores > 0)
    return [Detections(b[k], s[k], c[k]) for b, s, c, k in zip(boxes, scores, classes, kept, strict=True)]


def boxes_at(distances: Tensor, row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    """Boxes that cells describe (Tian et al., FCOS, ICCV 2019, equation 1, solved for the box).

    Deviation: distances are in cells, not in pixels, so that one scale fits every resolution.

    Args:
        distances: (F, 4, h, w), logarithms of the distances to the left, top, right and bottom edge.
        row: int64 (F, B), cells to read.
        column: int64 (F, B).
        height: H in pixels.
        width: W in pixels.

    Returns:
        (F, B, 4) of x0, y0, x1, y1 in pixels, not cut at the frame.
    """
    h, w = distances.shape[-2:]
    index = (row * w + column)[:, None].expand(-1, 4, -1)
    left, top, right, bottom = distances.flatten(2).gather(2, index).clamp_max(_MAX_LOG_DISTANCE).exp().unbind(1)
    x, y = column + 0.5, row + 0.5
    edges = torch.stack([x - left, y - top, x + right, y + bottom], -1)
    return edges * edges.new_tensor([width / w, height / h, width / w, height / h])


def centre_cells(boxes: Tensor, h: int, w: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Row and column, int64 (F, B), of the cell that holds the centre of each box of (F, B, ≥ 4) in pixels."""
    column = ((boxes[..., 0] + boxes[..., 2]) / 2 * (w / width)).floor().long().clamp(0, w - 1)
    row = ((boxes[..., 1] + boxes[..., 3]) / 2 * (h / height)).floor().long().clamp(0, h - 1)
    return row, column


def gaussian_radius(height: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """How far both corners of a box may move for it to keep an IoU of `min_overlap` (Law and Deng, CornerNet, 2018).

    The least of three cases: both corners move inwards, outwards, or alike. Deviation: the roots are those of the
    quadratic equations; CornerNet's released code divides by 2 where it should divide by 2a.

    Args:
        height: of the boxes, any shape; the radius has its unit.
        width: of the boxes, of the same shape.
        min_overlap: in (0, 1).
    """
    area, half = height * width, height + width
    shifted = (half - (half**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap)).clamp_min(0).sqrt()) / 2
    inside = (half - (half**2 - 4 * area * (1 - min_overlap)).clamp_min(0).sqrt()) / 4
    outside = ((min_overlap**2 * half**2 + 4 * min_overlap * (1 - min_overlap) * area).sqrt() - min_overlap * half) / (
        4 * min_overlap
    )
    return torch.minimum(torch.minimum(shifted, inside), outside)


def heat_targets(
    boxes: Tensor, num_classes: int, h: int, w: int, height: int, width: int, min_overlap: float = 0.7
) -> Tensor:
    """Gaussians around the centres of boxes, their maximum where they meet (Objects as Points, section 3).

    The standard deviation is (2 r + 1) / 6 with r the whole cells of `gaussian_radius`, as the authors release it.
    Deviation: the Gaussians are not cut off at r, as in the paper and unlike the released code.

    Args:
        boxes: (F, B, 5) in pixels with a class; rows whose class is negative are absent.
        num_classes: C.
        h: cells of a column.
        w: cells of a row.
        height: H in pixels.
        width: W in pixels.
        min_overlap: see `gaussian_radius`.

    Returns:
        (F, C, h, w) in [0, 1]; exactly 1 in the cells of centres.
    """
    row, column = centre_cells(boxes, h, w, height, width)
    tall, wide = (boxes[..., 3] - boxes[..., 1]) * (h / height), (boxes[..., 2] - boxes[..., 0]) * (w / width)
    radius = gaussian_radius(tall.clamp_min(0), wide.clamp_min(0), min_overlap).floor()
    scale = 2 * ((2 * radius + 1) / 6) ** 2
    down = (-((torch.arange(h, device=boxes.device) - row[..., None]) ** 2) / scale[..., None]).exp()
    across = (-((torch.arange(w, device=boxes.device) - column[..., None]) ** 2) / scale[..., None]).exp()
    present, classes = boxes[..., 4] >= 0, boxes[..., 4].long().clamp_min(0)
    heat = boxes.new_zeros(len(boxes), num_classes, h, w)
    frames = torch.arange(len(boxes), device=boxes.device)
    for b in range(boxes.shape[1]):
        one = down[:, b, :, None] * across[:, b, None, :] * present[:, b, None, None]
        heat[frames, classes[:, b]] = torch.maximum(heat[frames, classes[:, b]], one)
    return heat


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss, over the number of cells whose target is 1 (Objects as Points, equation 1).

    Args:
        logits: of the heat.
        target: of the same shape, in [0, 1].
        alpha: weight of what is hard.
        beta: how much lighter cells near a centre are punished.

    Returns:
        A scalar; the sum where no target is 1.
    """
    centre = target == 1
    heat = logits.sigmoid()
    right = (1 - heat) ** alpha * F.logsigmoid(logits)
    wrong = (1 - target) ** beta * heat**alpha * F.logsigmoid(-logits)
    return -torch.where(centre, right, wrong).sum() / centre.sum().clamp_min(1)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of pairs of boxes, in (−1, 1] (Rezatofighi et al., CVPR 2019, algorithm 1).

    Args:
        first: (…, 4) of x0, y0, x1, y1.
        second: (…, 4) of x0, y0, x1, y1.
    """
    tiny = torch.finfo(first.dtype).eps
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    shared = _area(high[..., :2], low[..., 2:])
    hull = _area(low[..., :2], high[..., 2:])
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - shared
    return shared / union.clamp_min(tiny) - (hull - union) / hull.clamp_min(tiny)


def owners(boxes: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Which boxes their centre's cell describes: the smallest one there, the earlier of equals (as in FCOS, 3.2).

    Args:
        boxes: (F, B, 5); rows whose class is negative are absent.
        row: int64 (F, B), the cells of their centres.
        column: int64 (F, B).

    Returns:
        bool (F, B).
    """
    present = boxes[..., 4] >= 0
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    together = (row[:, :, None] == row[:, None]) & (column[:, :, None] == column[:, None]) & present[:, None]
    order = torch.arange(boxes.shape[1], device=boxes.device)
    smaller = area[:, None] < area[:, :, None]
    earlier = (area[:, None] == area[:, :, None]) & (order[None, :] < order[:, None])
    return present & ~(together & (smaller | earlier)).any(2)


def _area(start: Tensor, end: Tensor) -> Tensor:
    """Of boxes between two corners (…, 2); 0 where an end lies before its start."""
    side = (end - start).clamp_min(0)
    return side[..., 0] * side[..., 1]
