"""Which classes of masks and boxes occur in the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from nas_kd.data import ClipDataset, MemoryDataset, Splits
from nas_kd.data.fingerprint import spread
from nas_kd.data.spelling import LISTED, first_of

MOST_ITEMS = 256
"""Items of a set that is not in memory that are looked at."""


def counts_of(dataset: ClipDataset, key: str, count: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of a count over the items of a data set, or over `MOST_ITEMS` of them where it is not in memory.

    Args:
        dataset: not a subset.
        key: of the sample.
        count: value of an item -> int64 [C], how often each class occurs.
    """
    whole = isinstance(dataset, MemoryDataset)
    items = range(len(dataset)) if whole else spread(len(dataset), MOST_ITEMS)
    return torch.stack([count(dataset[index][key]) for index in items]).sum(0)


def absent_classes(
    splits: Splits, key: str, count: Callable[[Tensor], Tensor], names: Sequence[str], what: str
) -> list[str]:
    """A sentence for each split in which classes do not occur.

    Args:
        splits: the data.
        key: of the sample.
        count: as for `counts_of`.
        names: of the classes that must occur.
        what: what has a class.
    """
    sentences = []
    for split, dataset in (("train", splits.retrain.base), ("val", splits.val), ("test", splits.test)):
        found = counts_of(dataset, key, count).tolist()
        absent = [name for name, number in zip(names, found, strict=True) if not number]
        looked_at = len(dataset) if isinstance(dataset, MemoryDataset) else min(len(dataset), MOST_ITEMS)
        if absent:
            so = (
                f"nothing is learnt about {_them(absent)}" if split == "train" else f"metrics leave {_them(absent)} out"
            )
            sentences.append(
                f"data: no {what} of {_named(absent)} in the {looked_at} items of {split} that were looked at; {so}"
            )
    return sentences


def no_item_of(classes: Iterable[int], names: Sequence[str], split: str, metrics: str) -> list[str]:
    """A sentence where classes of items do not occur in a split that is measured.

    Args:
        classes: that occur, by number.
        names: of all classes.
        split: what was looked at as a whole.
        metrics: that are means over the classes that occur, with their verb.
    """
    occurring = set(classes)
    absent = [name for number, name in enumerate(names) if number not in occurring]
    return [f"data: no item of {_named(absent)} in {split}; {metrics} {_them(absent)} out"] if absent else []


def _named(names: Sequence[str]) -> str:
    return first_of(names) if len(names) <= LISTED else f"{len(names)} classes ({first_of(names)})"


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"
