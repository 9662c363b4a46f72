"""The items of labelled frames of videos: windows of frames that follow each other, or clips of a simulated camera."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from nas_kd.data.cache import ClipCache, Entry
from nas_kd.data.camera import add_noise, trajectory, warp, warp_labels
from nas_kd.data.frame_store import PLANES, Frame, FrameStore
from nas_kd.data.label_image import boxes_of
from nas_kd.data.sample import Sample
from nas_kd.data.sequence_config import SequenceOptions
from nas_kd.data.shards import Clip
from nas_kd.data.table import SPLITS


def windows(frames: Sequence[Frame], length: int, stride: int, max_gap: int, *, to_end: bool) -> tuple[list[int], int]:
    """Where windows begin.

    Args:
        frames: Ordered by sequence and number.
        length: T, frames a window.
        stride: Frames from one window to the next of a run.
        max_gap: Largest difference of numbers inside a run.
        to_end: Whether a last window, nearer to the one before, reaches the end of each run.

    Returns:
        Positions in `frames`, and how many frames are in no window.
    """
    cuts = [
        position
        for position, (one, next_one) in enumerate(pairwise(frames), start=1)
        if one.sequence != next_one.sequence or next_one.number - one.number > max_gap
    ]
    starts: list[int] = []
    for begin, end in pairwise([0, *cuts, len(frames)]):
        starts.extend(range(begin, end - length + 1, stride))
        if to_end and end - begin >= length and starts[-1] != end - length:
            starts.append(end - length)
    seen = np.zeros(len(frames), dtype=bool)
    for start in starts:
        seen[start : start + length] = True
    return starts, int((~seen).sum())


class WindowDataset:
    """Windows of consecutive frames.

    Args:
        store: The frames.
        starts: Position of the first frame of each window.
        length: Frames of a window.
        config: What is given of them.
    """

    reads_ahead = True

    def __init__(self, store: FrameStore, starts: Sequence[int], length: int, config: SequenceOptions) -> None:
        self.store = store
        self.starts = tuple(starts)
        self.length = length
        self.config = config
        self.labels = [0] * len(self.starts)
        # Of frames that were read. They are a few bytes each, and finding them is slower than all else about an item.
        self._boxes: dict[int, Tensor] = {}

    @property
    def identity(self) -> str:
        """Changes with the content of the files and with their order, not with their places."""
        return f"{self.store.identity} {self.starts}"

    @property
    def fingerprint(self) -> str:
        """Changes with the files of the frames and with the windows."""
        return f"{self.store.fingerprint} {self.length} {self.starts}"

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int, /) -> Sample:
        start, stop = self.starts[index], self.starts[index] + self.length
        clip, mask, maps = self.store.read(start, stop)
        sample = {"clip": clip, "label": torch.tensor(0), "mask": mask, "sequence": self.store.sequence(start)}
        sample |= {f"map.{name}": value for name, value in maps.items()}
        if self.config.boxes:
            sample["boxes"] = torch.stack([self._boxes_of(start + i, frame) for i, frame in enumerate(mask)])
        return sample

    def without_overlap(self, indices: Sequence[int]) -> list[int]:
        """Of some windows those that share no frame with a window before them."""
        kept: list[int] = []
        for index in sorted(indices, key=lambda index: self.starts[index]):
            if not kept or self.starts[index] >= self.starts[kept[-1]] + self.length:
                kept.append(index)
        return kept

    def _boxes_of(self, position: int, mask: Tensor) -> Tensor:
        if position not in self._boxes:
            self._boxes[position] = _boxes(mask[None], self.config)[0]
        return self._boxes[position]


class CameraDataset:
    """Clips of a simulated camera over single frames.

    Item i shows frame i // `clips_per_image` with a motion that depends on the camera's seed, the split and i alone.

    Args:
        store: The frames, decoded at the larger size.
        config: With a camera.
        split: Name of the split.
        cache: Where the clips are kept.
    """

    reads_ahead = True

    def __init__(self, store: FrameStore, config: SequenceOptions, split: str, cache: ClipCache) -> None:
        camera = config.camera_of(split)
        assert camera is not None
        self.store = store
        self.config = config
        self.camera = camera
        self.labels = [0] * (len(store.frames) * camera.clips_per_image)
        self._frames = config.window_of(split)
        self._split_number = SPLITS.index(split)
        self._cache = cache

    @property
    def entries(self) -> list[Entry]:
        """What the cache must hold beside the frames, by item."""
        return [self._entry(index) for index in range(len(self))]

    @property
    def identity(self) -> str:
        """Changes with the content of the files and with their order, not with their places."""
        return self.store.identity

    @property
    def fingerprint(self) -> str:
        """Changes with the files of the frames and with the camera."""
        return f"{self.store.fingerprint} {self._frames} {self.camera!r}"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}, but it is {index}")
        (planes,) = self._cache.read_all([self._entry(index)])
        clip, mask = torch.from_numpy(planes[:3]), torch.from_numpy(planes[3])
        sample = {"clip": clip, "label": torch.tensor(0), "mask": mask}
        sample["sequence"] = self.store.sequence(index // self.camera.clips_per_image)
        if self.config.boxes:
            sample["boxes"] = _boxes(mask, self.config)
        return sample

    def _entry(self, index: int) -> Entry:
        """The planes of a clip, uint8 [4, T, H, W]: red, green, blue, labels."""
        frame = self.store.keys[index // self.camera.clips_per_image]
        size = self.config.frame_size
        what = f"camera {frame} {self._frames} {size} {self.camera!r} {self._split_number} {index}"
        key = hashlib.sha256(what.encode()).hexdigest()
        return Entry(key, (PLANES, self._frames, *size), functools.partial(self._make, index))

    def _make(self, index: int) -> Clip:
        position = index // self.camera.clips_per_image
        image, labels = (part.numpy() for part in self.store.read(position, position + 1)[:2])
        rng = np.random.default_rng((self.camera.seed, self._split_number, index))
        size = self.config.frame_size
        matrices = trajectory(rng, self._frames, size, self.store.size, self.camera)
        clip = warp(image[:, 0], matrices, size)
        if self.camera.noise:
            clip = add_noise(clip, self.camera.noise, rng)
        return np.concatenate([clip, warp_labels(labels[0], matrices, size)[None]])


def _boxes(mask: Tensor, config: SequenceOptions) -> Tensor:
    return torch.from_numpy(boxes_of(mask.numpy(), len(config.mask_names) - 1, config.min_box_pixels))
