"""Cache of decoded clips on disk: each file is decoded once for all trials and processes.

An entry is an array of uint8, named by the hash of what was decoded (the content of the file, see
`nas_kd.data.file_identity`) and how (the settings, and the version of the rules, `nas_kd.data.decode.POLICY`). Entries
lie in shards (`nas_kd.data.shards`), which appear whole or not at all, so two processes that decode the same file at
once do no harm; of entries with the same name the newest counts. The time of change of a shard is the time of its last
use; when the folder grows over its limit, the shards unused for longest go first, but none of what the running campaign
named as its own. An entry that another campaign's eviction took away, or that is damaged, is decoded again when it is
read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas_kd.data.ahead import map_ahead
from nas_kd.data.decode import POLICY, frame_files
from nas_kd.data.file_identity import content_of, state_of
from nas_kd.data.progress import track
from nas_kd.data.sample import DataError, DecodeError
from nas_kd.data.shards import ENTRY_BYTES, SUFFIX, Clip, DamagedShardError, Shard, write_shard
from nas_kd.files import existing_parent
from nas_kd.settings.sizes import bytes_text

_STALE_S = 3600.0  # an unfinished file this old belongs to a process that died
_MOST_SMALL = 16  # shards that are not half full; more are written together


class Entry(NamedTuple):
    """One entry to be: its key, its shape, and what makes it (which may raise `DecodeError`)."""

    key: str
    shape: tuple[int, ...]
    decode: Callable[[], Clip]


class _Place(NamedTuple):
    shard: Shard
    row: int


def cache_key(path: Path, settings: str, content: Callable[[Path], str] = content_of) -> str:
    """Hash of a file's content and of how it is decoded; neither its name nor its place counts.

    Args:
        path: A file, or a folder of images, which count in their order.
        settings: Everything else that decides the decoded bytes.
        content: Gives the hash of a file's content.

    Raises:
        OSError: The file is missing or cannot be read.
    """
    files = frame_files(path) if path.is_dir() else [path]
    digest = hashlib.sha256(f"{POLICY}\n{settings}\n{path.is_dir()}\n".encode())
    for file in files:
        digest.update(f"{state_of(file, content)}\n".encode())
    return digest.hexdigest()


class ClipCache:
    """A folder of decoded clips of any shape, safe for several processes and threads. Keys are those of `cache_key`.

    Only the indices of the shards are in memory.

    Args:
        folder: Made when something is written.
        limit_bytes: The size that `evict` brings the folder back to.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._forget()

    def _forget(self) -> None:
        self._shards: dict[str, Shard] = {}
        self._places: dict[bytes, _Place] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is known of the folder, which another process finds out by itself."""
        return {"folder": self.folder, "limit_bytes": self.limit_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def shards(self) -> list[Shard]:
        """Those in the folder, the oldest first."""
        with self._lock:
            self._scan()
            return [self._shards[name] for name in sorted(self._shards)]

    def has(self, key: str, shape: tuple[int, ...]) -> bool:
        """Whether an entry of that shape is there, as far as the folder was looked at."""
        place = self._places.get(bytes.fromhex(key))
        return place is not None and place.shard.size(place.row) == _num_bytes(shape)

    def read(self, key: str, shape: tuple[int, ...], decode: Callable[[], Clip]) -> Clip:
        """The entry, in memory of its own; decoded and stored first where it is missing or damaged.

        Args:
            key: From `cache_key`.
            shape: What the entry must look like.
            decode: Makes it.
        """
        return self.read_all([Entry(key, shape, decode)])[0]

    def read_all(self, entries: Sequence[Entry]) -> list[Clip]:
        """The content of several entries, as `read` gives it; what is missing is stored together."""
        clips = [self._find(entry.key, entry.shape) for entry in entries]
        if any(clip is None for clip in clips):  # perhaps another process has written or moved them
            self._scan()
        added: list[tuple[bytes, Clip]] = []
        found: list[Clip] = []
        for entry, clip in zip(entries, clips, strict=True):
            if clip is None:
                clip = self._find(entry.key, entry.shape)
            if clip is None:
                clip = entry.decode()
                added.append((bytes.fromhex(entry.key), clip))
            found.append(clip)
        self._write(iter(added))
        return found

    def store(self, key: str, clip: Clip) -> Clip:
        """Write one entry, in a shard of its own; returns `clip`.

        Raises:
            DataError: The folder cannot be written, or the disk is full.
        """
        self._write(iter([(bytes.fromhex(key), clip)]))
        return clip

    def fill(
        self, entries: Sequence[Entry], threads: int, what: str = "decoding clips", beside: Sequence[Entry] = ()
    ) -> dict[str, DecodeError]:
        """Bring every entry into the cache, with its progress on the standard error.

        Args:
            entries: All that the campaign will read; copies of a file share an entry.
            threads: Entries decoded at once; 0: as many as cores, up to 8.
            what: Words for the progress.
            beside: Further entries of the campaign, which stay.

        Returns:
            What is wrong with each that cannot be decoded, by key.

        Raises:
            DataError: The entries exceed the limit or what the disk has left, or cannot be written.
        """
        if not entries:
            return {}
        distinct = {entry.key: entry for entry in entries}
        needed = {**{entry.key: entry for entry in beside}, **distinct}
        self.check_room(sum(map(_room, needed.values())))
        self._scan()
        missing = [entry for entry in distinct.values() if not self.has(entry.key, entry.shape)]
        self._touch(needed)
        room_bytes = sum(map(_room, missing))
        self.evict(needed, room_bytes=room_bytes)
        self._check_disk(room_bytes)
        failed: dict[str, DecodeError] = {}
        if missing:
            clips = self._decoded(missing, threads, what, failed)
            with contextlib.closing(clips):
                while self._write(clips):
                    pass
            self._merge(needed)  # by the process that decoded; others at the same time would do it again
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

    def _check_disk(self, room_bytes: int) -> None:
        """Refuse, before hours of decoding, what the disk has no room for."""
        free = shutil.disk_usage(existing_parent(self.folder)).free
        if room_bytes > free:
            raise DataError(
                f"cache_dir must have room for what is still to be decoded, {bytes_text(room_bytes)}, but the disk of "
                f"{self.folder} has {bytes_text(free)} left; free some space, set another cache_dir, or take fewer "
                "frames or a smaller size"
            )

    def evict(self, keep: Collection[str], room_bytes: int = 0) -> int:
        """Delete the shards unused for longest until the folder and `room_bytes` more fit the limit.

        Where that does not suffice, entries to be kept are moved out of shards that hold others, too.

        Args:
            keep: Keys that stay whatever happens.
            room_bytes: What is about to be written.

        Returns:
            How many entries were deleted.
        """
        self._sweep()
        shards, mine = self.shards, self._rows_of(keep)
        excess = sum(shard.num_bytes for shard in shards) + room_bytes - self.limit_bytes
        deleted = 0
        for shard in sorted(shards, key=lambda shard: _last_use(shard.path)):
            if excess <= 0:
                break
            if shard.path.name not in mine:
                self._delete(shard)
                excess -= shard.num_bytes
                deleted += len(shard)
        remaining = {shard: mine[shard.path.name] for shard in shards if shard.path.name in mine}
        foreign = {shard: shard.num_bytes - sum(map(shard.size, rows)) for shard, rows in remaining.items()}
        moving: list[Shard] = []
        for shard in sorted(remaining, key=lambda shard: -foreign[shard]):
            if excess <= 0 or len(remaining[shard]) == len(shard):
                break
            moving.append(shard)
            excess -= foreign[shard]
        deleted += sum(len(shard) - len(remaining[shard]) for shard in moving)
        self._move([(shard, remaining[shard]) for shard in moving])
        return deleted

    def _rows_of(self, keys: Collection[str]) -> dict[str, list[int]]:
        """Name of a shard -> the rows of it that have one of the keys."""
        rows: dict[str, list[int]] = {}
        for key in keys:
            place = self._places.get(bytes.fromhex(key))
            if place is not None:
                rows.setdefault(place.shard.path.name, []).append(place.row)
        return rows

    def _merge(self, keep: Collection[str]) -> None:
        """Write entries that lie in many small shards together."""
        rows = self._rows_of(keep)
        small = [shard for shard in self.shards if shard.path.name in rows and not shard.is_full]
        whole = [shard for shard in small if len(rows[shard.path.name]) == len(shard)]  # others belong to others, too
        if len(whole) > _MOST_SMALL:
            self._move([(shard, rows[shard.path.name]) for shard in whole])

    def _decoded(
        self, missing: Sequence[Entry], threads: int, what: str, failed: dict[str, DecodeError]
    ) -> Generator[tuple[bytes, Clip], None, None]:
        """Key and content of each entry that can be decoded; the reasons of the others come into `failed`."""

        def decode(entry: Entry) -> Clip | DecodeError:
            try:
                return entry.decode()
            except DecodeError as error:
                return error

        threads = threads or min(os.cpu_count() or 1, 8)
        held, written = sum(shard.num_bytes for shard in self._shards.values()), 0
        found = map_ahead(decode, missing, threads, most=2 * threads)
        tracked = track(
            found,
            what,
            len(missing),
            lambda: (
                f"{bytes_text(written)}, the cache holds {bytes_text(held + written)} of {bytes_text(self.limit_bytes)}"
            ),
        )
        for entry, clip in zip(missing, tracked, strict=True):
            if isinstance(clip, DecodeError):
                failed[entry.key] = clip
                continue
            written += clip.nbytes
            yield bytes.fromhex(entry.key), clip

    def _find(self, key: str, shape: tuple[int, ...]) -> Clip | None:
        place = self._places.get(bytes.fromhex(key))
        if place is None or place.shard.size(place.row) != _num_bytes(shape):
            return None
        try:
            return place.shard.read(place.row).reshape(shape)
        except (OSError, DamagedShardError):
            return None

    def _write(self, clips: Iterator[tuple[bytes, Clip]]) -> bool:
        """Write one shard; False where there is nothing left to write."""
        path = write_shard(self.folder, clips)
        if path is not None:
            # Another process that needs room may have deleted it by now; its entries are then missing again.
            with self._lock, contextlib.suppress(FileNotFoundError):
                self._add(Shard(path))
        return path is not None

    def _add(self, shard: Shard) -> None:
        self._shards[shard.path.name] = shard
        for row, key in enumerate(shard.keys):
            known = self._places.get(key)
            if known is None or known.shard.path.name <= shard.path.name:
                self._places[key] = _Place(shard, row)

    def _scan(self) -> None:
        """Learn of shards that other processes have written or deleted."""
        with self._lock:
            names = {path.name for path in self.folder.glob(f"*{SUFFIX}")}
            if not self._shards.keys() <= names:
                self._shards = {name: shard for name, shard in self._shards.items() if name in names}
                self._places = {key: place for key, place in self._places.items() if place.shard.path.name in names}
            for name in sorted(names - self._shards.keys()):
                # What is gone by now, or damaged, is no entry.
                with contextlib.suppress(OSError, DamagedShardError):
                    self._add(Shard(self.folder / name))

    def _touch(self, keys: Collection[str]) -> None:
        """Note that entries are used now."""
        places = [self._places.get(bytes.fromhex(key)) for key in keys]
        for path in {place.shard.path for place in places if place is not None}:
            with contextlib.suppress(OSError):
                os.utime(path)

    def _sweep(self) -> None:
        """Delete unfinished files of processes that died, and files that are no whole shards."""
        for path in self.folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()
        known = {shard.path.name for shard in self.shards}
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.name not in known:
                with contextlib.suppress(OSError, DamagedShardError):
                    try:
                        Shard(path)
                    except DamagedShardError:
                        path.unlink()

    def _move(self, chosen: Sequence[tuple[Shard, list[int]]]) -> None:
        """Write some rows of shards into new shards, and delete the old ones."""

        def clips() -> Iterator[tuple[bytes, Clip]]:
            for shard, rows in chosen:
                keys = shard.keys
                for row in sorted(rows):
                    with contextlib.suppress(OSError, DamagedShardError):
                        yield keys[row], shard.read(row)

        source = clips()
        while self._write(source):
            pass
        for shard, _ in chosen:
            self._delete(shard)

    def _delete(self, shard: Shard) -> None:
        shard.path.unlink(missing_ok=True)
        with self._lock:
            self._shards.pop(shard.path.name, None)
            for key in shard.keys:
                if key in self._places and self._places[key].shard is shard:
                    del self._places[key]


def _num_bytes(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _room(entry: Entry) -> int:
    """Bytes that an entry takes on disk."""
    return _num_bytes(entry.shape) + ENTRY_BYTES


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
