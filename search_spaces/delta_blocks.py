"""Space `delta_blocks`: students of a teacher's own layers, which predict how their outputs change after a key frame.

Every eligible layer of the teacher (`delta_plan`) becomes a delta layer (`delta_net`) whose gate chooses among the
candidates of `delta_ops`: cheap linear students initialised from the teacher's kernel, non-linear ones, a full copy,
and `zero`, which keeps the key frame's output. The key-frame interval is a knob.

FLOPs are those of one key-frame interval of K frames; what is reported is their amortised share, a frame.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces.arch import Choice
from search_spaces.cells import Edge
from search_spaces.cost import CostTable, CostTerm
from search_spaces.delta_net import DeltaLayer, DeltaNet, Stream
from search_spaces.delta_ops import DeltaOp, PairDelta, ZeroDelta, build_candidate, parse_candidate
from search_spaces.delta_plan import ALWAYS, PlannedLayer, plan_layers
from search_spaces.flops import count_flops
from search_spaces.fold import fold_batchnorm, replace_module
from search_spaces.gates import GateFactory
from search_spaces.space import SearchSpace

CANDIDATES = (
    "zero", "lowres4", "pointwise8", "lowres2", "split8", "bottleneck8", "shuffle4", "pair8", "pointwise2", "grouped4",
    "split4", "separable", "bottleneck4", "split2", "full",
)  # fmt: skip


class DeltaBlocksSettings(BaseModel):
    """What of a teacher is searched.

    Attributes:
        keyframe_interval: intervals K to choose from, or the only one; a student has one.
        candidates: of every layer; one that a layer cannot have, or that costs no less than its full copy, is left
            out there.
        include: patterns (`*`, `?`) of module names; only these layers become delta layers.
        exclude: patterns of layers that stay as they are.
        blocks: patterns of modules that become one delta layer as a whole.
        skip_first: number of layers at the start of the teacher that stay as they are.
        skip_last: likewise at the end.
        min_share: layers with less than this share of the teacher's FLOPs stay as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keyframe_interval: tuple[int, ...] = Field(default=(3,), min_length=1)
    candidates: tuple[str, ...] = Field(default=CANDIDATES, min_length=1)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    skip_first: int = Field(default=1, ge=0)
    skip_last: int = Field(default=1, ge=0)
    min_share: float = Field(default=0.001, ge=0, lt=1)

    @field_validator("candidates")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"candidates must differ, but they are {list(value)}")
        for name in value:
            if name != "zero":
                parse_candidate(name)
        if "full" not in value:
            raise ValueError("candidates must hold 'full', the copy of the teacher's layer that every layer can have")
        return value

    @field_validator("keyframe_interval", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("keyframe_interval")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 2:
            raise ValueError(
                f"keyframe_interval must be at least 2, but is {min(value)}; with 1 the teacher runs on every frame"
            )
        if list(value) != sorted(set(value)):
            raise ValueError(f"keyframe_interval must ascend without repetition, but is {list(value)}")
        return value


class DeltaBlocksSpace(SearchSpace):
    """The space described at the top of this module.

    Args:
        settings: what is searched.
        teacher: frames (N, 3, H, W) -> one tensor; copied, with BatchNorm folded into its convolutions.
        frame_size: (H, W) of a frame.
        identity: what tells this teacher from others, as JSON values; part of every `ArchSpec`.

    Attributes:
        plan: the teacher's delta layers, and why other layers are none.

    Raises:
        ValueError: no layer is eligible, a pattern matches nothing, or the teacher does not give one tensor for a
            frame, or gives another one when other frames are in the batch.
    """

    name = "delta_blocks"

    def __init__(
        self,
        settings: DeltaBlocksSettings,
        teacher: nn.Module,
        frame_size: tuple[int, int],
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self._s = settings
        self.frame_size = frame_size
        frame = torch.randn(1, 3, *frame_size, generator=torch.Generator().manual_seed(0))
        own = copy.deepcopy(teacher).cpu().eval()
        _check_teacher(own, frame)
        folded = fold_batchnorm(own, frame)
        for module in folded.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]  # z_0 must outlive the activation after it
        self._teacher: nn.Module = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._teacher.requires_grad_(False)
        self.plan = plan_layers(
            self._teacher,
            frame,
            include=settings.include,
            exclude=settings.exclude,
            blocks=settings.blocks,
            skip_first=settings.skip_first,
            skip_last=settings.skip_last,
            min_share=settings.min_share,
        )
        self.settings = {
            **settings.model_dump(mode="json"),
            "frame_size": list(frame_size),
            "teacher": dict(identity or {}),
        }
        self.knobs = {"keyframe_interval": settings.keyframe_interval}
        self._costs = _Costs(self)
        self.variables: Mapping[str, tuple[Choice, ...]] = {
            layer.name: self._costs.choices(layer) for layer in self.plan.layers
        }
        self._tables: dict[int, CostTable] = {}

    @property
    def teacher(self) -> nn.Module:
        """A copy of the folded teacher, frozen and on the CPU. The space keeps its own, whatever becomes of it."""
        return copy.deepcopy(self._teacher)

    # What a space must offer

    def network(self, knobs: Mapping[str, Choice], make_gate: GateFactory) -> nn.Module:
        def edge(layer: PlannedLayer) -> Edge:
            names = [str(choice) for choice in self.variables[layer.name]]
            layer = replace(layer, shape=replace(layer.shape, bases={}))  # decomposed once for all of its candidates
            built = Edge({name: self.candidate(layer, name) for name in names}, make_gate)
            built.gate.name = layer.name
            return built

        return self._net(int(knobs["keyframe_interval"]), edge)

    def build_student(self, choices: Mapping[str, Choice]) -> nn.Module:
        """The plain net; its weights are the teacher's, and those that candidates start with."""
        return self._net(
            int(choices["keyframe_interval"]),
            lambda layer: self.candidate(layer, str(choices[layer.name])) if layer.name in choices else None,
        )

    def inherit(self, network: nn.Module, student: nn.Module, choices: Mapping[str, Choice]) -> None:
        source, target = cast(DeltaNet, network).layers(), cast(DeltaNet, student).layers()
        weights = {n: w for n, w in network.state_dict().items() if n in student.state_dict()}
        student.load_state_dict(weights, strict=False)
        for name, layer in target.items():
            if layer.student is not None:
                candidates = cast(Edge, source[name].student).candidates
                layer.student.load_state_dict(candidates[str(choices[name])].state_dict())

    def cost_table(self, knobs: Mapping[str, Choice]) -> CostTable:
        interval = int(knobs["keyframe_interval"])
        if interval not in self._tables:
            self._tables[interval] = self._costs.table(interval)
        return self._tables[interval]

    def example_input(self, knobs: Mapping[str, Choice]) -> Tensor:
        """One key-frame interval: (1, 3, K, H, W)."""
        return torch.zeros(1, 3, int(knobs["keyframe_interval"]), *self.frame_size)

    def active(self, choices: Mapping[str, Choice]) -> set[str]:
        """All layers but those whose output nobody reads on delta frames."""
        return {layer.name for layer in self.plan.layers if _lives(layer, choices)}

    # For campaigns and runtimes

    def candidate(self, layer: PlannedLayer, name: str) -> DeltaOp:
        """A candidate of a layer, with the weights that it starts with."""
        op = self._try(layer, name)
        assert op is not None, "variables hold what layers can have"
        return op.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _try(self, layer: PlannedLayer, name: str) -> DeltaOp | None:
        if name == "full" and layer.shape.weight is None:
            block = copy.deepcopy(self._teacher.get_submodule(layer.name))
            return PairDelta(block.requires_grad_(True))
        if name == "zero" and not layer.may_be_zero:
            return None
        return build_candidate(name, layer.shape)

    def _net(self, interval: int, student_of: Any) -> DeltaNet:
        net, stream = copy.deepcopy(self._teacher), Stream()
        for layer in self.plan.layers:
            module = net.get_submodule(layer.name)
            delta = DeltaLayer(
                module,
                student_of(layer),
                layer.name,
                stream,
                layer.out_shape[1:],
                copy_input=layer.copy_input,
                copy_output=layer.copy_output,
            )
            replace_module(net, module, delta)
        return DeltaNet(net, interval)


def _check_teacher(teacher: nn.Module, frame: Tensor) -> None:
    """Raise `ValueError` where a module cannot be the teacher of streams of such frames."""
    shape = f"of shape {tuple(frame.shape)}"
    for name, module in teacher.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"the teacher's output for a frame must not depend on other frames, but {name or 'it'} normalises with "
                "the statistics of its batch; give it running statistics (track_running_stats=True)"
            )
    other = 2 * frame.flip(-1) + 1
    try:
        with torch.no_grad():
            alone, beside = teacher(frame.clone()), teacher(torch.cat([frame, other]))
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"the teacher could not run a frame {shape}, alone or in a batch of two: {reason}; set data.size (or "
            "frame_size) or change the teacher"
        ) from error
    if not isinstance(alone, Tensor):
        raise ValueError(
            f"the teacher must give one tensor for a frame {shape}, but gives a {type(alone).__name__}; wrap it in a "
            "module that picks it"
        )
    if alone.ndim == 0 or len(alone) != 1 or beside.shape != (2, *alone.shape[1:]):
        raise ValueError(
            f"the teacher must give one row for each frame, but for one {shape} it gives {tuple(alone.shape)} and for "
            f"two {tuple(beside.shape)}; wrap it in a module that keeps the batch as the first dimension"
        )
    if alone.is_floating_point() and (beside[:1] - alone).abs().max() > 1e-2 * alone.abs().max():
        raise ValueError(
            f"the teacher's output for a frame {shape} must not depend on other frames, but it changes with another "
            "one in the batch; replace what computes statistics over the batch"
        )


