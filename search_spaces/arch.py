"""`ArchSpec`: one discrete choice for everything that a space leaves open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

SCHEMA_VERSION = 1

Choice = int | str


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True, eq=False)
class ArchSpec:
    """A student's architecture, complete: the space, the space's settings and one choice an edge or knob.

    Equal contents are equal specs with equal `arch_id`, whatever the order in which the choices were given.

    Attributes:
        space: name of the space, a key of `search_spaces.SPACES` or a user's own.
        settings: what the space was built with, as JSON.
        choices: name of a gate or knob -> what was chosen. Choices without effect are left out by the space.
    """

    space: str
    settings: Mapping[str, Any]
    choices: Mapping[str, Choice]

    def __post_init__(self) -> None:
        for name, choice in self.choices.items():
            if isinstance(choice, bool) or not isinstance(choice, int | str):
                raise ValueError(f"a choice must be an integer or a string, but {name!r} is {choice!r}")
        # A private copy through JSON: nobody else can change the content after the hash was taken.
        object.__setattr__(self, "settings", MappingProxyType(json.loads(canonical_json(dict(self.settings)))))
        object.__setattr__(self, "choices", MappingProxyType(dict(sorted(self.choices.items()))))

    def as_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "space": self.space,
            "settings": json.loads(canonical_json(dict(self.settings))),
            "choices": dict(self.choices),
        }

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(self.as_dict())

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
        return cls(str(value["space"]), value["settings"], value["choices"])

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
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArchSpec) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        return ArchSpec.from_json, (self.to_json(),)
