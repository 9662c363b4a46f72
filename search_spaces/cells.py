"""Searchable building blocks: gated edges, and weights that run at several widths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.gates import Draw, Gate, GateFactory


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
        self._shells: dict[tuple[int, int], nn.Module] = {}

    def forward(self, x: Tensor, out_channels: int) -> Tensor:
        """Run with x.shape[1] input channels and `out_channels` output channels."""
        widths = (int(x.shape[1]), out_channels)
        if widths == self.widest:
            return cast(Tensor, self.full(x))
        shell = self._shell(widths)
        shell.train(self.training)
        return cast(Tensor, functional_call(shell, self._slices(shell), (x,)))

    def narrowed(self, in_channels: int, out_channels: int) -> dict[str, Tensor]:
        """State dict of the module at that width: copies of the leading slices."""
        shell = self._shell((in_channels, out_channels))
        return {name: tensor.detach().clone() for name, tensor in self._slices(shell).items()}

    def _shell(self, widths: tuple[int, int]) -> nn.Module:
        if widths not in self._shells:
            with torch.device("meta"):
                self._shells[widths] = self.build(*widths)
        return self._shells[widths]

    def _slices(self, shell: nn.Module) -> dict[str, Tensor]:
        full = {**dict(self.full.named_parameters()), **dict(self.full.named_buffers())}
        shapes = {**dict(shell.named_parameters()), **dict(shell.named_buffers())}
        return {name: full[name][tuple(slice(n) for n in part.shape)] for name, part in shapes.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Sliced:
        clone = copy.copy(self)
        memo[id(self)] = clone
        clone.__dict__ = {key: copy.deepcopy(v, memo) for key, v in self.__dict__.items() if key != "_shells"}
        clone._shells = {}
        return clone


def mix_widths(draw: Draw, run: Callable[[int], Tensor]) -> Tensor:
    """Combine outputs of different channel counts: the missing channels of a narrower one are zero.

    Args:
        draw: which widths run.
        run: index of a width -> (N, C_i, ...).

    Returns:
        (N, max C_i, ...).
    """
    if draw.single is not None:
        return draw.combine(run)
    outputs = {index: run(index) for index in draw.indices}
    widest = max(out.shape[1] for out in outputs.values())

    def padded(index: int) -> Tensor:
        out = outputs[index]
        missing = widest - out.shape[1]
        return out if not missing else torch.cat([out, out.new_zeros(out.shape[0], missing, *out.shape[2:])], dim=1)

    return draw.combine(padded)
