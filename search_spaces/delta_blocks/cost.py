"""Costs of the space `delta_blocks`: every candidate is measured at its layer's real shapes, equal shapes once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.chain import Effect
from nas_kd.search_spaces.cost import CostTable, CostTerm
from nas_kd.search_spaces.delta_blocks.net import DeltaLayer, PassContext
from nas_kd.search_spaces.delta_blocks.ops import DeltaOp, LinearDelta, PairDelta, ZeroDelta
from nas_kd.search_spaces.delta_blocks.plan import ALWAYS, Plan, PlannedLayer
from nas_kd.search_spaces.flops import UncountedOpError, count_flops, count_params
from nas_kd.search_spaces.operators import check_output, is_reference


def is_read(layer: PlannedLayer, choices: Mapping[str, Choice]) -> bool:
    """Whether anything reads the layer's output on delta frames."""
    return any(all(choices.get(name) != "zero" for name in term) for term in layer.alive)


def deciders(layer: PlannedLayer) -> list[str]:
    """The layers whose choices decide whether anything reads the layer's output on delta frames."""
    return sorted(frozenset[str]().union(*layer.alive)) if layer.alive != ALWAYS else []


def read_effects(layers: Sequence[PlannedLayer], variables: Mapping[str, tuple[Choice, ...]]) -> tuple[Effect, ...]:
    """`is_read` for all choices of the layers that decide it, of each layer that may be without a reader."""
    effects = []
    for layer in layers:
        names = tuple(deciders(layer))
        if names:
            holds = np.zeros([len(variables[name]) for name in names], dtype=bool)
            for index in np.ndindex(holds.shape):
                chosen = {name: variables[name][i] for name, i in zip(names, index, strict=True)}
                holds[index] = is_read(layer, chosen)
            effects.append(Effect(layer.name, names, holds))
    return tuple(effects)


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
        conditions = deciders(layer)
        names = (layer.name, *conditions)
        costs: npt.NDArray[np.int64] = np.zeros([len(variables[n]) for n in names], dtype=np.int64)
        for index in product(*(range(len(variables[n])) for n in conditions)):
            chosen = {n: variables[n][i] for n, i in zip(conditions, index, strict=True)}
            if is_read(layer, chosen):
                costs[(slice(None), *index)] = totals  # type: ignore[index]
        terms.append(CostTerm(layer.name, names, costs))
    return tuple(terms)


class Counted(NamedTuple):
    """What a candidate costs in its layer.

    Attributes:
        frame: FLOPs of a delta frame.
        remembered: FLOPs on a key frame for what is remembered.
        params: number of parameters.
        keeps_input: whether the layer's input itself is remembered, and not a copy.
        memory_bytes: of all else that is remembered of a key frame.
        uncounted: free operators.
    """

    frame: int
    remembered: int
    params: int
    keeps_input: bool
    memory_bytes: int
    uncounted: tuple[str, ...]


_COUNTED: dict[Any, Counted | None] = {}
"""Candidate and signature of a layer -> its costs, once a process: a campaign derives its space several times."""


class CandidateCosts:
    """Costs of candidates, each counted once for layers of one shape.

    Args:
        plan: the layers.
        candidates: names that any layer may have.
        longest: the longest key-frame interval.
        build: (layer, name) -> the candidate, or None where the layer cannot have it.
    """

    def __init__(
        self,
        plan: Plan,
        candidates: Sequence[str],
        longest: int,
        build: Callable[[PlannedLayer, str], DeltaOp | None],
    ) -> None:
        self.plan, self.candidates, self.longest, self.build = plan, candidates, longest, build
        self._own: dict[Any, Counted | None] = {}  # of layers that only this teacher has, and of the user's candidates

    def choices(self, layer: PlannedLayer) -> tuple[Choice, ...]:
        """Candidates that fit a layer and cost less than its full copy, by increasing cost; the copy is last.

        Costs are those of the longest interval, where what is remembered weighs least.
        """
        costs = {}
        for name in self.candidates:
            cost = self.of(layer, name)
            if cost is not None:
                costs[name] = (self.longest - 1) * cost.frame + cost.remembered
        cheaper = [name for name in costs if name == "full" or costs[name] < costs["full"]]
        return tuple(sorted(cheaper, key=lambda name: (name == "full", costs[name])))

    def of(self, layer: PlannedLayer, name: str) -> Counted | None:
        """What a candidate costs, or None where the layer cannot have it."""
        own = layer.shape.weight is None or is_reference(name)  # the user's function may be another one next time
        counted = self._own if own else _COUNTED
        key = (name, layer.may_be_zero, layer.copy_input, *signature(layer))
        if key not in counted:
            with torch.random.fork_rng(devices=[]):
                counted[key] = self._measure(layer, name)
        return counted[key]

    def offered(self, layer: PlannedLayer, choice: Choice) -> Counted:
        """What a choice of the layer's variable costs."""
        counted = self.of(layer, str(choice))
        assert counted is not None, "variables hold what layers can have"
        return counted

    def _measure(self, layer: PlannedLayer, name: str) -> Counted | None:
        if (weight := layer.shape.weight) is not None:  # costs need no initialisation
            layer = replace(layer, shape=replace(layer.shape, weight=weight.new_zeros(()).expand_as(weight)))
        op = self.build(layer, name)
        if op is None:
            return None
        if isinstance(op, ZeroDelta):
            return Counted(0, 0, 0, False, 0, ())
        x, z = torch.zeros(layer.in_shape), torch.zeros(layer.out_shape)
        if is_reference(name):
            assert isinstance(op, LinearDelta | PairDelta), "as own_candidate returns them"
            check_output(name, op.body, x, layer.out_shape)
        with torch.no_grad():
            memory = op.remember(x)
            change, _ = op.change(x, *memory)
        if change.shape != z.shape:  # a padding other than the usual one, at a lower resolution
            return None
        delta = DeltaLayer(
            None, op, layer.name, PassContext("delta", state={layer.name: (z, *memory)}), layer.out_shape[1:]
        )
        try:
            frame = count_flops(delta, x)
        except UncountedOpError as error:
            raise ValueError(f"candidate {name!r}: {error}") from error
        remembered = count_flops(op.body, x).total if isinstance(op, PairDelta) else 0
        if layer.copy_input:
            memory = tuple(tensor.clone() for tensor in memory)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in memory}
        keeps_input = storages.pop(x.untyped_storage().data_ptr(), None) is not None
        params = count_params(op)
        return Counted(frame.total, remembered, params, keeps_input, sum(storages.values()), tuple(frame.uncounted))

    def table(self, variables: Mapping[str, tuple[Choice, ...]], interval: int) -> CostTable:
        """FLOPs of an interval.

        Args:
            variables: of the space.
            interval: K.
        """
        free = set[str]()

        def cost(layer: PlannedLayer, choice: str) -> int:
            counted = self.offered(layer, choice)
            free.update(counted.uncounted)
            return (interval - 1) * counted.frame + (counted.remembered if interval > 1 else 0)

        terms = cost_terms(self.plan.layers, variables, cost)
        constant = interval * self.plan.rest_flops + sum(layer.flops for layer in self.plan.layers)
        return CostTable(variables, terms, constant, tuple(sorted(free)), interval)
