"""Searchable building blocks: gated edges, and weights that run at several widths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.gates import Gate, GateFactory


class Edge(nn.Module):
    """One connection with several candidates and a gate that chooses among them.

    Args:
        candidates: name -> module; all must map an input to outputs of one shape. They stay in the given order.
        make_gate: builds the gate from the names.
    """

    def __init__(self, candidates: Mapping[str, nn.Module], make_gate: GateFactory = Gate) -> None:
        super().__init__()
        self.candidates = nn.ModuleDict(dict(candidates))
        self.gate = make_gate(tuple(candidates))

    def forward(self, *inputs: Any) -> Tensor:
        """The candidates' outputs as the gate draws them; candidates outside the draw do not run."""
        modules = list(self.candidates.values())
        return self.gate.draw().combine(lambda index: modules[index](*inputs))

    def chosen(self, name: str) -> nn.Module:
        """A copy of the candidate of that name, with its present weights."""
        return copy.deepcopy(self.candidates[name])


class _Narrow(NamedTuple):
    shell: nn.Module  # the structure at that width; its tensors are on the meta device and never used
    blocks: dict[str, tuple[slice, ...]]  # name of a parameter or buffer -> its part of the widest one


class Sliced(nn.Module):
    """A module built at its largest width, which also runs at every smaller one by the leading slices of its weights.

    The module of smaller width is built like any other, on the meta device, and given views of the large weights:
    whatever `build` returns works, as long as each of its parameters at a smaller width is a leading block of that
    at a larger one. BatchNorm statistics are views too, so they are updated in place.
    """

    def __init__(self, build: Callable[[int, int], nn.Module], max_in: int, max_out: int) -> None:
        super().__init__()
        self.build = build
        self.widest = (max_in, max_out)
        self.full = build(max_in, max_out)
        self._narrow: dict[tuple[int, int], _Narrow] = {}

    def forward(self, x: Tensor, out_channels: int) -> Tensor:
        """Run with x.shape[1] input channels and `out_channels` output channels."""
        widths = (int(x.shape[1]), out_channels)
        if widths == self.widest:
            return cast(Tensor, self.full(x))
        narrow = self._at(widths)
        if narrow.shell.training != self.training:
            narrow.shell.train(self.training)
        return cast(Tensor, functional_call(narrow.shell, self._slices(narrow), (x,)))

    def narrowed(self, in_channels: int, out_channels: int) -> dict[str, Tensor]:
        """State dict of the module at that width: copies of the leading slices."""
        narrow = self._at((in_channels, out_channels))
        return {name: tensor.detach().clone() for name, tensor in self._slices(narrow).items()}

    def _at(self, widths: tuple[int, int]) -> _Narrow:
        if widths not in self._narrow:
            with torch.device("meta"):
                shell = self.build(*widths)
            parts = chain(shell.named_parameters(), shell.named_buffers())
            self._narrow[widths] = _Narrow(shell, {name: tuple(map(slice, part.shape)) for name, part in parts})
        return self._narrow[widths]

    def _slices(self, narrow: _Narrow) -> dict[str, Tensor]:
        full = dict(chain(self.full.named_parameters(), self.full.named_buffers()))
        return {name: full[name][block] for name, block in narrow.blocks.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Sliced:
        clone = copy.copy(self)
        memo[id(self)] = clone
        clone.__dict__ = {key: copy.deepcopy(v, memo) for key, v in self.__dict__.items() if key != "_narrow"}
        clone._narrow = {}
        return clone


def mix_widths(gate: Gate, run: Callable[[int], Tensor]) -> Tensor:
    """Combine outputs of different channel counts: the missing channels of a narrower one are zero.

    What reads a mixture of several widths reads it at the widest, as in FBNetV2 (Wan et al., CVPR 2020, section 3.1):
    a relaxation of the narrow net, exact where a single width is drawn.

    Args:
        gate: of the widths.
        run: width C -> (N, C, ...).

    Returns:
        (N, widest drawn, ...).
    """
    draw = gate.draw()
    if draw.single is not None:
        return draw.combine(lambda index: run(int(gate.choices[index])))
    outputs = {index: run(int(gate.choices[index])) for index in draw.indices}
    widest = max(out.shape[1] for out in outputs.values())

    def padded(index: int) -> Tensor:
        out = outputs[index]
        missing = widest - out.shape[1]
        return out if not missing else torch.cat([out, out.new_zeros(out.shape[0], missing, *out.shape[2:])], dim=1)

    return draw.combine(padded)
