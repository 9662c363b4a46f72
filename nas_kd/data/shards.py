"""Shards: files of up to `SHARD_BYTES` that hold many decoded clips, so that a large data set is some hundred files.

A shard is the bytes of its clips one after the other, then an index (`_ENTRY`: key, offset, size and CRC-32 of each
clip), then a trailer (`_TRAILER`: mark, number of clips, CRC-32 of the index). It is written beside its place and
renamed into it, so a reader sees all of it or nothing, and it never changes afterwards. A clip is read into memory of
its own with one `read`: the pages of the file are shared by all processes through the cache of the system, no process
holds more than the clips that it works on, and a file that was cut short is an error and no crash, as it would be with
a memory map.
"""

from __future__ import annotations

import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nas_kd.data.files import written_whole

Clip = npt.NDArray[np.uint8]

SUFFIX = ".clips"
SHARD_BYTES = 256 * 2**20
SHARD_CLIPS = 4096
SHARD_SECONDS = 60.0
"""A shard is closed after this time, so that a process that is killed loses no more work than that."""

_MARK = b"nas_kd clips 1\n\0"
_ENTRY = np.dtype([("key", "V32"), ("offset", "<u8"), ("size", "<u8"), ("crc", "<u4")])
_TRAILER = struct.Struct("<16sQI")
ENTRY_BYTES = _ENTRY.itemsize
"""What the index adds to the bytes of a clip."""


class DamagedShardError(ValueError):
    """A file is no whole shard, or a clip in it is not what was written."""


class Shard:
    """A shard on disk; only its index is held.

    Args:
        path: The file.

    Raises:
        DamagedShardError: It is no whole shard.
        OSError: It cannot be read, or was deleted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.num_bytes = os.fstat(file.fileno()).st_size
            file.seek(max(self.num_bytes - _TRAILER.size, 0))
            trailer = file.read(_TRAILER.size)
            mark, count, crc = _TRAILER.unpack(trailer) if len(trailer) == _TRAILER.size else (b"", 0, 0)
            begin = self.num_bytes - _TRAILER.size - count * _ENTRY.itemsize
            if mark != _MARK or begin < 0:
                raise DamagedShardError(f"{path} is no shard")
            file.seek(begin)
            index = file.read(count * _ENTRY.itemsize)
        if zlib.crc32(index) != crc:
            raise DamagedShardError(f"the index of {path} is damaged")
        self._entries = np.frombuffer(index, dtype=_ENTRY)
        self._is_checked = bytearray(count)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_full(self) -> bool:
        """Whether it has at least half of what a shard may have."""
        return self.num_bytes >= SHARD_BYTES // 2 or len(self) >= SHARD_CLIPS // 2

    @property
    def keys(self) -> list[bytes]:
        """Of its clips, in their order."""
        return [bytes(key) for key in self._entries["key"]]

    def size(self, row: int) -> int:
        """Bytes of a clip."""
        return int(self._entries["size"][row])

    def read(self, row: int) -> Clip:
        """The bytes of a clip; its checksum is compared when a process reads it for the first time.

        Args:
            row: Its place in `keys`.

        Raises:
            DamagedShardError: They are not those that were written.
            OSError: The file cannot be read, or was deleted.
        """
        clip = np.empty(self.size(row), dtype=np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(int(self._entries["offset"][row]))
            done = 0
            while done < len(clip):
                count = file.readinto(clip.data[done:])
                if not count:
                    raise DamagedShardError(f"{self.path} was cut short")
                done += count
        if not self._is_checked[row]:
            if zlib.crc32(clip.data) != int(self._entries["crc"][row]):
                raise DamagedShardError(f"a clip in {self.path} is damaged")
            self._is_checked[row] = True
        return clip


def write_shard(folder: Path, clips: Iterator[tuple[bytes, Clip]]) -> Path | None:
    """Take clips from an iterator until a shard is full, and write them.

    Where the iterator is interrupted, by Ctrl-C or by an error, what it gave before is kept.

    Args:
        folder: Made when missing. Names of shards ascend with time.
        clips: Key, 32 bytes, and content of each.

    Returns:
        The file of the shard; None where the iterator has ended.

    Raises:
        DataError: The folder cannot be written, or the disk is full.
    """
    first = next(clips, None)
    if first is None:
        return None
    path = folder / f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
    interruption: BaseException | None = None
    rows: list[tuple[bytes, int, int, int]] = []
    offset, begin = 0, time.monotonic()
    with written_whole(path, folder, "cache_dir") as file:
        source = chain([first], clips)
        while offset < SHARD_BYTES and len(rows) < SHARD_CLIPS and time.monotonic() - begin < SHARD_SECONDS:
            try:
                key, clip = next(source)
            except StopIteration:
                break
            except BaseException as error:
                interruption = error
                break
            content = np.ascontiguousarray(clip).reshape(-1)
            file.write(content.data)
            rows.append((key, offset, content.nbytes, zlib.crc32(content.data)))
            offset += content.nbytes
        index = np.array(rows, dtype=_ENTRY).tobytes()
        file.write(index)
        file.write(_TRAILER.pack(_MARK, len(rows), zlib.crc32(index)))
    if interruption is not None:
        raise interruption
    return path
