"""What a file holds, told by its content: copies are the same file, and another file in its place is not.

A small file is read whole. Of a large one its size and evenly spaced pieces are read, first and last among them, which
tells recordings apart and takes well below a millisecond; what decides whether an old answer is still right takes the
time of change in addition, since an edit may lie between the pieces.

`KnownFiles` keeps the hashes of a data set's files, so that a later start, and each worker, need not read them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas_kd.files import write_text_atomically

WHOLE_BYTES = 256 * 1024
"""A file up to this size is read whole."""
PIECES = 8
PIECE_BYTES = 16 * 1024
_SETTLED_NS = 2 * 10**9  # a file that changed later than this before it was read may change again within one tick


def content_of(path: Path) -> str:
    """A hash of the content of a file, whatever its name, place and time of change.

    Raises:
        OSError: It is missing or cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            for number in range(PIECES):
                file.seek((size - PIECE_BYTES) * number // (PIECES - 1))
                digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()


def state_of(path: Path, content: Callable[[Path], str] = content_of) -> str:
    """As `content_of`, and the time of change where the content is not read whole.

    Args:
        path: The file.
        content: Gives the hash of its content.

    Raises:
        OSError: It is missing or cannot be read.
    """
    stat = path.stat()
    changed = f" {stat.st_mtime_ns}" if stat.st_size > WHOLE_BYTES else ""
    return content(path) + changed


class KnownFiles:
    """Hashes of the files of one folder, kept in a file.

    A file counts as unchanged where its number in the file system, its size, the time of change of its content and
    that of its entry (`st_ctime_ns`, which cannot be set) are as they were. A file that had just changed when it was
    read is read again the next time.

    Args:
        folder: Where the hashes are kept, with those of other folders.
        root: The folder that the files lie in.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        self._path = folder / f"files-{name}.json"
        self._before = _read(self._path)
        self._now: dict[str, list[Any]] = {}

    def content_of(self, path: Path) -> str:
        """As the function `content_of`.

        Raises:
            OSError: The file is missing or cannot be read.
        """
        name, stat = str(path), path.stat()
        state = [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        for known in (self._now, self._before):
            if name in known and known[name][:-1] == state:
                self._now[name] = known[name]
                return str(known[name][-1])
        seen_ns = time.time_ns()
        content = content_of(path)
        if seen_ns - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
            self._now[name] = [*state, content]
        return content

    def save(self) -> None:
        """Keep what is known of the files that were asked for; where it cannot be written, nothing is kept."""
        if self._now == self._before:
            return
        try:
            write_text_atomically(self._path, json.dumps(self._now))
        except OSError:
            return
        self._before = self._now

    def __getstate__(self) -> dict[str, Any]:
        """Without the hashes: workers that read clips need none."""
        return {"_path": self._path, "_before": {}, "_now": {}}


def _read(path: Path) -> dict[str, list[Any]]:
    """What was kept; nothing where it is missing or damaged."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and all(isinstance(entry, list) for entry in kept.values()) else {}
