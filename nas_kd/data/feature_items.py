"""Items of frame features, read from numpy files one by one and made harder as a campaign says."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nas_kd.data.arrays import ArrayFiles
from nas_kd.data.cache import ClipCache, Entry, cache_key
from nas_kd.data.feature_config import FeatureOptions
from nas_kd.data.fingerprint import contents_of, hash_of_files
from nas_kd.data.frame_times import sample_positions
from nas_kd.data.sample import DecodeError, Sample, became_unreadable
from nas_kd.data.shards import Clip

_DISTRACTORS, _ORDER, _NOISE = 0, 1, 2  # one generator each

Features = npt.NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One usable row: the item's place, its classes, its split, its group, its line, its frames, and their hash."""

    path: Path
    array: str
    row: int | None
    labels: tuple[str, ...]
    split: str
    group: str
    line: int
    length: int = 0
    content: str = ""


class FeaturesDataset:
    """Items of numpy files, read one by one and changed as the config says.

    Distractors come first, then the order, then noise. Each depends on the config's seed and on the line of the item
    in the csv; distractors also on which items the split has.

    Args:
        rows: Its items.
        class_names: By class index; the labels of rows are among them.
        config: How items are changed, and whether `labels` are given.
        frames: T.
        size: D.
        dtype: Type of the features, float16 or float32.
        cache: Where items are kept that are unpacked or changed.
        deviation: [D] standard deviation of each feature; needed for noise.
    """

    reads_ahead = True

    def __init__(
        self,
        rows: Sequence[Row],
        class_names: Sequence[str],
        config: FeatureOptions,
        frames: int,
        size: int,
        dtype: npt.DTypeLike,
        cache: ClipCache,
        deviation: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.rows = tuple(rows)
        self.config = config
        self.frames = frames
        self.dtype = np.dtype(dtype)
        self._bytes = (frames, size * self.dtype.itemsize)
        self._cache = cache
        number = {name: index for index, name in enumerate(class_names)}
        self.item_classes = [[number[name] for name in row.labels] for row in self.rows]
        self._multi_hot = len(number) if config.multi_label else 0
        self._deviation = deviation
        self._files = ArrayFiles()
        self.labels = [classes[0] for classes in self.item_classes]
        self._keys = self._unpacked_keys()
        changes = (self.config.seed, self.config.shuffle_frames, self.config.noise, self.config.distractors)
        spread = b"" if deviation is None else deviation.tobytes()
        others = self._keys if self.config.distractors else []
        self._changes = hashlib.sha256(f"{changes} {spread.hex()} {others}".encode()).hexdigest()

    def _unpacked_keys(self) -> list[str]:
        """By item, what it is called in the cache before any change; nothing where no item is kept there."""
        if not (self.config.changes_items or any(map(_is_packed, self.rows))):
            return []
        files = {path: cache_key(path, "features") for path in {row.path for row in self.rows}}
        texts = [f"{files[row.path]} {row.array!r} {row.row} {self.frames} {self.dtype}" for row in self.rows]
        return [hashlib.sha256(text.encode()).hexdigest() for text in texts]

    @property
    def entries(self) -> list[Entry]:
        """What the cache must hold."""
        return [*self.unpacked, *self.changed]

    @property
    def unpacked(self) -> list[Entry]:
        """Of `entries`, what is needed before any item is changed."""
        return [self._unpacked_entry(index) for index, row in enumerate(self.rows) if _is_packed(row)]

    @property
    def changed(self) -> list[Entry]:
        """Of `entries`, the others."""
        return [self._changed_entry(index) for index in range(len(self))] if self.config.changes_items else []

    @property
    def identity(self) -> str:
        """Changes with the content of the files and with their order, not with their places."""
        return f"{contents_of(row.path for row in self.rows)} {[(row.array, row.row) for row in self.rows]}"

    @property
    def fingerprint(self) -> str:
        """Changes with the files, with the order of the items, and with how they are changed."""
        places = [(row.array, row.row, row.line) for row in self.rows]
        return hash_of_files((row.path for row in self.rows), places, self.frames, self.dtype, self.config)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}, but it is {index}")
        sample = {
            "features": torch.from_numpy(self._features(index)),
            "label": torch.tensor(self.labels[index]),
        }
        if self._multi_hot:
            sample["labels"] = torch.zeros(self._multi_hot, dtype=torch.uint8)
            sample["labels"][self.item_classes[index]] = 1
        return sample

    def clean(self, index: int) -> Features:
        """The T frames of an item [T, D], before any change."""
        if _is_packed(self.rows[index]):
            return self._kept(self._unpacked_entry(index))
        return self._read(index)

    def _features(self, index: int) -> Features:
        return self._kept(self._changed_entry(index)) if self.config.changes_items else self.clean(index)

    def _kept(self, entry: Entry) -> Features:
        return self._cache.read_all([entry])[0].view(self.dtype)

    def _unpacked_entry(self, index: int) -> Entry:
        return Entry(self._keys[index], self._bytes, functools.partial(self._as_bytes, self._read, index))

    def _changed_entry(self, index: int) -> Entry:
        text = f"changed {self._keys[index]} {self.rows[index].line} {self._changes}"
        key = hashlib.sha256(text.encode()).hexdigest()
        return Entry(key, self._bytes, functools.partial(self._as_bytes, self._changed, index))

    def _as_bytes(self, make: Callable[[int], Features], index: int) -> Clip:
        return np.ascontiguousarray(make(index)).view(np.uint8)

    def _changed(self, index: int) -> Features:
        features = self.clean(index)
        replaced = round(self.config.distractors * self.frames)
        if replaced:
            rng = self._rng(index, _DISTRACTORS)
            places = rng.choice(self.frames, replaced, replace=False)
            others = rng.integers(len(self) - 1, size=replaced)
            others += others >= index
            for place, other, frame in zip(places, others, rng.integers(self.frames, size=replaced), strict=True):
                features[place] = self.clean(int(other))[frame]
        if self.config.shuffle_frames:
            features = self._rng(index, _ORDER).permutation(features)
        if self.config.noise:
            assert self._deviation is not None
            drawn = self._rng(index, _NOISE).standard_normal(features.shape)
            features = (features + self.config.noise * self._deviation * drawn).astype(self.dtype)
        return features

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, self.rows[index].line, stream))

    def _read(self, index: int) -> Features:
        row = self.rows[index]
        try:
            item = self._files.item(row.path, row.array, row.row)
        except DecodeError as error:
            raise became_unreadable(row.path, error) from error
        return item[sample_positions(row.length, self.frames)].astype(self.dtype)


def _is_packed(row: Row) -> bool:
    """Whether its file is compressed or an archive, and not mapped into memory."""
    return row.path.suffix.lower() != ".npy"
