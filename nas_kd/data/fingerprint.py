"""Fingerprint of a data set: a hash of the content of its items, in their order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_kd.data.decode import frame_files
from nas_kd.data.file_identity import content_of, state_of
from nas_kd.data.sample import ClipDataset, MemoryDataset

NUM_SAMPLES = 16
"""Items of a set that is not in memory whose content is always read."""
READ_S = 10.0
"""Seconds in which the items of a set that says nothing about its content are read."""

_LABELS = {"label"}  # compared by themselves


def fingerprint(dataset: ClipDataset, key: str, content: str) -> str:
    """A hash that changes with what nets see of the items and with their order.

    Of a set in memory all of it counts. Of others, the content that `content_hash` gave, a string named `fingerprint`
    on the data set, where there is one (those of this package have the state of their files in it), and what nets see
    of a few items, evenly spaced.

    Args:
        dataset: What is read; not a subset.
        key: Of the sample, what nets see.
        content: Hash of the content, as `content_hash` gave it.
    """
    digest = hashlib.sha256(f"{len(dataset)} {key}\n".encode())
    if isinstance(dataset, MemoryDataset):
        _add(digest, dataset.tensors[key])
        return digest.hexdigest()
    digest.update(f"{content} {getattr(dataset, 'fingerprint', '')}".encode())
    for index in spread(len(dataset), NUM_SAMPLES):
        _add(digest, dataset[index][key])
    return digest.hexdigest()


def content_hash(dataset: ClipDataset, num_read: int | None = None) -> tuple[str, int]:
    """A hash of the content of items and of their order, whatever their files are called and wherever they lie.

    Of a set in memory all content counts. Of others, a string named `identity` on the data set (those of this package
    have the content of their files in it), and a few items, evenly spaced. Of a set without one, all items are read, or
    as many as 10 seconds allow, spread over the set.

    Args:
        dataset: What is read; not a subset.
        num_read: Items to read of a set without `identity`, whatever it takes, for a hash that can be compared.

    Returns:
        The hash, and the number of items whose content it stands for.
    """
    length = len(dataset)
    digest = hashlib.sha256(f"{length}\n".encode())
    if isinstance(dataset, MemoryDataset):
        _add_all(digest, dataset.tensors)
        return digest.hexdigest(), length
    named = getattr(dataset, "identity", None)
    if named is not None:
        digest.update(str(named).encode())
        for index in spread(length, NUM_SAMPLES):
            _add_all(digest, dataset[index])
        return digest.hexdigest(), length
    end = time.monotonic() + READ_S
    for done, index in enumerate(_scattered(length)):
        if done == num_read or (num_read is None and done >= NUM_SAMPLES and time.monotonic() > end):
            return digest.hexdigest(), done
        _add_all(digest, dataset[index])
    return digest.hexdigest(), length


def _scattered(length: int) -> list[int]:
    """All positions of a list of that length, in an order of which every beginning is spread over the list."""
    bits = max(length - 1, 1).bit_length()
    return sorted(range(length), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))


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


def _add_all(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    for name in sorted(set(tensors) - _LABELS):
        _add(digest, tensors[name])


def _add(digest: hashlib._Hash, value: Tensor) -> None:
    digest.update(f"{tuple(value.shape)} {value.dtype}\n".encode())
    digest.update(np.ascontiguousarray(value.numpy()).data)
