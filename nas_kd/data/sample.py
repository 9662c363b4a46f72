"""The contract of data sources: the form of samples, of data sets, and of the information about them.

Items are clips, or sequences of frame features that some network extracted before.

Shape legend: C colour channels (3, RGB), T frames, H and W pixels, D features of a frame, B items of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nas_kd.data.spelling import unfit_names

IGNORE = 255
"""The value of a `mask` pixel that no loss and no metric may look at."""

Sample = dict[str, Tensor]
"""One item, by name:

- `clip`: uint8 [3, T, H, W], RGB; or, in its place, `features`: float32 or float16 [T, D].
- `label`: int64 scalar, the class; where an item has several, the first of them, and 0 where it has none. May be
  missing where `DataInfo.num_classes` is 0.
- `labels` (where `DataInfo.multi_label`): uint8 [num_classes], 1 for each class of the item and 0 for the others.
- `mask` (optional): uint8 [T, H, W]; an index into `DataInfo.mask_names`, `IGNORE` where unlabelled.
- `map.<name>` (for each of `DataInfo.map_names`): float32 or float16 [T, H, W] in [0, 1], computed before, such as a
  teacher's saliency of each frame.
- `sequence` (optional): int64 scalar, the number of the video in its split that a clip is part of.
- `boxes` (optional): float32 [T, max_boxes, 5]: x0, y0, x1, y1 in pixels (edges, so x1 − x0 is the width) and an
  index into `DataInfo.box_names`; the rows of absent boxes are −1.
- Any other key (optional): what a task of the user's reads, such as a number to be regressed; it is neither checked nor
  augmented.
"""


class DataError(ValueError):
    """The user's data, or the description of it, cannot be used. The message says what to change."""


class DecodeError(ValueError):
    """A file cannot be decoded; the message is the reason, without the path."""


class PartlyReadableError(DecodeError):
    """Some frames of a file can be decoded, but so few that it is taken as damaged."""


def became_unreadable(path: Path, reason: object) -> DataError:
    """The error of a file that was sound when the campaign started."""
    return DataError(f"{path} could be read when the campaign started, but no longer: {reason}")


@runtime_checkable
class ClipDataset(Protocol):
    """A map-style data set.

    A sequence of ints named `labels` on it spares a read of every item where classes are counted. Where `reads_ahead`
    is there and true, items may be read by a thread beside the training: they then neither draw from the global random
    generators nor depend on the thread. `without_overlap(indices)`, where items may share frames, gives those of some
    items that share none with each other.
    """

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int, /) -> Sample:
        """The item at `index`, 0 ≤ index < len."""
        ...


