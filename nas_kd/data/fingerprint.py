"""Fingerprint of a data set: a hash of the content of its items, in their order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_kd.data.decode import frame_files
from nas_kd.data.file_identity import content_of, state_of
from nas_kd.data.sample import ClipDataset, MemoryDataset

NUM_SAMPLES = 16
"""Items of a set that is not in memory whose content is read."""

_LABELS = {"label"}  # compared by themselves


def fingerprint(dataset: ClipDataset, key: str) -> str:
    """A hash that changes with what nets see of the items and with their order.

    Of a set in memory all content counts. Of others, a string named `fingerprint` on the data set, where there is one,
    which stands for all items (those of this package have the state of their files in it), and the content
    of a few items, evenly spaced.

    Args:
        dataset: What is read; not a subset.
        key: Of the sample, what nets see.
    """
    return _hash_of_items(dataset, f"{len(dataset)} {key}\n", "fingerprint", lambda names: [key])


def content_hash(dataset: ClipDataset) -> str:
    """A hash of the content of items and of their order, whatever their files are called and wherever they lie.

    Of a set in memory all content counts. Of others, a string named `identity` on the data set, where there is one
    (those of this package have the content of their files in it), and a few items, evenly spaced.

    Args:
        dataset: What is read; not a subset.
    """
    return _hash_of_items(dataset, f"{len(dataset)}\n", "identity", lambda names: sorted(set(names) - _LABELS))


def _hash_of_items(
    dataset: ClipDataset, header: str, attribute: str, chosen: Callable[[Iterable[str]], Sequence[str]]
) -> str:
    """A hash of the tensors with the `chosen` names: all of a set in memory, else an attribute and a few items."""
    digest = hashlib.sha256(header.encode())
    if isinstance(dataset, MemoryDataset):
        for name in chosen(dataset.tensors):
            _add(digest, dataset.tensors[name])
        return digest.hexdigest()
    digest.update(str(getattr(dataset, attribute, "")).encode())
    for index in spread(len(dataset), NUM_SAMPLES):
        sample = dataset[index]
        for name in chosen(sample):
            _add(digest, sample[name])
    return digest.hexdigest()


def contents_of(paths: Iterable[Path], content: Callable[[Path], str] = content_of) -> str:
    """A hash of the content of files (`content_of`) in their order, that of the images of a folder for a folder.

    Args:
        paths: Of files or folders, in the order of the items; one that is named again counts again.
        content: Gives the hash of a file's content.
    """
    digest = hashlib.sha256()
    known: dict[Path, str] = {}
    for path in paths:
        if path not in known:
            files = frame_files(path) if path.is_dir() else [path]
            known[path] = f"{[content(file) for file in files]}\n"
        digest.update(known[path].encode())
    return digest.hexdigest()


def changing_item(dataset: ClipDataset, key: str) -> int | None:
    """An item that differs when it is read twice, such as a random window of a video; None where none was found.

    Args:
        dataset: Of which a few items are read.
        key: Of the sample, what nets see.
    """
    if isinstance(dataset, MemoryDataset):
        return None
    for index in spread(len(dataset), NUM_SAMPLES):
        first, second = dataset[index][key].clone(), dataset[index][key]
        if not torch.equal(first, second):
            return index
    return None


def spread(length: int, count: int) -> list[int]:
    """At most `count` positions of a list of that length, evenly spaced, with both ends."""
    return sorted({round(position) for position in np.linspace(0, length - 1, min(count, length))})


def hash_of_files(paths: Iterable[Path], *settings: object) -> str:
    """A hash of the state of files (`state_of`), and of how they are read.

    Args:
        paths: Of files, in the order of the items; one that is named again counts again.
        settings: Everything else that decides the items.

    Raises:
        OSError: A file is missing.
    """
    digest = hashlib.sha256(repr(settings).encode())
    known: dict[Path, str] = {}
    for path in paths:
        if path not in known:
            known[path] = f"{state_of(path)}\n"
        digest.update(known[path].encode())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, value: Tensor) -> None:
    digest.update(f"{tuple(value.shape)} {value.dtype}\n".encode())
    digest.update(np.ascontiguousarray(value.numpy()).data)
