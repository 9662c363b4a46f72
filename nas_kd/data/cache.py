"""Cache of decoded clips on disk: each file is decoded once for all trials and processes.

An entry is one `.npy` file of uint8, named by the hash of what was decoded (the content of the file, see
`nas_kd.data.file_identity`) and how (the settings, and the version of the rules, `nas_kd.data.decode.POLICY`). It is
written beside its place and renamed into it, so a reader sees all of it or nothing, and two processes that decode the
same file at once do no harm. The time of change of an entry is the time of its last use; when the folder grows over its
limit, the entries unused for longest go first, but none that the running campaign named as its own. An entry that
another campaign's eviction took away, or that is damaged, is decoded again when it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nas_kd.data.decode import POLICY, frame_files
from nas_kd.data.file_identity import state_of
from nas_kd.data.files import load_array, written_whole
from nas_kd.data.progress import track
from nas_kd.data.sample import DataError, DecodeError

Clip = npt.NDArray[np.uint8]

_STALE_S = 3600.0  # an unfinished file this old belongs to a process that died
_NPY_HEADER_BYTES = 128


class Entry(NamedTuple):
    """One entry to be: its key, its shape, and what makes it (which may raise `DecodeError`)."""

    key: str
    shape: tuple[int, ...]
    decode: Callable[[], Clip]


def cache_key(path: Path, settings: str) -> str:
    """Hash of a file's content and of how it is decoded; neither its name nor its place counts.

    Args:
        path: A file, or a folder of images, which count in their order.
        settings: Everything else that decides the decoded bytes.

    Raises:
        OSError: The file is missing or cannot be read.
    """
    files = frame_files(path) if path.is_dir() else [path]
    digest = hashlib.sha256(f"{POLICY}\n{settings}\n{path.is_dir()}\n".encode())
    for file in files:
        digest.update(f"{state_of(file)}\n".encode())
    return digest.hexdigest()


class ClipCache:
    """A folder of decoded clips of any shape, safe for several processes.

    Args:
        folder: Made when missing.
        limit_bytes: The size that `evict` brings the folder back to.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def path(self, key: str) -> Path:
        """Where the entry lies, or would lie."""
        return self.folder / key[:2] / f"{key}.npy"

    def has(self, key: str, shape: tuple[int, ...]) -> bool:
        """Whether a whole entry of that shape is there; if so it counts as just used."""
        path = self.path(key)
        try:
            whole = path.stat().st_size > int(np.prod(shape))
            if whole:
                os.utime(path)
        except OSError:
            return False
        return whole

    def read(self, key: str, shape: tuple[int, ...], decode: Callable[[], Clip]) -> Clip:
        """The entry, memory-mapped and read-only; decoded and stored first where it is missing or damaged.

        Args:
            key: From `cache_key`.
            shape: What the entry must look like.
            decode: Makes it.
        """
        try:
            clip: Clip = load_array(self.path(key), mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return self.store(key, decode())
        if clip.shape != shape or clip.dtype != np.uint8:
            return self.store(key, decode())
        return clip

    def store(self, key: str, clip: Clip) -> Clip:
        """Write an entry so that it appears whole or not at all; returns `clip`.

        Raises:
            DataError: The folder cannot be written, or the disk is full.
        """
        with written_whole(self.path(key), self.folder, "cache_dir") as file:
            np.save(file, np.ascontiguousarray(clip), allow_pickle=False)
        return clip

    def fill(self, entries: Sequence[Entry], threads: int, what: str = "clips") -> dict[str, DecodeError]:
        """Bring every entry into the cache.

        Args:
            entries: All that the campaign will read; copies of a file share an entry.
            threads: Entries decoded at once; 0: as many as cores, up to 8.
            what: What the entries are, for the progress bar.

        Returns:
            What is wrong with each that cannot be decoded, by key.

        Raises:
            DataError: The entries exceed the limit, or cannot be written.
        """
        distinct = {entry.key: entry for entry in entries}
        missing = [entry for entry in distinct.values() if not self.has(entry.key, entry.shape)]
        self.check_room(sum(map(_entry_bytes, distinct.values())))
        self.evict(distinct, room_bytes=sum(map(_entry_bytes, missing)))
        failed: dict[str, DecodeError] = {}
        if not missing:
            return failed

        def decode(entry: Entry) -> DecodeError | None:
            try:
                self.store(entry.key, entry.decode())
            except DecodeError as error:
                return error
            return None

        with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 8)) as pool:
            errors = track(pool.map(decode, missing), f"decoding {what}", len(missing))
            for entry, error in zip(missing, errors, strict=True):
                if error is not None:
                    failed[entry.key] = error
        return failed

    def check_room(self, needed_bytes: int) -> None:
        """Refuse a data set that can never fit.

        Raises:
            DataError: `needed_bytes` exceeds the limit.
        """
        if needed_bytes > self.limit_bytes:
            raise DataError(
                f"cache_limit_gb must hold the whole decoded data set, but it allows {self.limit_bytes / 1e9:.3g} GB "
                f"and the set takes {needed_bytes / 1e9:.3g} GB; raise it, or take fewer frames or a smaller size"
            )

    def evict(self, keep: Collection[str], room_bytes: int = 0) -> int:
        """Delete the entries unused for longest until the folder and `room_bytes` more fit the limit.

        Args:
            keep: Keys that stay whatever happens.
            room_bytes: What is about to be written.

        Returns:
            How many entries were deleted.
        """
        kept = set(keep)
        entries: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("??/*"):
            # Another process may evict at the same time: what is gone already is no error.
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if path.suffix == ".tmp" and time.time() - stat.st_mtime > _STALE_S:
                    path.unlink()
                elif path.suffix == ".npy":
                    entries.append((stat.st_mtime, stat.st_size, path))
        excess = sum(size for _, size, _ in entries) + room_bytes - self.limit_bytes
        deleted = 0
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            if path.stem in kept:
                continue
            path.unlink(missing_ok=True)
            excess -= size
            deleted += 1
        return deleted


def _entry_bytes(entry: Entry) -> int:
    return int(np.prod(entry.shape)) + _NPY_HEADER_BYTES
