"""Frames of videos with labels and maps: decoded once into the cache of clips, and read from there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_kd.data.cache import ClipCache, Entry, cache_key
from nas_kd.data.camera import source_size
from nas_kd.data.decode import read_still
from nas_kd.data.file_identity import KnownFiles
from nas_kd.data.fingerprint import contents_of
from nas_kd.data.frame_maps import PLANES_OF_MAP, map_values, read_map
from nas_kd.data.label_image import LabelRule, read_labels
from nas_kd.data.sample import DecodeError, became_unreadable
from nas_kd.data.sequence_config import SequenceOptions
from nas_kd.data.shards import Clip

PLANES = 4
"""Of a decoded frame: red, green, blue, labels; those of its maps follow."""


@dataclass(frozen=True)
class Frame:
    """One usable row: the files of a frame, its labels and its maps, its split, its sequence and its number therein.

    `content` and `label_content` are the hashes of what the first two files hold.
    """

    path: Path
    label_path: Path
    split: str
    sequence: str
    number: int
    map_paths: tuple[Path, ...] = ()
    content: str = ""
    label_content: str = ""


class FrameStore:
    """The decoded frames of one split, read from the cache.

    Args:
        frames: Ordered by sequence and number.
        config: How they are decoded.
        split: Which split they belong to; one with a camera is decoded larger.
        cache: Where they are kept.
        known: Hashes of files.
    """

    def __init__(
        self, frames: Sequence[Frame], config: SequenceOptions, split: str, cache: ClipCache, known: KnownFiles
    ) -> None:
        self.frames = tuple(frames)
        self.config = config
        camera = config.camera_of(split)
        self.size = config.frame_size if camera is None else source_size(*config.frame_size, camera.margin)
        rule = LabelRule(len(config.mask_names), tuple(sorted(config.ignore)), config.is_binary, config.points)
        settings = f"labelled frame {self.size} {config.fit} {rule}"
        self._rule = rule
        self._cache = cache
        self._known = known
        self._shape = (PLANES + PLANES_OF_MAP * len(config.maps), *self.size)
        self.keys = [self._key(frame, settings) for frame in self.frames]
        # Frames of one sequence follow each other, so a new name is a new sequence.
        changes = [one.sequence != other.sequence for one, other in pairwise(self.frames)]
        self._sequences = torch.tensor([0, *changes]).cumsum(0)

    @property
    def entries(self) -> list[Entry]:
        """What the cache must hold, by frame."""
        return [self._entry(position) for position in range(len(self.frames))]

    @property
    def identity(self) -> str:
        """Changes with the content of the files and with their order, not with their places."""
        paths = (path for frame in self.frames for path in (frame.path, *_beside(frame)))
        return contents_of(paths, self._known.content_of)

    @property
    def fingerprint(self) -> str:
        """Changes with the files and with their order."""
        return " ".join(self.keys)

    def sequence(self, position: int) -> Tensor:
        """int64 scalar, the number of the sequence of a frame."""
        return self._sequences[position]

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What is known of n positions.

        Returns:
            Frames uint8 [3, n, H, W] and labels uint8 [n, H, W]; and maps float32 [n, H, W] by name.

        Raises:
            DataError: A file that must be decoded again cannot be.
        """
        frames = self._cache.read_all([self._entry(position, must=True) for position in range(start, stop)])
        planes = torch.from_numpy(np.stack(frames, axis=1))
        first = range(PLANES, len(planes), PLANES_OF_MAP)
        maps = {n: map_values(planes[p : p + PLANES_OF_MAP]) for n, p in zip(self.config.maps, first, strict=True)}
        return planes[:3], planes[3], maps

    def _key(self, frame: Frame, settings: str) -> str:
        content = self._known.content_of
        beside = [cache_key(path, settings, content) for path in _beside(frame)]
        return cache_key(frame.path, " ".join([settings, *beside]), content)

    def _entry(self, position: int, *, must: bool = False) -> Entry:
        decode = self._decode_again if must else self._decode
        return Entry(self.keys[position], self._shape, functools.partial(decode, self.frames[position]))

    def _decode_again(self, frame: Frame) -> Clip:
        try:
            return self._decode(frame)
        except DecodeError as error:
            raise became_unreadable(frame.path, error) from error

    def _decode(self, frame: Frame) -> Clip:
        pixels, size = read_still(frame.path, *self.size, self.config.fit)
        try:
            labels = read_labels(frame.label_path, size, *self.size, self.config.fit, self._rule)
        except DecodeError as error:
            raise DecodeError(f"label image {frame.label_path.name}: {error}") from error
        named = zip(self.config.maps, frame.map_paths, strict=True)
        return np.concatenate([pixels, labels[None], *(self._decode_map(name, path, size) for name, path in named)])

    def _decode_map(self, name: str, path: Path, frame_size: tuple[int, int]) -> Clip:
        try:
            return read_map(path, frame_size, *self.size, self.config.fit)
        except DecodeError as error:
            raise DecodeError(f"map {name}, {path.name}: {error}") from error


def _beside(frame: Frame) -> tuple[Path, ...]:
    """The other files that its planes depend on."""
    return (frame.label_path, *frame.map_paths)
