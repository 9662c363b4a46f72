"""`DeltaNet`: a teacher with delta layers; key frames run the teacher, later frames add changes to its outputs.

    key frame:   z_0 = f(x_0), kept with what the layer's student needs of x_0
    others:      z_t = z_0 + h(x_t) − h(x_0)

All that is no delta layer (activations, normalisation, upsampling, the first and the last layer) runs on every frame.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.cells import Edge
from nas_kd.search_spaces.delta_blocks.arithmetic import Plus
from nas_kd.search_spaces.delta_blocks.ops import DeltaOp, ZeroDelta, repeated
from nas_kd.search_spaces.flops import count_flops
from nas_kd.search_spaces.key_frame_net import KeyFrameNet, Reference, State
from nas_kd.search_spaces.supernet import Supernet


@dataclass
class PassContext:
    """What the delta layers of one net share during a forward pass.

    Attributes:
        phase: `key` runs the teacher's layers and fills `state`, `delta` runs the students.
        lazy: keep x_0 itself, so that a student sees it with gradients; what a net remembers otherwise is final.
        reference: after a delta frame, `previous` makes that frame the one that the next refers to.
        state: of the present frame: delta layer -> (z_0, what its student remembers of x_0).
    """

    phase: Literal["key", "delta"] = "key"
    lazy: bool = False
    reference: Reference = "keyframe"
    state: State = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, object]) -> PassContext:
        clone = PassContext(reference=self.reference)  # the state belongs to one forward pass
        memo[id(self)] = clone
        return clone


class DeltaLayer(nn.Module):
    """A teacher's layer f with its student.

    Args:
        teacher: f; None in a net that only runs delta frames.
        student: h, or an edge of candidates; None where nothing reads the output on delta frames.
        name: of the layer in the teacher.
        context: shared by the layers of a net.
        out_shape: of the output, without its first dimension.
        copy_input: the net overwrites the layer's input after the layer ran.
        copy_output: the net overwrites the layer's output.
    """

    form: ClassVar[Literal["delta", "residual"]] = "delta"

    def __init__(
        self,
        teacher: nn.Module | None,
        student: DeltaOp | Edge | None,
        name: str,
        context: PassContext,
        out_shape: tuple[int, ...],
        *,
        copy_input: bool = False,
        copy_output: bool = False,
    ) -> None:
        super().__init__()
        self.teacher, self.student, self.plus = teacher, student, Plus()
        self.name, self.context, self.out_shape = name, context, out_shape
        self.copy_input, self.copy_output = copy_input, copy_output

    def forward(self, x: Tensor) -> Tensor:
        """f(x) on a key frame, z_0 + h(x) − h(x_0) on others."""
        context = self.context
        if context.phase == "key":
            assert self.teacher is not None, "a net for delta frames has no teacher layers"
            z = cast(Tensor, self.teacher(x))
            if self.student is not None:
                context.state[self.name] = (self._kept(z), *self._memory(x))
            return z
        if self.student is None:
            return self._kept(x.new_zeros(()).expand(x.shape[0], *self.out_shape))
        z_0, *memory = context.state[self.name]
        if isinstance(self.student, ZeroDelta):
            return self._kept(repeated(z_0, x, z_0))
        if context.lazy:
            return self._sum(repeated(z_0, x, z_0), self.student(x, *memory))
        change, now = cast(DeltaOp, self.student).change(x, *memory)
        z = self._sum(z_0, change)
        if context.reference == "previous":
            kept = tuple(t.clone() for t in now) if self.copy_input else now
            context.state[self.name] = (self._kept(z), *kept)
        return z

    def _memory(self, x: Tensor) -> tuple[Tensor, ...]:
        memory = (x,) if self.context.lazy else cast(DeltaOp, self.student).remember(x)
        return tuple(t.clone() for t in memory) if self.copy_input else memory

    def _kept(self, z: Tensor) -> Tensor:
        return z.clone() if self.copy_output else z

    def _sum(self, z_0: Tensor, change: Tensor) -> Tensor:
        return cast(Tensor, self.plus(z_0, change))


class DeltaNet(KeyFrameNet):
    """A net with delta layers. `forward` runs whole clips; `key` and `delta` run frame by frame.

    It stays in evaluation mode but for its students: statistics and dropout belong to the teacher.

    Args:
        net: frames (N, 3, H, W) -> outputs; its `DeltaLayer`s share one `PassContext`.
        keyframe_interval: K; frames 0, K, 2K, … of a clip are key frames.

    Raises:
        ValueError: the interval is below 1.
    """

    def __init__(self, net: nn.Module, keyframe_interval: int) -> None:
        super().__init__()
        if keyframe_interval < 1:
            raise ValueError(f"keyframe_interval must be at least 1, but it is {keyframe_interval}")
        self.net, self.keyframe_interval = net, keyframe_interval
        self.context = next((layer.context for layer in self.layers().values()), PassContext())

    @property
    def reference(self) -> Reference:
        """`keyframe`, or `previous` where each frame refers to the one before it."""
        return self.context.reference

    @reference.setter
    def reference(self, value: Reference) -> None:
        self.context.reference = value

    @property
    def form(self) -> Literal["delta", "residual"]:
        """`residual` where a layer keeps r_0 = z_0 − h(x_0), else `delta`."""
        return "residual" if any(layer.form == "residual" for layer in self.layers().values()) else "delta"

    def undecided_layers(self) -> list[str]:
        """Names of the delta layers that still hold several candidates."""
        return [layer.name for layer in self.layers().values() if isinstance(layer.student, Edge)]

    def for_delta_frames(self) -> DeltaNet:
        """A copy that runs delta frames only: the teacher's layers that have a student are gone, with their weights."""
        net = copy.deepcopy(self).requires_grad_(False).eval()
        for layer in net.layers().values():
            layer.teacher = None
        return net

    def layers(self) -> dict[str, DeltaLayer]:
        """Name of the layer in the teacher -> delta layer, in the order of the net."""
        return {m.name: m for m in self.net.modules() if isinstance(m, DeltaLayer)}

    def student_parameters(self) -> list[nn.Parameter]:
        """Parameters of all students (and of their gates, in a supernet)."""
        return [p for layer in self.layers().values() if layer.student is not None for p in layer.student.parameters()]

    def teacher_parameters(self) -> list[nn.Parameter]:
        """All others: those that were the teacher's."""
        owned = {id(p) for p in self.student_parameters()}
        return [p for p in self.parameters() if id(p) not in owned]

    def train(self, mode: bool = True) -> DeltaNet:
        """Only students change their mode."""
        super().train(False)
        self.training = mode
        for layer in self.layers().values():
            if layer.student is not None:
                layer.student.train(mode)
        return self

    def offsets(self, frames: int) -> list[int]:
        """For each frame of a clip, how many frames it is after its key frame."""
        return [t % self.keyframe_interval for t in range(frames)]

    def forward(self, clip: Tensor, keyframe_interval: int | None = None) -> Tensor:
        """Run clips, all key frames at once and then all others at once.

        Args:
            clip: (N, 3, T, H, W); for T no multiple of K the last interval is shorter.
            keyframe_interval: in place of the net's own K, for clips with frames left out.

        Returns:
            (N, T, ...) outputs of the frames.
        """
        batch, frames = int(clip.shape[0]), int(clip.shape[2])  # a tracer gives tensors
        interval = min(keyframe_interval or self.keyframe_interval, frames)
        whole, rest = divmod(frames, interval)
        parts = [self._intervals(clip[:, :, : whole * interval], interval)]
        if rest:
            parts.append(self._intervals(clip[:, :, whole * interval :], rest))
        outputs = [part.reshape(batch, -1, *part.shape[2:]) for part in parts]
        return torch.cat(outputs, 1) if rest else outputs[0]

    def _intervals(self, clip: Tensor, interval: int) -> Tensor:
        """(N, 3, M · interval, H, W) -> (N · M, interval, ...)."""
        batch, _, length, height, width = clip.shape
        folded = clip.reshape(batch, 3, int(length) // interval, interval, height, width)
        frames = folded.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # (N · M, interval, 3, H, W)
        keys = frames[:, 0].contiguous(memory_format=torch.channels_last)
        trains = any(p.requires_grad for p in self.teacher_parameters()) if torch.is_grad_enabled() else False
        with self._at("key", lazy=True), torch.set_grad_enabled(trains):
            first = cast(Tensor, self.net(keys))
        if interval == 1:
            self.context.state = {}
            return first[:, None]
        others = frames[:, 1:].transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with self._at("delta", lazy=True):
            rest = cast(Tensor, self.net(others))
        self.context.state = {}
        rest = rest.reshape(interval - 1, -1, *rest.shape[1:]).transpose(0, 1)
        return torch.cat([first[:, None], rest], 1)

    def key(self, frame: Tensor) -> tuple[Tensor, State]:
        """A key frame.

        Args:
            frame: (N, 3, H, W).

        Returns:
            The teacher's output, and the state for the frames that follow.
        """
        with self._at("key", lazy=False):
            self.context.state = {}
            output = cast(Tensor, self.net(frame))
            state, self.context.state = self.context.state, {}
        return output, state

    def delta(self, frame: Tensor, state: Mapping[str, tuple[Tensor, ...]]) -> tuple[Tensor, State]:
        """A frame after its key frame; no teacher layer that has a student runs.

        Args:
            frame: (N, 3, H, W).
            state: of `key`, or of the last `delta` where the reference is the previous frame.

        Returns:
            The output, and the state for the next frame.
        """
        with self._at("delta", lazy=False):
            self.context.state = dict(state)
            output = cast(Tensor, self.net(frame))
            after, self.context.state = self.context.state, {}
        return output, after

    def delta_flops(self, frame: Tensor) -> int:
        """FLOPs of a frame after its key frame; `frame` is (1, 3, H, W)."""
        with torch.no_grad():
            _, state = self.key(frame)
        return count_flops(_DeltaPass(self, state), frame).total

    def _at(self, phase: Literal["key", "delta"], *, lazy: bool) -> _Phase:
        return _Phase(self.context, phase, lazy)


class _DeltaPass(nn.Module):
    """A delta frame as a module of the frame alone."""

    def __init__(self, net: DeltaNet, state: State) -> None:
        super().__init__()
        self.net, self.state = net, state

    def forward(self, frame: Tensor) -> Tensor:
        return self.net.delta(frame, self.state)[0]


class _Phase:
    """Sets phase and laziness for a pass; a class, since generators do not trace."""

    def __init__(self, context: PassContext, phase: Literal["key", "delta"], lazy: bool) -> None:
        self.context, self.phase, self.lazy = context, phase, lazy

    def __enter__(self) -> None:
        self.context.phase, self.context.lazy = self.phase, self.lazy

    def __exit__(self, *_: object) -> None:
        self.context.phase, self.context.lazy = "key", False


def delta_net_of(module: nn.Module) -> DeltaNet | None:
    """The net with delta layers that a supernet or a student is; None for others."""
    net = module.network if isinstance(module, Supernet) else module
    return net if isinstance(net, DeltaNet) else None
