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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.checkpoints import checkpoints_run_directly
from nas_kd.search_spaces.nested import named_tensors
from nas_kd.search_spaces.products import PRODUCTS, Handler
from nas_kd.search_spaces.products import shape_of as _shape

CONVENTION = (
    "fvcore: one multiply-accumulate is one FLOP; element-wise operators and reductions are not counted, but the "
    "additions and subtractions of delta layers are"
)

ELEMENTWISE = """
    add_n complex feature_dropout glu hardswish log_sigmoid not_equal polar prelu relu6 softsign tril triu
    view_as_complex view_as_real
"""  # beside those that torch calls pointwise
REDUCTIONS = """
    all amax amin aminmax any argmax argmin argsort avg_pool1d avg_pool2d avg_pool3d cosine_similarity count_nonzero
    cummax cummin cumprod cumsum kthvalue linalg_norm linalg_vector_norm log_softmax logcumsumexp logsumexp max_pool1d
    max_pool2d max_pool3d mean median min mode nanmean nanmedian nansum norm pairwise_distance prod quantile
    scatter_reduce softmax softmin sort std std_mean sum topk trace var var_mean _weight_norm
"""
DATA_MOVEMENT = """
    _pack_padded_sequence _pad_packed_sequence alias atleast_1d atleast_2d atleast_3d bernoulli block_diag
    broadcast_tensors broadcast_to bucketize channel_shuffle clone col2im conj diag diag_embed diagonal
    diagonal_scatter embedding embedding_bag empty_like expand_as exponential eye fill flip fliplr flipud im2col
    imag index_add index_copy index_fill index_put index_select lift_fresh linspace logspace masked_scatter
    masked_select meshgrid moveaxis movedim multinomial native_channel_shuffle native_dropout new_empty new_ones normal
    numel one_hot ones_like pad pixel_shuffle pixel_unshuffle rand rand_like randint randn randn_like randperm ravel
    real repeat repeat_interleave resolve_conj resolve_neg rot90 scatter scatter_add searchsorted select_scatter
    slice_scatter squeeze swapaxes swapdims t take take_along_dim tensor tensor_split tile transpose tril_indices
    triu_indices unflatten unfold unfold_copy uniform unsafe_chunk unsafe_split upsample_nearest1d upsample_nearest3d
    view_as zero _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
"""
FREE_OPS = {f"aten::{name}" for group in (ELEMENTWISE, REDUCTIONS, DATA_MOVEMENT) for name in group.split()}
"""Not counted, by convention: they do no multiply-accumulates. fvcore itself already ignores most data movement. A form
that works in place (`relu_`) is what the other one is."""

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
        by_module: path of each module -> its FLOPs without those of modules in it; they add up to the total, but for
            an exported graph, whose modules are gone.
    """

    total: int
    by_operator: Mapping[str, int]
    uncounted: Mapping[str, int]
    by_module: Mapping[str, int]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Operators that may do work which nobody counts, sorted; with any of them the total is a lower bound."""
        return tuple(sorted(name for name in self.uncounted if not _is_free(name)))

    @property
    def products(self) -> int:
        """FLOPs of matrix products, convolutions, attention and recurrent layers alone."""
        names = {name.removeprefix("aten::").removesuffix("_") for name in {**PRODUCTS, **RECURRENT}}
        return sum(count for name, count in self.by_operator.items() if name.removesuffix("_") in names)


def _is_free(operator: str) -> bool:
    """Whether an operator is not counted by convention: it is listed, or torch says that it is pointwise."""
    plain = operator.removesuffix("_")
    return bool({operator, plain} & FREE_OPS) or _is_pointwise(operator) or _is_pointwise(plain)


def _is_pointwise(operator: str) -> bool:
    namespace, _, name = operator.partition("::")
    known = getattr(torch.ops.aten, name, None) if namespace == "aten" else None
    return known is not None and any(torch.Tag.pointwise in getattr(known, form).tags for form in known.overloads())


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


def _norm(affine: int) -> Callable[[list[Any], list[Any]], int]:
    """As fvcore counts normalisation, for any number of dimensions: 5 FLOPs an element, 4 without weights."""
    return lambda inputs, outputs: prod(_shape(inputs[0])) * (5 if inputs[affine].isCompleteTensor() else 4)


