"""Writing and checking the files of a teacher's cache, block by block.

A block is a range of items with all their views. The manifest names a block only when it is on disk, so a cache that
was interrupted goes on after its last whole block; a block whose checksum is wrong is computed again.
"""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from nas_kd.callbacks import OnProgress
from nas_kd.data import Batch
from nas_kd.files import write_text_atomically
from nas_kd.teachers.cache import DTYPES, MANIFEST, CacheKey, Manifest, Output, folder_name, read_manifest

BLOCK_BYTES = 64 * 2**20  # of a block, at most, unless one item is larger
_SAVE_EVERY_S = 2.0

Answer = Callable[[Batch, int], Mapping[str, Tensor]]
"""(items of a block, number of a view) -> what the teacher gives for them: name -> (N, P, …), float32."""


class CacheError(ValueError):
    """The outputs of this teacher cannot be kept; one sentence says why."""


def new_manifest(key: CacheKey, shapes: Mapping[str, tuple[int, ...]], max_items: int) -> Manifest:
    """The manifest of a cache without any block.

    Args:
        key: what the outputs depend on.
        shapes: name -> shape of one output.
        max_items: of a block, at most.
    """
    outputs = {name: Output(f"{i}.bin", shape) for i, (name, shape) in enumerate(shapes.items())}
    empty = Manifest(key, outputs, 1, ())
    item_bytes = sum(empty.item_bytes(name) for name in outputs)
    block = max(1, min(max_items, BLOCK_BYTES // max(item_bytes, 1)))
    return replace(empty, block=block, checksums=(None,) * -(-key.num_items // block))


def check_blocks(folder: Path, manifest: Manifest, progress: OnProgress) -> Manifest:
    """The manifest with None in place of the checksums of blocks that are damaged or missing.

    Args:
        folder: of the cache.
        manifest: as it was read.
        progress: called with the share that is done and a text.
    """
    checksums: list[int | None] = []
    with ExitStack() as stack:
        files = [
            stack.enter_context((folder / output.file).open("rb")) if (folder / output.file).is_file() else BytesIO()
            for output in manifest.outputs.values()
        ]
        for number, expected in enumerate(manifest.checksums):
            found = 0
            for name, file in zip(manifest.outputs, files, strict=True):
                start, stop = _span(manifest, name, number)
                file.seek(start)
                found = zlib.crc32(file.read(stop - start), found)
            checksums.append(expected if found == expected else None)
            progress((number + 1) / len(manifest.checksums), "checking the teacher's outputs")
    return replace(manifest, checksums=tuple(checksums))


def fill(
    folder: Path, manifest: Manifest, items: Callable[[Sequence[int]], Iterator[Batch]], answer: Answer,
    progress: OnProgress,
) -> Manifest:  # fmt: skip
    """Compute the blocks that are missing.

    Args:
        folder: of the cache; made where missing.
        manifest: says which ones; all others stay as they are.
        items: from the indices of items to batches of `manifest.block` of them, in this order, not augmented.
        answer: the teacher's outputs for a view of a batch.
        progress: called with the share that is done and a text.

    Returns:
        The manifest of the complete cache.

    Raises:
        CacheError: outputs that the files cannot hold.
        OSError: the folder cannot be written, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checksums = list(manifest.checksums)
    missing = [number for number, checksum in enumerate(checksums) if checksum is None]
    # First of all, so that what is replaced no longer counts.
    write_text_atomically(folder / MANIFEST, manifest.to_json())
    wanted = [item for number in missing for item in _items(manifest, number)]
    saved = time.monotonic()
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for name, output in manifest.outputs.items():
            path = folder / output.file
            path.touch()
            files[name] = stack.enter_context(path.open("r+b"))
            os.truncate(path, min(path.stat().st_size, manifest.key.num_items * manifest.item_bytes(name)))
        for done, (number, batch) in enumerate(zip(missing, items(wanted), strict=True)):
            checksum = 0
            content = _block(manifest, batch, answer)
            for name, file in files.items():
                file.seek(_span(manifest, name, number)[0])
                file.write(content[name])
                checksum = zlib.crc32(content[name], checksum)
            checksums[number] = checksum
            if time.monotonic() - saved > _SAVE_EVERY_S or done + 1 == len(missing):
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
                manifest = replace(manifest, checksums=tuple(checksums))
                write_text_atomically(folder / MANIFEST, manifest.to_json())
                saved = time.monotonic()
            progress((done + 1) / len(missing), f"teacher's outputs, augment: {folder_name(manifest.key.augment)}")
    return manifest


def remove(folder: Path) -> None:
    """Delete a cache, its manifest first: without it nobody reads the rest. Processes that have it open keep it."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def kept_bytes(folder: Path) -> int:
    """Bytes of the files of a cache that there are."""
    manifest = read_manifest(folder)
    paths = [] if manifest is None else [folder / output.file for output in manifest.outputs.values()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _items(manifest: Manifest, number: int) -> range:
    """The items of a block."""
    start = number * manifest.block
    return range(start, min(start + manifest.block, manifest.key.num_items))


def _span(manifest: Manifest, name: str, number: int) -> tuple[int, int]:
    """Where a block begins and ends in the file of an output, in bytes."""
    items, size = _items(manifest, number), manifest.item_bytes(name)
    return items.start * size, items.stop * size


def _block(manifest: Manifest, batch: Batch, answer: Answer) -> dict[str, memoryview]:
    """The bytes of a block by output: of each item all views, of each view all positions."""
    views: list[Mapping[str, Tensor]] = []
    for view in range(manifest.key.views):
        stored = {name: _as_stored(manifest, name, value) for name, value in answer(batch, view).items()}
        views.append(stored)
    content = {}
    for name in manifest.outputs:
        values = torch.stack([view[name] for view in views], 1)
        content[name] = np.ascontiguousarray(values.view(torch.int16).numpy()).data.cast("B")
    return content


def _as_stored(manifest: Manifest, name: str, value: Tensor) -> Tensor:
    what = "the teacher's output" if name == "logits" else f"module {name!r} of the teacher"
    wanted = (manifest.key.positions, *manifest.outputs[name].shape)
    if tuple(value.shape[1:]) != wanted:
        raise CacheError(f"{what} changes its shape from item to item: {wanted} and {tuple(value.shape[1:])}")
    stored = value.to(DTYPES[manifest.key.dtype]).cpu()
    if not bool(stored.isfinite().all()):
        largest = float(value.abs().max())
        raise CacheError(
            f"{what} gives values up to {largest:.3g}, which {manifest.key.dtype} cannot hold; "
            "teacher.cache.dtype: bfloat16 has a larger range"
        )
    return stored.contiguous()
