"""Moving handwritten digits: a small video task where both resolution and the number of frames decide.

The class of a clip is (group of digits × motion). The digit is small, so telling a 3 from an 8 takes resolution. It
moves at a constant speed on a torus: it leaves at one edge and comes in at the opposite one, and its start is uniform
over the whole way. Hence a single frame says nothing at all about the motion, and k of T evenly spaced frames say what
aliasing leaves. For the four default motions (up and down by one or by two heights a clip) the best possible accuracy
on the motion is

    frames kept      1      2      4      8 or more
    best possible    1/4    1/2    3/4    1

because two frames show half a height of travel (up = down) or a whole one (standing still), and four frames settle the
slow pair and leave the fast pair half a height a step. A jitter of the speed keeps this exact: it is symmetric in both
directions.

Masks and boxes carry the group of digits alone: a single frame shows no motion.

The digits are the 8×8 images bundled with scikit-learn (E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998); nothing is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from nas_kd.data.sample import DataInfo, MemoryDataset, Sample
from nas_kd.data.source import SourceConfig
from nas_kd.data.splits import Splits, make_splits

Array = npt.NDArray[np.float32]
SplitName = Literal["train", "val", "test"]

MOTIONS: Mapping[str, tuple[int, int]] = {
    "still": (0, 0),
    "up": (-1, 0),
    "down": (1, 0),
    "left": (0, -1),
    "right": (0, 1),
    "up_fast": (-2, 0),
    "down_fast": (2, 0),
    "left_fast": (0, -2),
    "right_fast": (0, 2),
}
"""Motion to its travel in one clip: (heights downwards, widths to the right)."""

_SOURCE_SIDE = 8
_SPLIT_ENDS: Mapping[SplitName, tuple[float, float]] = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
_MASK_THRESHOLD = 0.35  # of the digit's opacity


class GeneratedConfig(SourceConfig):
    """Moving digits made on the fly; the defaults suit a campaign of minutes on two cores."""

    source: Literal["generated"] = "generated"
    seed: int = Field(default=0, ge=0, description="Seed of the data, apart from the seed of the campaign.")
    num_train: int = Field(default=1536, ge=2, description="Clips of the training split.")
    num_val: int = Field(default=384, ge=1, description="Clips of the validation split.")
    num_test: int = Field(default=768, ge=1, description="Clips of the test split.")
    frames: int = Field(default=8, ge=1, description="Frames a clip.")
    size: int = Field(default=32, ge=12, description="Height and width in pixels.")
    digits: tuple[tuple[int, ...], ...] = Field(
        default=((3,), (5,), (8,)), description="One entry a group: the digits that count as one identity."
    )
    motions: tuple[str, ...] = Field(
        default=("up", "down", "up_fast", "down_fast"), description=f"From {', '.join(MOTIONS)}."
    )
    distractors: int = Field(
        default=0, ge=0, le=8, description="Further digits a clip, of no group, fainter, with motions of their own."
    )
    glyph: float = Field(default=0.3, gt=0.1, le=0.8, description="Side of a digit, in shares of `size`.")
    texture: float = Field(default=0.14, ge=0, le=0.5, description="Standard deviation of the still background.")
    noise: float = Field(default=0.06, ge=0, le=0.5, description="Standard deviation of the noise of each frame.")
    speed_jitter: float = Field(default=0.05, ge=0, lt=0.25, description="Largest relative change of the speed.")

    @model_validator(mode="after")
    def _classes_make_sense(self) -> GeneratedConfig:
        used = [digit for group in self.digits for digit in group]
        if not all(self.digits) or len(set(used)) != len(used) or not set(used) <= set(range(10)):
            raise ValueError(
                f"digits must be non-empty groups of 0..9, no digit twice, but they are {self.digits}; "
                "write for example [[3], [5], [8]]"
            )
        for motion in self.motions:
            if motion not in MOTIONS:
                raise ValueError(f"unknown motion {motion!r}; choose from {', '.join(MOTIONS)}")
        if len(set(self.motions)) != len(self.motions):
            raise ValueError(f"motions must differ, but they are {self.motions}")
        if len(self.digits) * len(self.motions) < 2:
            raise ValueError("digits × motions must give at least 2 classes, but they give 1; add a group or a motion")
        if self.distractors and len(used) == 10:
            raise ValueError("distractors need a digit that is in no group, but the groups use all ten; leave one out")
        return self

    @property
    def info(self) -> DataInfo:
        """What a model must know; class index = group index · motions + motion index."""
        groups = ["".join(map(str, group)) for group in self.digits]
        names = tuple(f"{group}-{motion}" for group in groups for motion in self.motions)
        sideways = any(MOTIONS[motion][1] for motion in self.motions)
        return DataInfo(
            num_classes=len(names),
            class_names=names,
            frames=self.frames,
            height=self.size,
            width=self.size,
            name="generated",
            flip_safe=not sideways,
            mask_names=("background", *groups),
            box_names=tuple(groups),
        )

    def load(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        return load_generated(self, seed=seed, gate_share=gate_share)


class GeneratedDataset(MemoryDataset):
    """One split of the moving digits; made in memory at the first look at an item.

    Item i depends on the configuration, the split and i alone. Classes take turns, so every split is balanced.

    Args:
        config: What to make.
        split: Which digit images it may use and how many clips it has; the images of two splits are disjoint.
    """

    def __init__(self, config: GeneratedConfig, split: SplitName) -> None:
        self.config = config
        self.split = split
        self._length = {"train": config.num_train, "val": config.num_val, "test": config.num_test}[split]

    def __len__(self) -> int:
        return self._length

    @property
    def labels(self) -> list[int]:
        """The class of each item; needs no clip to be made."""
        classes = len(self.config.digits) * len(self.config.motions)
        return [index % classes for index in range(len(self))]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Key to stacked values of all items; not to be written to."""
        return self._materialized

    @functools.cached_property
    def _materialized(self) -> Mapping[str, Tensor]:
        stacked: dict[str, Tensor] = {}
        for index in range(len(self)):
            for key, value in self.make(index).items():
                if key not in stacked:
                    stacked[key] = torch.empty((len(self), *value.shape), dtype=value.dtype)
                stacked[key][index] = value
        return stacked

    @functools.cached_property
    def _painter(self) -> _Painter:
        return _Painter(self.config, self.split)

    def make(self, index: int) -> Sample:
        """Make one item anew, whatever was made before.

        Args:
            index: 0 ≤ index < len.
        """
        return self._painter.paint(index)

    def __getstate__(self) -> dict[str, object]:
        # A worker makes the clips again in a second or two; sending them would cost more than that in memory.
        return {"config": self.config, "split": self.split, "_length": self._length}