def _lives(layer: PlannedLayer, choices: Mapping[str, Choice]) -> bool:
    return any(all(choices.get(name) != "zero" for name in term) for term in layer.alive)


def signature(layer: PlannedLayer) -> tuple[Any, ...]:
    """What the costs of a layer's candidates depend on; equal for layers of one shape."""
    shape = layer.shape
    own = layer.name if shape.weight is None else ""
    return (
        own, shape.in_channels, shape.out_channels, shape.kernel, shape.stride, shape.padding, shape.dilation,
        shape.groups, layer.in_shape, layer.out_shape,
    )  # fmt: skip


def cost_terms(
    layers: Sequence[PlannedLayer],
    variables: Mapping[str, tuple[Choice, ...]],
    cost: Callable[[PlannedLayer, str], int],
) -> tuple[CostTerm, ...]:
    """One term a layer: what its candidates cost in an interval, and nothing where nobody reads its output.

    Args:
        layers: of the plan.
        variables: of the space.
        cost: (layer, candidate) -> cost of a whole interval.
    """
    terms = []
    for layer in layers:
        totals = [cost(layer, str(choice)) for choice in variables[layer.name]]
        conditions = sorted(frozenset[str]().union(*layer.alive)) if layer.alive != ALWAYS else []
        names = (layer.name, *conditions)
        costs: npt.NDArray[np.int64] = np.zeros([len(variables[n]) for n in names], dtype=np.int64)
        for index in product(*(range(len(variables[n])) for n in conditions)):
            chosen = {n: variables[n][i] for n, i in zip(conditions, index, strict=True)}
            if _lives(layer, chosen):
                costs[(slice(None), *index)] = totals  # type: ignore[index]
        terms.append(CostTerm(layer.name, names, costs))
    return tuple(terms)


