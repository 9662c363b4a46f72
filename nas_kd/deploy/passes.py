"""Key and delta frames of a student as two modules of plain tensors: what is compiled, and what is exported."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_spaces.delta_net import DeltaNet, State, tensors_of


@dataclass(frozen=True)
class StateLayout:
    """How a state's tensors lie in a row. Layers that are dead on delta frames have no state.

    Attributes:
        counts: delta layer -> number of its tensors, in the order in which the layers run on key frames.
    """

    counts: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, state: State) -> StateLayout:
        """The layout of a state that a key frame gave."""
        return cls(tuple((name, len(tensors)) for name, tensors in state.items()))

    def names(self) -> list[str]:
        """`layer#i` for every tensor."""
        return [f"{name}#{i}" for name, count in self.counts for i in range(count)]

    def flat(self, state: State) -> tuple[Tensor, ...]:
        """The tensors, in the order of `names`."""
        return tuple(tensor for name, _ in self.counts for tensor in state[name])

    def nested(self, tensors: tuple[Tensor, ...]) -> State:
        """The inverse of `flat`."""
        state: State = {}
        start = 0
        for name, count in self.counts:
            state[name] = tuple(tensors[start : start + count])
            start += count
        return state


class KeyPass(nn.Module):
    """frame (N, 3, H, W) -> (output, *state)."""

    def __init__(self, student: DeltaNet) -> None:
        super().__init__()
        self.student = student

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """The teacher's output, then the state's tensors in the order of the layers."""
        output, state = self.student.key(frame)
        return (output, *(tensor for _, tensor in tensors_of(state)))


class DeltaPass(nn.Module):
    """(frame, *state) -> (output, *state) with `previous` as the reference, -> output otherwise."""

    def __init__(self, student: DeltaNet, layout: StateLayout) -> None:
        super().__init__()
        self.student, self.layout = student, layout

    def forward(self, frame: Tensor, *state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The output and, where it changes, the state."""
        output, after = self.student.delta(frame, self.layout.nested(state))
        return (output, *self.layout.flat(after)) if self.student.stream.reference == "previous" else output


@torch.no_grad()
def layout_of(student: DeltaNet, frame: Tensor) -> StateLayout:
    """The layout of the state that one key frame (N, 3, H, W) gives."""
    return StateLayout.of(student.key(frame)[1])
