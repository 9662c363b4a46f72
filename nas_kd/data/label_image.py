"""Label images: one class index a pixel, or points, scaled with exactly the geometry of the frame they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nas_kd.data.geometry import Fit, scaled_window
from nas_kd.data.sample import IGNORE, DecodeError
from nas_kd.data.still_image import check_single, open_image, upright

Labels = npt.NDArray[np.uint8]

_LOSSY = ("JPEG", "MPO")  # formats of Pillow


@dataclass(frozen=True)
class LabelRule:
    """What the pixels of a label image mean.

    Attributes:
        num_classes: M; values 0..M − 1 are classes.
        ignore: Values that become `IGNORE`.
        binary: Any other value above 0 is class 1.
        points: Pixels of class 1 are points, of which none gets lost when the image is scaled.
    """

    num_classes: int
    ignore: tuple[int, ...] = ()
    binary: bool = False
    points: bool = False


def read_labels(path: Path, frame_size: tuple[int, int], height: int, width: int, fit: Fit, rule: LabelRule) -> Labels:
    """Decode one label image; every pixel of the file is checked, also those that scaling leaves out.

    Args:
        path: A palette, grey or 1-bit image; the palette's colours do not count, its indices do.
        frame_size: Height and width of the frame that it labels; its own must be the same.
        height: H of the result in pixels.
        width: W of the result in pixels.
        fit: As for `read_clip`.
        rule: What its values mean.

    Returns:
        uint8 [H, W], classes or `IGNORE`; scaled by the nearest pixel, or as `place_points` does.

    Raises:
        DecodeError: The file is missing, damaged, of another size than the frame, has more than one channel or frame,
            holds a value that is no class, or is of a format that changes values.
    """
    with open_image(path) as image:
        check_single(image)
        bands, mode = image.getbands(), image.mode
        if image.format in _LOSSY:
            raise DecodeError(
                f"a label image must be of a format that keeps every value, such as PNG, but it is a {image.format}, "
                "which changes values at edges; save the labels that it was made from as PNG, or round its values first"
            )
        values = np.asarray(upright(image))
    if len(bands) != 1 or not (values.dtype == np.bool_ or np.issubdtype(values.dtype, np.integer)):
        raise DecodeError(f"a label image must have one channel of class indices, but its mode is {mode}")
    if values.shape != frame_size:
        turned = "; an EXIF orientation of either is applied first"
        raise DecodeError(
            f"the label image must have the size of its frame, {frame_size[0]}x{frame_size[1]}, "
            f"but it has {values.shape[0]}x{values.shape[1]} (height x width)"
            + (turned if values.shape == frame_size[::-1] else "")
        )
    labels = _classes(values.astype(np.int64), rule)
    return place_points(labels, height, width, fit) if rule.points else nearest(labels, height, width, fit)


def values_in(paths: Iterable[Path]) -> list[int]:
    """The values that occur in label images, ascending; files that are no label images are passed over.

    Args:
        paths: of the files.
    """
    found: set[int] = set()
    for path in paths:
        try:
            with open_image(path) as image:
                if len(image.getbands()) == 1:
                    found |= set(np.unique(np.asarray(image)).astype(int).tolist())
        except (DecodeError, OSError):
            continue
    return sorted(found)


def nearest(labels: Labels, height: int, width: int, fit: Fit) -> Labels:
    """[H, W] of `labels` [source H, source W] by the nearest pixel, with the geometry of `scaled_window`."""
    source_height, source_width = labels.shape
    scaled_height, scaled_width, top, left = scaled_window(source_height, source_width, height, width, fit)
    rows = ((np.arange(height) + top + 0.5) * source_height / scaled_height).astype(np.int64)
    columns = ((np.arange(width) + left + 0.5) * source_width / scaled_width).astype(np.int64)
    return np.ascontiguousarray(labels[rows[:, None], columns])


def place_points(labels: Labels, height: int, width: int, fit: Fit) -> Labels:
    """[H, W] of points, with the geometry of `scaled_window`.

    Each point, the centre of a pixel of class 1, marks the one pixel of the result that it falls into, in whichever
    resolution; the window cuts off those outside. Where there is no point, `IGNORE` comes by the nearest pixel.

    Args:
        labels: uint8 [source H, source W]: 1 for points, `IGNORE` where nobody knows, else 0.
        height: H of the result in pixels.
        width: W of the result in pixels.
        fit: As for `read_clip`.
    """
    source_height, source_width = labels.shape
    scaled_height, scaled_width, top, left = scaled_window(source_height, source_width, height, width, fit)
    rows, columns = np.nonzero(labels == 1)
    rows = (2 * rows + 1) * scaled_height // (2 * source_height) - top  # whole numbers: no rounding at an edge
    columns = (2 * columns + 1) * scaled_width // (2 * source_width) - left
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    placed = nearest(np.where(labels == IGNORE, labels, 0).astype(np.uint8), height, width, fit)
    placed[rows[inside], columns[inside]] = 1
    return placed


def boxes_of(mask: npt.NDArray[np.uint8], num_boxes: int, min_pixels: int) -> npt.NDArray[np.float32]:
    """The tight box of each class but the first.

    Args:
        mask: uint8 [T, H, W]; class k + 1 has the box k, class 0 and `IGNORE` have none.
        num_boxes: K, classes that have boxes.
        min_pixels: A class with fewer pixels in a frame has no box there.

    Returns:
        float32 [T, K, 5]: x0, y0, x1, y1 in pixels (edges) and k; row k is −1 where class k + 1 has no box.
    """
    boxes = np.full((len(mask), num_boxes, 5), -1.0, dtype=np.float32)
    height, width = mask.shape[1:]
    for number in range(num_boxes):
        inside = mask == number + 1
        rows, columns = inside.any(axis=2), inside.any(axis=1)
        here = inside.sum(axis=(1, 2)) >= max(1, min_pixels)
        edges = (
            columns.argmax(1),
            rows.argmax(1),
            width - columns[:, ::-1].argmax(1),
            height - rows[:, ::-1].argmax(1),
        )
        tight = np.stack([*edges, np.full(len(mask), number)], axis=1)
        boxes[here, number] = tight[here]
    return boxes


def _classes(values: npt.NDArray[np.int64], rule: LabelRule) -> Labels:
    ignored = np.isin(values, rule.ignore)
    if rule.binary:
        classes = values != 0
    else:
        wrong = values[~ignored & ((values < 0) | (values >= rule.num_classes))]
        if wrong.size:
            found = np.unique(values[~ignored])
            # Most tools write a mask of one object so; ignoring its value would leave nothing but background.
            is_mask = rule.num_classes == 2 and found.tolist() == [0, wrong[0]]
            advice = (
                "set binary: true if that is the object (or list it in ignore if nobody knows what such pixels show)"
                if is_mask
                else "list it in ignore to leave such pixels out, or name more classes"
            )
            raise DecodeError(
                f"label values must lie in 0..{rule.num_classes - 1}, but {wrong.size} pixels have others, such as "
                f"{wrong[0]}; {advice}"
            )
        classes = values
    return np.where(ignored, IGNORE, classes).astype(np.uint8)