class _Painter:
    """Draws the clips of one split; holds what all of them share."""

    def __init__(self, config: GeneratedConfig, split: SplitName) -> None:
        self.config = config
        self.split_number = list(_SPLIT_ENDS).index(split)
        self.side = max(4, round(config.glyph * config.size))
        self.images = _source_images(config.seed, split)
        used = {digit for group in config.digits for digit in group}
        self.spare_digits = tuple(sorted(set(range(10)) - used))
        self.enlarge = _interpolation(_SOURCE_SIDE, self.side)
        self.coarse = _interpolation(5, config.size)
        # Wrapping on an axis where one motion moves must hold for all motions: else the cut digit gives it away.
        self.wraps = tuple(any(MOTIONS[motion][axis] for motion in config.motions) for axis in (0, 1))

    def paint(self, index: int) -> Sample:
        config = self.config
        rng = np.random.default_rng((config.seed, self.split_number, index))
        label = index % (len(config.digits) * len(config.motions))
        group, motion = divmod(label, len(config.motions))
        frames = self._background(rng)
        for _ in range(config.distractors):
            other = self.spare_digits[rng.integers(len(self.spare_digits))]
            glyph = self._glyph(rng, (other,))
            corners = self._path(rng, config.motions[rng.integers(len(config.motions))])
            self._blend(frames, 0.6 * self._place(glyph, corners), rng)
        glyph = self._glyph(rng, config.digits[group])
        corners = self._path(rng, config.motions[motion])
        opacity = self._place(glyph, corners)
        self._blend(frames, opacity, rng)
        frames += config.noise * rng.standard_normal(frames.shape, dtype=np.float32)
        clip = np.clip(frames * 255.0 + 0.5, 0, 255).astype(np.uint8)
        inside = opacity > _MASK_THRESHOLD
        return {
            "clip": torch.from_numpy(clip),
            "label": torch.tensor(label),
            "mask": torch.from_numpy((inside * np.uint8(group + 1)).astype(np.uint8)),
            "boxes": torch.from_numpy(self._boxes(glyph, corners, group)),
        }

    def _background(self, rng: np.random.Generator) -> Array:
        """[3, T, H, W]: a still texture, half coarse and half fine, around a dark tone."""
        config, size = self.config, self.config.size
        coarse = self.coarse @ rng.standard_normal((3, 5, 5), dtype=np.float32) @ self.coarse.T
        fine = rng.standard_normal((3, size, size), dtype=np.float32)
        tone = rng.uniform(0.15, 0.4, size=(3, 1, 1)).astype(np.float32)
        still = tone + np.float32(config.texture) * (0.8 * coarse + 0.6 * fine)
        return np.repeat(still[:, None], config.frames, axis=1)

    def _glyph(self, rng: np.random.Generator, digits: tuple[int, ...]) -> Array:
        """[side, side] opacity in [0, 1] of one image of one of the digits."""
        images = self.images[digits[rng.integers(len(digits))]]
        image = images[rng.integers(len(images))]
        enlarged: Array = self.enlarge @ image @ self.enlarge.T
        return enlarged

    def _path(self, rng: np.random.Generator, motion: str) -> npt.NDArray[np.int64]:
        """[T, 2] upper left corner (row, column) of the digit in each frame."""
        config = self.config
        speed = 1.0 + config.speed_jitter * rng.uniform(-1.0, 1.0)
        travel = config.size * speed * np.asarray(MOTIONS[motion]) / config.frames
        room = np.where(self.wraps, config.size, config.size - self.side + 1)
        start = rng.uniform(size=2) * room
        corners = np.floor(start + np.arange(config.frames)[:, None] * travel).astype(np.int64)
        return corners % config.size

    def _place(self, glyph: Array, corners: npt.NDArray[np.int64]) -> Array:
        """[T, H, W] opacity of the digit along its path."""
        config = self.config
        reach = np.arange(self.side)
        rows = (corners[:, :1] + reach) % config.size
        columns = (corners[:, 1:] + reach) % config.size
        opacity = np.zeros((config.frames, config.size, config.size), dtype=np.float32)
        opacity[np.arange(config.frames)[:, None, None], rows[:, :, None], columns[:, None, :]] = glyph
        return opacity

    @staticmethod
    def _blend(frames: Array, opacity: Array, rng: np.random.Generator) -> None:
        colour = rng.uniform(0.6, 1.0, size=(3, 1, 1, 1)).astype(np.float32)
        frames += opacity * (colour - frames)

    def _boxes(self, glyph: Array, corners: npt.NDArray[np.int64], group: int) -> Array:
        """[T, 1, 5] the tight box; of a digit cut by an edge, that of its larger part."""
        size = self.config.size
        inside = glyph > _MASK_THRESHOLD
        boxes = np.empty((len(corners), 1, 5), dtype=np.float32)
        for axis in (0, 1):
            filled = np.flatnonzero(inside.any(axis=1 - axis))
            low = (corners[:, axis] + filled[0]) % size
            high = low + filled[-1] - filled[0] + 1
            tail_is_larger = high - size > size - low
            cut = high > size
            boxes[:, 0, 1 - axis] = np.where(cut & tail_is_larger, 0, low)
            boxes[:, 0, 3 - axis] = np.where(cut, np.where(tail_is_larger, high - size, size), high)
        boxes[:, 0, 4] = group
        return boxes


