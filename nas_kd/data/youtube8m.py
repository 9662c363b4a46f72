"""Frame features of YouTube-8M (Abu-El-Haija et al., arXiv 1609.08675): TFRecord files of SequenceExample messages.

Each record is one video: `id` and `labels` in its context, and for each frame a byte a feature in the lists `rgb` and
`audio`. Bytes q stand for q · 4/255 + 4/512 − 2, as in the reader that was published with the data.

Every file is read once, before anything is trained, with all its check sums; what was found is kept in an index, so
later starts read single records only. Whatever cannot be used is reported then, all at once. The frames that are used
of each record are kept in the cache of decoded clips, as bytes, where its limit allows that: to find them in a record
takes many times as long as to read them there. Else each record is read from its file whenever it is needed.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator, model_validator

from nas_kd.data.cache import ClipCache, Entry, cache_key
from nas_kd.data.feature_frames import FeatureFramesConfig, frames_of
from nas_kd.data.fingerprint import contents_of, hash_of_files
from nas_kd.data.frame_times import sample_positions
from nas_kd.data.progress import track
from nas_kd.data.record_index import FileIndex, kept_index, parse_video
from nas_kd.data.sample import DataError, DataInfo, Sample, became_unreadable
from nas_kd.data.shards import Clip
from nas_kd.data.source import Recognised
from nas_kd.data.splits import Splits, carve_val, make_splits
from nas_kd.data.table import SPLITS, UnusableRowsError, read_table
from nas_kd.data.tfrecord import WireError, read_record

_SCALE, _OFFSET = np.float32(4 / 255), np.float32(4 / 512 - 2)
_VOCABULARY = ("Index", "Name")
_PUBLISHED_NAMES, _PUBLISHED_CLASSES = "vocabulary.csv", 3862  # of the version of 2018
_REMEDY = "fetch or mend the files, or set on_error: skip to leave them out"


class YouTube8MConfig(FeatureFramesConfig):
    """Frame-level files of YouTube-8M, or of the same form."""

    decodes: ClassVar[bool] = True

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
        "vocabulary.csv. Classes without a name there are called class_<index>; names that are there twice get their "
        "index.",
    )
    use: tuple[str, ...] = Field(
        default=("rgb", "audio"), min_length=1, description="Lists of features that are joined, in this order."
    )
    on_error: Literal["fail", "skip"] = Field(
        default="fail", description="fail: refuse the data set if a record is unusable; skip: leave such records out."
    )
    val_share: float = Field(
        default=0.15, gt=0, lt=1, description="Share of the training items that validates where `val` is null."
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

    @classmethod
    def recognise(cls, root: Path) -> Recognised | None:
        if not any(root.glob("*.tfrecord")):
            return None
        has_names = (root / _PUBLISHED_NAMES).is_file()
        classes = {"class_names": _PUBLISHED_NAMES} if has_names else {"num_classes": _PUBLISHED_CLASSES}
        return Recognised({"root": str(root), **classes, "frames": 30}, "multilabel")

    def load(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        return load_youtube8m(self, seed=seed, gate_share=gate_share)

    def outline(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        return load_youtube8m(self, seed=seed, gate_share=gate_share, decode=False)


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
        size: D, features of a frame.
        cache: Where the frames are kept; None reads them from the records.
    """

    reads_ahead = True

    def __init__(
        self,
        items: Sequence[Item],
        num_classes: int,
        use: Sequence[str],
        frames: int,
        size: int,
        cache: ClipCache | None,
    ) -> None:
        self.items = tuple(items)
        self._cache = cache
        self._shape = (frames, size)
        self._files = {path: cache_key(path, "records") for path in {item.path for item in self.items}}
        self.num_classes = num_classes
        self.use = tuple(use)
        self.frames = frames
        self.labels = [item.label for item in self.items]
        self.item_classes = [item.classes for item in self.items]

    @property
    def identity(self) -> str:
        """Changes with the content of the files and with their order, not with their places."""
        return f"{contents_of(item.path for item in self.items)} {[item.offset for item in self.items]}"

    @property
    def fingerprint(self) -> str:
        """Changes with the files and with the order of the records."""
        places = [item.offset for item in self.items]
        return hash_of_files((item.path for item in self.items), places, self.use, self.frames)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> Sample:
        item = self.items[index]
        quantized = self._read(item) if self._cache is None else self._cache.read_all([self._entry(item)])[0]
        labels = torch.zeros(self.num_classes, dtype=torch.uint8)
        labels[list(item.classes)] = 1
        return {
            "features": torch.from_numpy(dequantize(quantized)),
            "label": torch.tensor(self.labels[index]),
            "labels": labels,
        }

    @property
    def entries(self) -> list[Entry]:
        """What the cache must hold; nothing without one."""
        return [] if self._cache is None else [self._entry(item) for item in self.items]

    def _entry(self, item: Item) -> Entry:
        text = f"{self._files[item.path]} {item.offset} {self.use} {self.frames}"
        key = hashlib.sha256(text.encode()).hexdigest()
        return Entry(key, self._shape, functools.partial(self._read, item))

    def _read(self, item: Item) -> Clip:
        """The frames of a record as bytes, uint8 [T, D]."""
        try:
            with item.path.open("rb") as file:
                message = read_record(file, item.offset, os.fstat(file.fileno()).st_size, item.path)
        except OSError as error:
            raise became_unreadable(item.path, error.strerror or error) from error
        positions = sample_positions(item.length, self.frames)
        try:
            lists = parse_video(message).lists
            return np.concatenate([lists[name][positions] for name in self.use], axis=1)
        except (WireError, KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"the record of {item.path} at byte {item.offset} has changed since the campaign started; start "
                "the campaign again"
            ) from error


