"""Frame features of YouTube-8M (Abu-El-Haija et al., arXiv 1609.08675): TFRecord files of SequenceExample messages.

Each record is one video: `id` and `labels` in its context, and for each frame a byte a feature in the lists `rgb` and
`audio`. Bytes q stand for q · 4/255 + 4/512 − 2, as in the reader that was published with the data.

Every file is read once, before anything is trained, with all its check sums; what was found is kept in an index, so
later starts read single records only. A file that has changed since (by size or time) is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nas_kd.data.decode import sample_positions
from nas_kd.data.features import frames_of
from nas_kd.data.files import written_whole
from nas_kd.data.progress import track
from nas_kd.data.sample import DataError, DataInfo, Sample, no_longer, stack_small
from nas_kd.data.splits import Splits, carve_val, make_splits
from nas_kd.data.table import SPLITS, read_csv
from nas_kd.data.tfrecord import SequenceExample, WireError, parse_sequence_example, read_record, records

_SCALE, _OFFSET = np.float32(4 / 255), np.float32(4 / 512 - 2)
_INDEX_VERSION = 1
_VOCABULARY = ("Index", "Name")


class YouTube8MConfig(BaseModel):
    """Frame-level files of YouTube-8M, or of the same form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["youtube8m"] = "youtube8m"
    root: Path = Field(description="The folder of the files.")
    train: str = Field(default="train*.tfrecord", description="Glob of the training files, relative to `root`.")
    val: str | None = Field(
        default="validate*.tfrecord", description="Glob of the validation files; null: a share of `train` validates."
    )
    test: str = Field(
        default="test*.tfrecord",
        description="Glob of the test files. The published ones have no labels: part the validation files instead.",
    )
    num_classes: int | None = Field(
        default=None, ge=2, description="Number of classes; 3862 in the version of 2018, 4716 in that of 2016 and 2017."
    )
    class_names: str | None = Field(
        default=None,
        description="A csv file with the columns Index and Name, relative to `root`, such as the published "
        "vocabulary.csv. Classes without a name there are called class_<index>.",
    )
    use: tuple[str, ...] = Field(
        default=("rgb", "audio"), min_length=1, description="Lists of features that are joined, in this order."
    )
    frames: int | None = Field(
        default=None,
        ge=1,
        description="Frames an item, taken uniformly over all it has; frames repeat where it has fewer. Without it "
        "items must have equally many, and all are taken.",
    )
    val_share: float = Field(
        default=0.15, gt=0, lt=1, description="Share of the training items that validates where `val` is null."
    )
    memory_gb: float = Field(
        default=1.0, ge=0, description="A split up to this size, as float32, is held in memory as one tensor."
    )
    index_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "nas_kd" / "records",
        description="Where the index of each file is kept: places, labels and numbers of frames of its records.",
    )

    @field_validator("train", "val", "test")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (not value or Path(value).is_absolute() or ".." in Path(value).parts):
            raise ValueError(
                f"a glob must name files below root, but it is {value!r}; write for example train*.tfrecord"
            )
        return value

    @field_validator("use")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"use must name each list of features once, but it is {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.num_classes is None and self.class_names is None:
            raise ValueError(
                "num_classes or class_names must be given, but neither is; set for example num_classes: 3862"
            )
        return self


@dataclass(frozen=True)
class Item:
    """One record: where it lies, its classes as written, and its number of frames."""

    path: Path
    offset: int
    classes: tuple[int, ...]
    length: int

    @property
    def label(self) -> int:
        """Its first class; 0 where it has none."""
        return self.classes[0] if self.classes else 0