@dataclass(frozen=True)
class DataInfo:
    """What a model must know to read a data set.

    Attributes:
        num_classes: Number of classes of `label`; 0 where items have no class, such as those of a regression.
        class_names: Their names, by class index.
        frames: T of each clip, as nets see it.
        height: H in pixels, as nets see it; 0 where items are frame features.
        width: W in pixels, as nets see it; 0 where items are frame features.
        name: Short name of the data for reports.
        flip_safe: Whether a mirrored clip keeps its label (False for "moves to the left").
        mask_names: Meaning of each value of `mask`, "background" included where there is one; empty without masks.
        box_names: Meaning of each class of `boxes`; empty without boxes.
        feature_size: D of frame features; 0 where items are clips.
        map_names: Names of the precomputed maps that samples bring as `map.<name>`; empty without.
        multi_label: Whether an item may have several classes; samples then hold `labels`.
        points: Whether values of `mask` above 0 are single points, such as those of tracked eyes, instead of areas.
        stored_frames: Frames that samples hold, of which nets see `frames`; 0: as many.
        consecutive: Whether frames follow each other, so that nets see those in the middle where more are stored
            (otherwise, frames uniform over them). Items of val and test then hold no more than is seen.
        stored_size: (height, width) of the frames that samples hold, of which nets see `height` × `width` pixels;
            (0, 0): as many.
    """

    num_classes: int
    class_names: tuple[str, ...]
    frames: int
    height: int
    width: int
    name: str
    flip_safe: bool = True
    mask_names: tuple[str, ...] = ()
    box_names: tuple[str, ...] = ()
    feature_size: int = 0
    map_names: tuple[str, ...] = ()
    multi_label: bool = False
    points: bool = False
    stored_frames: int = 0
    stored_size: tuple[int, int] = (0, 0)
    consecutive: bool = False

    def __post_init__(self) -> None:
        for name, stored, seen in (
            ("frames", self.stored_frames, self.frames),
            ("height", self.stored_size[0], self.height),
            ("width", self.stored_size[1], self.width),
        ):
            if stored and (stored < seen or (self.feature_size and name != "frames")):
                raise DataError(
                    f"samples of {self.name!r} must hold clips with at least what nets see, {seen} as {name}, but hold "
                    f"{stored}; raise stored_frames or stored_size, or leave it out"
                )
        if self.num_classes < 2 and self.num_classes != 0:
            raise DataError(
                f"a data set needs at least 2 classes, or 0 where items have no class, but {self.name!r} has "
                f"{self.num_classes}"
            )
        if len(self.class_names) != self.num_classes:
            raise DataError(
                f"class_names must name each of the {self.num_classes} classes, but {self.name!r} names "
                f"{len(self.class_names)}"
            )
        for key in ("class_names", "mask_names", "box_names"):
            if problem := unfit_names(getattr(self, key)):
                raise DataError(f"{key} of {self.name!r} must be names that differ, but {problem}; rename it")
        if self.feature_size < 0:
            raise DataError(f"feature_size must be at least 0, but that of {self.name!r} is {self.feature_size}")
        if self.feature_size and (self.height or self.width or self.mask_names or self.box_names):
            raise DataError(
                f"frame features have no pixels: height and width must be 0, mask_names and box_names empty, but "
                f"{self.name!r} has {self.height} × {self.width} pixels and {len(self.mask_names)} and "
                f"{len(self.box_names)} names"
            )

    @property
    def input_key(self) -> str:
        """The key of a sample that models read: `features` or `clip`."""
        return "features" if self.feature_size else "clip"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of that value: (T, D) or (3, T, H, W)."""
        if self.feature_size:
            return (self.frames, self.feature_size)
        return (3, self.frames, self.height, self.width)

    @property
    def seen(self) -> tuple[int, int, int]:
        """(T, H, W) that nets see of a clip; (T, 0, 0) of frame features."""
        return (self.frames, self.height, self.width)

    @property
    def stored(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips that samples hold, those of training items where they hold more."""
        height, width = self.stored_size
        return (self.stored_frames or self.frames, height or self.height, width or self.width)


class MemoryDataset:
    """A data set held as one tensor a key, first dimension the items; loaders index it a whole batch at a time.

    Args:
        tensors: Sample keys to stacked values, all of the same first dimension; `label` must be there, zeros
            where items have no class, and `clip` or `features`.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        lengths = {key: len(value) for key, value in tensors.items()}
        if "label" not in lengths or not {"clip", "features"} & lengths.keys():
            raise DataError(f"a data set must hold 'clip' or 'features', and 'label', but it holds {sorted(lengths)}")
        if len(set(lengths.values())) != 1:
            raise DataError(f"all tensors of a data set must have the same number of items, but they have {lengths}")
        self._tensors = dict(tensors)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Key to stacked values; not to be written to."""
        return self._tensors

    @property
    def labels(self) -> list[int]:
        """The class of each item."""
        labels: list[int] = self.tensors["label"].tolist()
        return labels

    def __len__(self) -> int:
        return len(self.tensors["label"])

    def __getitem__(self, index: int, /) -> Sample:
        return {key: value[index] for key, value in self.tensors.items()}


