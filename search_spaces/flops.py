"""FLOPs and parameters of a module. FLOPs are by fvcore: one multiply-accumulate is one FLOP.

fvcore misses fused attention and recurrent layers, which would count as zero. The handlers below close those gaps
with the closed forms of the layers, and those of `products` count every matrix product from its shapes. Element-wise
operators (additions, activations, softmax) and reductions are free by convention and named in the result; any other
operator that has no handler is an error, never a silent zero.

One exception: modules that derive from `CountedElementwise`. Where additions are the overhead of a method, each of
their output elements counts as one FLOP. An exported graph has no such modules any more; there the nodes that came from
them are counted, which `torch.export` notes at every node and keeps in its files.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_kd.search_spaces.checkpoints import checkpoints_run_directly
from nas_kd.search_spaces.products import PRODUCTS, Handler
from nas_kd.search_spaces.products import shape_of as _shape

CONVENTION = (
    "fvcore: one multiply-accumulate is one FLOP; element-wise operators and reductions are not counted, but the "
    "additions and subtractions of delta layers are"
)

ELEMENTWISE = """
    abs add add_ add_n addcdiv addcmul atan2 bitwise_and bitwise_or ceil celu clamp_max clamp_min clip cos div div_
    elu erf exp exp_ expm1 feature_dropout gelu glu hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_
    isfinite isnan le leaky_relu leaky_relu_ lerp log log1p log2 log_ log_sigmoid logical_and logical_not logical_or
    logical_xor lt masked_fill masked_fill_ maximum minimum mish mul mul_ nan_to_num ne neg not_equal pow prelu
    reciprocal reciprocal_ relu6 relu6_ round rsqrt rsqrt_ rsub selu sigmoid sigmoid_ sign silu silu_ sin softplus
    softsign sqrt sqrt_ square sub sub_ tanh tanh_ tril triu trunc where xlogy
"""
REDUCTIONS = """
    all amax amin any argmax argmin argsort avg_pool1d avg_pool2d avg_pool3d cumprod cumsum linalg_norm
    linalg_vector_norm log_softmax logsumexp max max_pool1d max_pool2d max_pool3d mean min norm prod softmax softmin
    sort std std_mean sum topk var var_mean
"""
DATA_MOVEMENT = """
    _pack_padded_sequence _pad_packed_sequence alias bernoulli broadcast_to channel_shuffle clone col2im diagonal
    embedding embedding_bag empty_like expand_as fill fill_ flip im2col index_add index_select lift_fresh linspace
    masked_select meshgrid movedim native_dropout new_empty new_ones normal_ one_hot ones_like pad pixel_shuffle
    pixel_unshuffle rand randn repeat repeat_interleave scatter scatter_ scatter_add scatter_add_ squeeze_ swapaxes
    t_ take_along_dim tensor tile transpose_ unflatten unfold_copy unsafe_chunk unsafe_split upsample_nearest1d
    upsample_nearest3d view_as zero_
