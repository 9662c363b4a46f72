"""`SearchSpace`: what can be searched. A user's own space implements the abstract methods below and nothing more."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.arch import ArchSpec, Choice, canonical_json
from search_spaces.cells import Edge
from search_spaces.cost import CostTable, CostTerm
from search_spaces.flops import count_flops
from search_spaces.gates import Gate, GateFactory, named_gate


class SearchSpace(ABC):
    """A family of students.

    Two kinds of freedom: *variables*, which gates decide inside one supernet (ops, widths, depths), and *knobs*, which
    are fixed for a supernet and which an outer search proposes (resolution, frames).

    Attributes:
        name: of the space.
        settings: what builds it again, as JSON values; part of every `ArchSpec`.
        knobs: knob -> its values.
        variables: gate -> its choices, in the order of the net.
        idle_choices: choices with which an edge computes nothing of its own; many of them are a sign of a collapsed
            search.
    """

    idle_choices: ClassVar[tuple[str, ...]] = ("zero", "identity")
    name: str
    settings: Mapping[str, Any]
    knobs: Mapping[str, tuple[Choice, ...]]
    variables: Mapping[str, tuple[Choice, ...]]

    @abstractmethod
    def network(self, knobs: Mapping[str, Choice], make_gate: GateFactory) -> nn.Module:
        """The net with all candidates; each `Gate` in it is named like a variable."""

    @abstractmethod
    def build_student(self, choices: Mapping[str, Choice]) -> nn.Module:
        """The plain net of canonical choices, with fresh weights."""

    @abstractmethod
    def inherit(self, network: nn.Module, student: nn.Module, choices: Mapping[str, Choice]) -> None:
        """Copy the weights of `network` that `student` uses, so that both compute the same."""

    @abstractmethod
    def cost_table(self, knobs: Mapping[str, Choice]) -> CostTable:
        """FLOPs of every candidate at its real shapes, for one input (batch size 1)."""

    @abstractmethod
    def example_input(self, knobs: Mapping[str, Choice]) -> Tensor:
        """Zeros of the student's input shape, with batch size 1."""

    def active(self, choices: Mapping[str, Choice]) -> set[str]:
        """Names of the variables that have an effect under these choices; all, unless a space says otherwise."""
        return set(self.variables)

    def fit_input(self, clip: Tensor, knobs: Mapping[str, Choice]) -> Tensor:
        """The student's view of the teacher's input; the input itself, unless a space has knobs that change it."""
        return clip

    # What follows is the same for all spaces.

    def knobs_with(self, knobs: Mapping[str, Choice] | None = None) -> dict[str, Choice]:
        """Complete knobs; those not given take their largest (last) value.

        Raises:
            ValueError: unknown knob or value.
        """
        complete = {name: values[-1] for name, values in self.knobs.items()}
        for name, value in (knobs or {}).items():
            if name not in self.knobs:
                raise ValueError(f"unknown knob {name!r} of space {self.name!r}; choose from {', '.join(self.knobs)}")
            if value not in self.knobs[name]:
                raise ValueError(f"knob {name!r} must be one of {list(self.knobs[name])}, but got {value!r}")
            complete[name] = value
        return complete

    def arch(self, choices: Mapping[str, Choice]) -> ArchSpec:
        """The canonical spec of complete choices (variables and knobs): choices without effect are dropped.

        Raises:
            ValueError: an unknown name or choice, or one that is missing.
        """
        knobs = self.knobs_with({n: c for n, c in choices.items() if n not in self.variables})
        if missing := self.knobs.keys() - choices.keys():
            raise ValueError(f"an architecture of space {self.name!r} needs the knobs {sorted(missing)}")
        active = self.active(choices)
        if missing := active - choices.keys():
            raise ValueError(f"an architecture of space {self.name!r} needs a choice for {', '.join(sorted(missing))}")
        for name in active:
            if choices[name] not in self.variables[name]:
                raise ValueError(f"{name} must be one of {list(self.variables[name])}, but got {choices[name]!r}")
        return ArchSpec(self.name, self.settings, {**knobs, **{name: choices[name] for name in active}})

    def contains(self, arch: ArchSpec) -> bool:
        """Whether `arch` is a canonical architecture of this space."""
        try:
            return self.arch(arch.choices) == arch
        except (ValueError, KeyError):
            return False

    def check(self, arch: ArchSpec) -> None:
        """Raise `ValueError` with the reason where `arch` is not in this space."""
        if arch.space != self.name:
            raise ValueError(f"this space is {self.name!r}, but the architecture is of {arch.space!r}")
        theirs, ours = arch.as_dict()["settings"], json.loads(canonical_json(dict(self.settings)))
        if theirs != ours:
            apart = [
                f"{key} is {_short(theirs.get(key))} there and {_short(ours.get(key))} here"
                for key in sorted({*theirs, *ours})
                if theirs.get(key) != ours.get(key)
            ]
            raise ValueError(
                f"architecture {arch.arch_id} was made with other settings of space {self.name!r}: "
                f"{', '.join(apart)}; build the space with the settings that are there"
            )
        if self.arch(arch.choices) != arch:
            raise ValueError(
                f"architecture {arch.arch_id} holds choices without effect; make it with the arch() of its space"
            )

    def student(self, arch: ArchSpec) -> nn.Module:
        """The plain net of `arch` with fresh weights.

        Raises:
            ValueError: `arch` is not in this space.
        """
        self.check(arch)
        return self.build_student(arch.choices)

    def widest(self, knobs: Mapping[str, Choice]) -> ArchSpec:
        """The last choice of every variable: the largest one, where choices ascend."""
        return self.arch({**self.knobs_with(knobs), **{name: values[-1] for name, values in self.variables.items()}})

    def sample(self, rng: np.random.Generator) -> ArchSpec:
        """An architecture with uniform choices (uniform over choices, not over canonical architectures)."""
        return self.arch(
            {n: values[int(rng.integers(len(values)))] for n, values in [*self.knobs.items(), *self.variables.items()]}
        )

    def mutate(self, arch: ArchSpec, rng: np.random.Generator) -> ArchSpec:
        """A different architecture, one choice away; choices that become active are drawn uniformly.

        Raises:
            ValueError: `arch` is not in this space, or the space has only one architecture.
        """
        self.check(arch)
        options = {**self.knobs, **self.variables}
        mutable = [name for name in arch.choices if len(options[name]) > 1]
        if not mutable:
            raise ValueError(f"space {self.name!r} leaves nothing open around architecture {arch.arch_id}")
        name = mutable[int(rng.integers(len(mutable)))]
        others = [c for c in options[name] if c != arch.choices[name]]
        choices = dict(self.sample(rng).choices)
        for variable, values in self.variables.items():  # the sample has only what is active in itself
            choices.setdefault(variable, values[int(rng.integers(len(values)))])
        return self.arch({**choices, **arch.choices, name: others[int(rng.integers(len(others)))]})

    def size(self) -> int:
        """Number of architectures; a space whose choices may lack effect overrides it to count canonical ones."""
        return prod(len(values) for values in [*self.knobs.values(), *self.variables.values()])

    def cost(self, arch: ArchSpec) -> int:
        """FLOPs of `arch` for one input."""
        self.check(arch)
        return self.cost_table({n: arch.choices[n] for n in self.knobs}).flops(arch.choices)


