"""Fixation points as labels: where they come to lie, and that none is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from small_sets import FRAME_HEADER, write_table

from nas_kd.data import IGNORE, SequencesConfig, load
from nas_kd.data.label_image import LabelRule, nearest, place_points, read_labels


def labels_with(points, height, width):
    labels = np.zeros((height, width), np.uint8)
    for row, column in points:
        labels[row, column] = 1
    return labels


def where(labels):
    return {tuple(place) for place in np.argwhere(labels == 1).tolist()}


@pytest.mark.parametrize(
    ("size", "fit", "points", "expected"),
    [
        # 20 × 30 to 5 × 8, of which the last column is cut off: column 25 is (25 + ½) / 30 · 8 = 6.8, and 28 is 7.6.
        ((5, 7), "crop", [(0, 1), (3, 4), (4, 4), (19, 25), (19, 28)], {(0, 0), (0, 1), (1, 1), (4, 6)}),
        # Scaled to 10 × 15, then columns 2 to 11 are cut out.
        ((10, 10), "crop", [(0, 3), (0, 4), (19, 23), (19, 24)], {(0, 0), (9, 9)}),
        ((10, 10), "stretch", [(0, 2), (0, 3), (19, 29)], {(0, 0), (0, 1), (9, 9)}),
        # Enlarged, a point marks the one pixel below its centre and to the right of it, where centres fall on an edge.
        ((40, 60), "crop", [(0, 0), (19, 29)], {(1, 1), (39, 59)}),
        ((20, 30), "crop", [(0, 0), (7, 9), (19, 29)], {(0, 0), (7, 9), (19, 29)}),
    ],
)
def test_points_lie_in_the_pixels_that_contain_them(size, fit, points, expected):
    assert where(place_points(labels_with(points, 20, 30), *size, fit)) == expected


def test_nearest_pixels_would_have_lost_them():
    labels = labels_with([(0, 0), (4, 8), (11, 17)], 24, 36)
    assert where(nearest(labels, 6, 9, "crop")) == set()
    assert where(place_points(labels, 6, 9, "crop")) == {(0, 0), (1, 2), (2, 4)}


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(5, 7), (11, 4), (3, 20), (37, 41)])
def test_places_equal_the_obvious_way(fit, size):
    rng = np.random.default_rng(0)
    labels = (rng.random((17, 23)) < 0.2).astype(np.uint8)
    height, width = size
    scale = max(height / 17, width / 23)
    tall, wide = (max(height, round(17 * scale)), max(width, round(23 * scale))) if fit == "crop" else size
    expected = set()
    for row, column in where(labels):
        y, x = int((row + 0.5) / 17 * tall), int((column + 0.5) / 23 * wide)
        y, x = y - (tall - height) // 2, x - (wide - width) // 2
        if 0 <= y < height and 0 <= x < width:
            expected.add((y, x))
    assert where(place_points(labels, *size, fit)) == expected
    if fit == "stretch":  # nothing is cut off: each pixel of a smaller result says whether its cell holds a point
        cells = {(int((r + 0.5) * height / 17), int((c + 0.5) * width / 23)) for r, c in where(labels)}
        assert where(place_points(labels, *size, fit)) == cells


def test_points_win_over_pixels_nobody_knows():
    labels = np.full((8, 8), IGNORE, np.uint8)
    labels[:, 4:] = 0
    labels[0, 0] = labels[1, 7] = 1
    assert place_points(labels, 2, 2, "stretch").tolist() == [[1, 1], [IGNORE, 0]]


def test_every_value_above_zero_is_a_point(tmp_path):
    labels = np.zeros((8, 8), np.uint8)
    labels[0, 0], labels[0, 7], labels[7, 0] = 255, 3, 9
    Image.fromarray(labels).save(tmp_path / "labels.png")
    rule = LabelRule(2, ignore=(9,), binary=True, points=True)
    assert where(read_labels(tmp_path / "labels.png", (8, 8), 3, 3, "crop", rule)) == {(0, 0), (0, 2)}


def write_points(root, splits=("train", "train", "val", "test")):
    """Frames of 24 × 36 with four points each, of which no nearest pixel of a quarter of the size sees one."""
    rows = []
    (root / "frames").mkdir(parents=True)
    for sequence, split in enumerate(splits):
        for number in range(2):
            stem = f"frames/{sequence}_{number}"
            Image.fromarray(np.full((24, 36, 3), 60, np.uint8)).save(root / f"{stem}.png")
            labels = labels_with([(0, 4 * number), (4, 8), (11, 17), (23, 35)], 24, 36) * np.uint8(255)
            Image.fromarray(labels).save(root / f"{stem}_points.png")
            rows.append((f"{stem}.png", f"{stem}_points.png", split, str(sequence), str(number)))
    write_table(root, rows, FRAME_HEADER)


def config(root, **change):
    options = {"root": root, "frames": 2, "size": (6, 9), "points": True, "cache_dir": root.parent / "cache"}
    return SequencesConfig.model_validate({**options, **change})


def test_a_data_set_of_points(tmp_path):
    root = tmp_path / "set"
    write_points(root)
    splits = load(config(root), seed=0)
    assert splits.info.mask_names == splits.info.class_names == ("background", "fixated")
    mask = splits.test[0]["mask"]
    for frame in range(2):
        assert where(mask[frame].numpy()) == {(0, frame), (1, 2), (2, 4), (5, 8)}
    # The same files as objects are decoded anew, and nothing of them is left.
    objects = load(config(root, points=False, binary=True), seed=0)
    assert objects.info.mask_names == ("background", "object")
    assert not torch.any(objects.test[0]["mask"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes": True}, "boxes are tight around objects, but points: true"),
        ({"camera": {}}, "points belong to frames as they are, but a camera moves them; leave out points or camera"),
        ({"classes": ("a", "b", "c")}, "classes must name background and object where labels are binary"),
    ],
)
def test_config_refuses(tmp_path, change, words):
    with pytest.raises(ValidationError, match=words):
        config(tmp_path, **change)
