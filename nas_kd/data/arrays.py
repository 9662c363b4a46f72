"""Read single items of numpy files, by paths such as `train.npy#17`.

After the name of a file come the array and the row, each after a `#`:

- `a.npy` is one item [T, D]; `a.npy#17` is row 17 of an array [N, T, D].
- `a.npz` and `a.npz#17` are the same of the only array in the file. `a.npz#rgb` is the array `rgb`, one item;
  `a.npz#rgb#17` is row 17 of it.

So after a single `#` digits are a row, and anything else is the name of an array.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nas_kd.data.sample import DecodeError

Array = npt.NDArray[Any]

_TYPES = (np.float16, np.float32, np.float64, np.uint8)
_OPEN_MAPS = 256  # memory maps kept open; the system allows a process some ten thousand
_OPEN_ARRAYS = 2  # arrays of .npz files, which are held whole


def is_array(path: str) -> bool:
    """Whether a path of a table names an item of a numpy file."""
    return Path(path.partition("#")[0]).suffix.lower() in (".npy", ".npz")


class Place(NamedTuple):
    """Where an item lies.

    Attributes:
        file: Text of the path before the first `#`.
        array: Name of an array of a .npz file; "" for the only one.
        row: Which row; None where the array is one item.
    """

    file: str
    array: str
    row: int | None


def parse_place(text: str) -> Place:
    """What a path names.

    Raises:
        DecodeError: It does not follow the rule above.
    """
    file, *parts = text.split("#")
    suffix = Path(file).suffix.lower()
    if suffix not in (".npy", ".npz"):
        raise DecodeError(f"features must lie in .npy or .npz files, but the file is {file!r}")
    digits = bool(parts) and parts[-1].isascii() and parts[-1].isdigit() and len(parts[-1]) < 19
    row = int(parts[-1]) if digits else None
    names = parts[:-1] if digits else parts
    if not all(names) or len(names) > (suffix == ".npz") or (len(parts) == 2 and not digits):
        rule = "file.npy#row" if suffix == ".npy" else "file.npz#row, file.npz#array or file.npz#array#row"
        raise DecodeError(f"the path must read {file} or {rule}, but it is {text!r}")
    return Place(file, names[0] if names else "", row)


_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError)
"""What numpy and zipfile raise: the last two where an archive is encrypted, and where a header promises too much."""


class ArrayFiles:
    """Reads items of .npy files, which are memory-mapped, and of .npz files, whose arrays are read whole."""

    def __init__(self) -> None:
        self._maps: OrderedDict[tuple[Path, str], Array] = OrderedDict()
        self._arrays: OrderedDict[tuple[Path, str], Array] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Workers of a loader open the files themselves; a pickled memory map would carry its content.
        return {"_maps": OrderedDict(), "_arrays": OrderedDict()}

    def item(self, path: Path, array: str, row: int | None) -> Array:
        """Frames [T, D] of an item, T and D ≥ 1; a view of the file where it is a .npy file.

        Args:
            path: The file.
            array: As in `Place`.
            row: As in `Place`.

        Raises:
            DecodeError: The file cannot be read, or what it holds is no item.
        """
        found = self._open(path, array)
        if found.dtype.type not in _TYPES:
            raise DecodeError(f"features must be {', '.join(t.__name__ for t in _TYPES)}, but are {found.dtype}")
        if row is None:
            if found.ndim != 2:
                raise DecodeError(
                    f"one item must be [frames, features], but the array has the shape {found.shape}"
                    + ("; name its row after a #" if found.ndim == 3 else "")
                )
            item = found
        elif found.ndim != 3:
            raise DecodeError(f"rows need an array [items, frames, features], but it has the shape {found.shape}")
        elif row >= len(found):
            raise DecodeError(f"the row must lie in 0..{len(found) - 1}, but it is {row}")
        else:
            item = found[row]
        if 0 in item.shape:
            raise DecodeError(f"an item must have frames and features, but it has the shape {item.shape}")
        return item

    def _open(self, path: Path, array: str) -> Array:
        mapped = path.suffix.lower() == ".npy"
        held, most = (self._maps, _OPEN_MAPS) if mapped else (self._arrays, _OPEN_ARRAYS)
        key = (path, array)
        if key not in held:
            try:
                held[key] = np.lib.format.open_memmap(path, mode="r") if mapped else _read_npz(path, array)
            except _UNREADABLE as error:
                if isinstance(error, DecodeError):
                    raise
                raise DecodeError(f"the file cannot be read ({getattr(error, 'strerror', None) or error})") from error
            if len(held) > most:
                held.popitem(last=False)
        held.move_to_end(key)
        return held[key]


def _read_npz(path: Path, array: str) -> Array:
    with path.open("rb") as file:  # opened here, since np.load leaves a damaged archive open
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DecodeError("the file is named .npz, but it holds a single array")
        names = list(archive.files)
        if not array and len(names) != 1:
            raise DecodeError(f"one of its arrays must be named after a #: {', '.join(names) or 'it holds none'}")
        if array and array not in names:
            raise DecodeError(f"it holds no array {array!r}; choose from {', '.join(names)}")
        found = archive[array or names[0]]
        archive.close()
    if not isinstance(found, np.ndarray):
        raise DecodeError(f"{array or names[0]!r} is no array")
    return found
