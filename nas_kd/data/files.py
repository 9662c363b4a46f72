"""Files that several threads and processes read and write at once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np

_one_at_a_time = threading.Lock()


def load_array(path: Path, *, mmap_mode: Literal["r"] | None = None) -> Any:
    """`np.load` without pickles, one thread at a time; it raises what that raises.

    numpy parses the header of each file with `ast`, and CPython before 3.11.8 counts the depth of the parsers of all
    threads together: two at once may end in a SystemError (https://github.com/python/cpython/issues/106905).
    """
    with _one_at_a_time:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
