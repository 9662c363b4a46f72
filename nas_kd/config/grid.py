"""The cells of an ablation grid: the products of its blocks, with defaults filled in and without duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

Value = bool | int | float | str
Cell = dict[str, Value]


def multiply(blocks: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """The products of the blocks, in order: of each the last knob varies fastest.

    Args:
        blocks: knob -> a value or a list of values.

    Raises:
        ValueError: a block or a list is empty, or a value is no text, number or truth value.
    """
    cells: list[Cell] = []
    for number, block in enumerate(blocks, start=1):
        if not block:
            raise ValueError(f"grid: block {number} names no knob; give it one with its values, or drop the block")
        lists = {name: value if isinstance(value, list | tuple) else [value] for name, value in block.items()}
        for name, values in lists.items():
            if not values:
                raise ValueError(f"grid: block {number} lists no value of {name}; give one, or leave the knob out")
            for value in values:
                if not isinstance(value, Value):
                    raise ValueError(
                        f"grid: a value must be text, a number, true or false, but block {number} gives {name} the "
                        f"value {value!r}"
                    )
        cells += [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    return cells


def distinct(cells: Iterable[Mapping[str, Value]]) -> list[Cell]:
    """The cells in order, each once; two with equal values are one whatever the order of their knobs."""
    found: dict[frozenset[tuple[str, Value]], Cell] = {}
    for cell in cells:
        found.setdefault(frozenset(cell.items()), dict(cell))
    return list(found.values())


def values_of(name: str, cells: Iterable[Mapping[str, Value]], before: Sequence[Value]) -> list[Value]:
    """The values of a knob, in order, each once, after those of `before`."""
    values = list(before)
    for cell in cells:
        if cell[name] not in values:
            values.append(cell[name])
    return values
