"""`ModuleSpace`: the space of a definition, a function that builds a net from choices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import product
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.cells import Edge
from nas_kd.search_spaces.chain import Effect
from nas_kd.search_spaces.choices import Choices, FixedChoices
from nas_kd.search_spaces.cost import CostTable
from nas_kd.search_spaces.gates import GateFactory, named_gate
from nas_kd.search_spaces.layers import Condition, HeldGates, OpenChoices, SearchLayer, inherit
from nas_kd.search_spaces.measure import Measured, count_student, measure
from nas_kd.search_spaces.space import SearchSpace

Define = Callable[[Choices], nn.Module]
Conditions = Mapping[str, tuple[Condition, ...]]


class ModuleSpace(SearchSpace):
    """The space of a definition: students, supernet, costs and sizes all follow from it.

    Args:
        define: makes the net from `Choices`; one without parameters makes a net that holds `Edge`s. Called for each
            supernet and student.
        example: an input of the net with batch size 1, or a function from knobs to one.
        name: of the space.
        knobs: knob -> its values.
        settings: what builds the space again, as JSON values; part of every `ArchSpec`.
        fit_input: (input of the teacher, knobs) -> that of the student; the same by default.

    Raises:
        ValueError: nothing is open, or an edge is the net itself, holds another one, or has two names.

    Examples:
        >>> def net():
        ...     edge = nas_kd.Edge({"k1": nn.Conv2d(4, 4, 1), "k3": nn.Conv2d(4, 4, 3, padding=1)})
        ...     return nn.Sequential(nn.Conv2d(3, 4, 3), edge, nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> space = nas_kd.ModuleSpace(net, torch.zeros(1, 3, 8, 8))
        >>> list(space.variables.values())
        [('k1', 'k3')]
    """

    def __init__(
        self,
        define: Define | Callable[[], nn.Module],
        example: Tensor | Callable[[Mapping[str, Choice]], Tensor],
        name: str = "module",
        *,
        knobs: Mapping[str, tuple[Choice, ...]] | None = None,
        settings: Mapping[str, Any] | None = None,
        fit_input: Callable[[Tensor, Mapping[str, Choice]], Tensor] | None = None,
    ) -> None:
        self.name, self.settings, self.knobs = name, dict(settings or {}), dict(knobs or {})
        self._define = cast(Define, define) if _takes_choices(define) else _without_choices(define)
        self._example, self._fit_input = example, fit_input
        self._measured: dict[Any, Measured] = {}
        self._structural: tuple[str, ...] = ()
        self._depths: dict[str, tuple[int, ...]] = {}
        with torch.random.fork_rng(devices=[]):
            self._conditions = self._explored()
        self.variables = self._all_variables
        if not self.variables:
            raise ValueError(
                "a searchable module needs at least one Edge of search_spaces, or a choice in its definition, but this "
                "one has none"
            )

    def _explored(self) -> dict[tuple[Choice, ...], Conditions]:
        """For the values of the knobs that the definition reads, the conditions of its variables."""
        while True:
            found: dict[tuple[Choice, ...], Conditions] = {}
            self._all_variables: dict[str, tuple[Choice, ...]] = {}
            read = set(self._structural)
            for values in product(*(self.knobs[name] for name in self._structural)):
                knobs = {**self.knobs_with(), **dict(zip(self._structural, values, strict=True))}
                choices, net = self._outline(knobs)
                gates = {**choices.gates, **{path: edge.gate for path, edge in _edges(net).items()}}
                found[values] = {**dict.fromkeys(gates, ()), **choices.conditions}
                _insert(self._all_variables, {name: gate.choices for name, gate in gates.items()})
                read |= choices.read
                self._depths |= choices.depths
            if read == set(self._structural):
                return found
            self._structural = tuple(name for name in self.knobs if name in read)

    def _outline(self, knobs: Mapping[str, Choice]) -> tuple[OpenChoices, nn.Module]:
        """The net of open choices without weights."""
        choices = OpenChoices(knobs, with_weights=False)
        net = self._define(choices)
        _check_edges(net)
        for path, edge in _edges(net).items():
            edge.gate.name, edge.gate.control = path, choices.control
        return choices, net

    @property
    def structural_knobs(self) -> tuple[str, ...]:
        """The knobs that the definition reads."""
        return self._structural

    def network(self, knobs: Mapping[str, Choice], make_gate: GateFactory) -> nn.Module:
        choices = OpenChoices(knobs, make_gate)
        network = self._define(choices)
        for path, edge in _edges(network).items():
            edge.gate = named_gate(make_gate, edge.gate.choices, path)
        gates = dict(choices.gates)
        for name in self.variables:  # those that reach nothing at these knobs
            if name not in gates and name not in _edges(network):
                gates[name] = named_gate(make_gate, self.variables[name], name)
        if gates:
            first = next(module for module in network.modules() if isinstance(module, SearchLayer))
            first.held = HeldGates({name: gates[name] for name in self.variables if name in gates})
        return network

    def build_student(self, choices: Mapping[str, Choice]) -> nn.Module:
        return self._plain(choices)

    def _plain(self, choices: Mapping[str, Choice]) -> nn.Module:
        """The net of fixed choices, each of its edges replaced by the chosen candidate."""
        net = self._define(FixedChoices(choices))
        for path, edge in _edges(net).items():
            parent, _, attribute = path.rpartition(".")
            setattr(net.get_submodule(parent), attribute, edge.chosen(str(choices[path])))
        return net

    def inherit(self, network: nn.Module, student: nn.Module, choices: Mapping[str, Choice]) -> None:
        with torch.no_grad():
            inherit(network, student, choices)

    def active(self, choices: Mapping[str, Choice]) -> set[str]:
        """The variables that the net has at these knobs and whose cells or variants are there."""
        conditions = self._conditions[self.structure(choices)]
        return {name for name, all_of in conditions.items() if all(choices.get(v) in c for v, c in all_of)}

    def effects(self, knobs: Mapping[str, Choice]) -> tuple[Effect, ...]:
        conditions, effects = self._conditions[self.structure(knobs)], []
        for name in self.variables:
            if name not in conditions:
                effects.append(Effect(name, (), np.zeros((), dtype=bool)))
            elif conditions[name]:
                effects.append(self._effect(name, conditions[name]))
        return tuple(effects)

    def layers(self, name: str) -> tuple[int, ...] | None:
        return self._depths[name] if name in self._depths else super().layers(name)

    def _effect(self, name: str, conditions: tuple[Condition, ...]) -> Effect:
        deciders = tuple(dict.fromkeys(variable for variable, _ in conditions))
        holds = np.ones([len(self.variables[variable]) for variable in deciders], dtype=bool)
        for variable, allowed in conditions:
            shape = [1] * len(deciders)
            shape[deciders.index(variable)] = -1
            holds &= np.array([choice in allowed for choice in self.variables[variable]]).reshape(shape)
        return Effect(name, deciders, holds)

    def cost_table(self, knobs: Mapping[str, Choice]) -> CostTable:
        return self._measure(knobs).flops

    def figures(self, knobs: Mapping[str, Choice]) -> dict[str, tuple[CostTable, ...]]:
        """`params`: the number of parameters."""
        return {"params": (self._measure(knobs).params,)}

    def _measure(self, knobs: Mapping[str, Choice]) -> Measured:
        example = self.example_input(knobs)
        key = self.structure(knobs), tuple(example.shape)
        if key not in self._measured:
            with torch.random.fork_rng(devices=[]):
                choices, net = self._outline(knobs)
                first = {name: options[0] for name, options in self.variables.items()}
                fixed = {**first, **knobs}
                whole = count_student(self._define, fixed, example, lambda: self._plain(fixed))
                conditions = self._conditions[self.structure(knobs)]
                self._measured[key] = measure(net, choices.control, self.variables, conditions, example, whole)
        return self._measured[key]

    def example_input(self, knobs: Mapping[str, Choice]) -> Tensor:
        return self._example if isinstance(self._example, Tensor) else self._example(knobs)

    def fit_input(self, clip: Tensor, knobs: Mapping[str, Choice]) -> Tensor:
        return clip if self._fit_input is None else self._fit_input(clip, knobs)

    def size(self) -> int:
        """Number of canonical architectures."""
        free = prod(len(values) for name, values in self.knobs.items() if name not in self._structural)
        return free * sum(_number(conditions, self.variables) for conditions in self._conditions.values())


def _without_choices(build: Callable[..., nn.Module]) -> Define:
    return lambda _: build()


def _takes_choices(define: Callable[..., nn.Module]) -> bool:
    """Whether a definition wants `Choices`, or is an ordinary builder of a net with edges."""
    parameters = inspect.signature(define).parameters.values()
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _insert(variables: dict[str, tuple[Choice, ...]], new: Mapping[str, tuple[Choice, ...]]) -> None:
    """Add variables, in place: new ones stand before the known one that follows them."""
    names, place = list(variables), len(variables)
    for name in reversed(list(new)):
        if name in variables:
            place = names.index(name)
        else:
            names.insert(place, name)
    merged = {name: variables.get(name, new.get(name, ())) for name in names}
    variables.clear()
    variables.update(merged)


def _number(conditions: Conditions, variables: Mapping[str, tuple[Choice, ...]]) -> int:
    """How many choices there are for variables some of which have an effect under others only."""
    below: dict[str, dict[str, tuple[Condition, ...]]] = {}
    for name, all_of in conditions.items():
        if all_of:
            below.setdefault(all_of[0][0], {})[name] = all_of
    total = 1
    for name in (name for name, all_of in conditions.items() if not all_of):
        options = 0
        for choice in variables[name]:
            inner = {n: all_of[1:] for n, all_of in below.get(name, {}).items() if choice in all_of[0][1]}
            options += _number(inner, variables)
        total *= options
    return total


def _edges(module: nn.Module) -> dict[str, Edge]:
    return {path: m for path, m in module.named_modules() if isinstance(m, Edge)}


def _check_edges(module: nn.Module) -> None:
    edges = _edges(module)
    if "" in edges:
        raise ValueError("a searchable module cannot itself be an Edge; put the Edge inside a module")
    for path, edge in edges.items():
        names = [p for p, m in module.named_modules(remove_duplicate=False) if m is edge]
        if len(names) > 1:
            raise ValueError(f"an Edge needs one name, but one has {', '.join(names)}; call it twice instead")
        if inner := [p for p, m in edge.named_modules() if isinstance(m, Edge) and m is not edge]:
            raise ValueError(f"edges cannot be nested, but {path!r} holds {', '.join(inner)}; flatten them")
