"""`ArchSpec`: one discrete choice for everything that a space leaves open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

SCHEMA_VERSION = 1

Choice = int | str


def _frozen(value: Any) -> Any:
    """A JSON value whose lists are tuples and whose objects are read-only, all the way down."""
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True, eq=False)
class ArchSpec:
    """A student's architecture, complete: the space, the space's settings and one choice an edge or knob.

    Equal contents are equal specs with equal `arch_id`, whatever the order in which the choices were given.

    Attributes:
        space: name of the space, a key of `nas_kd.search_spaces.SPACES` or a user's own.
        settings: what the space was built with, as JSON.
        choices: name of a gate or knob -> what was chosen. Choices without effect are left out by the space.
    """

    space: str
    settings: Mapping[str, Any]
    choices: Mapping[str, Choice]
    _json: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, choice in self.choices.items():
            if not isinstance(name, str) or isinstance(choice, bool) or not isinstance(choice, int | str):
                raise ValueError(f"a choice must be an integer or a string under a name, but {name!r} is {choice!r}")
        content = {
            "schema_version": SCHEMA_VERSION,
            "space": self.space,
            "settings": dict(self.settings),
            "choices": dict(self.choices),
        }
        # Private copies through JSON: nobody else can change the content under the hash.
        object.__setattr__(self, "_json", canonical_json(content))
        object.__setattr__(self, "settings", _frozen(json.loads(canonical_json(content["settings"]))))
        object.__setattr__(self, "choices", MappingProxyType(dict(sorted(self.choices.items()))))

    def as_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return dict(json.loads(self._json))

    def to_json(self) -> str:
        """Canonical JSON."""
        return self._json

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ArchSpec:
        """The inverse of `as_dict`.

        Raises:
            ValueError: another schema version, or missing keys.
        """
        if (version := value.get("schema_version")) != SCHEMA_VERSION:
            raise ValueError(
                f"this nas_kd reads architectures of schema {SCHEMA_VERSION}, but this one has {version!r}"
            )
        if missing := {"space", "settings", "choices"} - value.keys():
            raise ValueError(f"an architecture needs the keys space, settings and choices; missing: {sorted(missing)}")
        for key, kind in (("space", str), ("settings", Mapping), ("choices", Mapping)):
            if not isinstance(value[key], kind):
                raise ValueError(f"{key} of an architecture must be a {kind.__name__.lower()}, but is {value[key]!r}")
        return cls(value["space"], value["settings"], value["choices"])

    @classmethod
    def from_json(cls, text: str) -> ArchSpec:
        """The inverse of `to_json`."""
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(f"an architecture is a JSON object, but this is a {type(value).__name__}")
        return cls.from_dict(value)

    @property
    def arch_id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self._json.encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArchSpec) and self._json == other._json

    def __hash__(self) -> int:
        return hash(self._json)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArchSpec.from_json, (self._json,)
