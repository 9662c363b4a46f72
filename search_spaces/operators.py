"""Operators of users, which a campaign file names as `module:function`.

A space takes them as functions by that name: nothing here imports code that a file names, so that whoever opens a
student of somebody else decides which code runs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.flops import UncountedOpError, count_flops

Operators = Mapping[str, Callable[..., Any]]
"""`module:function` -> the function."""
NO_OPERATORS: Operators = MappingProxyType({})


def is_reference(name: str) -> bool:
    """Whether an operator is named as `module:function`, and not by a name of the package's table."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def needed(names: Iterable[str], operators: Operators) -> dict[str, Callable[..., Any]]:
    """The operators of users among some names, with their functions.

    Raises:
        ValueError: the function of one is not given.
    """
    found = {}
    for name in names:
        if is_reference(name):
            if name not in operators:
                raise ValueError(
                    f"operator {name!r} is your own: import its function and give it to the space as "
                    f"operators={{{name!r}: function}}"
                )
            found[name] = operators[name]
    return found


def built(name: str, build: Callable[..., Any], *args: Any) -> nn.Module:
    """The module that an operator of the user builds.

    Raises:
        ValueError: it fails, or gives no module; also where tensors take no memory (device `meta`), as in the narrower
            forms of a supernet.
    """
    try:
        with torch.device("meta"):
            build(*args)
        module = build(*args)
    except Exception as error:
        raise ValueError(
            f"operator {name!r} cannot be built with {args}: {error_sentence(error)}; mend its function"
        ) from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"operator {name!r} must return a torch.nn.Module, but returns a {type(module).__name__}")
    return module


def check_output(name: str, module: nn.Module, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` where the module of an operator does not run, or gives another shape than it must."""
    try:
        with torch.no_grad():
            module.eval()
            output = module(x)
    except Exception as error:
        raise ValueError(
            f"operator {name!r} fails on an input of shape {tuple(x.shape)}: {error_sentence(error)}; mend its "
            "forward pass"
        ) from error
    given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if given != shape:
        raise ValueError(
            f"operator {name!r} must map an input of shape {tuple(x.shape)} to {shape}, but gives {given}; mend its "
            "padding, stride or channels"
        )


def check_export(name: str, module: nn.Module, x: Tensor) -> None:
    """Raise `ValueError` where the FLOPs of an operator are not known, or it cannot be exported with the same FLOPs.

    Args:
        name: of the operator.
        module: that it built.
        x: an input with batch size 2 or more.
    """
    module.eval()
    try:
        flops = count_flops(module, x[:1]).total
    except UncountedOpError as error:
        raise ValueError(f"operator {name!r}: {error}") from error
    try:
        with _no_logging():
            program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
            exported = count_flops(program.module(), x[:1]).total
    except Exception as error:
        raise ValueError(
            f"operator {name!r} cannot be exported: {error_sentence(error)}; write its forward pass so that "
            "torch.export takes it with any batch size"
        ) from error
    if exported != flops:
        raise ValueError(
            f"operator {name!r} must cost the same in an exported graph, but costs {flops:,} FLOPs as a module and "
            f"{exported:,} exported; replace the operation that torch.export rewrites"
        )


def check_slices(name: str, narrow: nn.Module, wide: nn.Module) -> None:
    """Raise `ValueError` where the tensors of a narrower operator cannot be slices of those of a wider one."""
    small, large = _shapes(narrow), _shapes(wide)
    if small.keys() != large.keys():
        odd = sorted(small.keys() ^ large.keys())
        raise ValueError(
            f"operator {name!r} must have the same parameters and buffers at all widths, since narrow ones use slices "
            f"of the widest one's, but {', '.join(odd)} depends on the width; build it always or never"
        )
    for tensor, shape in small.items():
        full = large[tensor]
        if len(shape) != len(full) or any(n > m for n, m in zip(shape, full, strict=True)):
            raise ValueError(
                f"operator {name!r} must use slices of its widest form's weights where it is narrower, but {tensor} is "
                f"{shape} there and {full} in the widest form; let its sizes grow with its channels"
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in [*module.named_parameters(), *module.named_buffers()]}


@contextmanager
def _no_logging() -> Iterator[None]:
    """torch.export logs whole graphs where it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def error_sentence(error: Exception) -> str:
    """The kind and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