def dequantize(quantized: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Bytes to features between −2 and 2: q · 4/255 + 4/512 − 2 (utils.py of google/youtube-8m)."""
    return quantized.astype(np.float32) * _SCALE + _OFFSET


def load_youtube8m(config: YouTube8MConfig, *, seed: int, gate_share: float = 0.5, decode: bool = True) -> Splits:
    """Index the files, check every record, and make the splits.

    Args:
        config: Where the files lie and what is taken from them.
        seed: Seed of the split in weights and gates, and of a carved validation split.
        gate_share: Share of the training items that fits gates.
        decode: Whether all records are brought into the cache now; else each when it is read.

    Raises:
        UnusableRowsError: Records are damaged or do not fit and `on_error` is "fail".
        DataError: A file cannot be read, or the set as a whole cannot be used.
    """
    class_names = _class_names(config)
    indexes = _indexes(config)
    sizes = _sizes(indexes, config.use)
    parts, problems = _items(indexes, config, len(class_names), sizes)
    total = len(problems) + sum(map(len, parts.values()))
    if problems and config.on_error == "fail":
        raise UnusableRowsError(config.root, total, problems, _REMEDY, "record")
    for name, items in parts.items():
        if not items and (name != "val" or config.val is not None):
            raise DataError(
                f"the split {name!r} must hold at least one usable record, but data.{name}, {getattr(config, name)}, "
                f"gives it none ({len(problems)} records are unusable); name other files"
            )
    notes: list[str] = []
    if config.val is None:
        classes = [item.classes for item in parts["train"]]
        notes.append(carve_val(parts, classes, None, config.val_share, seed, "items", every_class=False))
    for name, items in parts.items():
        unlabelled = sum(not item.classes for item in items)
        if items and unlabelled == len(items):
            raise DataError(
                f"the split {name!r} must have labels, but none of its {len(items)} records has one (those of the "
                "published test files are secret); name other files, such as a part of the validation files"
            )
        if unlabelled:
            notes.append(f"{unlabelled} of {len(items)} {name} items have no class")
    if problems:
        notes.append(f"{len(problems)} of {total} records were left out")
    frames = frames_of([item.length for items in parts.values() for item in items], config.frames)
    stored = config.stored_frames or frames
    info = DataInfo(
        num_classes=len(class_names),
        class_names=class_names,
        frames=frames,
        height=0,
        width=0,
        name=config.root.resolve().name,
        flip_safe=False,
        feature_size=sum(sizes.values()),
        multi_label=True,
        stored_frames=stored,
    )
    cache: ClipCache | None = config.open_cache()
    size, total_bytes = info.feature_size, stored * info.feature_size * sum(map(len, parts.values()))
    if total_bytes > config.cache_limit_gb * 1e9:
        cache = None
        notes.append(
            f"the frames of all records take {total_bytes / 1e9:.3g} GB, more than data.cache_limit_gb allows "
            f"({config.cache_limit_gb:g}): each is read from its record in every epoch, which takes many times as long"
        )
    train, val, test = (
        RecordDataset(parts[name], len(class_names), config.use, stored, size, cache) for name in SPLITS
    )
    if cache is not None and decode:
        cache.fill([*train.entries, *val.entries, *test.entries], 1, "unpacking records")
    return make_splits(train, val, test, info, seed=seed, gate_share=gate_share, skipped=problems, notes=notes)


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
        indexes[owner[path]].append(kept_index(path, config.index_dir.expanduser()))
    return indexes


def _sizes(indexes: Mapping[str, Sequence[FileIndex]], use: Sequence[str]) -> dict[str, int]:
    """Features a frame of each list, that of most records.

    Raises:
        DataError: No record has frames of a list.
    """
    seen: dict[str, Counter[int]] = {}
    for index in (index for part in indexes.values() for index in part):
        for name, widths in zip(index.names.tolist(), index.widths.T, strict=True):
            seen.setdefault(name, Counter()).update(widths[widths > 0].tolist())
    held = [name for name, widths in sorted(seen.items()) if widths]
    for name in use:
        # Where there is none at all, what is wrong with each record is the better explanation.
        if name not in held and held:
            raise DataError(
                f"data.use must name lists of features that the records hold, but no record has frames of {name!r}; "
                f"choose from {', '.join(held)}"
            )
    return {name: seen[name].most_common(1)[0][0] if name in held else 0 for name in use}


def _items(
    indexes: Mapping[str, Sequence[FileIndex]], config: YouTube8MConfig, num_classes: int, sizes: Mapping[str, int]
) -> tuple[dict[str, list[Item]], list[tuple[str, str]]]:
    """The usable records of each split; and of the others the place and the reason."""
    parts: dict[str, list[Item]] = {name: [] for name in SPLITS}
    problems: list[tuple[str, str]] = []
    first: dict[str, Item] = {}
    for split in SPLITS:
        for index in indexes[split]:
            problems += [
                (_place(index.path, offset, config), reason)
                for offset, reason in zip(index.broken.tolist(), index.reasons.tolist(), strict=True)
            ]
            for name, shapes, item in _records(index, config.use):
                reason = _unfit_frames(shapes, sizes) or _unfit_classes(item.classes, num_classes)
                if not reason and name in first:
                    twin = first[name]
                    reason = (
                        f"it has the id of {_place(twin.path, twin.offset, config)}; leave one of them out, or give it "
                        "an id of its own"
                    )
                if reason:
                    place = _place(item.path, item.offset, config)
                    problems.append((f"{place} (id {name})" if name else place, reason))
                    continue
                if name:
                    first[name] = item
                parts[split].append(item)
    return parts, problems


def _records(index: FileIndex, use: Sequence[str]) -> Iterator[tuple[str, dict[str, tuple[int, int]], Item]]:
    """Id, frames and features a frame of each list, and the item of each record."""
    names, ends = index.names.tolist(), np.cumsum(index.counts)
    shapes = np.stack([index.lengths, index.widths], axis=2).tolist()
    for row, (offset, name) in enumerate(zip(index.offsets.tolist(), index.ids.tolist(), strict=True)):
        of_list = {key: (length, width) for key, (length, width) in zip(names, shapes[row], strict=True)}
        classes = tuple(dict.fromkeys(index.labels[ends[row] - index.counts[row] : ends[row]].tolist()))
        yield name, of_list, Item(index.path, offset, classes, of_list.get(use[0], (0, 0))[0])


def _place(path: Path, offset: int, config: YouTube8MConfig) -> str:
    return f"{path.relative_to(config.root)} at byte {offset}"


def _unfit_frames(shapes: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> str:
    """What is wrong with the lists of a record ("" if nothing).

    Args:
        shapes: Frames and features a frame, by list.
        sizes: Features a frame of each list that is used.
    """
    held = [name for name, (length, _) in shapes.items() if length]
    for name, size in sizes.items():
        length, width = shapes.get(name, (0, 0))
        if not length:
            present = ", ".join(held) or "none at all"
            return f"it has no frames of {name!r}, but data.use names them (it has {present})"
        if width != size:
            return f"its frames of {name!r} have {width} features, but those of most records have {size}"
    lengths = {name: shapes[name][0] for name in sizes}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} of {name!r}" for name, length in lengths.items())
        return f"its lists must have equally many frames, but it has {counts}"
    return ""


def _unfit_classes(classes: Sequence[int], num_classes: int) -> str:
    for label in classes:
        if label < 0:
            return f"its labels must be at least 0, but one is {label}"
        if label >= num_classes:
            return f"its labels must lie in 0..{num_classes - 1}, but one is {label}; raise data.num_classes"
    return ""


def _class_names(config: YouTube8MConfig) -> tuple[str, ...]:
    named: dict[int, str] = {}
    if config.class_names is not None:
        path = config.root / config.class_names
        for line, entry in read_table(path, _VOCABULARY):
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
    names = [named.get(index) or f"class_{index}" for index in range(count)]
    times = Counter(names)  # several entities may share a name
    return tuple(name if times[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))
