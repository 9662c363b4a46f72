"""Frames of videos with their labels: decoded once into the cache of clips, held in memory where there is room."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_kd.data.cache import Clip, ClipCache, Entry, cache_key
from nas_kd.data.camera import source_size
from nas_kd.data.decode import DecodeError, read_clip
from nas_kd.data.label_image import LabelRule, image_size, read_labels
from nas_kd.data.sample import DataError
from nas_kd.data.sequence_config import SequencesConfig

PLANES = 4
"""Of a decoded frame: red, green, blue, labels."""


@dataclass(frozen=True)
class Frame:
    """One usable row: the files of a frame and its labels, its split, its sequence and its number therein."""

    path: Path
    label_path: Path
    split: str
    sequence: str
    number: int


class FrameStore:
    """The decoded frames of one split: in memory, or read from the cache frame by frame.

    Args:
        frames: Ordered by sequence and number.
        config: How they are decoded.
        split: Which split they belong to; one with a camera is decoded larger.
    """

    def __init__(self, frames: Sequence[Frame], config: SequencesConfig, split: str) -> None:
        self.frames = tuple(frames)
        self.config = config
        camera = config.camera_of(split)
        self.size = config.frame_size if camera is None else source_size(*config.frame_size, camera.margin)
        rule = LabelRule(len(config.mask_names), tuple(sorted(config.ignore)), config.binary)
        settings = f"labelled frame {self.size} {config.fit} {rule}"
        self._rule = rule
        self._cache = ClipCache(config.cache_dir.expanduser(), int(config.cache_limit_gb * 1e9))
        self._keys = [
            cache_key(frame.path, f"{settings} {cache_key(frame.label_path, settings)}") for frame in self.frames
        ]
        self._held: Tensor | None = None

    @property
    def entries(self) -> list[Entry]:
        """What the cache must hold, by frame."""
        return [
            Entry(key, (PLANES, *self.size), functools.partial(self._decode, frame))
            for key, frame in zip(self._keys, self.frames, strict=True)
        ]

    @property
    def is_held(self) -> bool:
        """Whether the frames are in memory."""
        return self._held is not None

    def hold(self) -> None:
        """Read all frames into memory, if `memory_gb` allows it."""
        shape = (PLANES, len(self.frames), *self.size)
        if torch.Size(shape).numel() <= self.config.memory_gb * 1e9:
            held = torch.empty(shape, dtype=torch.uint8)
            for position in range(len(self.frames)):
                held[:, position] = torch.from_numpy(self._read(position))
            self._held = held

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Frames uint8 [3, n, H, W] and labels uint8 [n, H, W] of n positions; views where they are in memory."""
        if self._held is not None:
            planes = self._held[:, start:stop]
        else:
            planes = torch.from_numpy(np.stack([self._read(position) for position in range(start, stop)], axis=1))
        return planes[:3], planes[3]

    def _read(self, position: int) -> Clip:
        frame = self.frames[position]
        try:
            decode = functools.partial(self._decode, frame)
            # A copy: what the cache gives is mapped read-only, which tensors cannot be.
            return self._cache.read(self._keys[position], (PLANES, *self.size), decode).copy()
        except DecodeError as error:
            raise DataError(f"{frame.path} could be read when the campaign started, but no longer: {error}") from error

    def _decode(self, frame: Frame) -> Clip:
        size = image_size(frame.path)
        pixels = read_clip(frame.path, 1, *self.size, self.config.fit)[:, 0]
        try:
            labels = read_labels(frame.label_path, size, *self.size, self.config.fit, self._rule)
        except DecodeError as error:
            raise DecodeError(f"label image {frame.label_path.name}: {error}") from error
        return np.concatenate([pixels, labels[None]])
