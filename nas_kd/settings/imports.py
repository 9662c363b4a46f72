"""`module:function` and `module:Class` references of a campaign file."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from nas_kd.settings.mistakes import choose, nearest

_Class = TypeVar("_Class")


@contextmanager
def torch_kept() -> Iterator[None]:
    """What a user's code changes of torch for the whole process is undone: gradients, default type and device.

    Scripts for inference switch gradients off where they are imported, and nothing would train afterwards.
    """
    import torch  # here: sections of a campaign file are read without it

    gradients, dtype, device = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def import_module_of(reference: str, *, purpose: str, kind: str) -> tuple[ModuleType, str]:
    """The module that `package.module:name` names, and the name; the current directory is importable.

    Args:
        reference: where to find it.
        purpose: what it is for, for the error sentences.
        kind: what the name stands for, such as `function`.

    Raises:
        ValueError: the reference is malformed, or the module cannot be had.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{purpose} must be given as module:{kind}, but is {reference!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        # Last in the path: a file of the user's, such as `random.py`, must not hide an installed module.
        sys.path.append(here)
    try:
        with torch_kept():
            return importlib.import_module(module_name), attribute
    except Exception as error:
        way_out = ""
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
            way_out = f"; start nas-kd in the folder that has {error.name}, or set PYTHONPATH to that folder"
        raise ValueError(
            f"{purpose} {reference!r}: importing {module_name!r} failed with {type(error).__name__}: {error}{way_out}"
        ) from error


def import_function(reference: str, *, purpose: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; the current directory is importable.

    Args:
        reference: where to find it.
        purpose: what it is for, for the error sentences.

    Raises:
        ValueError: the reference is malformed, or the module or function cannot be had.
    """
    module, attribute = import_module_of(reference, purpose=purpose, kind="function")
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        hint = nearest(attribute, known)
        raise ValueError(
            f"{purpose} {reference!r}: module {module.__name__!r} has no function {attribute!r}"
            f"{'; ' if hint else ''}{hint.strip()}"
        )
    return function  # type: ignore[no-any-return]


def import_class(reference: str, base: type[_Class], *, purpose: str) -> type[_Class]:
    """The class that `package.module:Class` names; the current directory is importable.

    Args:
        reference: where to find it.
        base: what it must be a subclass of.
        purpose: what it is for, for the error sentences.

    Raises:
        ValueError: the reference is malformed, the module or class cannot be had, or it has another base.
    """
    module, attribute = import_module_of(reference, purpose=purpose, kind="Class")
    found = getattr(module, attribute, None)
    if isinstance(found, type) and issubclass(found, base) and not inspect.isabstract(found):
        return found
    fitting = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)
    ]
    what = f"module {module.__name__!r} has no class {attribute!r}"
    if isinstance(found, type) and inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        what = f"{attribute!r} in module {module.__name__!r} does not define {missing}"
    elif found is not None:
        what = f"{attribute!r} in module {module.__name__!r} is no subclass of {base.__name__}"
    hint = choose(attribute, fitting) if fitting else f"write a subclass of {base.__name__} there"
    raise ValueError(f"{purpose} {reference!r}: {what}; {hint}")


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
    with torch_kept():
        return function(**settings)
