"""FLOPs of matrix products, counted from the shapes of their operands as integers; one multiply-accumulate is one FLOP.

A product of any broadcast costs (elements of its result) × (length of what is summed), and four times that where the
numbers are complex. Each handler takes the inputs and outputs of a node of a traced graph, as handlers of fvcore do.
fvcore's own are not used for products: that of `matmul` takes one batch where the left side is broadcast, and that of
`einsum` reads a printed number of four digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

Handler = Callable[[list[Any], list[Any]], int]
Sizes = dict[str, int]  # name of a dimension -> its size


def shape_of(value: Any) -> list[int]:
    """Shape of a tensor of a traced graph."""
    sizes = value.type().sizes()
    assert sizes is not None, "the tracer records complete shapes"
    return list(sizes)


def items_of(value: Any) -> list[Any]:
    """Tensors of a list in a traced graph."""
    return list(value.node().inputs())


def ints_of(value: Any) -> list[int] | None:
    """Numbers of a list in a traced graph; None where there is no list."""
    if value.node().kind() == "prim::ListConstruct":
        return [int(item.toIValue()) for item in items_of(value)]
    known = value.toIValue()
    return None if known is None else [int(item) for item in known]


def _real(handler: Handler) -> Handler:
    """In multiplications of real numbers, of which a product of complex numbers has four."""
    return lambda inputs, outputs: (4 if _is_complex(outputs[0]) else 1) * handler(inputs, outputs)


def _is_complex(value: Any) -> bool:
    dtype = value.type().dtype()
    return dtype is not None and bool(dtype.is_complex)


def _product(left: int) -> Handler:
    """Of a product over the last dimension of the input number `left`, whatever is broadcast."""
    return lambda inputs, outputs: prod(shape_of(outputs[0])) * shape_of(inputs[left])[-1]


def _addbmm(inputs: list[Any], outputs: list[Any]) -> int:
    """A sum of products: the result has no dimension of the batch."""
    return prod(shape_of(inputs[1])) * shape_of(inputs[2])[-1]


def _outer(inputs: list[Any], outputs: list[Any]) -> int:
    return prod(shape_of(outputs[0]))


def _vecdot(inputs: list[Any], outputs: list[Any]) -> int:
    """Products of pairs of vectors, of broadcast shapes."""
    return prod(broadcast(shape_of(inputs[0]), shape_of(inputs[1])))


def _inner(inputs: list[Any], outputs: list[Any]) -> int:
    left, right = shape_of(inputs[0]), shape_of(inputs[1])
    if not left or not right:
        return 0  # a scale, which is element-wise
    return prod(shape_of(outputs[0])) * left[-1]


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Q Kᵀ and the weighted sum of V: n_q · n_k · (d_k + d_v) for each entry of the broadcast batch and each head."""
    query, key = shape_of(inputs[0]), shape_of(inputs[1])
    *rows, values = shape_of(outputs[0])
    return prod(rows) * key[-2] * (query[-1] + values)


def _convolution(inputs: list[Any], outputs: list[Any], *, transposed: bool = False) -> int:
    """Every element of the output reads a kernel over the channels of its group; transposed, every one of the input."""
    elements, weight = shape_of(inputs[0] if transposed else outputs[0]), shape_of(inputs[1])
    return prod(elements) * prod(weight[1:])


def _any_convolution(inputs: list[Any], outputs: list[Any]) -> int:
    return _convolution(inputs, outputs, transposed=bool(inputs[6].toIValue()))


def _affine_grid(inputs: list[Any], outputs: list[Any]) -> int:
    """Of each point, with a one appended, and the matrix of its item."""
    return prod(shape_of(outputs[0])) * shape_of(inputs[0])[-1]


def _tensordot(inputs: list[Any], outputs: list[Any]) -> int:
    left, right = shape_of(inputs[0]), shape_of(inputs[1])
    pairs = zip(ints_of(inputs[2]) or [], ints_of(inputs[3]) or [], strict=True)
    # A dimension of size 1 is broadcast; the other operand is then summed before the product.
    return prod(shape_of(outputs[0])) * prod(min(left[a], right[b]) for a, b in pairs)


def _bilinear(inputs: list[Any], outputs: list[Any]) -> int:
    """xᵀ W y for each output: every weight once for each item."""
    return prod(shape_of(outputs[0])) * prod(shape_of(inputs[2])[1:])


