"""`module:function` references of a campaign file."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def import_function(reference: str, *, purpose: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; the current directory is importable.

    Args:
        reference: where to find it.
        purpose: what it is for, for the error sentences.

    Raises:
        ValueError: the reference is malformed, or the module or function cannot be had.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{purpose} must be given as module:function, but is {reference!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last: a folder `analysis` or `trials` of the user's must not hide ours from here on
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"{purpose} {reference!r}: importing {module_name!r} failed with {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{purpose} {reference!r}: module {module_name!r} has no function {attribute!r}")
    return function  # type: ignore[no-any-return]


def call_function(reference: str, settings: Mapping[str, Any], *, purpose: str) -> Any:
    """What the function that `module:function` names returns for these keyword arguments.

    Args:
        reference: where to find it.
        settings: its arguments.
        purpose: what it is for, for the error sentences.

    Raises:
        ValueError: the function cannot be had, or does not take the settings.
    """
    function = import_function(reference, purpose=purpose)
    try:
        inspect.signature(function).bind(**settings)
    except TypeError as error:
        raise ValueError(
            f"{purpose} {reference!r} is called with {', '.join(settings)}, but its arguments are "
            f"{inspect.signature(function)}: {error}"
        ) from error
    return function(**settings)
