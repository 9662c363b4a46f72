"""Which classes of masks and boxes occur in the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nas_kd.data import ClipDataset, MemoryDataset, Splits
from nas_kd.data.fingerprint import spread

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
            sentences.append(
                f"data: no {what} of {', '.join(absent)} in the {looked_at} items of {split} that were looked at; "
                f"{'nothing is learnt about' if split == 'train' else 'metrics leave out'} "
                f"{'it' if len(absent) == 1 else 'them'}"
            )
    return sentences
