"""The contract between data sources and the rest: what a sample is, what a data set is, what is known about it.

Shape legend: C colour channels (3, RGB), T frames, H and W pixels, B items of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

IGNORE = 255
"""The value of a `mask` pixel that no loss and no metric may look at."""

Sample = dict[str, Tensor]
"""One item, by name:

- `clip`: uint8 [3, T, H, W], RGB.
- `label`: int64 scalar, the class.
- `mask` (optional): uint8 [T, H, W]; an index into `DataInfo.mask_names`, `IGNORE` where unlabelled.
- `saliency` (optional): float32 [T, H, W] in [0, 1].
- `boxes` (optional): float32 [T, max_boxes, 5]: x0, y0, x1, y1 in pixels (edges, so x1 − x0 is the width) and an
  index into `DataInfo.box_names`; the rows of absent boxes are −1.
"""


class DataError(ValueError):
    """The user's data, or the description of it, cannot be used. The message says what to change."""


@runtime_checkable
class ClipDataset(Protocol):
    """A map-style data set.

    A sequence of ints named `labels` on it spares a read of every item where classes are counted.
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
        num_classes: Number of classes of `label`.
        class_names: Their names, by class index.
        frames: T of each clip.
        height: H in pixels.
        width: W in pixels.
        name: Short name of the data for reports.
        flip_safe: Whether a mirrored clip keeps its label (False for "moves to the left").
        mask_names: Meaning of each value of `mask`, "background" included where there is one; empty without masks.
        box_names: Meaning of each class of `boxes`; empty without boxes.
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

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(f"a data set needs at least 2 classes, but {self.name!r} has {self.num_classes}")
        if len(self.class_names) != self.num_classes:
            raise DataError(
                f"class_names must name each of the {self.num_classes} classes, but {self.name!r} names "
                f"{len(self.class_names)}"
            )


class MemoryDataset:
    """A data set held as one tensor a key, first dimension the items; loaders index it a whole batch at a time.

    Args:
        tensors: Sample keys to stacked values, all of the same first dimension; `clip` and `label` must be there.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        lengths = {key: len(value) for key, value in tensors.items()}
        if not {"clip", "label"} <= lengths.keys():
            raise DataError(f"a data set must hold 'clip' and 'label', but it holds {sorted(lengths)}")
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
    """The class of each item: from `dataset.labels` where there is one, else by reading every item."""
    labels = getattr(dataset, "labels", None)
    if labels is not None:
        return [int(label) for label in labels]
    return [int(dataset[index]["label"]) for index in range(len(dataset))]


_DTYPES: Mapping[str, torch.dtype] = {
    "clip": torch.uint8,
    "label": torch.int64,
    "mask": torch.uint8,
    "saliency": torch.float32,
    "boxes": torch.float32,
}


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
    for key in ("clip", "label"):
        if key not in sample:
            raise DataError(f"{where} must hold {key!r}, but it holds {sorted(map(str, sample))}")
    frames = (info.frames, info.height, info.width)
    shapes: dict[str, tuple[int, ...]] = {"clip": (3, *frames), "label": (), "mask": frames, "saliency": frames}
    for key, dtype in _DTYPES.items():
        if key not in sample:
            continue
        value = sample[key]
        if not isinstance(value, Tensor):
            raise DataError(f"{where}[{key!r}] must be a tensor, but it is a {type(value).__name__}")
        if value.dtype != dtype:
            raise DataError(f"{where}[{key!r}] must be {dtype}, but it is {value.dtype}; convert it with .to({dtype})")
        if key in shapes and tuple(value.shape) != shapes[key]:
            raise DataError(f"{where}[{key!r}] must have the shape {shapes[key]}, but it has {tuple(value.shape)}")
    _check_values(sample, info, where)


def _check_values(sample: Mapping[str, Tensor], info: DataInfo, where: str) -> None:
    label = int(sample["label"])
    if not 0 <= label < info.num_classes:
        raise DataError(f"{where}['label'] must lie in 0..{info.num_classes - 1}, but it is {label}")
    if "mask" in sample:
        mask = sample["mask"]
        known = mask[mask != IGNORE]
        if known.numel() and int(known.max()) >= len(info.mask_names):
            raise DataError(
                f"{where}['mask'] must hold indices into mask_names, 0..{len(info.mask_names) - 1}, or {IGNORE} "
                f"(ignore), but it holds {int(known.max())}; name the classes of the masks as mask_names"
            )
    if "saliency" in sample:
        saliency = sample["saliency"]
        if not bool(((saliency >= 0) & (saliency <= 1)).all()):
            raise DataError(f"{where}['saliency'] must lie in [0, 1], but it does not")
    if "boxes" in sample:
        boxes = sample["boxes"]
        if boxes.ndim != 3 or boxes.shape[0] != info.frames or boxes.shape[2] != 5:
            raise DataError(
                f"{where}['boxes'] must have the shape ({info.frames}, max_boxes, 5), but it has {tuple(boxes.shape)}"
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
    items = [dataset[index] for index in range(len(dataset))]
    return MemoryDataset({key: torch.stack([item[key] for item in items]) for key in items[0]})


def clip_bytes(info: DataInfo) -> int:
    """Bytes of one uint8 clip."""
    return 3 * info.frames * info.height * info.width
