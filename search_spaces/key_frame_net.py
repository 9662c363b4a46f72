"""`KeyFrameNet`: what runtimes and exports need of a net that carries a state from a key frame to later frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

Reference = Literal["keyframe", "previous"]
State = dict[str, tuple[Tensor, ...]]
"""Layer -> the tensors that it keeps between frames; their first dimension are the rows of a batch."""


class KeyFrameNet(nn.Module, ABC):
    """A net that computes key frames in full, and later frames with the help of what it kept.

    Attributes:
        keyframe_interval: K; every K-th frame of a clip is a key frame.
        pixel_range: lowest and highest number of a normalised frame; None where nobody knows.
    """

    keyframe_interval: int
    pixel_range: tuple[float, float] | None = None

    @property
    @abstractmethod
    def reference(self) -> Reference:
        """The frame that later frames refer to: their key frame, or the one before them, so that the state changes."""

    @reference.setter
    @abstractmethod
    def reference(self, value: Reference) -> None: ...

    @property
    @abstractmethod
    def form(self) -> Literal["delta", "residual"]:
        """What layers keep of a key frame: their output, or its difference to what their student predicts."""

    @abstractmethod
    def key(self, frame: Tensor) -> tuple[Tensor, State]:
        """Run a key frame (N, 3, H, W): its output, and the state for the frames that follow."""

    @abstractmethod
    def delta(self, frame: Tensor, state: Mapping[str, tuple[Tensor, ...]]) -> tuple[Tensor, State]:
        """Run a later frame (N, 3, H, W): its output, and the state for the next frame."""

    @abstractmethod
    def delta_flops(self, frame: Tensor) -> int:
        """FLOPs of a later frame, at the size of `frame`, (1, 3, H, W)."""

    @abstractmethod
    def undecided_layers(self) -> list[str]:
        """Names of the layers that still hold several candidates; empty for a derived student."""

    @abstractmethod
    def for_delta_frames(self) -> KeyFrameNet:
        """A copy that runs later frames only, without the weights that key frames alone need."""


def tensors_of(state: Mapping[str, Sequence[Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all parts of a state, `layer#i`, in order."""
    for layer, tensors in state.items():
        for i, tensor in enumerate(tensors):
            yield f"{layer}#{i}", tensor


def state_bytes(state: Mapping[str, Sequence[Tensor]]) -> int:
    """Bytes that a state takes; memory that several tensors share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, t in tensors_of(state)}
    return sum(storages.values())