def _multi_dot(inputs: list[Any], outputs: list[Any]) -> int:
    """A chain of matrices in the cheapest order, which is the one that torch takes."""
    shapes = [shape_of(item) for item in items_of(inputs[0])]
    if len(shapes[0]) == 1:  # a row
        shapes[0] = [1, *shapes[0]]
    if len(shapes[-1]) == 1:  # a column
        shapes[-1] = [*shapes[-1], 1]
    sizes = [shapes[0][0], *(shape[1] for shape in shapes)]
    count = len(shapes)
    least = {(i, i): 0 for i in range(count)}
    for length in range(1, count):
        for first in range(count - length):
            last = first + length
            least[first, last] = min(
                least[first, at] + least[at + 1, last] + sizes[first] * sizes[at + 1] * sizes[last + 1]
                for at in range(first, last)
            )
    return least[0, count - 1]


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    shapes = [shape_of(item) for item in items_of(inputs[1])]
    path = ints_of(inputs[2]) if len(inputs) > 2 else None
    return einsum_flops(inputs[0].toIValue(), shapes, path)


def einsum_flops(equation: str, shapes: Sequence[Sequence[int]], path: Sequence[int] | None = None) -> int:
    """FLOPs of `torch.einsum`, which multiplies two operands at a time.

    A product of two operands costs the product of the sizes of all dimensions that take part in it. A dimension that
    one operand alone has, and that nothing else needs, is summed before, which is free.

    Args:
        equation: of torch, with or without `->` and `...`.
        shapes: of the operands.
        path: positions of the two operands of each product, one pair after another, where a result goes to the end of
            the list; None takes the first two each time.
    """
    terms, result = _terms(equation, shapes)
    sizes: Sizes = {}
    for term, shape in zip(terms, shapes, strict=True):
        for name, size in zip(term, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1)) if size else 0
    operands = [
        {name for name, size in zip(t, s, strict=True) if size != 1} for t, s in zip(terms, shapes, strict=True)
    ]
    kept, total = set(result), 0
    for step in range(len(operands) - 1):
        first, second = sorted(path[2 * step : 2 * step + 2]) if path else (0, 1)
        right, left = operands.pop(second), operands.pop(first)
        needed = kept.union(*operands)
        taking_part = {name for name in left | right if name in needed or (name in left and name in right)}
        total += prod(sizes[name] for name in taking_part)
        operands.append({name for name in left | right if name in needed})
    return total


def _terms(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[list[str]], list[str]]:
    """Names of the dimensions of each operand and of the result; those of `...` are numbered from the last."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms, most = [], 0
    for text, shape in zip(left.split(","), shapes, strict=True):
        before, dots, after = text.partition("...")
        hidden = len(shape) - len(before) - len(after) if dots else 0
        most = max(most, hidden)
        terms.append([*before, *_hidden(hidden), *after])
    if arrow:
        before, dots, after = right.partition("...")
        return terms, [*before, *(_hidden(most) if dots else []), *after]
    letters = left.replace("...", "").replace(",", "")
    once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    return terms, [*_hidden(most), *once]


def _hidden(count: int) -> list[str]:
    return [f"...{index}" for index in range(count, 0, -1)]


def broadcast(*shapes: Sequence[int]) -> list[int]:
    """The shape that shapes have together."""
    sizes: list[int] = []
    for shape in shapes:
        for at, size in enumerate(reversed(shape)):
            if at == len(sizes):
                sizes.append(size)
            elif sizes[at] == 1:
                sizes[at] = size
    return sizes[::-1]


_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "linear", "mv", "dot", "vdot"), _product(0)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _product(1)),
    "addbmm": _addbmm,
    **dict.fromkeys(("outer", "ger", "addr", "kron"), _outer),
    "inner": _inner,
    "linalg_vecdot": _vecdot,
    "tensordot": _tensordot,
    "bilinear": _bilinear,
    "linalg_multi_dot": _multi_dot,
    "chain_matmul": _multi_dot,
    "einsum": _einsum,
    "affine_grid_generator": _affine_grid,
    "scaled_dot_product_attention": _attention,
    "_convolution": _any_convolution,
    "_convolution_mode": _convolution,  # of a padding by name, which is never transposed
}

PRODUCTS: dict[str, Handler] = {f"aten::{name}": _real(handler) for name, handler in _HANDLERS.items()}
"""Operator -> handler."""