def _source_images(seed: int, split: SplitName) -> list[Array]:
    """The 8×8 images of a split in [0, 1], by digit; the three splits share none."""
    from sklearn.datasets import load_digits  # here: it costs a second that users of other sources need not wait

    bunch = load_digits()
    begin, end = _SPLIT_ENDS[split]
    rng = np.random.default_rng((seed, 1_000))
    by_digit = []
    for digit in range(10):
        images = bunch.images[bunch.target == digit].astype(np.float32) / 16.0
        images = images[rng.permutation(len(images))]
        by_digit.append(images[round(begin * len(images)) : round(end * len(images))])
    return by_digit


def _interpolation(old: int, new: int) -> Array:
    """[new, old] matrix of linear interpolation between pixel centres."""
    positions = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    weights = 1.0 - np.abs(positions[:, None] - np.arange(old))
    matrix: Array = np.maximum(weights, 0.0).astype(np.float32)
    return matrix


def load_generated(config: GeneratedConfig, *, seed: int, gate_share: float = 0.5) -> Splits:
    """Splits of moving digits; `seed` parts weights and gates, `config.seed` makes the clips."""
    train, val, test = (GeneratedDataset(config, split) for split in ("train", "val", "test"))
    return make_splits(train, val, test, config.info, seed=seed, gate_share=gate_share)
