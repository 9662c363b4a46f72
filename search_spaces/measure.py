"""The cost tables of a net that a definition builds: each searchable part is measured at its real shape.

A net without weights runs once on the example. Where a choice changes the rest of the net (a depth, a variant, a part
that runs as a whole) all of its values run in turn. Each layer that runs counts its FLOPs and its parameters for every
combination of the choices that reach it, and gives zeros of its shape to what follows. What a layer costs in several
runs adds up; its parameters count once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.cells import Edge
from nas_kd.search_spaces.cost import CostTable, CostTerm
from nas_kd.search_spaces.flops import count_flops, count_params
from nas_kd.search_spaces.gates import Gate, GateControl
from nas_kd.search_spaces.layers import Call, Condition, FixedLayer, SearchLayer, SearchVariants

Ints = npt.NDArray[np.int64]
Measurable = SearchLayer | FixedLayer | Edge


@dataclass(frozen=True)
class _Run:
    """What a layer costs in one run of it.

    Attributes:
        at: variable -> choice, of what was fixed around it.
        axes: variables that it reads itself.
        flops: (num_choices of each axis ...).
        params: number of parameters, of the same shape.
    """

    at: Mapping[str, Choice]
    axes: tuple[str, ...]
    flops: Ints
    params: Ints


class Measured(NamedTuple):
    """What is measured of a definition: FLOPs of one input, and parameters."""

    flops: CostTable
    params: CostTable


class Meter:
    """Counts the layers of a net that runs with it, as `GateControl.meter` of its gates."""

    def __init__(self) -> None:
        self.runs: dict[nn.Module, list[_Run]] = {}
        self.free: set[str] = set()
        self._fixed: dict[str, Choice] = {}

    def each(self, gate: Gate, run: Callable[[Any], Tensor]) -> Tensor:
        """Run at all choices of a gate; the output at the last one."""
        if gate.name in self._fixed:
            return run(self._fixed[gate.name])
        for choice in gate.choices:
            with self._at(gate.name, choice):
                output = run(choice)
        return output

    @contextmanager
    def _at(self, name: str, choice: Choice) -> Iterator[None]:
        self._fixed[name] = choice
        try:
            yield
        finally:
            del self._fixed[name]

    def layer(self, layer: SearchLayer | FixedLayer, x: Tensor) -> Tensor:
        """Count a layer for all combinations of its choices; zeros of its largest output."""
        call = layer.call
        fixed = {name: self._fixed[name] for name in call.variables if name in self._fixed}
        axes = tuple(name for name in call.variables if name not in fixed)
        options = [call.variables[name].options for name in axes]
        widest = call.values_at({**fixed, **{name: values[-1] for name, values in zip(axes, options, strict=True)}})
        if call.inputs and (x.ndim < 2 or x.shape[1] != widest[0]):
            raise ValueError(
                f"the first argument of a layer is the number of channels that it reads, but {_name(call)} is said to "
                f"read {widest[0]} and is given {tuple(x.shape)}; pass the number that the layer before it gives"
            )
        flops: Ints = np.zeros([len(values) for values in options], dtype=np.int64)
        params = np.zeros_like(flops)
        for index in np.ndindex(*flops.shape):
            chosen = {name: values[i] for name, values, i in zip(axes, options, index, strict=True)}
            values = call.values_at({**fixed, **chosen})
            shape = (x.shape[0], values[0], *x.shape[2:]) if call.inputs else tuple(x.shape)
            flops[index], params[index], free = _counted(call, values, shape)
            self.free.update(free)
        self._note(layer, axes, flops, params)
        return x.new_zeros(_output_shape(call, widest, tuple(x.shape)))

    def edge(self, edge: Edge, inputs: tuple[Any, ...]) -> Tensor:
        """Count the candidates of an edge; the output of the first one."""
        counts = [count_flops(candidate, inputs) for candidate in edge.candidates.values()]
        self.free.update(name for count in counts for name in count.uncounted)
        flops = np.array([count.total for count in counts], dtype=np.int64)
        params = np.array([count_params(candidate) for candidate in edge.candidates.values()], dtype=np.int64)
        self._note(edge, (edge.gate.name,), flops, params)
        first: Tensor = next(iter(edge.candidates.values()))(*inputs)
        return first

    def _note(self, module: nn.Module, axes: tuple[str, ...], flops: Ints, params: Ints) -> None:
        self.runs.setdefault(module, []).append(_Run(dict(self._fixed), axes, flops, params))


def measure(
    net: nn.Module,
    control: GateControl,
    variables: Mapping[str, tuple[Choice, ...]],
    conditions: Mapping[str, Sequence[Condition]],
    example: Tensor,
    whole: StudentCount,
) -> Measured:
    """The cost tables of a definition.

    Args:
        net: of open choices, without weights; its gates are named.
        control: of its gates.
        variables: of the space.
        conditions: of the variables; their axes are kept where a layer reads such a variable.
        example: an input with batch size 1.
        whole: counts of the student of the first choice of everything, see `count_student`.

    Raises:
        ValueError: a layer or an edge does not run.
    """
    meter = Meter()
    layers = dict(_measurable(net, ""))
    control.meter = meter
    try:
        with torch.no_grad():
            net.eval()
            net(example)
    finally:
        control.meter = None
    runs: dict[str, list[_Run]] = {}
    own: dict[str, set[str]] = {}
    for layer, path in layers.items():
        if layer not in meter.runs:
            raise ValueError(f"{_kind(layer)} {path!r} does not run in the module's forward pass; use it or remove it")
        runs.setdefault(path, []).extend(meter.runs[layer])  # variants of one layer have one path
        for name in [layer.gate.name] if isinstance(layer, Edge) else layer.call.variables:
            own.setdefault(path, set()).update([name, *(other for other, _ in conditions[name])])
    flops, params = [], []
    for path, found in runs.items():
        needed = own.get(path, set())
        flops.append(_term(path, found, [run.flops for run in found], variables, needed, add=True))
        params.append(_term(path, found, [run.params for run in found], variables, needed, add=False))
    free = tuple(sorted(meter.free.union(whole.uncounted)))
    return Measured(
        _table(variables, flops, whole.flops, free, "flops"),
        _table(variables, params, whole.params, (), "parameters"),
    )


def _table(
    variables: Mapping[str, tuple[Choice, ...]], terms: Sequence[CostTerm], total: int, free: tuple[str, ...], unit: str
) -> CostTable:
    """The table of these terms; `total` is what the student of the first choices costs."""
    kept = tuple(term for term in terms if term.variables)
    constant = total - sum(int(term.costs.flat[0]) for term in kept)
    return CostTable(variables, kept, constant, free, unit=unit)


class StudentCount(NamedTuple):
    """What a whole student costs.

    Attributes:
        flops: of one input.
        params: number of parameters.
        uncounted: free operators.
    """

    flops: int
    params: int
    uncounted: tuple[str, ...]


_STUDENTS: dict[Hashable, StudentCount] = {}


def count_student(
    define: Callable[..., nn.Module], choices: Mapping[str, Choice], example: Tensor, build: Callable[[], nn.Module]
) -> StudentCount:
    """Costs of a student, counted once a process where spaces share a definition.

    Tracing a whole net takes most of the time of a cost table, and a campaign builds its space several times.

    Args:
        define: the definition. Spaces share a function or class of module level, alone or in a `partial`.
        choices: of the student.
        example: an input with batch size 1.
        build: makes the student.
    """
    key = _shared(define, tuple(choices.items()), tuple(example.shape))
    if key is None:
        return _count_whole(build(), example)
    if key not in _STUDENTS:
        _STUDENTS[key] = _count_whole(build(), example)
    return _STUDENTS[key]


def _shared(define: Callable[..., nn.Module], *rest: Hashable) -> Hashable | None:
    """Identifies a student in this process; None where that is not possible."""
    of = define if isinstance(define, partial) else partial(define)
    if not isinstance(of.func, FunctionType | type) or "<locals>" in of.func.__qualname__:  # it may close over anything
        return None
    key = (of.func, of.args, tuple(sorted(of.keywords.items())), *rest)
    try:
        hash(key)
    except TypeError:  # of an unhashable argument
        return None
    return key


def _count_whole(student: nn.Module, example: Tensor) -> StudentCount:
    count = count_flops(student, example)
    return StudentCount(count.total, count_params(student), tuple(count.uncounted))


def _measurable(module: nn.Module, path: str) -> Iterator[tuple[Measurable, str]]:
    """All searchable parts, each with the path that it has in a student."""
    if isinstance(module, SearchLayer | FixedLayer | Edge):
        yield module, path
        return
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(module, SearchVariants):
            for variant in child.children():
                yield from _measurable(variant, path)
        else:
            yield from _measurable(child, inner)


def _term(
    path: str,
    runs: Sequence[_Run],
    counts: Sequence[Ints],
    variables: Mapping[str, tuple[Choice, ...]],
    needed: set[str],
    *,
    add: bool,
) -> CostTerm:
    """What all runs of a layer cost together; an axis that costs do not depend on is left out unless it is needed.

    Args:
        path: of the layer.
        runs: of the layer.
        counts: of each run, with its axes.
        variables: of the space.
        needed: axes that are kept.
        add: runs at the same choices add up, instead of being the same.
    """
    names = {name for run in runs for name in (*run.at, *run.axes)}
    axes = [name for name in variables if name in names]
    table: Ints = np.zeros([len(variables[name]) for name in axes], dtype=np.int64)
    for run, count in zip(runs, counts, strict=True):
        index = tuple(variables[name].index(run.at[name]) if name in run.at else slice(None) for name in axes)
        order = [run.axes.index(name) for name in axes if name in run.axes]
        shape = [len(variables[name]) if name in run.axes else 1 for name in axes if name not in run.at]
        aligned = np.transpose(count, order).reshape(shape)
        table[index] = table[index] + aligned if add else aligned
    kept: list[str] = []
    for name in axes:
        axis = len(kept)
        first = np.take(table, [0], axis)
        if name in needed or bool((table != first).any()):
            kept.append(name)
        else:
            table = first.reshape([n for i, n in enumerate(table.shape) if i != axis])
    return CostTerm(path, tuple(kept), table)


def _kind(layer: Measurable) -> str:
    return "edge" if isinstance(layer, Edge) else "layer"


def _name(call: Call) -> str:
    return getattr(call.build, "__name__", type(call.build).__name__)


def _plain(build: Callable[..., nn.Module], values: tuple[Any, ...], names: tuple[str, ...]) -> nn.Module:
    """The module with zeros that take no memory as its weights, since costs depend on shapes alone."""
    with torch.device("meta"):
        module = Call(build, values, names).module(values)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            part._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = torch.zeros((), dtype=buffer.dtype).expand(buffer.shape)
    return module.eval()


@lru_cache(maxsize=65536)
def _count(
    build: Callable[..., nn.Module], values: tuple[Any, ...], names: tuple[str, ...], shape: tuple[int, ...]
) -> tuple[int, int, tuple[str, ...]]:
    module = _plain(build, values, names)
    count = count_flops(module, torch.zeros(shape))
    return count.total, count_params(module), tuple(count.uncounted)


@lru_cache(maxsize=65536)
def _shape(
    build: Callable[..., nn.Module], values: tuple[Any, ...], names: tuple[str, ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
    with torch.no_grad():
        output: Tensor = _plain(build, values, names)(torch.zeros(shape))
    return tuple(output.shape)


def _counted(call: Call, values: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, int, tuple[str, ...]]:
    """FLOPs, parameters and free operators of a layer; layers of equal arguments and shapes are counted once a
    process."""
    counted: tuple[int, int, tuple[str, ...]] = _hashed(_count)(call.build, values, call.names, shape)
    return counted


def _output_shape(call: Call, values: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    found: tuple[int, ...] = _hashed(_shape)(call.build, values, call.names, shape)
    return found


def _hashed(function: Any) -> Any:
    """The cached function, for arguments that may be unhashable (then nothing is cached)."""

    def call(*args: Any) -> Any:
        try:
            hash(args)
        except TypeError:
            return function.__wrapped__(*args)
        return function(*args)

    return call
