"""Names of classes in a campaign file, where YAML makes numbers and truth values of some."""

from __future__ import annotations

from datetime import date
from typing import Any


def names_as_text(value: Any) -> Any:
    """The names of a list, or those before the colons of a mapping, as text; any other value as it is.

    Raises:
        ValueError: YAML made a truth value or nothing of a name.
    """
    if isinstance(value, list | tuple):
        return tuple(_text(item) for item in value)
    if isinstance(value, dict):
        return {_text(name): item for name, item in value.items()}
    return value


def _text(name: Any) -> Any:
    if isinstance(name, bool) or name is None:
        read = "null, ~ or an empty name as nothing"
        if name is not None:
            read = f"{'yes, on and true' if name else 'no, off and false'} as a truth value"
        raise ValueError(f"names of classes must be text, but YAML reads {read}; put names in quotes")
    return str(name) if isinstance(name, int | float | date) else name
