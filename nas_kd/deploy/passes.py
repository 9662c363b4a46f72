"""Key and delta frames of a student as two modules of plain tensors: what is compiled, and what is exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.key_frame_net import KeyFrameNet, State, tensors_of

MOST_DIMENSIONS = 4  # of what runtimes on phones take for the state of a stream


@dataclass(frozen=True)
class StateLayout:
    """How a state's tensors lie in a row, each one once: the output of a layer may be the input of the next one.

    Layers whose output nothing reads on delta frames have no state. In the row a tensor has at most four dimensions,
    and none is a frame as it came in: the last dimensions of such tensors are one.

    Attributes:
        names: `layer#i` of each tensor, by its first appearance.
        places: delta layer -> the positions of its tensors in the row, in the order in which the layers run.
        merged: of each tensor, the last dimensions that are one in the row; none of most.
    """

    names: tuple[str, ...]
    places: tuple[tuple[str, tuple[int, ...]], ...]
    merged: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, state: State, frame: Tensor) -> StateLayout:
        """The layout of a state that a key frame gave."""
        seen: dict[tuple[Any, ...], int] = {}
        names: list[str] = []
        merged: list[tuple[int, ...]] = []
        places: dict[str, list[int]] = {layer: [] for layer in state}
        for name, tensor in tensors_of(state):
            identity = same_memory(tensor)
            if identity not in seen:
                seen[identity] = len(names)
                names.append(name)
                first = MOST_DIMENSIONS - 1 if tensor.ndim > MOST_DIMENSIONS else tensor.ndim
                if identity == same_memory(frame):
                    first = 2
                merged.append(tuple(tensor.shape[first:]))
            places[name.rpartition("#")[0]].append(seen[identity])
        return cls(tuple(names), tuple((layer, tuple(where)) for layer, where in places.items()), tuple(merged))

    def flat(self, state: State) -> tuple[Tensor, ...]:
        """The tensors, in the order of `names`."""
        tensors = dict(tensors_of(state))
        row = zip(self.names, self.merged, strict=True)
        return tuple(tensors[name].flatten(-len(sizes)) if sizes else tensors[name] for name, sizes in row)

    def nested(self, tensors: tuple[Tensor, ...]) -> State:
        """The inverse of `flat`."""
        row = zip(tensors, self.merged, strict=True)
        whole = [tensor.reshape(*tensor.shape[:-1], *sizes) if sizes else tensor for tensor, sizes in row]
        return {layer: tuple(whole[i] for i in where) for layer, where in self.places}


class KeyPass(nn.Module):
    """frame (N, 3, H, W) -> (output, *state)."""

    def __init__(self, student: KeyFrameNet, layout: StateLayout) -> None:
        super().__init__()
        self.student, self.layout = student, layout

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """The teacher's output, then the state's tensors."""
        output, state = self.student.key(frame)
        return (output, *self.layout.flat(_apart_from(frame, state)))


class DeltaPass(nn.Module):
    """(frame, *state) -> (output, *state) with `previous` as the reference, -> output otherwise."""

    def __init__(self, student: KeyFrameNet, layout: StateLayout) -> None:
        super().__init__()
        self.student, self.layout = student, layout

    def forward(self, frame: Tensor, *state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The output and, where it changes, the state."""
        output, after = self.student.delta(frame, self.layout.nested(state))
        if self.student.reference != "previous":
            return output
        return (output, *self.layout.flat(_apart_from(frame, after)))


def _apart_from(frame: Tensor, state: State) -> State:
    """The state's tensors; a layer that reads the frame keeps a copy of it.

    A tracer takes two inputs that share memory for one, and the frame that a graph gives back for its input.
    """
    return {layer: tuple(t.clone() if t is frame else t for t in tensors) for layer, tensors in state.items()}


@torch.no_grad()
def layout_of(student: KeyFrameNet, frame: Tensor) -> StateLayout:
    """The layout of the state that one key frame (N, 3, H, W) gives."""
    return StateLayout.of(student.key(frame)[1], frame)


def same_memory(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same view of the same memory, as long as both exist."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
