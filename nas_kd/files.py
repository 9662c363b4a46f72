"""Atomic writes: a file is written beside its place, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from safetensors.torch import save
from torch import Tensor


def umask() -> int:
    """The permissions that the user takes from new files. It can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` at the end of the `with` block; after an error nothing does.

    A reader sees the old content or the new one, never a part. Several processes may write the same file at once.

    Args:
        path: its place; the folder is made where missing. The mode of an older file is kept.
        durable: whether the content is on disk before it is renamed, so that it survives a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~umask()
    handle, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).chmod(mode)  # mkstemp makes it private, whatever the user's umask
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see `atomic_file`."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None, *, durable: bool = True
) -> None:
    """Write a safetensors file, see `atomic_file`. Tensors that share memory, such as tied weights, are all written.

    Args:
        tensors: by name.
        path: its place.
        metadata: of the file.
        durable: whether the content is on disk before it takes its place.
    """
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        memory = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if memory in seen or own.untyped_storage().nbytes() != own.nbytes else own
        seen.add(memory)
    with atomic_file(path, durable=durable) as file:
        file.write(save(plain, metadata=metadata))