"""
FREE_OPS = frozenset(f"aten::{name}" for group in (ELEMENTWISE, REDUCTIONS, DATA_MOVEMENT) for name in group.split())
"""Not counted, by convention: they do no multiply-accumulates. fvcore itself already ignores most data movement."""

_OPAQUE = frozenset(f"prim::{name}" for name in ("If", "Loop", "CallMethod", "CallFunction", "fork"))
"""Of scripted modules: what they hold runs or not, once or often."""

COUNTED_OPS = ("aten::sub", "aten::add", "aten::add_")  # in `CountedElementwise`, and nowhere else

_trace_lock = threading.Lock()  # tracing toggles process-wide switches


class UncountedOpError(ValueError):
    """A module uses an operator that the counter does not know, so its FLOPs would be too low."""


class CountedElementwise(nn.Module):
    """A module of one addition or subtraction that counts: one FLOP an element of its output."""

    @classmethod
    def names(cls) -> set[str]:
        """Full names of this class and of all that derive from it."""
        own = {f"{cls.__module__}.{cls.__qualname__}"}
        return own.union(*(kind.names() for kind in cls.__subclasses__()))


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one forward pass.

    Attributes:
        total: FLOPs of the whole input (divide by the batch size yourself).
        by_operator: operator -> FLOPs.
        uncounted: operator -> number of calls that are not counted: those that are free by convention, and the unknown.
    """

    total: int
    by_operator: Mapping[str, int]
    uncounted: Mapping[str, int]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Operators that may do work which nobody counts, sorted; with any of them the total is a lower bound."""
        return tuple(sorted(set(self.uncounted) - FREE_OPS))


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Q Kᵀ and the weighted sum of V: n_q · n_k · (d_k + d_v) for each batch entry and head."""
    query, key, value = (_shape(v) for v in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(gates: int) -> Callable[[list[Any], list[Any]], int]:
    def count(inputs: list[Any], outputs: list[Any]) -> int:
        params = next(i for i in inputs[1:] if i.node().kind() == "prim::ListConstruct" and _is_weights(i))
        steps = prod(_shape(inputs[0])[:-1])  # batch · length; the data of a packed sequence have one axis for both
        return steps * sum(prod(_shape(w)) for w in params.node().inputs() if len(_shape(w)) == 2)

    def _is_weights(value: Any) -> bool:
        items = list(value.node().inputs())
        return bool(items) and any(len(_shape(i)) == 2 and _shape(i)[0] % gates == 0 for i in items)

    return count


def _elementwise(scale: int) -> Callable[[list[Any], list[Any]], int]:
    return lambda inputs, outputs: scale * prod(_shape(outputs[0]))


def _pool(inputs: list[Any], outputs: list[Any]) -> int:
    return prod(_shape(inputs[0]))


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Of a padding by name, which is never transposed: the weights once for each pixel of the output."""
    batch, _, *pixels = _shape(outputs[0])
    return batch * prod(_shape(inputs[1])) * prod(pixels)


def _norm(affine: int) -> Callable[[list[Any], list[Any]], int]:
    """As fvcore counts normalisation, for any number of dimensions: 5 FLOPs an element, 4 without weights."""
    return lambda inputs, outputs: prod(_shape(inputs[0])) * (5 if inputs[affine].isCompleteTensor() else 4)


_POINTS = {0: 2, 1: 1, 2: 4}  # mode of a grid sampler (linear, nearest, cubic) -> points read in each dimension


def _grid_sampler(inputs: list[Any], outputs: list[Any]) -> int:
    dimensions = len(_shape(inputs[0])) - 2
    return int(_POINTS[inputs[2].toIValue()] ** dimensions) * prod(_shape(outputs[0]))


HANDLERS: dict[str, Handler] = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::gru": _recurrent(3),
    "aten::lstm": _recurrent(4),
    "aten::rnn_tanh": _recurrent(1),
    "aten::rnn_relu": _recurrent(1),
    "aten::_convolution_mode": _convolution,
    "aten::layer_norm": _norm(2),
    "aten::group_norm": _norm(2),
    "aten::instance_norm": _norm(1),
    "aten::grid_sampler": _grid_sampler,
    **PRODUCTS,
    # As fvcore counts their two-dimensional forms.
    "aten::adaptive_avg_pool1d": _pool,
    "aten::adaptive_avg_pool3d": _pool,
    "aten::upsample_linear1d": _elementwise(2),
    "aten::upsample_trilinear3d": _elementwise(8),
    "aten::upsample_bicubic2d": _elementwise(16),
}


def _counted_nodes(graph: torch.fx.GraphModule) -> set[torch.fx.Node]:
    """Nodes of an exported graph that came from modules that count their elements."""
    counted = CountedElementwise.names()
    found = set()
    for node in graph.graph.nodes:
        if node.op == "call_function" and (stack := node.meta.get("nn_module_stack")):
            kind = list(stack.values())[-1][1]  # of the innermost module: its class, in a loaded file the name of it
            if (kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}") in counted:
                found.add(node)
    return found


class _Elements(torch.fx.Interpreter):
    """Runs a graph and adds up the elements of what some of its nodes give, at the real sizes."""

    def __init__(self, graph: torch.fx.GraphModule, nodes: set[torch.fx.Node]) -> None:
        super().__init__(graph)
        self.nodes, self.elements = nodes, 0

    def count(self, inputs: tuple[Any, ...]) -> int:
        self.run(*inputs)
        return self.elements

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.nodes:
            self.elements += int(result.numel())
        return result


@cache
def _analysis() -> Any:
    """fvcore's analysis, which names the parts of a graph that it does not look into instead of passing them over.

    It is imported when FLOPs are counted for the first time: who runs a trained student needs no fvcore.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, in parts of fvcore that are not used here
        from fvcore.nn import FlopCountAnalysis

    class Analysis(FlopCountAnalysis):  # type: ignore[misc]  # fvcore has no types
        def _should_ignore_node(self, node: Any) -> bool:
            return node.kind() not in _OPAQUE and bool(super()._should_ignore_node(node))

    return Analysis


@runtime_checkable
class Parted(Protocol):
    """A net of which a part is worth a figure of its own."""

    def part_flops(self, example: Tensor) -> dict[str, int]:
        """Name of the figure -> FLOPs of that part, for one input."""
        ...


def count_params(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def count_flops(module: nn.Module, inputs: Tensor | tuple[Any, ...], *, strict: bool = True) -> FlopCount:
    """FLOPs of `module(*inputs)` in evaluation mode; the module's own mode and buffers are left as they were.

    Args:
        module: any traceable module.
        inputs: its positional inputs, at the shapes that matter.
        strict: raise for operators without a handler; otherwise list them among the uncounted.

    Raises:
        UncountedOpError: an operator is neither counted nor free by convention.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with _in_evaluation(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore traces with torch.jit, which is deprecated
        analysis = _analysis()(module, inputs).set_op_handle(**HANDLERS)
        counted = [name for name, child in module.named_modules() if isinstance(child, CountedElementwise)]
        if counted:
            analysis.set_op_handle(**dict.fromkeys(COUNTED_OPS, _elementwise(1)))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = {name: int(count) for name, count in analysis.by_operator().items()}
        if counted:
            overhead = analysis.by_module()
            for operator in COUNTED_OPS:  # those outside of the counted modules are free, as everywhere
                by_operator.pop(operator.removeprefix("aten::"), None)
            by_operator["counted_elementwise"] = sum(int(overhead[name]) for name in counted)
        if isinstance(module, torch.fx.GraphModule) and (nodes := _counted_nodes(module)):
            by_operator["counted_elementwise"] = _Elements(module, nodes).count(inputs)
        total = sum(by_operator.values())
        unsupported: Counter[str] = analysis.unsupported_ops()
    count = FlopCount(total, by_operator, dict(unsupported))
    if strict and count.unknown:
        raise UncountedOpError(
            f"the FLOPs of {type(module).__name__} would miss {', '.join(count.unknown)}; add a handler to "
            "nas_kd.search_spaces.flops.HANDLERS or, where they do no multiply-accumulates, a name to FREE_OPS"
        )
    return count


def count_products(module: nn.Module, inputs: Tensor | tuple[Any, ...]) -> int:
    """FLOPs of the matrix products, convolutions and fused attention of `module(*inputs)`, in evaluation mode.

    A lower bound for modules that cannot be traced: it runs them as they are, by the counter of torch.

    Args:
        module: any module.
        inputs: its positional inputs, at the shapes that matter.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with _in_evaluation(module), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops()) // 2  # torch counts multiplications and additions


@contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    """No gradients, all parts in evaluation mode, and the work of fused layers visible; as it was, afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        with _trace_lock, torch.no_grad(), checkpoints_run_directly():
            for child, _ in modes:  # an exported program has no eval()
                child.training = False  # in training mode the tracer would move BatchNorm's running statistics
            torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer hides its products
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for child, mode in modes:
            child.training = mode