class _Costs:
    """FLOPs of candidates, each counted once for layers of one shape."""

    def __init__(self, space: DeltaBlocksSpace) -> None:
        self.space = space
        self._counted: dict[Any, tuple[int, int, tuple[str, ...]] | None] = {}

    def choices(self, layer: PlannedLayer) -> tuple[Choice, ...]:
        """Candidates that fit a layer and cost less than its full copy, by increasing cost; the copy is last.

        Costs are those of the longest interval, where what is remembered weighs least.
        """
        interval, costs = self.space._s.keyframe_interval[-1], {}
        for name in self.space._s.candidates:
            if (cost := self.of(layer, name)) is not None:
                costs[name] = (interval - 1) * cost[0] + cost[1]
        cheaper = [name for name in costs if name == "full" or costs[name] < costs["full"]]
        return tuple(sorted(cheaper, key=lambda name: (name == "full", costs[name])))

    def of(self, layer: PlannedLayer, name: str) -> tuple[int, int, tuple[str, ...]] | None:
        """(FLOPs of a delta frame, FLOPs on a key frame for what is remembered, free operators), or None."""
        key = (name, layer.may_be_zero, *signature(layer))
        if key not in self._counted:
            with torch.random.fork_rng(devices=[]):
                self._counted[key] = self._measure(layer, name)
        return self._counted[key]

    def _measure(self, layer: PlannedLayer, name: str) -> tuple[int, int, tuple[str, ...]] | None:
        if (weight := layer.shape.weight) is not None:  # costs need no initialisation
            layer = replace(layer, shape=replace(layer.shape, weight=weight.new_zeros(()).expand_as(weight)))
        op = self.space._try(layer, name)
        if op is None:
            return None
        if isinstance(op, ZeroDelta):
            return 0, 0, ()
        x, z = torch.zeros(layer.in_shape), torch.zeros(layer.out_shape)
        with torch.no_grad():
            memory = op.remember(x)
            change, _ = op.change(x, *memory)
        if change.shape != z.shape:  # a padding other than the usual one, at a lower resolution
            return None
        delta = DeltaLayer(None, op, layer.name, Stream("delta", state={layer.name: (z, *memory)}), layer.out_shape[1:])
        frame = count_flops(delta, x)
        remembered = count_flops(op.body, x).total if isinstance(op, PairDelta) else 0
        return frame.total, remembered, tuple(frame.uncounted)

    def table(self, interval: int) -> CostTable:
        """FLOPs of an interval."""
        space, plan = self.space, self.space.plan
        free = set[str]()

        def cost(layer: PlannedLayer, choice: str) -> int:
            counted = self.of(layer, choice)
            assert counted is not None, "variables hold what layers can have"
            frame, remembered, uncounted = counted
            free.update(uncounted)
            return (interval - 1) * frame + (remembered if interval > 1 else 0)

        terms = cost_terms(plan.layers, space.variables, cost)
        constant = interval * plan.rest_flops + sum(layer.flops for layer in plan.layers)
        return CostTable(space.variables, terms, constant, tuple(sorted(free)), interval)
