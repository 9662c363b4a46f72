"""Clips made of single images, by a simulated camera that pans, zooms and turns smoothly over a still scene.

A window of the size of the result moves within the image, which is decoded larger by a margin, so that the border of
the image is never seen. Each of pan, zoom (its logarithm) and rotation moves by

    v(t) = limit · m · (a · u + (1 − a) · w · sin(2πt / P + φ)),   |u| = |w| = 1,

a steady part and a sway, with the amount m and the share a uniform in [0, 1] and a period P of 16 to 48 frames. So a
speed never exceeds its limit, and it changes by at most 2π/16 of the limit from one frame to the next. A way that does
not fit into the margin is shortened as a whole, which only lowers both.

The scene itself stands still and has no depth: there is no parallax and nothing moves by itself.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch.nn import functional

Matrices = npt.NDArray[np.float64]
"""[T, 2, 3]: frame t of the clip shows at its pixel (x, y) what the image has at `matrices[t] @ (x, y, 1)`; both count
from the centre of the upper left pixel."""

SHORTEST_PERIOD = 16.0  # frames
LONGEST_PERIOD = 48.0


class CameraConfig(BaseModel):
    """Clips made from single labelled images by a simulated camera."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    splits: tuple[Literal["train", "val", "test"], ...] = Field(
        default=("train",), min_length=1, description="Splits whose clips are simulated; the others use real windows."
    )
    shift: float = Field(
        default=0.02, ge=0, le=0.25, description="Largest pan from frame to frame, in shares of the shorter side."
    )
    zoom: float = Field(default=0.01, ge=0, le=0.2, description="Largest change of scale from frame to frame.")
    rotation: float = Field(default=0.3, ge=0, le=10, description="Largest turn from frame to frame, in degrees.")
    margin: float = Field(
        default=0.3, gt=0, le=1, description="How much larger than the clip the image is, for the window to move in."
    )
    noise: float = Field(
        default=0.0, ge=0, le=0.2, description="Standard deviation of each frame's noise, in shares of full brightness."
    )
    clips_per_image: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Clips made of each image, each with its own motion; all are kept on disk.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the motions, apart from the seed of the campaign.")

    @field_validator("splits")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"splits must differ, but they are {value}")
        return value


def source_size(height: int, width: int, margin: float) -> tuple[int, int]:
    """Height and width in pixels that an image needs for clips of height × width."""
    return math.ceil(height * (1 + margin)), math.ceil(width * (1 + margin))


def trajectory(
    rng: np.random.Generator, frames: int, size: tuple[int, int], source: tuple[int, int], config: CameraConfig
) -> Matrices:
    """One motion of the camera; every frame lies wholly inside the image.

    Args:
        rng: Decides everything.
        frames: T.
        size: Height and width of the clip in pixels.
        source: Height and width of the image in pixels, as `source_size` gives them or larger.
        config: The limits of the speeds.

    Raises:
        ValueError: The image has no room beyond the clip.
    """
    height, width = size
    room = min(source[0] / height, source[1] / width) - 1
    if room <= 0:
        raise ValueError(f"the image must be larger than the clip, but it has {source} for {size}; raise margin")
    # Zoom takes half of the room, a quarter is kept for the pan, and the turn has what the two leave.
    widest = 1 + min(room, 1.0) / 2
    zoom = np.exp(_place(rng, _way(rng, frames, 1)[:, 0] * math.log1p(config.zoom), 0.0, math.log(widest)))
    spare = (1 + min(room, 1.0)) / (widest * (1 + min(room, 1.0) / 4)) - 1
    tilt = spare * min(width / height, height / width)
    turn = _way(rng, frames, 1)[:, 0] * math.radians(config.rotation)
    turn = turn - (turn.max() + turn.min()) / 2  # upright on average, as cameras are held
    angle = turn * min(1.0, tilt / max(np.abs(turn).max(), 1e-12))
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    half_x = float((width * cos + height * np.abs(sin)).max()) / 2
    half_y = float((height * cos + width * np.abs(sin)).max()) / 2
    pan = _way(rng, frames, 2) * config.shift * min(height, width)
    centre_x = _place(rng, pan[:, 0], half_x, source[1] - half_x)
    centre_y = _place(rng, pan[:, 1], half_y, source[0] - half_y)
    return affine(np.stack([centre_x, centre_y], axis=1), zoom, angle, size)