class Subset:
    """Some items of a base data set, in the given order.

    Args:
        base: The data set looked into.
        indices: Positions in `base`, each at most once.

    Raises:
        DataError: An index is out of range or given twice.
    """

    def __init__(self, base: ClipDataset, indices: Sequence[int]) -> None:
        self.base = base
        self.indices = tuple(int(index) for index in indices)
        if len(set(self.indices)) != len(self.indices):
            raise DataError("the indices of a subset must differ, but some are given twice")
        if self.indices and not (min(self.indices) >= 0 and max(self.indices) < len(base)):
            raise DataError(
                f"the indices of a subset must lie in 0..{len(base) - 1}, but they span "
                f"{min(self.indices)}..{max(self.indices)}"
            )

    @property
    def labels(self) -> list[int]:
        """The class of each item."""
        base_labels = labels_of(self.base)
        return [base_labels[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self.base[self.indices[index]]


def labels_of(dataset: ClipDataset) -> list[int]:
    """The class of each item: from `dataset.labels` where there is one, else by reading every item; 0 without one."""
    labels = getattr(dataset, "labels", None)
    if labels is not None:
        return [int(label) for label in labels]
    if len(dataset) and "label" not in dataset[0]:
        return [0] * len(dataset)
    return [int(dataset[index]["label"]) for index in range(len(dataset))]


@dataclass(frozen=True)
class Labelled:
    """Items that a student is measured on.

    Attributes:
        dataset: the items.
        groups: group of each item, such as its video; None where they are independent.
        info: what is known of them.
    """

    dataset: ClipDataset
    groups: Sequence[str] | None
    info: DataInfo


_DTYPES: Mapping[str, tuple[torch.dtype, ...]] = {
    "clip": (torch.uint8,),
    "features": (torch.float32, torch.float16),
    "label": (torch.int64,),
    "labels": (torch.uint8,),
    "sequence": (torch.int64,),
    "mask": (torch.uint8,),
    "boxes": (torch.float32,),
}
KEYS = frozenset(_DTYPES)
"""The keys of a sample that the contract knows, beside `map.<name>`."""

_OF_PIXELS = ("clip", "mask", "boxes")


def check_sample(sample: object, info: DataInfo, where: str) -> None:
    """Hold one sample against the contract.

    Args:
        sample: What a data set returned.
        info: What it promised.
        where: Names the item in the message, such as `train[0]`.

    Raises:
        DataError: The first rule that is broken, with the value found.
    """
    if not isinstance(sample, Mapping):
        raise DataError(f"{where} must be a dict of tensors, but it is a {type(sample).__name__}")
    maps = tuple(f"map.{name}" for name in info.map_names)
    of_classes = (*(["label"] if info.num_classes else []), *(["labels"] if info.multi_label else []))
    for key in (info.input_key, *of_classes, *maps):
        if key not in sample:
            raise DataError(f"{where} must hold {key!r}, but it holds {sorted(map(str, sample))}")
    for key in _OF_PIXELS if info.feature_size else ("features",):
        if key in sample:
            raise DataError(
                f"{where} must hold either pixels or frame features, but it holds {info.input_key!r} and {key!r}; "
                f"leave {key!r} out"
            )
    frames = info.stored
    shapes: dict[str, tuple[int, ...]] = {
        info.input_key: (frames[0], info.feature_size) if info.feature_size else (3, *frames),
        "label": (),
        "labels": (info.num_classes,),
        "sequence": (),
        "mask": frames,
        **dict.fromkeys(maps, frames),
    }
    for key, dtypes in {**_DTYPES, **dict.fromkeys(maps, (torch.float32, torch.float16))}.items():
        if key not in sample:
            continue
        value = sample[key]
        if not isinstance(value, Tensor):
            raise DataError(f"{where}[{key!r}] must be a tensor, but it is a {type(value).__name__}")
        if value.dtype not in dtypes:
            raise DataError(
                f"{where}[{key!r}] must be {' or '.join(map(str, dtypes))}, but it is {value.dtype}; "
                f"{_conversion(key, value, dtypes[0])}"
            )
        if key in shapes and tuple(value.shape) != shapes[key]:
            raise DataError(f"{where}[{key!r}] must have the shape {shapes[key]}, but it has {tuple(value.shape)}")
    _check_values(sample, info, where)


def _conversion(key: str, value: Tensor, dtype: torch.dtype) -> str:
    """How a value of another type becomes one of the contract's, without a change of what it means."""
    whole = value.double()
    if not bool(whole.isfinite().all()):
        return "some of its values are not finite"
    low, high = (float(whole.min()), float(whole.max())) if value.numel() else (0.0, 0.0)
    spans = f"its values span {low:.4g} to {high:.4g}"
    if key == "clip" and value.is_floating_point():
        if low >= 0 and high <= 1:
            return f"{spans}, so convert it with (clip * 255).round().to({dtype})"
        if low >= 0 and high <= 255:
            return f"{spans}, so convert it with .round().to({dtype})"
        return f"{spans}, so give the bytes as they were before, since `normalize` of the campaign file is applied here"
    if dtype.is_floating_point or torch.equal(whole.to(dtype).double(), whole):
        return f"convert it with .to({dtype})"
    return f"{spans}, which do not fit into it, so give values that do"


def _check_values(sample: Mapping[str, Tensor], info: DataInfo, where: str) -> None:
    label = int(sample.get("label", 0))
    if info.num_classes and not 0 <= label < info.num_classes:
        raise DataError(f"{where}['label'] must lie in 0..{info.num_classes - 1}, but it is {label}")
    if "features" in sample and not bool(sample["features"].isfinite().all()):
        raise DataError(f"{where}['features'] must be finite numbers, but some are not")
    if "labels" in sample:
        labels = sample["labels"]
        if int(labels.max()) > 1:
            raise DataError(f"{where}['labels'] must hold 0 and 1 only, but it holds {int(labels.max())}")
        if bool(labels.any()) and not labels[label]:
            raise DataError(
                f"{where}['label'] must be one of the item's classes, but it is {label} and 'labels' holds "
                f"{labels.nonzero().flatten().tolist()[:10]}"
            )
    if "mask" in sample:
        mask = sample["mask"]
        known = mask[mask != IGNORE]
        if known.numel() and int(known.max()) >= len(info.mask_names):
            raise DataError(
                f"{where}['mask'] must hold indices into mask_names, 0..{len(info.mask_names) - 1}, or {IGNORE} "
                f"(ignore), but it holds {int(known.max())}; name the classes of the masks as mask_names"
            )
    for key in (f"map.{name}" for name in info.map_names):
        if key in sample and not bool(((sample[key] >= 0) & (sample[key] <= 1)).all()):
            raise DataError(f"{where}[{key!r}] must lie in [0, 1], but it does not")
    if "boxes" in sample:
        boxes, frames = sample["boxes"], info.stored
        if boxes.ndim != 3 or boxes.shape[0] != frames[0] or boxes.shape[2] != 5:
            raise DataError(
                f"{where}['boxes'] must have the shape ({frames[0]}, max_boxes, 5), but it has {tuple(boxes.shape)}"
            )
        present = boxes[boxes[..., 4] >= 0]
        highest = int(present[:, 4].max()) if present.numel() else -1
        if highest >= len(info.box_names):
            raise DataError(
                f"{where}['boxes'] must hold indices into box_names, 0..{len(info.box_names) - 1}, but one is "
                f"{highest}; name the classes of the boxes as box_names"
            )


def stack(dataset: ClipDataset) -> MemoryDataset:
    """Read every item once and hold them all in memory."""
    if isinstance(dataset, MemoryDataset):
        return dataset
    held = {key: value.new_empty(len(dataset), *value.shape) for key, value in dataset[0].items()}
    for index in range(len(dataset)):
        for key, value in dataset[index].items():
            held[key][index] = value
    return MemoryDataset(held)


def clip_bytes(info: DataInfo) -> int:
    """Bytes of one uint8 clip, as samples hold it."""
    return 3 * prod(info.stored)
