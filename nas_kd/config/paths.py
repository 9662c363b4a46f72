"""Dotted paths into a campaign file, such as `objective.response.weight`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def split_path(path: str) -> list[str]:
    """The keys of a dotted path; `objective.package.module:Term.weight` holds one key with a dot of its own."""
    parts = path.split(".")
    own = next((i for i, part in enumerate(parts) if ":" in part), None)
    if own is None:
        return parts
    start = parts.index("objective") + 1 if "objective" in parts[:own] else own
    return [*parts[:start], ".".join(parts[start : own + 1]), *parts[own + 1 :]]


def read_path(section: BaseModel, path: str) -> Any:
    """What stands at a dotted path of a section."""
    node: Any = section
    for part in split_path(path):
        node = getattr(node, part)
    return node


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set `data["a"]["b"]` for the path `a.b`, with the sections on the way made where they are missing."""
    *parents, last = split_path(path)
    for part in parents:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ValueError(f"{part!r} on the way of {path!r} holds a value and no section")
    data[last] = value
