"""Writing and reading of files that several threads and processes use at once."""

from __future__ import annotations

import codecs
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from nas_kd.data.sample import DataError
from nas_kd.files import atomic_file

_one_at_a_time = threading.Lock()


def load_array(path: Path) -> Any:
    """`np.load` without pickles, one thread at a time; it raises what that raises.

    numpy parses the header of each file with `ast`, and CPython before 3.11.8 counts the depth of the parsers of all
    threads together: two at once may end in a SystemError (https://github.com/python/cpython/issues/106905).
    """
    with _one_at_a_time:
        return np.load(path, allow_pickle=False)


def encoding_of(path: Path) -> str:
    """The encoding of a text file: that of its byte order mark, UTF-8 without one.

    Args:
        path: The file, which must exist.
    """
    with path.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


@contextlib.contextmanager
def written_whole(path: Path, folder: Path, setting: str) -> Iterator[IO[bytes]]:
    """A file to write, which appears at `path` whole or not at all.

    Args:
        path: Its place; the folder is made when missing.
        folder: The folder that the user named, for the message.
        setting: Key of the config that named it.

    Raises:
        DataError: The folder cannot be written, or the disk is full.
    """
    try:
        with atomic_file(path, durable=False) as file:  # a cache, which is made again where it is lost
            yield file
    except OSError as error:
        raise DataError(
            f"{setting} must be a folder with room that can be written, but {folder} gave {error.strerror or error}; "
            f"free some space or set another {setting}"
        ) from error
