from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nas_kd.data import CameraConfig
from nas_kd.data.camera import (
    SHORTEST_PERIOD,
    add_noise,
    affine,
    source_size,
    trajectory,
    warp,
    warp_labels,
)

STILL = CameraConfig(shift=0, zoom=0, rotation=0)
SIZES = st.tuples(st.integers(4, 60), st.integers(4, 60))


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)


def parts(matrices, size):
    """Centre [T, 2], zoom [T] and angle [T] of matrices."""
    middle = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2, 1.0])
    first = matrices[:, :, 0]
    return matrices @ middle + 0.5, np.linalg.norm(first, axis=1), np.arctan2(first[:, 1], first[:, 0])


def straight(centre, size, frames=1, zoom=1.0, angle=0.0):
    centre = np.broadcast_to(np.asarray(centre, float), (frames, 2))
    return affine(centre, np.full(frames, zoom), np.full(frames, angle), size)


def test_a_window_at_rest_is_a_crop():
    image = picture(20, 30)
    size = (10, 12)
    matrices = straight((4 + 6, 3 + 5), size, frames=3)  # upper left corner at row 3, column 4
    crop = image[:, 3:13, 4:16]
    assert (warp(image, matrices, size) == crop[:, None]).all()
    assert (warp_labels(image[0], matrices, size) == crop[0]).all()
    whole = straight((15, 10), (20, 30))
    assert (warp(image, whole, (20, 30))[:, 0] == image).all()


def test_a_quarter_turn_turns_the_picture():
    image = picture(12, 12)
    matrices = straight((6, 6), (12, 12), angle=np.pi / 2)
    # The x axis of the clip points down the image.
    assert (warp(image, matrices, (12, 12))[:, 0] == np.rot90(image, axes=(1, 2))).all()
    assert (warp_labels(image[0], matrices, (12, 12))[0] == np.rot90(image[0])).all()


def test_zoom_takes_the_mean_of_neighbours():
    image = picture(8, 8)
    halved = warp(image, straight((4, 4), (4, 4), zoom=2.0), (4, 4))[:, 0].astype(float)
    mean = image.reshape(3, 4, 2, 4, 2).mean(axis=(2, 4))
    assert np.abs(halved - mean).max() <= 0.51


def test_no_limits_mean_no_motion():
    for seed in range(5):
        matrices = trajectory(np.random.default_rng(seed), 6, (16, 24), source_size(16, 24, 0.3), STILL)
        assert (matrices == matrices[:1]).all()


@given(SIZES, st.integers(1, 40), st.integers(0, 99), st.sampled_from([0.05, 0.3, 1.0]), st.sampled_from([1.0, 5.0]))
def test_the_window_never_leaves_the_image_and_keeps_its_limits(size, frames, seed, margin, haste):
    config = CameraConfig(shift=0.02 * haste, zoom=0.01 * haste, rotation=0.3 * haste, margin=margin)
    source = source_size(*size, margin)
    matrices = trajectory(np.random.default_rng(seed), frames, size, source, config)
    assert matrices.shape == (frames, 2, 3)
    corners = np.array([[x, y, 1] for x in (0, size[1] - 1) for y in (0, size[0] - 1)], float).T
    seen = matrices @ corners
    assert seen.min() >= -1e-6
    assert (seen[:, 0] <= source[1] - 1 + 1e-6).all()
    assert (seen[:, 1] <= source[0] - 1 + 1e-6).all()

    centre, zoom, angle = parts(matrices, size)
    limits = (config.shift * min(size), np.log1p(config.zoom), np.radians(config.rotation))
    for way, limit in zip((centre, np.log(zoom)[:, None], angle[:, None]), limits, strict=True):
        speed = np.diff(way, axis=0)
        change = np.diff(speed, axis=0)
        if len(speed):
            assert np.linalg.norm(speed, axis=1).max() <= limit + 1e-9
        if len(change):
            assert np.linalg.norm(change, axis=1).max() <= limit * 2 * np.pi / SHORTEST_PERIOD + 1e-9


def test_motions_differ_and_use_the_speed_they_may():
    config = CameraConfig()
    size, source = (64, 112), source_size(64, 112, 0.3)
    shifts = []
    for seed in range(200):
        centre, _, _ = parts(trajectory(np.random.default_rng(seed), 8, size, source, config), size)
        shifts.append(np.linalg.norm(np.diff(centre, axis=0), axis=1).mean() / 64)
    assert 0.004 < np.mean(shifts) < 0.02
    assert max(shifts) > 0.015
    one, same, other = (trajectory(np.random.default_rng(s), 8, size, source, config) for s in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_labels_move_with_the_image():
    size, source = (48, 64), source_size(48, 64, 0.3)
    rows, columns = np.mgrid[: source[0], : source[1]]
    label = ((rows - 30) ** 2 + (columns - 40) ** 2 < 15**2).astype(np.uint8)
    image = np.repeat(label[None] * np.uint8(255), 3, axis=0)
    config = CameraConfig(shift=0.05, zoom=0.03, rotation=2)
    moved = False
    for seed in range(10):
        matrices = trajectory(np.random.default_rng(seed), 8, size, source, config)
        painted = warp(image, matrices, size)[0] >= 128
        labelled = warp_labels(label, matrices, size) > 0
        assert (painted != labelled).mean() < 0.01  # only where an edge runs through a pixel
        certain = np.isin(warp(image, matrices, size)[0], (0, 255))
        assert (painted == labelled)[certain].all()
        moved |= bool((labelled[0] != labelled[-1]).any())
    assert moved


def test_beyond_the_image_its_border_is_repeated():
    image = picture(6, 6)
    far = straight((-20, 3), (4, 4))
    assert (warp(image, far, (4, 4)) == image[:, None, 1:5, :1]).all()
    assert (warp_labels(image[0], far, (4, 4)) == image[0, 1:5, :1]).all()


def test_noise_is_of_the_size_asked_for_and_new_in_each_frame():
    clip = np.full((3, 2, 40, 40), 128, np.uint8)
    noisy = add_noise(clip, 0.05, np.random.default_rng(0)).astype(float)
    assert abs((noisy - 128).std() - 0.05 * 255) < 0.5
    assert abs(noisy.mean() - 128) < 0.5
    assert (noisy[:, 0] != noisy[:, 1]).any()


def test_refusals():
    with pytest.raises(ValueError, match="the image must be larger than the clip"):
        trajectory(np.random.default_rng(0), 4, (8, 8), (8, 12), CameraConfig())
    for change in ({"splits": ()}, {"splits": ("train", "train")}, {"splits": ("dev",)}, {"shift": -1}, {"margin": 0}):
        with pytest.raises(ValidationError):
            CameraConfig.model_validate(change)
