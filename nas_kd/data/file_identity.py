"""What a file holds, told by its content: copies are the same file, and another file in its place is not.

A small file is read whole. Of a large one its size and evenly spaced pieces are read, first and last among them, which
tells recordings apart and takes well below a millisecond; what decides whether an old answer is still right takes the
time of change in addition, since an edit may lie between the pieces.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

WHOLE_BYTES = 256 * 1024
"""A file up to this size is read whole."""
PIECES = 8
PIECE_BYTES = 16 * 1024


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


def state_of(path: Path) -> str:
    """As `content_of`, and the time of change where the content is not read whole.

    Raises:
        OSError: It is missing or cannot be read.
    """
    stat = path.stat()
    changed = f" {stat.st_mtime_ns}" if stat.st_size > WHOLE_BYTES else ""
    return content_of(path) + changed