def _rms_norm(inputs: list[Any], outputs: list[Any]) -> int:
    """As other norms, without the mean."""
    return prod(_shape(inputs[0])) * (4 if inputs[2].isCompleteTensor() else 3)


_POINTS = {0: 2, 1: 1, 2: 4}  # mode of a grid sampler (linear, nearest, cubic) -> points read in each dimension


def _grid_sampler(inputs: list[Any], outputs: list[Any]) -> int:
    dimensions = len(_shape(inputs[0])) - 2
    return int(_POINTS[inputs[2].toIValue()] ** dimensions) * prod(_shape(outputs[0]))


RECURRENT: dict[str, Handler] = {
    "aten::gru": _recurrent(3),
    "aten::lstm": _recurrent(4),
    "aten::rnn_tanh": _recurrent(1),
    "aten::rnn_relu": _recurrent(1),
}

HANDLERS: dict[str, Handler] = {
    **RECURRENT,
    "aten::rms_norm": _rms_norm,
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
def _analysis_class() -> Any:
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

    Examples:
        >>> nas_kd.count_flops(nn.Linear(10, 5), torch.zeros(1, 10)).total
        50
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with in_evaluation(module), _without_warnings(), _gives_tensors(module):
        analysis, counted = _analyse(module, inputs)
        by_operator = {name: int(count) for name, count in analysis.by_operator().items()}
        if counted:
            overhead = analysis.by_module()
            for operator in COUNTED_OPS:  # those outside of the counted modules are free, as everywhere
                by_operator.pop(operator.removeprefix("aten::"), None)
            by_operator["counted_elementwise"] = sum(int(overhead[name]) for name in counted)
        if isinstance(module, torch.fx.GraphModule) and (nodes := _counted_nodes(module)):
            by_operator["counted_elementwise"] = _Elements(module, nodes).count(inputs)
        total = sum(by_operator.values())
        by_module = _own_flops(analysis.by_module_and_operator(), counted)
        unsupported: Counter[str] = analysis.unsupported_ops()
    count = FlopCount(total, by_operator, dict(unsupported), by_module)
    if strict and count.unknown:
        raise UncountedOpError(
            f"the FLOPs of {type(module).__name__} would miss {', '.join(count.unknown)}; in a module of yours "
            "that the campaign file names, add a handler to nas_kd.search_spaces.flops.HANDLERS or, where they do no "
            "multiply-accumulates, the name to FREE_OPS"
        )
    return count


def _own_flops(whole: Mapping[str, Mapping[str, float]], counted: Collection[str]) -> dict[str, int]:
    """Path of each module -> its FLOPs without those of modules in it.

    Args:
        whole: path -> operator -> FLOPs, with those of modules in it.
        counted: paths of modules that count their elements; in others these operators are free.
    """
    own = {name: Counter(operators) for name, operators in whole.items()}
    for name, operators in whole.items():
        if name:
            own[name.rpartition(".")[0]].subtract(operators)
    free = {operator.removeprefix("aten::") for operator in COUNTED_OPS}
    totals = {}
    for name, operators in own.items():
        inside = name in counted
        totals[name] = sum(int(count) for operator, count in operators.items() if inside or operator not in free)
    return totals


@contextmanager
def _gives_tensors(module: nn.Module) -> Iterator[None]:
    """The module returns a tuple of all tensors in its output: objects with fields, numbers and texts have no trace."""

    def flat(_: nn.Module, __: Any, output: Any) -> Any:
        return output if isinstance(output, Tensor) else tuple(tensor for _, tensor in named_tensors(output)) or output

    hook = module.register_forward_hook(flat)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore traces with torch.jit, which is deprecated
        yield


def _analyse(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, list[str]]:
    """fvcore's analysis with all handlers, and the names of modules that count their elements."""
    analysis = _analysis_class()(module, inputs).set_op_handle(
        **HANDLERS, **{f"{name}_": handler for name, handler in HANDLERS.items()}
    )
    counted = [name for name, child in module.named_modules() if isinstance(child, CountedElementwise)]
    if counted:
        analysis.set_op_handle(**dict.fromkeys(COUNTED_OPS, _elementwise(1)))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return analysis, counted


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
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
