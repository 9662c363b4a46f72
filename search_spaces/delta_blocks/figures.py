"""Tables of further costs of the students of `delta_blocks`: parameters, FLOPs of the worst frame, bytes of the state.

Parameters, and FLOPs of a key frame and of a delta frame, are sums over layers. The FLOPs of the worst frame are the
larger one of two such sums, so they are a pair of tables. The bytes of a state are a sum over memory: tensors that
share memory count once, such as the input of two layers, so a term may depend on several layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.cost import CostTable, CostTerm
from nas_kd.search_spaces.delta_blocks.cost import CandidateCosts, cost_terms, deciders, is_read
from nas_kd.search_spaces.delta_blocks.plan import PlannedLayer
from nas_kd.search_spaces.flops import count_params

_MAX_ENTRIES = 1 << 20  # of one term

Variables = Mapping[str, tuple[Choice, ...]]


def params_table(costs: CandidateCosts, variables: Variables, teacher: nn.Module) -> CostTable:
    """Parameters of a student: those of the teacher, and those of its candidates."""
    terms = cost_terms(costs.plan.layers, variables, lambda layer, choice: costs.offered(layer, choice).params)
    constant = count_params(teacher)
    return CostTable(variables, terms, constant, unit="parameters")


def frame_tables(costs: CandidateCosts, variables: Variables) -> tuple[CostTable, CostTable]:
    """(FLOPs of a key frame, FLOPs of a delta frame)."""
    plan = costs.plan
    key = cost_terms(plan.layers, variables, lambda layer, choice: costs.offered(layer, choice).remembered)
    delta = cost_terms(plan.layers, variables, lambda layer, choice: costs.offered(layer, choice).frame)
    return CostTable(variables, key, plan.teacher_flops), CostTable(variables, delta, plan.rest_flops)


@dataclass
class _Memory:
    """A piece of memory of a key frame, and who keeps it.

    Attributes:
        nbytes: its size.
        outputs: layers whose output it is.
        inputs: layers whose input it is.
    """

    nbytes: int
    outputs: list[PlannedLayer] = field(default_factory=list)
    inputs: list[PlannedLayer] = field(default_factory=list)


def state_table(costs: CandidateCosts, variables: Variables, teacher: nn.Module, frame: Tensor) -> CostTable | None:
    """Bytes that one stream keeps between frames.

    Args:
        costs: of the candidates.
        variables: of the space.
        teacher: that the space is made of.
        frame: (1, 3, H, W).

    Returns:
        The table, or None where one piece of memory is shared by so many layers that its term would be too large.
    """
    layers = costs.plan.layers
    own = cost_terms(layers, variables, lambda layer, choice: costs.offered(layer, choice).memory_bytes)
    terms, constant = list(own), 0
    for memory in _memories(layers, teacher, frame):
        if any(not deciders(layer) for layer in memory.outputs):
            constant += memory.nbytes
            continue
        keepers = [*memory.outputs, *memory.inputs]
        names = {name for layer in keepers for name in deciders(layer)} | {layer.name for layer in memory.inputs}
        axes = tuple(name for name in variables if name in names)
        if prod(len(variables[name]) for name in axes) > _MAX_ENTRIES:
            return None
        held: npt.NDArray[np.int64] = np.zeros([len(variables[name]) for name in axes], dtype=np.int64)
        for index in product(*(range(len(variables[name])) for name in axes)):
            chosen = {name: variables[name][i] for name, i in zip(axes, index, strict=True)}
            held[index] = memory.nbytes * _is_kept(memory, chosen, costs)
        if axes and held.any():
            terms.append(CostTerm(" ".join(layer.name for layer in keepers), axes, held))
    return CostTable(variables, tuple(terms), constant, unit="bytes")


def _is_kept(memory: _Memory, chosen: Mapping[str, Choice], costs: CandidateCosts) -> bool:
    return any(is_read(layer, chosen) for layer in memory.outputs) or any(
        is_read(layer, chosen) and costs.offered(layer, chosen[layer.name]).keeps_input for layer in memory.inputs
    )


def _memories(layers: tuple[PlannedLayer, ...], teacher: nn.Module, frame: Tensor) -> list[_Memory]:
    """The inputs and outputs of all layers on a key frame, tensors that share memory as one."""
    memories: dict[int, _Memory] = {}
    kept: list[Tensor] = []  # so that no memory is used again

    def of(tensor: Tensor, copied: bool) -> _Memory:
        tensor = tensor.clone() if copied else tensor
        kept.append(tensor)
        storage = tensor.untyped_storage()
        return memories.setdefault(storage.data_ptr(), _Memory(storage.nbytes()))

    def watch(layer: PlannedLayer, inputs: tuple[Any, ...], output: Tensor) -> None:
        of(output, layer.copy_output).outputs.append(layer)
        if not layer.copy_input:  # else a copy, which the candidate's own memory has
            of(inputs[0], False).inputs.append(layer)

    hooks = [
        teacher.get_submodule(layer.name).register_forward_hook(
            lambda _module, inputs, output, layer=layer: watch(layer, inputs, output)
        )
        for layer in layers
    ]
    try:
        with torch.no_grad():
            teacher(frame)
    finally:
        for hook in hooks:
            hook.remove()
    return list(memories.values())
