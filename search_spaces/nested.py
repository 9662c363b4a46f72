"""What a net returns: one tensor, or tensors in tuples, dicts and objects with fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

Path = tuple[str, ...]


def named_tensors(output: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """All tensors in an output with the names or numbers that lead to them, in order.

    Args:
        output: of a net.
        path: that leads to it.
    """
    if isinstance(output, Tensor):
        yield path, output
        return
    for name, value in parts(output):
        yield from named_tensors(value, (*path, name))


def parts(output: Any) -> list[tuple[str, Any]]:
    """Names or numbers of the values of a tuple, a dict or an object with fields, and the values; else nothing."""
    if isinstance(output, Mapping):
        return [(str(name), value) for name, value in output.items()]
    if isinstance(output, list | tuple):
        names = getattr(output, "_fields", None) or range(len(output))
        return [(str(name), value) for name, value in zip(names, output, strict=True)]
    if dataclasses.is_dataclass(output):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    return []
