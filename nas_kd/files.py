"""Atomic writes: a file is written beside its place, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

CONFIG_NAME = "campaign.yaml"  # in the folder of a run


class DamagedFileError(ValueError):
    """A file that nas-kd wrote cannot be read any more."""


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """The object in a JSON file that nas-kd wrote.

    Args:
        path: the file.
        way_out: what to do where it is damaged, for the sentence.

    Raises:
        DamagedFileError: it is cut, empty, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is damaged ({_damage(path)}); {way_out}")
    return content


def check_tensors(path: Path, way_out: str) -> None:
    """Raise where a safetensors file that nas-kd wrote is missing or damaged; its tensors are not read.

    Args:
        path: the file.
        way_out: what to do then, for the sentence.

    Raises:
        DamagedFileError: the file and the way out.
    """
    if not path.is_file():
        raise DamagedFileError(f"{path} is missing; {way_out}")
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{path} is damaged ({_damage(path)}); {way_out}") from error


def _damage(path: Path) -> str:
    return "it is empty" if path.stat().st_size == 0 else "it was cut or overwritten"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


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
