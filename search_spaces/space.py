"""`SearchSpace`: the interface of all spaces. A space of a user implements its abstract methods."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from nas_kd.search_spaces.arch import ArchSpec, Choice, canonical_json
from nas_kd.search_spaces.chain import Effect
from nas_kd.search_spaces.cost import CostTable
from nas_kd.search_spaces.gates import Gate, GateFactory


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

    Examples:
        >>> space = nas_kd.load_config("demo.yaml").space.build(4)
        >>> arch = space.sample(np.random.default_rng(0))
        >>> space.cost(arch) == nas_kd.count_flops(space.student(arch), space.example_input(arch.choices)).total
        True
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

    @property
    def left_out(self) -> Mapping[str, str]:
        """Layers that the space was asked for or could have and leaves as they are -> why; none, unless a space says
        otherwise."""
        return {}

    @property
    def structural_knobs(self) -> tuple[str, ...]:
        """Knobs that decide which net there is; the others change what students see or cost. All, unless a space says
        otherwise."""
        return tuple(self.knobs)

    def active(self, choices: Mapping[str, Choice]) -> set[str]:
        """Names of the variables that have an effect under these choices; all, unless a space says otherwise."""
        return set(self.variables)

    def effects(self, knobs: Mapping[str, Choice]) -> tuple[Effect, ...]:
        """The content of `active` as tables, so that the most probable architectures are found without equal ones among
        them; the variables that always have an effect are left out. None, unless a space says otherwise."""
        return ()

    def fit_input(self, clip: Tensor, knobs: Mapping[str, Choice]) -> Tensor:
        """The student's view of the teacher's input; the input itself, unless a space has knobs that change it."""
        return clip

    def layers(self, name: str) -> tuple[int, ...] | None:
        """How many layers compute something under each choice of a variable, so that idle choices can be counted.

        Returns:
            For a variable of operators 0 for `idle_choices` and 1 for the others; for a depth the depth itself. None
            for what removes no layer: a width, a kernel.
        """
        choices = self.variables[name]
        if not all(isinstance(choice, str) for choice in choices):
            return None
        return tuple(int(choice not in self.idle_choices) for choice in choices)

    def figures(self, knobs: Mapping[str, Choice]) -> dict[str, tuple[CostTable, ...]]:
        """Other costs of students that can be limited, as tables with the variables of `cost_table`.

        Returns:
            Figure, such as `params` -> its tables. A figure is the largest of what its tables say: the FLOPs of the
            worst frame are those of a key frame or those of another one. None, unless a space says otherwise.
        """
        return {}

    def check_operators(self) -> None:  # noqa: B027  (most spaces take none)
        """Raise `ValueError` where an operator of the user's does not keep the contract of this space."""

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

    def knobs_of(self, arch: ArchSpec) -> dict[str, Choice]:
        """The knobs of an architecture."""
        return {name: arch.choices[name] for name in self.knobs}

    def structure(self, knobs: Mapping[str, Choice]) -> tuple[Choice, ...]:
        """The values of the structural knobs: equal for knobs that share one net."""
        return tuple(knobs[name] for name in self.structural_knobs)

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
        """Whether `arch` is a canonical architecture of this space; `check` raises with the reason where it is not."""
        try:
            return self.arch(arch.choices) == arch
        except (ValueError, KeyError):
            return False

    def check(self, arch: ArchSpec) -> None:
        """Raise `ValueError` with the reason where `arch` is not in this space."""
        if arch.space != self.name:
            raise ValueError(f"this space is {self.name!r}, but the architecture is of {arch.space!r}")
        found, expected = arch.as_dict()["settings"], json.loads(canonical_json(dict(self.settings)))
        if found != expected:
            apart = [
                f"{key} is {_short(found, key)} there and {_short(expected, key)} here"
                for key in sorted({*found, *expected})
                if key not in found or key not in expected or found[key] != expected[key]
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

    def is_open(self, knobs: Mapping[str, Choice]) -> bool:
        """Whether there is anything to choose at these knobs, beside the knobs themselves."""
        active = self.active(self.widest(knobs).choices)
        return any(len(self.variables[name]) > 1 for name in active)

    def sample(self, rng: np.random.Generator) -> ArchSpec:
        """An architecture with uniform choices (uniform over choices, not over canonical architectures)."""
        return self.arch(
            {n: values[int(rng.integers(len(values)))] for n, values in [*self.knobs.items(), *self.variables.items()]}
        )

    def mutate(self, arch: ArchSpec, rng: np.random.Generator) -> ArchSpec:
        """A different architecture, one choice away, for evolutionary searches; choices that become active are drawn.

        Args:
            arch: of this space.
            rng: draws the choice that changes and those that become active.

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

    def effect_probabilities(
        self, knobs: Mapping[str, Choice], probabilities: Mapping[str, Sequence[float]]
    ) -> dict[str, float]:
        """How probable it is that each variable has an effect, such as those of a cell that a depth may leave out.

        Args:
            knobs: of the space, complete.
            probabilities: variable -> that of each choice. Variables are independent.
        """
        found = dict.fromkeys(self.variables, 1.0)
        for effect in self.effects(knobs):
            holds = effect.holds.astype(np.float64)
            for decider in effect.deciders:  # the first axis that is left belongs to it
                holds = np.tensordot(np.asarray(probabilities[decider], dtype=np.float64), holds, axes=(0, 0))
            found[effect.variable] = float(holds)
        return found

    def figure(self, name: str, arch: ArchSpec) -> int:
        """A figure of `figures` for one architecture.

        Raises:
            ValueError: `arch` is not in this space, or the space does not have that figure.
        """
        self.check(arch)
        return max(table.cost(arch.choices) for table in self.figure_tables(name, arch.choices))

    def figure_tables(self, name: str, knobs: Mapping[str, Choice]) -> tuple[CostTable, ...]:
        """The tables of one figure; `flops` are among them.

        Raises:
            ValueError: the space does not have that figure.
        """
        own = {knob: knobs[knob] for knob in self.knobs}
        if name == "flops":
            return (self.cost_table(own),)
        figures = self.figures(own)
        if name not in figures:
            raise ValueError(
                f"space {self.name!r} has no table of {name}, so it cannot be limited; "
                f"limit {' or '.join(['flops', *figures])}"
            )
        return figures[name]

    def cost(self, arch: ArchSpec) -> int:
        """FLOPs of `arch` for one input."""
        self.check(arch)
        return self.cost_table(self.knobs_of(arch)).cost(arch.choices)


def _short(settings: Mapping[str, Any], key: str) -> str:
    """A setting as JSON, or that there is none."""
    text = canonical_json(settings[key]) if key in settings else "missing"
    return text if len(text) <= 120 else f"{text[:119]}…"


def derived_settings(
    settings: Mapping[str, Any], frame_size: tuple[int, int], identity: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What builds a space again that is made of a teacher's layers: `SearchSpace.settings` of such a space.

    Args:
        settings: of the space, as JSON values.
        frame_size: (H, W) of a frame.
        identity: identifies the teacher among others, as JSON values.
    """
    return {**settings, "frame_size": list(frame_size), "teacher": dict(identity or {})}


@runtime_checkable
class StandsForAnother(Protocol):
    """A layer of a supernet in whose place students have another module."""

    def student_module(self) -> nn.Module:
        """That module at its largest, with the weights of this layer."""
        ...


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
