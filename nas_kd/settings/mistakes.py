"""Mistakes in a campaign file as sentences: key path, rule, value, and what may stand there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nas_kd.settings.strict import Section


def explain(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], given: Collection[str] = ()
) -> list[str]:
    """A sentence for each mistake: key path, rule, value, allowed values.

    Args:
        error: of pydantic.
        model: that the data were read by.
        data: what the file says.
        given: keys that the program fills in, so that no sentence asks to write them.
    """
    lines: list[str] = []
    places: list[str] = []
    unions: dict[str, tuple[list[str], Any]] = {}  # key path -> what its forms ask for, and the value
    for item in error.errors(include_url=False):
        path, section = _locate(item["loc"], data, model)
        where = ".".join(str(p) for p in path)
        kind, value = item["type"], item["input"]
        if kind == "extra_forbidden":
            key = str(path[-1])
            lines.append(f"{where}: unknown key {key!r}; {choose(key, [f for f in fields(section) if f not in given])}")
        elif kind == "value_error":
            inner = item["ctx"]["error"]
            where = ".".join(str(p) for p in _present(path, data))
            lines.append(f"{where}: {inner}" if where else str(inner))
        elif kind == "union_tag_invalid":
            key = item["ctx"]["discriminator"].strip("'")
            lines.append(f"{where}.{key}: {item['ctx']['tag']!r} is unknown; choose from {', '.join(_tags(item))}")
        elif kind == "union_tag_not_found":
            key = item["ctx"]["discriminator"].strip("'")
            lines.append(f"{where}.{key}: missing; give it a value")
        elif kind == "missing":
            lines.append(f"{where}: missing; give it a value")
        else:
            message = _RULES.get(kind) or item["msg"][:1].lower() + item["msg"][1:]
            present = _present(path, data)
            if present and len(present) < len(path):  # what follows is the name of a form that the value may have
                unions.setdefault(".".join(str(p) for p in present), ([], value))[0].append(message)
            else:
                places.append(where)
                lines.append(f"{where}: {message}, but got {_short(value)}")
    for where, (rules, value) in unions.items():
        if not any(place.startswith(f"{where}.") for place in places):  # else one form fits but for a part of it
            lines.append(f"{where}: {', or '.join(dict.fromkeys(rules))}, but got {_short(value)}")
    return list(dict.fromkeys(lines))


_RULES = {
    "tuple_type": "must be a list",
    "dict_type": "must be a section with keys and values",
    "model_type": "must be a section with keys and values",
    "model_attributes_type": "must be a section with keys and values",
}
"""Where pydantic's words are about Python and not about the file."""


def _present(path: Sequence[Any], data: Any) -> list[Any]:
    """The path without what follows the last key that is in the file, such as the name of a member of a union."""
    present: list[Any] = []
    for part in path:
        listed = isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        if not listed and not (isinstance(data, Mapping) and part in data):
            break
        present.append(part)
        data = data[part]
    return present


def _tags(item: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'(\w+)'", str(item["ctx"]["expected_tags"]))


def _short(value: Any) -> str:
    from nas_kd.trials.passwords import masked

    text = masked(repr(value))  # before it is cut: half a URL is not known for one
    return text if len(text) <= 60 else text[:57] + "…"


def fields(model: Any) -> list[str]:
    """Names of the keys of a model or of its class; of a model, with those that its class leaves open."""
    cls = model if isinstance(model, type) else type(model)
    if not issubclass(cls, BaseModel):
        return []
    extra = {} if isinstance(model, type) else model.model_extra or {}
    return [*cls.model_fields, *extra]


def choose(key: str, allowed: Sequence[str]) -> str:
    """What may stand in the place of an unknown `key`, the nearest first."""
    return f"{nearest(key, allowed)}choose from {', '.join(allowed)}" if allowed else "remove it"


def nearest(key: str, allowed: Sequence[str]) -> str:
    """`did you mean …? `, or nothing where none is near."""
    close = difflib.get_close_matches(key, allowed, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _locate(loc: Sequence[Any], data: Any, root: type[BaseModel]) -> tuple[list[Any], Any]:
    """The key path in the file (without the tags of unions) and the model that the last key was looked up in."""
    path: list[Any] = []
    model: Any = root
    node = data
    for i, part in enumerate(loc):
        inside = isinstance(node, Mapping) and part in node
        listed = isinstance(node, list | tuple) and isinstance(part, int)
        if not inside and not listed and i < len(loc) - 1:
            models = [m for m in models_in(model) if part in (m.__name__, *_names_of(m))]
            model = models[0] if models else model
            continue  # the tag of a union: not a key of the file
        path.append(part)
        node = node[part] if inside or (listed and part < len(node)) else None
        if i < len(loc) - 1:
            candidates = [found for m in models_in(model) if (found := _section_of(m, part)) is not None]
            model = candidates[0] if candidates else model
    models = models_in(model)
    return path, models[0] if len(models) == 1 else next((m for m in models), model)


def _section_of(model: type[BaseModel], key: Any) -> Any:
    """The annotation of a key of a model, or None where it has no such key."""
    if issubclass(model, Section):
        return model.section_of(str(key))
    field = model.model_fields.get(str(key))
    return field.annotation if field is not None else None


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation of a key names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [m for a in get_args(annotation) for m in models_in(a)]
    return []


def _names_of(model: type[BaseModel]) -> list[str]:
    """The values of keys that can have one value only, which tell the forms of a section apart."""
    kinds = (field.annotation for field in model.model_fields.values())
    return [str(get_args(kind)[0]) for kind in kinds if get_origin(kind) is Literal and len(get_args(kind)) == 1]
