"""Costs of the space `delta_blocks`: every candidate is measured at its layer's real shapes, equal shapes once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.cost import CostTable, CostTerm
from nas_kd.search_spaces.delta_blocks.net import DeltaLayer, Stream
from nas_kd.search_spaces.delta_blocks.ops import DeltaOp, PairDelta, ZeroDelta
from nas_kd.search_spaces.delta_blocks.plan import ALWAYS, Plan, PlannedLayer
from nas_kd.search_spaces.flops import count_flops


def is_read(layer: PlannedLayer, choices: Mapping[str, Choice]) -> bool:
    """Whether anything reads the layer's output on delta frames."""
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
            if is_read(layer, chosen):
                costs[(slice(None), *index)] = totals  # type: ignore[index]
        terms.append(CostTerm(layer.name, names, costs))
    return tuple(terms)


class CandidateCosts:
    """FLOPs of candidates, each counted once for layers of one shape.

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
        self._counted: dict[Any, tuple[int, int, tuple[str, ...]] | None] = {}

    def choices(self, layer: PlannedLayer) -> tuple[Choice, ...]:
        """Candidates that fit a layer and cost less than its full copy, by increasing cost; the copy is last.

        Costs are those of the longest interval, where what is remembered weighs least.
        """
        costs = {}
        for name in self.candidates:
            cost = self.of(layer, name)
            if cost is not None:
                costs[name] = (self.longest - 1) * cost[0] + cost[1]
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
        op = self.build(layer, name)
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

    def table(self, variables: Mapping[str, tuple[Choice, ...]], interval: int) -> CostTable:
        """FLOPs of an interval.

        Args:
            variables: of the space.
            interval: K.
        """
        free = set[str]()

        def cost(layer: PlannedLayer, choice: str) -> int:
            counted = self.of(layer, choice)
            assert counted is not None, "variables hold what layers can have"
            frame, remembered, uncounted = counted
            free.update(uncounted)
            return (interval - 1) * frame + (remembered if interval > 1 else 0)

        terms = cost_terms(self.plan.layers, variables, cost)
        constant = interval * self.plan.rest_flops + sum(layer.flops for layer in self.plan.layers)
        return CostTable(variables, terms, constant, tuple(sorted(free)), interval)