class ModuleSpace(SearchSpace):
    """The space of any module that contains `Edge`s: one choice an edge.

    Args:
        build: makes the module; called for each supernet and student.
        example: an input of the module with batch size 1.
        name: of the space.

    Raises:
        ValueError: the module has no edge, is one itself, holds one inside another, or holds one under two names.
    """

    def __init__(self, build: Callable[[], nn.Module], example: Tensor, name: str = "module") -> None:
        self.name, self.settings, self.knobs = name, {}, {}
        self._build, self._example = build, example
        self._table: CostTable | None = None
        module = build()
        self.variables = {path: edge.gate.choices for path, edge in _edges(module).items()}
        if not self.variables:
            raise ValueError("a searchable module needs at least one search_spaces.Edge, but this one has none")
        if "" in self.variables:
            raise ValueError("a searchable module cannot itself be an Edge; put the Edge inside a module")
        for path, edge in _edges(module).items():
            names = [p for p, m in module.named_modules(remove_duplicate=False) if m is edge]
            if len(names) > 1:
                raise ValueError(f"an Edge needs one name, but one has {', '.join(names)}; call it twice instead")
            if inner := [p for p, m in edge.named_modules() if isinstance(m, Edge) and m is not edge]:
                raise ValueError(f"edges cannot be nested, but {path!r} holds {', '.join(inner)}; flatten them")

    def network(self, knobs: Mapping[str, Choice], make_gate: GateFactory) -> nn.Module:
        network = self._build()
        for path, edge in _edges(network).items():
            edge.gate = named_gate(make_gate, edge.gate.choices, path)
        return network

    def build_student(self, choices: Mapping[str, Choice]) -> nn.Module:
        return self._derived(self._build(), choices)

    def inherit(self, network: nn.Module, student: nn.Module, choices: Mapping[str, Choice]) -> None:
        weights = network.state_dict()
        for path, edge in _edges(network).items():
            weights = {name: w for name, w in weights.items() if not name.startswith(f"{path}.")}
            chosen = edge.candidates[str(choices[path])].state_dict()
            weights |= {f"{path}.{name}": w for name, w in chosen.items()}
        student.load_state_dict(weights)

    def cost_table(self, knobs: Mapping[str, Choice]) -> CostTable:
        if self._table is None:
            self._table = self._measured()
        return self._table

    def _measured(self) -> CostTable:
        network = self._build().eval()
        calls: dict[str, list[tuple[Any, ...]]] = {path: [] for path in _edges(network)}
        hooks = [
            edge.register_forward_pre_hook(lambda _, inputs, path=path: calls[path].append(inputs))
            for path, edge in _edges(network).items()
        ]
        with torch.no_grad():
            network(self._example)
        for hook in hooks:
            hook.remove()
        terms: list[CostTerm] = []
        free: set[str] = set()
        for path, edge in _edges(network).items():
            if not calls[path]:
                raise ValueError(f"edge {path!r} does not run in the module's forward pass; use it or remove it")
            flops = np.zeros(len(edge.candidates), dtype=np.int64)
            for inputs in calls[path]:  # an edge that is called twice costs twice
                counts = [count_flops(candidate, inputs) for candidate in edge.candidates.values()]
                free.update(op for count in counts for op in count.uncounted)
                flops += np.array([count.total for count in counts], dtype=np.int64)
            terms.append(CostTerm(path, (path,), flops))
        first = {path: choices[0] for path, choices in self.variables.items()}
        whole = count_flops(self._derived(network, first), self._example)
        constant = whole.total - sum(int(term.flops[0]) for term in terms)
        return CostTable(self.variables, tuple(terms), constant, tuple(sorted(free | set(whole.uncounted))))

    def example_input(self, knobs: Mapping[str, Choice]) -> Tensor:
        return self._example

    @staticmethod
    def _derived(module: nn.Module, choices: Mapping[str, Choice]) -> nn.Module:
        """`module` with each edge replaced, in place, by its chosen candidate."""
        for path, edge in _edges(module).items():
            parent, _, attribute = path.rpartition(".")
            setattr(module.get_submodule(parent), attribute, edge.chosen(str(choices[path])))
        return module


def _short(value: Any) -> str:
    """A value of settings, as JSON."""
    text = "missing" if value is None else canonical_json(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _edges(module: nn.Module) -> dict[str, Edge]:
    return {path: m for path, m in module.named_modules() if isinstance(m, Edge)}


def gates_of(network: nn.Module) -> dict[str, Gate]:
    """Variable name -> gate, for all gates of a net."""
    return {gate.name: gate for gate in network.modules() if isinstance(gate, Gate)}


def resampled(clip: Tensor, side: int) -> Tensor:
    """(N, 3, T, H, W) -> (N, 3, T, side, side), bilinearly; the clip itself where it has that size."""
    if clip.shape[3:] == (side, side):
        return clip
    frames = clip.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=(side, side), mode="bilinear", align_corners=False)
    return frames.reshape(-1, clip.shape[2], *frames.shape[1:]).transpose(1, 2)
