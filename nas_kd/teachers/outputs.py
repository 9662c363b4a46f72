"""The logits among what a net returns: one tensor, a tuple, a dict, or an object with fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from nas_kd.search_spaces.nested import Path, named_tensors, parts

PREFERRED = ("logits", "out")  # names that mean the answer, where several outputs could be it


def pick(output: Any, path: Path) -> Tensor:
    """The tensor at a path of names and numbers.

    Raises:
        KeyError: there is none.
    """
    for name in path:
        values = parts(output)
        named = dict(values)
        if name not in named and name.lstrip("-").isdigit() and -len(values) <= int(name) < len(values):
            output = values[int(name)][1]
        else:
            output = named[name]
    if not isinstance(output, Tensor):
        raise KeyError(".".join(path))
    return output


def find(output: Any, fits: Callable[[Tensor], bool]) -> list[Path]:
    """Paths of the tensors that could be the answer, the likeliest first; more than one where nothing tells.

    Args:
        output: of a net.
        fits: whether a tensor has the shape of an answer.
    """
    found = [path for path, value in named_tensors(output) if fits(value)]
    for name in PREFERRED:
        named = [path for path in found if path and path[-1] == name]
        if len(named) == 1:
            return named
    return found


def describe(output: Any) -> str:
    """What a net returns, for a sentence: names and shapes."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    listed = [f"{'.'.join(path)}: {tuple(value.shape)}" for path, value in named_tensors(output)]
    return f"{type(output).__name__} ({'; '.join(listed[:6])})" if listed else type(output).__name__


def check_indices(outputs: Sequence[int], classes: int) -> None:
    """Raise where the outputs that are picked are not one for each class.

    Raises:
        ValueError: how many there are and how many are wanted, or what is named twice.
    """
    if len(outputs) != classes:
        raise ValueError(
            f"teacher.outputs: names {len(outputs)} outputs, but the task needs {classes}, one for each class in the "
            "order of the data's classes; list as many"
        )
    twice = sorted({index for index in outputs if outputs.count(index) > 1})
    if twice:
        raise ValueError(f"teacher.outputs: output {twice[0]} is named twice; name each one once")