class RecordDataset:
    """Records, read one by one and dequantised.

    Args:
        items: Its records.
        num_classes: Length of `labels`.
        use: Lists of features that are joined.
        frames: T.
    """

    def __init__(self, items: Sequence[Item], num_classes: int, use: Sequence[str], frames: int) -> None:
        self.items = tuple(items)
        self.num_classes = num_classes
        self.use = tuple(use)
        self.frames = frames
        self.labels = [item.label for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> Sample:
        item = self.items[index]
        try:
            with item.path.open("rb") as file:
                message = read_record(file, item.offset, os.fstat(file.fileno()).st_size, item.path)
        except OSError as error:
            raise no_longer(item.path, error.strerror or error) from error
        lists = _lists(_example(message, item.path, item.offset), item.path, item.offset)
        positions = sample_positions(item.length, self.frames)
        try:
            joined = np.concatenate([lists[name][positions] for name in self.use], axis=1)
        except (KeyError, IndexError, ValueError) as error:
            raise _unusable(item.path, item.offset, "it has changed since the campaign started") from error
        labels = torch.zeros(self.num_classes, dtype=torch.uint8)
        labels[list(item.classes)] = 1
        return {
            "features": torch.from_numpy(dequantize(joined)),
            "label": torch.tensor(self.labels[index]),
            "labels": labels,
        }


def dequantize(quantized: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Bytes to features between −2 and 2: q · 4/255 + 4/512 − 2 (utils.py of google/youtube-8m)."""
    return quantized.astype(np.float32) * _SCALE + _OFFSET


def load_youtube8m(config: YouTube8MConfig, *, seed: int, gate_share: float = 0.5) -> Splits:
    """Index the files, check every record, and make the splits.

    Args:
        config: Where the files lie and what is taken from them.
        seed: Seed of the split in weights and gates, and of a carved validation split.
        gate_share: Share of the training items that fits gates.

    Raises:
        DataError: A file or record is damaged or does not fit, or the set as a whole cannot be used.
    """
    class_names = _class_names(config)
    indexes = _indexes(config)
    sizes: dict[str, tuple[int, str]] = {}
    parts = {
        name: [item for index in indexes[name] for item in _items(index, config.use, len(class_names), sizes)]
        for name in SPLITS
    }
    notes: list[str] = []
    if config.val is None:
        labels = [item.label for item in parts["train"]]
        notes.append(carve_val(parts, labels, None, config.val_share, seed, "items"))
    for name, items in parts.items():
        unlabelled = sum(not item.classes for item in items)
        if items and unlabelled == len(items):
            raise DataError(
                f"the split {name!r} must have labels, but none of its {len(items)} records has one (those of the "
                "published test files are secret); name other files, such as a part of the validation files"
            )
        if unlabelled:
            notes.append(f"{unlabelled} of {len(items)} {name} items have no class")
    frames = frames_of([item.length for items in parts.values() for item in items], config.frames)
    info = DataInfo(
        num_classes=len(class_names),
        class_names=class_names,
        frames=frames,
        height=0,
        width=0,
        name=config.root.resolve().name,
        flip_safe=False,
        feature_size=sum(sizes[name][0] for name in config.use),
        multi_label=True,
    )
    item_bytes = frames * info.feature_size * 4
    train, val, test = (
        stack_small(RecordDataset(parts[name], len(class_names), config.use, frames), item_bytes, config.memory_gb)
        for name in SPLITS
    )
    return make_splits(train, val, test, info, seed=seed, gate_share=gate_share, notes=notes)


@dataclass(frozen=True)
class FileIndex:
    """What one file holds, by record.

    Attributes:
        path: The file.
        offsets: int64 [R].
        names: Names of the lists of features.
        lengths: int64 [R, names], numbers of frames; 0 for an absent list.
        widths: int64 [R, names], features a frame; 0 for an absent or empty list.
        counts: int64 [R], numbers of labels.
        labels: int64, those of all records one after the other.
    """

    path: Path
    offsets: npt.NDArray[np.int64]
    names: tuple[str, ...]
    lengths: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def index_file(path: Path) -> FileIndex:
    """Read a whole file and check it.

    Raises:
        DataError: The file or one of its records is damaged, or is no SequenceExample with frames of equal size.
    """
    offsets: list[int] = []
    shapes: list[dict[str, tuple[int, ...]]] = []
    classes: list[list[int]] = []
    for offset, message in records(path):
        example = _example(message, path, offset)
        offsets.append(offset)
        shapes.append({name: frames.shape for name, frames in _lists(example, path, offset).items()})
        classes.append(_labels(example, path, offset))
    names = tuple(sorted({name for shape in shapes for name in shape}))
    sizes = np.array([[shape.get(name, (0, 0)) for name in names] for shape in shapes], dtype=np.int64)
    sizes = sizes.reshape(len(offsets), len(names), 2)
    return FileIndex(
        path,
        np.array(offsets, dtype=np.int64),
        names,
        sizes[:, :, 0],
        sizes[:, :, 1],
        np.array([len(one) for one in classes], dtype=np.int64),
        np.array([label for one in classes for label in one], dtype=np.int64),
    )


def _indexes(config: YouTube8MConfig) -> dict[str, list[FileIndex]]:
    """The index of each file of each split."""
    globs = {"train": config.train, "val": config.val, "test": config.test}
    owner: dict[Path, str] = {}
    for name, glob in globs.items():
        paths = [] if glob is None else sorted(path for path in config.root.glob(glob) if path.is_file())
        if glob is not None and not paths:
            raise DataError(f"{name} must name at least one file, but {config.root / glob} matches none; mend the glob")
        for path in paths:
            if path in owner:
                raise DataError(
                    f"each file must belong to one split, but {path} is in {owner[path]} and in {name}; make the globs "
                    "differ"
                )
            owner[path] = name
    indexes: dict[str, list[FileIndex]] = {name: [] for name in SPLITS}
    for path in track(owner, "indexing records", len(owner)):
        indexes[owner[path]].append(_kept_index(path, config.index_dir.expanduser()))
    return indexes


def _kept_index(path: Path, folder: Path) -> FileIndex:
    """The index of a file, from the folder where it is kept, or made and kept there."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path} must be a TFRecord file, but it cannot be read: {error.strerror or error}") from error
    identity = f"{_INDEX_VERSION} {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    kept = folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.npz"
    # Whatever damaged a kept index, it can be made again.
    with contextlib.suppress(Exception), kept.open("rb") as kept_file, np.load(kept_file, allow_pickle=False) as found:
        names = tuple(str(name) for name in found["names"])
        parts = [np.asarray(found[key], dtype=np.int64) for key in _PARTS]
        return FileIndex(path, parts[0], names, *parts[1:])
    index = index_file(path)
    arrays: dict[str, Any] = {key: getattr(index, key) for key in _PARTS}
    with written_whole(kept, folder, "index_dir") as file:
        np.savez(file, names=np.array(index.names, dtype=np.str_), **arrays)
    return index


_PARTS = ("offsets", "lengths", "widths", "counts", "labels")


def _items(index: FileIndex, use: Sequence[str], num_classes: int, sizes: dict[str, tuple[int, str]]) -> list[Item]:
    """The records of a file; `sizes` holds features a frame of each list and where they were seen first."""
    columns = {name: column for column, name in enumerate(index.names)}
    ends = np.cumsum(index.counts)
    items = []
    for row, offset in enumerate(index.offsets.tolist()):
        lengths = {name: int(index.lengths[row, columns[name]]) if name in columns else 0 for name in use}
        for name, length in lengths.items():
            if length == 0:
                held = ", ".join(other for other in index.names if index.lengths[row, columns[other]])
                raise _unusable(index.path, offset, f"it has no frames of {name!r} (it holds {held or 'none at all'})")
            width = int(index.widths[row, columns[name]])
            size, where = sizes.setdefault(name, (width, f"{index.path} at byte {offset}"))
            if width != size:
                raise _unusable(
                    index.path,
                    offset,
                    f"its frames of {name!r} have {width} features, but those of {where} have {size}",
                )
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{length} of {name!r}" for name, length in lengths.items())
            raise _unusable(index.path, offset, f"its lists must have equally many frames, but it has {told}")
        classes = tuple(dict.fromkeys(index.labels[ends[row] - index.counts[row] : ends[row]].tolist()))
        for label in classes:
            if not 0 <= label < num_classes:
                raise _unusable(
                    index.path, offset, f"its labels must lie in 0..{num_classes - 1} (num_classes), but one is {label}"
                )
        items.append(Item(index.path, offset, classes, lengths[use[0]]))
    return items


def _example(message: bytes, path: Path, offset: int) -> SequenceExample:
    try:
        return parse_sequence_example(message)
    except WireError as error:
        raise _unusable(path, offset, f"it is no SequenceExample ({error})") from error


def _lists(example: SequenceExample, path: Path, offset: int) -> dict[str, npt.NDArray[np.uint8]]:
    """Frames [T, D] of each list of a record; [0, 0] of an empty one."""
    found = {}
    for name, steps in example.lists.items():
        for number, values in enumerate(steps):
            if len(values) != 1:
                raise _unusable(
                    path, offset, f"frame {number} of {name!r} must be one string, but it has {len(values)}"
                )
            if not values[0] or len(values[0]) != len(steps[0][0]):
                raise _unusable(
                    path,
                    offset,
                    f"the frames of {name!r} must have equally many features, but frame {number} has {len(values[0])} "
                    f"and the first {len(steps[0][0])}",
                )
        joined = np.frombuffer(b"".join(values[0] for values in steps), dtype=np.uint8)
        found[name] = joined.reshape(len(steps), -1) if steps else joined.reshape(0, 0)
    return found


def _labels(example: SequenceExample, path: Path, offset: int) -> list[int]:
    labels = example.context.get("labels", [])
    whole = [label for label in labels if isinstance(label, int)]
    if len(whole) < len(labels):
        raise _unusable(path, offset, "its labels must be whole numbers, but are strings")
    return whole


def _class_names(config: YouTube8MConfig) -> tuple[str, ...]:
    named: dict[int, str] = {}
    if config.class_names is not None:
        path = config.root / config.class_names
        for line, entry in read_csv(path, _VOCABULARY):
            index, name = (entry[column] for column in _VOCABULARY)
            if not (index.isascii() and index.isdigit() and len(index) < 8) or int(index) in named:
                raise DataError(
                    f"the column Index of {path} must hold each class once, a whole number ≥ 0, but line {line} holds "
                    f"{index!r}"
                )
            named[int(index)] = name
    count = max(named) + 1 if config.num_classes is None else config.num_classes
    if named and max(named) >= count:
        raise DataError(
            f"num_classes must exceed every class of {config.class_names}, but it is {count} and one is {max(named)}"
        )
    return tuple(named.get(index) or f"class_{index}" for index in range(count))


def _unusable(path: Path, offset: int, reason: str) -> DataError:
    return DataError(f"the record of {path} at byte {offset} cannot be used: {reason}")
