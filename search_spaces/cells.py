"""Gated edges, and mixtures of outputs of different widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.copies import copied
from nas_kd.search_spaces.gates import Gate, GateFactory


class Edge(nn.Module):
    """One connection with several candidates and a gate that chooses among them.

    Args:
        candidates: name -> module; all must map an input to outputs of one shape. They stay in the given order.
        make_gate: builds the gate from the names.

    Examples:
        >>> edge = nas_kd.Edge({"k1": nn.Conv2d(4, 4, 1), "skip": nn.Identity()})
        >>> edge(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(self, candidates: Mapping[str, nn.Module], make_gate: GateFactory = Gate) -> None:
        super().__init__()
        # A module cannot have a dot in its name, but an operator of the user's, `package.module:function`, has.
        self.candidates = nn.ModuleDict({name.replace(".", "/"): module for name, module in candidates.items()})
        self.gate = make_gate(tuple(candidates))

    def forward(self, *inputs: Any) -> Tensor:
        """The candidates' outputs as the gate draws them; candidates outside the draw do not run."""
        if self.gate.control.meter is not None:
            return cast(Tensor, self.gate.control.meter.edge(self, inputs))
        modules = list(self.candidates.values())
        return self.gate.draw().combine(lambda index: modules[index](*inputs))

    @property
    def by_name(self) -> dict[str, nn.Module]:
        """Name -> candidate."""
        return dict(zip(map(str, self.gate.choices), self.candidates.values(), strict=True))

    def chosen(self, name: str) -> nn.Module:
        """A copy of the candidate of that name, with its present weights."""
        return copied(self.by_name[name], f"the operator {name}")


def mix_widths(gate: Gate, run: Callable[[Any], Tensor]) -> Tensor:
    """Combine outputs of different channel counts: the missing channels of a narrower one are zero.

    What reads a mixture of several widths reads it at the widest, as in FBNetV2 (Wan et al., CVPR 2020, section 3.1):
    a relaxation of the narrow net, exact where a single width is drawn.

    Args:
        gate: of the widths.
        run: choice -> (N, C, ...), where C may depend on the choice.

    Returns:
        (N, widest drawn, ...).
    """
    draw = gate.draw()
    if draw.single is not None:
        return draw.combine(lambda index: run(gate.choices[index]))
    outputs = {index: run(gate.choices[index]) for index in draw.indices}
    widest = max(out.shape[1] for out in outputs.values())

    def padded(index: int) -> Tensor:
        out = outputs[index]
        missing = widest - out.shape[1]
        return out if not missing else torch.cat([out, out.new_zeros(out.shape[0], missing, *out.shape[2:])], dim=1)

    return draw.combine(padded)
