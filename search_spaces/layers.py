"""The searchable parts of a supernet: layers of several sizes and operators, cells under a depth, variants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any, cast

from torch import Tensor, nn

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.cells import Edge, mix_widths
from nas_kd.search_spaces.choices import Chain, Choices, FixedChain, Open, evaluated
from nas_kd.search_spaces.gates import Gate, GateControl, GateFactory, named_gate
from nas_kd.search_spaces.slices import Sliced


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a builder, some of whose arguments are open.

    Attributes:
        build: makes a module.
        arguments: those given by position, of which the first one is the number of input channels, then the others.
        names: of those that are given by name, which are the last ones.
        weights_of: open value for each of whose values there are other weights, or None.
    """

    build: Callable[..., nn.Module]
    arguments: tuple[Any, ...]
    names: tuple[str, ...] = ()
    weights_of: Open | None = None

    @cached_property
    def sizes(self) -> list[int]:
        """Positions of the arguments whose smaller values use slices."""
        return [i for i, a in enumerate(self.arguments) if isinstance(a, Open) and a.kind != "op"]

    @cached_property
    def ops(self) -> list[int]:
        """Positions of the arguments each of whose values has weights of its own."""
        return [i for i, a in enumerate(self.arguments) if isinstance(a, Open) and a.kind == "op"]

    @cached_property
    def inputs(self) -> dict[str, Open]:
        """Name -> variable, for all that decides the number of input channels."""
        first = self.arguments[0]
        return first.variables if isinstance(first, Open) else {}

    @cached_property
    def own_sizes(self) -> dict[str, Open]:
        """Name -> variable, for all that decides other sizes."""
        return _variables(self.arguments[i] for i in self.sizes if i > 0)

    @cached_property
    def own_ops(self) -> dict[str, Open]:
        """Name -> variable, for all that decides which weights are used."""
        return _variables(
            [*(self.arguments[i] for i in self.ops), *([] if self.weights_of is None else [self.weights_of])]
        )

    @cached_property
    def variables(self) -> dict[str, Open]:
        """Name -> variable, for all that decides the module."""
        return {**self.inputs, **self.own_sizes, **self.own_ops}

    def key(self, chosen: Mapping[str, Any]) -> tuple[Any, ...]:
        """What decides the weights under these choices."""
        key = [self.arguments[i].at(chosen) for i in self.ops]
        return tuple(key) if self.weights_of is None else (self.weights_of.at(chosen), *key)

    @cached_property
    def keys(self) -> list[tuple[Any, ...]]:
        """All keys, in the order of the options; values that are derived in ascending order."""
        axes = [list(self.arguments[i].options) for i in self.ops]
        if self.weights_of is not None:
            axes.insert(0, sorted({self.weights_of.at(chosen) for chosen in combinations(self.weights_of.variables)}))
        return list(product(*axes))

    def widest(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """The largest sizes with that key."""
        largest = {name: variable.options[-1] for name, variable in self.variables.items()}
        found = []
        for chosen in combinations(self.own_ops):
            if self.key(chosen) == key:
                found.append([self.arguments[i].size_at({**largest, **chosen}) for i in self.sizes])
        return tuple(max(values) for values in zip(*found, strict=True))

    def sizes_at(self, chosen: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """Values of `sizes` under these choices, the input channels under those of `inputs` where they are given."""
        of_inputs = chosen if inputs is None else inputs
        return tuple(self.arguments[i].size_at(chosen if i else of_inputs) for i in self.sizes)

    def values_at(self, chosen: Mapping[str, Any]) -> tuple[Any, ...]:
        """All arguments under these choices."""
        return tuple(evaluated(argument, chosen) for argument in self.arguments)

    def module(self, values: Sequence[Any]) -> nn.Module:
        """The plain module of these arguments."""
        positional = len(values) - len(self.names)
        return self.build(*values[:positional], **dict(zip(self.names, values[positional:], strict=True)))

    def module_of_sizes(self, key: tuple[Any, ...], *sizes: Any) -> nn.Module:
        """The plain module of a key and of these sizes."""
        values = list(self.arguments)
        for i, op in zip(self.ops, key[len(key) - len(self.ops) :], strict=True):
            values[i] = op
        for i, size in zip(self.sizes, sizes, strict=True):
            values[i] = sum(size) if isinstance(size, tuple) else size
        return self.module(values)


def _variables(values: Iterable[Open]) -> dict[str, Open]:
    found: dict[str, Open] = {}
    for value in values:
        found |= value.variables
    return found


def combinations(variables: Mapping[str, Open]) -> Iterator[dict[str, Any]]:
    """All choices of these variables."""
    for values in product(*(variable.options for variable in variables.values())):
        yield dict(zip(variables, values, strict=True))


class SearchLayer(nn.Module):
    """A layer of all sizes and operators, of which it runs those that are drawn.

    Args:
        call: how the plain layer is built.
        gates: name -> gate of all variables.
        with_weights: False for a net that is only measured.
    """

    def __init__(self, call: Call, gates: Mapping[str, Gate], *, with_weights: bool) -> None:
        super().__init__()
        self.call = call
        self.gates_of = {name: gates[name] for name in call.variables}  # in a dict: they are held elsewhere
        keys = call.keys if with_weights else []
        centred = [n for n, i in enumerate(call.sizes) if call.arguments[i].kind == "kernel"]
        self.index = {key: n for n, key in enumerate(keys)}
        self.candidates = nn.ModuleList(
            Sliced(partial(call.module_of_sizes, key), *call.widest(key), centred=centred) for key in keys
        )
        self._own = [*call.own_sizes, *(name for name in call.own_ops if name not in call.own_sizes)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, ...) -> (N, widest drawn, ...)."""
        control = next(iter(self.gates_of.values())).control
        if control.meter is not None:
            return cast(Tensor, control.meter.layer(self, x))
        inputs = {name: _widest_drawn(self.gates_of[name]) for name in self.call.inputs}
        return self._mixed(x, inputs, self._own, {})

    def _mixed(self, x: Tensor, inputs: Mapping[str, Any], names: Sequence[str], own: Mapping[str, Any]) -> Tensor:
        """The mixture over the variables of these names; the first ones are the outermost."""
        if not names:
            candidate = self.candidates[self.index[self.call.key(own)]]
            return cast(Tensor, candidate(x, *self.call.sizes_at(own, inputs)))
        name, rest = names[0], names[1:]
        gate = self.gates_of[name]

        def at(choice: Choice) -> Tensor:
            return self._mixed(x, inputs, rest, {**own, name: choice})

        if name in self.call.own_sizes:
            return mix_widths(gate, at)
        return gate.draw().combine(lambda index: at(gate.choices[index]))

    def student_module(self) -> nn.Module:
        """The first candidate at its largest."""
        return cast(Sliced, self.candidates[0]).full

    def student_state(self, chosen: Mapping[str, Choice]) -> dict[str, Tensor]:
        """State dict of the plain layer under these choices."""
        sliced = cast(Sliced, self.candidates[self.index[self.call.key(chosen)]])
        return sliced.narrowed(*self.call.sizes_at(chosen))


def _widest_drawn(gate: Gate) -> Any:
    """What a mixture is read at: its largest choice."""
    return gate.choices[max(gate.draw().indices)]


class Whole:
    """What `Choices.whole` gives for an open choice.

    Args:
        gate: of the choice.
        after: gates that draw before it.
    """

    def __init__(self, gate: Gate, after: Sequence[Gate] = ()) -> None:
        self.gate, self.after = gate, tuple(after)

    def __call__(self, run: Callable[[Any], Tensor]) -> Tensor:
        """The outputs at the drawn choices, mixed; within each of them the choice is fixed."""
        gate = self.gate
        if gate.control.meter is not None:
            return cast(Tensor, gate.control.meter.each(gate, run))
        for other in self.after:
            other.draw()
        gate.draw()

        def at(choice: Choice) -> Tensor:
            with gate.control.fixed(gate.name, gate.choices.index(choice)):
                return run(choice)

        return mix_widths(gate, at)


class SearchChain(Chain):
    """What `Choices.chain` gives for an open depth: the outputs at the drawn depths, mixed.

    Args:
        gate: of the depth.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __call__(
        self,
        x: Tensor,
        step: Callable[[int, Tensor], Tensor],
        last: Callable[[int, Tensor], Tensor] | None = None,
        *,
        first: int = 0,
    ) -> Tensor:
        gate = self.gate
        if gate.control.meter is not None:
            return cast(
                Tensor, gate.control.meter.each(gate, lambda depth: FixedChain(depth)(x, step, last, first=first))
            )
        draw = gate.draw()
        outputs = {first: x}
        for j in range(first, max(int(gate.choices[i]) for i in draw.indices)):
            outputs[j + 1] = step(j, outputs[j])

        def at(index: int) -> Tensor:
            depth = int(gate.choices[index])
            if last is None:
                return outputs[depth]
            with gate.control.fixed(gate.name, index):
                return last(depth, outputs[depth])

        return draw.combine(at)


class SearchCells(nn.Sequential):
    """Cells under a gate for their number.

    Args:
        cells: as many as the largest depth.
        chain: of the depth.
        whole: runs all cells at each of the drawn values of another choice.
    """

    def __init__(self, cells: Sequence[nn.Module], chain: SearchChain, whole: Whole | None) -> None:
        super().__init__(*cells)
        self._chain, self._whole = chain, whole

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> (N, widest drawn, ...)."""
        if self._whole is None:
            return self._through(input)
        return self._whole(lambda _: self._through(input))

    def _through(self, x: Tensor) -> Tensor:
        return self._chain(x, lambda j, hidden: cast(Tensor, self[j](hidden)))


class SearchVariants(nn.Module):
    """Modules with weights of their own for all combinations of some choices.

    Args:
        gates: of the choices.
        modules: one a combination, the last choice varying fastest.
    """

    def __init__(self, gates: Sequence[Gate], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._gates = tuple(gates)
        self.variants = nn.ModuleList(modules)

    def at(self, chosen: Mapping[str, Choice]) -> nn.Module:
        """The module of these choices."""
        index = 0
        for gate in self._gates:
            index = index * len(gate.choices) + gate.choices.index(chosen[gate.name])
        return self.variants[index]

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of the drawn modules, mixed."""
        return self._mixed(x, {})

    def _mixed(self, x: Tensor, chosen: Mapping[str, Choice]) -> Tensor:
        if len(chosen) == len(self._gates):
            return cast(Tensor, self.at(chosen)(x))
        gate = self._gates[len(chosen)]

        def run(choice: Choice) -> Tensor:
            return self._mixed(x, {**chosen, gate.name: choice})

        if gate.control.meter is not None:
            return cast(Tensor, gate.control.meter.each(gate, run))
        return gate.draw().combine(lambda index: run(gate.choices[index]))


class HeldGates(nn.Module):
    """The gates of a net, nested by the dots in the names of their variables, which `state_dict` so shows.

    They are registered past `add_module`, which takes no names that modules have already, such as `type`.
    """

    def __init__(self, gates: Mapping[str, Gate]) -> None:
        super().__init__()
        for name, gate in gates.items():
            node: nn.Module = self
            *outer, last = name.split(".")
            for part in outer:
                node = node._modules.setdefault(part, nn.Module()) or node
            existing = node._modules.get(last)
            if existing is not None:  # of a variable whose name begins with this one
                gate._modules.update(existing._modules)
            node._modules[last] = gate


Condition = tuple[str, frozenset[Choice]]
"""A variable, and those of its choices under which something has an effect."""


class OpenChoices(Choices):
    """Choices that gates decide: the definition gives the supernet.

    Args:
        knobs: knob -> value.
        make_gate: builds a gate from its choices.
        with_weights: False for a net that is only measured.

    Attributes:
        gates: name -> gate of the variables that the definition asked for, in order.
        conditions: name -> under which choices of others a variable has an effect.
        control: of the gates, until a supernet gives them its own.
        depths: name -> options of the depths that the definition asked for.
        read: knobs that the definition asked for.
    """

    def __init__(
        self, knobs: Mapping[str, Choice], make_gate: GateFactory = Gate, *, with_weights: bool = True
    ) -> None:
        self._knobs, self._make_gate, self._with_weights = knobs, make_gate, with_weights
        self._within: tuple[Condition, ...] = ()
        self.control = GateControl()
        self.gates: dict[str, Gate] = {}
        self.conditions: dict[str, tuple[Condition, ...]] = {}
        self.depths: dict[str, tuple[int, ...]] = {}
        self.read: set[str] = set()

    def _variable(self, kind: str, name: str, options: Sequence[Choice]) -> Any:
        if not options or (kind != "op" and list(options) != sorted(set(options), key=lambda option: int(option))):
            raise ValueError(
                f"the options of {name!r} must be numbers that ascend, at least one, but are {list(options)}"
            )
        known = self.gates.get(name)
        if known is None:
            self.gates[name] = named_gate(self._make_gate, tuple(options), name)
            self.gates[name].control = self.control
            self.conditions[name] = self._within
        elif known.choices != tuple(options):
            raise ValueError(f"{name!r} was declared with {list(known.choices)} and again with {list(options)}; rename")
        return Open(kind, name=name, options=tuple(options))

    def number(self, name: str, options: Sequence[int]) -> Any:
        return self._variable("number", name, options)

    def kernel(self, name: str, options: Sequence[int]) -> Any:
        return self._variable("kernel", name, options)

    def op(self, name: str, options: Sequence[str | int]) -> Any:
        return self._variable("op", name, options)

    def depth(self, name: str, options: Sequence[int]) -> Any:
        self.depths[name] = tuple(options)
        return self._variable("depth", name, options)

    def knob(self, name: str) -> Any:
        self.read.add(name)
        return self._knobs[name]

    def layer(
        self, build: Callable[..., nn.Module], inputs: Any, *args: Any, weights_of: Any = None, **kwargs: Any
    ) -> Any:
        call = Call(build, (inputs, *args, *kwargs.values()), tuple(kwargs), weights_of)
        if call.variables:
            return SearchLayer(call, self.gates, with_weights=self._with_weights)
        return build(inputs, *args, **kwargs) if self._with_weights else FixedLayer(call, self.gates)

    def steps(self, depth: Any) -> Iterator[int]:
        outside = self._within
        for j in range(max(depth.options)):
            self._within = (*outside, (depth.name, frozenset(d for d in depth.options if d > j)))
            yield j
            self._within = outside

    def cells(self, depth: Any, build: Callable[[int], nn.Module], whole: Any = None) -> nn.Sequential:
        cells = [build(j) for j in self.steps(depth)]
        return SearchCells(cells, self.chain(depth), None if whole is None else self.whole(whole))

    def chain(self, depth: Any) -> SearchChain:
        return SearchChain(self.gates[depth.name])

    def whole(self, value: Any, after: Sequence[Any] = ()) -> Any:
        return Whole(self.gates[value.name], [self.gates[other.name] for other in after])

    def variants(self, values: Sequence[Any], build: Callable[..., nn.Module]) -> nn.Module:
        outside, modules = self._within, []
        for combination in product(*(value.options for value in values)):
            pairs = zip(values, combination, strict=True)
            self._within = (*outside, *((value.name, frozenset([choice])) for value, choice in pairs))
            modules.append(build(*combination))
        self._within = outside
        return SearchVariants([self.gates[value.name] for value in values], modules)

    def derive(self, function: Callable[..., Any], *values: Any, kind: str = "number") -> Any:
        return Open(kind, function, values)


class FixedLayer(nn.Module):
    """A layer without open arguments, in a net that is only measured.

    Args:
        call: how the layer is built.
        gates: of the net.
    """

    def __init__(self, call: Call, gates: Mapping[str, Gate]) -> None:
        super().__init__()
        self.call, self._gates = call, gates

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the layer's shape."""
        return cast(Tensor, next(iter(self._gates.values())).control.meter.layer(self, x))


def inherit(source: nn.Module, target: nn.Module, chosen: Mapping[str, Choice]) -> None:
    """Copy the weights of a supernet's module that the student's module of the same name uses."""
    if isinstance(source, SearchLayer):
        target.load_state_dict(source.student_state(chosen))
        return
    if isinstance(source, SearchVariants):
        inherit(source.at(chosen), target, chosen)
        return
    if isinstance(source, Edge):
        target.load_state_dict(source.by_name[str(chosen[source.gate.name])].state_dict())
        return
    own = dict(target.named_parameters(recurse=False)) | dict(target.named_buffers(recurse=False))
    for name, tensor in [*source.named_parameters(recurse=False), *source.named_buffers(recurse=False)]:
        own[name].data.copy_(tensor.data)
    for name, child in source.named_children():
        twin = target._modules.get(name)
        if twin is not None and not isinstance(child, Gate | HeldGates):
            inherit(child, twin, chosen)