def affine(
    centre: npt.NDArray[np.float64],
    zoom: npt.NDArray[np.float64],
    angle: npt.NDArray[np.float64],
    size: tuple[int, int],
) -> Matrices:
    """The matrices of windows.

    Args:
        centre: [T, 2] x and y of the window's centre in the image, in pixels from its upper left edge.
        zoom: [T] pixels of the image a pixel of the clip; 1 cuts the window as it is.
        angle: [T] turn of the window in radians.
        size: Height and width of the clip.
    """
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    linear = np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)
    corner = np.array([(1 - size[1]) / 2, (1 - size[0]) / 2])  # of the clip's first pixel, seen from its middle
    offset = centre - 0.5 + linear @ corner
    return np.concatenate([linear, offset[..., None]], axis=-1)


def warp(image: npt.NDArray[np.uint8], matrices: Matrices, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The clip that the camera sees, sampled bilinearly; beyond the image its border is repeated.

    Args:
        image: uint8 [C, source H, source W].
        matrices: [T, 2, 3].
        size: Height and width of the clip.

    Returns:
        uint8 [C, T, H, W].
    """
    x, y = _positions(matrices, size)
    shares = np.stack([(2 * x + 1) / image.shape[2] - 1, (2 * y + 1) / image.shape[1] - 1], axis=-1).astype(np.float32)
    pixels = torch.from_numpy(image).float().expand(len(matrices), -1, -1, -1)
    clip = functional.grid_sample(
        pixels, torch.from_numpy(shares), mode="bilinear", padding_mode="border", align_corners=False
    )
    # Into an array of bytes in one pass; the sum of the weights may miss 1 by a rounding.
    result = torch.empty((image.shape[0], len(matrices), *size), dtype=torch.uint8)
    result.copy_(clip.add_(0.5).clamp_(0, 255).transpose(0, 1))
    return result.numpy()


def warp_labels(labels: npt.NDArray[np.uint8], matrices: Matrices, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """As `warp`, by the nearest pixel.

    Args:
        labels: uint8 [source H, source W].
        matrices: [T, 2, 3].
        size: Height and width of the clip.

    Returns:
        uint8 [T, H, W].
    """
    x, y = _positions(matrices, size)
    columns = np.floor(x + 0.5).astype(np.int32).clip(0, labels.shape[1] - 1)
    rows = np.floor(y + 0.5).astype(np.int32).clip(0, labels.shape[0] - 1)
    moved: npt.NDArray[np.uint8] = labels[rows, columns]
    return moved


def add_noise(clip: npt.NDArray[np.uint8], noise: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Gaussian noise, new in each frame, of standard deviation `noise` · 255; same shape and type."""
    noisy = clip + np.float32(255 * noise) * rng.standard_normal(clip.shape, dtype=np.float32)
    rounded: npt.NDArray[np.uint8] = (noisy + 0.5).clip(0, 255).astype(np.uint8)
    return rounded


def _positions(matrices: Matrices, size: tuple[int, int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """x and y in the image, each [T, H, W]."""
    columns, rows = np.arange(size[1]), np.arange(size[0])[:, None]
    x, y = (
        part[:, 0, None, None] * columns + part[:, 1, None, None] * rows + part[:, 2, None, None]
        for part in (matrices[:, 0], matrices[:, 1])
    )
    return x, y


def _way(rng: np.random.Generator, frames: int, dimensions: int) -> npt.NDArray[np.float64]:
    """[T, dimensions] way from 0 on, at most 1 long from frame to frame."""
    steady, sway = (_unit(rng, dimensions) for _ in range(2))
    amount, share = rng.uniform(size=2)
    period = rng.uniform(SHORTEST_PERIOD, LONGEST_PERIOD)
    phase = rng.uniform(0, 2 * math.pi)
    wave = np.sin(2 * math.pi * np.arange(frames - 1) / period + phase)
    speed = amount * (share * steady + (1 - share) * wave[:, None] * sway)
    return np.concatenate([np.zeros((1, dimensions)), np.cumsum(speed, axis=0)])


def _unit(rng: np.random.Generator, dimensions: int) -> npt.NDArray[np.float64]:
    if dimensions == 1:
        return np.array([1.0 if rng.random() < 0.5 else -1.0])
    angle = rng.uniform(0, 2 * math.pi)
    return np.array([math.cos(angle), math.sin(angle)])


def _place(rng: np.random.Generator, way: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """[T] the way, moved to a uniform place inside [low, high], and shortened first where it is too long."""
    length = float(way.max() - way.min())
    shortened: npt.NDArray[np.float64] = way * min(1.0, (high - low) / max(length, 1e-12))
    first = low - float(shortened.min())
    return shortened + rng.uniform(first, max(high - float(shortened.max()), first))
