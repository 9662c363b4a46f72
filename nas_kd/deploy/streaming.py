"""`StreamingStudent`: run a student frame by frame on several streams, each with its own key frames and state.

runtime = StreamingStudent(student)
state = runtime.start(num_streams=4)
for frame in frames:                            # (4, 3, H, W)
    output, state = runtime.step(frame, state)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nas_kd.deploy.passes import DeltaPass, KeyPass, StateLayout, layout_of, same_memory
from nas_kd.deploy.record import third_party_warnings
from nas_kd.search_spaces.key_frame_net import KeyFrameNet, Reference, State, state_bytes, tensors_of

RANGE_FACTOR = 8  # times the range of normalised frames: bytes lie beyond, normal noise does not
NEVER = -1  # the age of a stream without a key frame
THUMBNAIL = 8  # side of the pooled frame by which a change of scene is judged


@dataclass
class StreamState:
    """All that is kept between two frames, of B streams. `step` returns a new one and leaves the old one as it was.

    Copy it with `copy.deepcopy`; tensors that share memory share it in the copy too.

    Attributes:
        ages: of each stream, the frames since its key frame; −1 before the first one.
        due: of each stream, the frames until its next key frame; 0 where the next frame is one. Before the first
            frame, −n shortens the first interval to n frames.
        tensors: layer -> what it keeps. The first dimension is B, or a multiple of it where a layer sees several
            rows of a stream, such as windows; the rows of one stream are neighbours.
        thumbnails: (B, 3, 8, 8) of the key frames, where a change of scene is looked for.
        frame_shape: (3, H, W) of the frames; None before the first one.

    Examples:
        >>> student, info = nas_kd.load_bundle("runs/streams/export/trial-0000")
        >>> state = nas_kd.StreamingStudent(student).start(num_streams=2)
        >>> state.num_streams, state.ages
        (2, (-1, -1))
    """

    ages: tuple[int, ...]
    due: tuple[int, ...]
    tensors: State = field(default_factory=dict)
    thumbnails: Tensor | None = None
    frame_shape: tuple[int, ...] | None = None

    @property
    def num_streams(self) -> int:
        """B."""
        return len(self.ages)

    @property
    def bytes(self) -> int:
        """Memory of all streams; what several tensors share counts once."""
        extra = {} if self.thumbnails is None else {"": (self.thumbnails,)}
        return state_bytes({**self.tensors, **extra})

    @property
    def bytes_per_stream(self) -> int:
        """Memory of one stream."""
        return self.bytes // self.num_streams

    def named(self) -> dict[str, Tensor]:
        """`layer#i` -> tensor, in the order in which the layers run."""
        return dict(tensors_of(self.tensors))

    def reset(self, streams: Iterable[int] | None = None) -> None:
        """Make the next frame of these streams, or of all, a key frame: for a new video, a lost frame, a cut.

        Raises:
            ValueError: there is no such stream.
        """
        chosen = set(range(self.num_streams) if streams is None else streams)
        wrong = sorted(i for i in chosen if not 0 <= i < self.num_streams)
        if wrong:
            raise ValueError(f"streams are numbered from 0 to {self.num_streams - 1}, but got {wrong}")
        self.due = tuple(0 if i in chosen else due for i, due in enumerate(self.due))

    def to(self, device: torch.device | str) -> StreamState:
        """The same on another device."""
        move = _once(lambda tensor: tensor.to(device))
        tensors = {name: tuple(move(t) for t in parts) for name, parts in self.tensors.items()}
        return replace(
            self, tensors=tensors, thumbnails=None if self.thumbnails is None else self.thumbnails.to(device)
        )


class StreamingStudent:
    """Runs a student frame by frame, without gradients.

    Streams of one batch may be at different offsets from their key frames: then the rows are split, run in one pass
    for key frames and one for the others, and merged, which copies the states. Where all streams are in one phase,
    nothing is copied.

    Args:
        student: derived or loaded, in either form (`nas_kd.search_spaces.delta_blocks.residual.residual_form`); copied.
        keyframe_interval: K; the student's own by default. 1 runs the teacher on every frame.
        reference: `previous` refers each frame to the one before it. The same function up to rounding, and more
            work; in the residual form there is no difference.
        scene_change: a frame whose mean absolute difference to its key frame, both pooled to 8×8, is above this
            becomes a key frame; in the units of the normalised frames.
        compile: run both passes through `torch.compile`, with weights as constants on the CPU and as captured graphs
            on CUDA; the first frames of either kind then take seconds to a minute.

    Raises:
        ValueError: an argument is out of its range, or the student does not run frame by frame or still has several
            candidates.

    Examples:
        >>> student, info = nas_kd.load_bundle("runs/streams/export/trial-0000")
        >>> runtime = nas_kd.StreamingStudent(student)
        >>> state = runtime.start(num_streams=2)
        >>> output, state = runtime.step(torch.zeros(2, 3, 16, 24), state)
        >>> state.ages  # both streams have just had their key frame
        (0, 0)
    """

    def __init__(
        self,
        student: KeyFrameNet,
        *,
        keyframe_interval: int | None = None,
        reference: Reference = "keyframe",
        scene_change: float | None = None,
        compile: bool = False,
    ) -> None:
        if not isinstance(student, KeyFrameNet):
            raise ValueError(
                f"streaming needs a student that runs on key frames and on the frames after them (a KeyFrameNet), but "
                f"this is a {type(student).__name__}; take one from load_bundle, or derive it from a supernet"
            )
        undecided = student.undecided_layers()
        if undecided:
            raise ValueError(
                f"streaming needs a derived student, but layer {undecided[0]} still has several candidates; call "
                "supernet.derive() first"
            )
        interval = student.keyframe_interval if keyframe_interval is None else keyframe_interval
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(f"keyframe_interval must be a whole number of at least 1, but it is {interval!r}")
        if reference not in ("keyframe", "previous"):
            raise ValueError(f"reference must be keyframe or previous, but is {reference!r}")
        if scene_change is not None and not scene_change > 0:
            raise ValueError(f"scene_change must be above 0, or None to leave it out, but is {scene_change}")
        self.keyframe_interval, self.reference, self.scene_change = interval, reference, scene_change
        net = copy.deepcopy(student).requires_grad_(False).eval()
        self.student: KeyFrameNet = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.student.reference = reference
        self.compile = compile
        self._compiled: dict[str, tuple[StateLayout, Callable[..., Any], Callable[..., Any]]] = {}

    def start(self, num_streams: int = 1, *, stagger: bool = False) -> StreamState:
        """The state before the first frame.

        Args:
            num_streams: B.
            stagger: end the first interval of the streams after 1, 2, … K frames, so that their key frames spread
                over time and no batch is all key frames; the price is the copying of mixed phases.

        Raises:
            ValueError: fewer than one stream.
        """
        if num_streams < 1:
            raise ValueError(f"num_streams must be at least 1, but is {num_streams}")
        due = tuple(-(i % self.keyframe_interval) if stagger else 0 for i in range(num_streams))
        return StreamState((NEVER,) * num_streams, due)

    @torch.no_grad()
    def step(self, frame: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """One frame of every stream.

        Args:
            frame: (B, 3, H, W), normalised; row i belongs to stream i.
            state: of `start` or of the last `step`.

        Returns:
            The outputs (B, ...), and the state for the next frame.

        Raises:
            ValueError: the frames are not normalised RGB frames, or not of the state's number or size. Their values
                are looked at on key frames, of a student from `load_bundle`.
        """
        self._check(frame, state)
        frame = frame.contiguous(memory_format=torch.channels_last)
        thumbnails = None if self.scene_change is None else F.adaptive_avg_pool2d(frame, THUMBNAIL)
        is_key = self._key_frames(state, thumbnails)
        if any(is_key):
            self._check_range(frame)
        if all(is_key):
            output, tensors = self._key(frame)
        elif not any(is_key):
            output, tensors = self._delta(frame, state.tensors)
        else:
            output, tensors = self._mixed(frame, state, is_key)
        if thumbnails is not None and state.thumbnails is not None and not all(is_key):
            rows = torch.tensor(is_key, device=frame.device)[:, None, None, None]
            thumbnails = torch.where(rows, thumbnails, state.thumbnails)
        ages = tuple(0 if key else age + 1 for key, age in zip(is_key, state.ages, strict=True))
        due = tuple(self._next(*each) for each in zip(is_key, state.ages, state.due, strict=True))
        return output, StreamState(ages, due, tensors, thumbnails, tuple(frame.shape[1:]))

    def _check(self, frame: Tensor, state: StreamState) -> None:
        if frame.ndim != 4 or frame.shape[0] != state.num_streams:
            raise ValueError(
                f"frames must be ({state.num_streams}, 3, H, W), a row for each stream of the state, but are "
                f"{tuple(frame.shape)}; start() makes a state for another number"
            )
        if frame.shape[1] != 3:
            raise ValueError(
                f"frames must have the 3 channels R, G, B first, (B, 3, H, W), but are {tuple(frame.shape)}; "
                "permute them, or repeat a grey channel"
            )
        if not frame.is_floating_point():
            raise ValueError(
                f"frames must be normalised floating-point numbers, but are {frame.dtype}; give (frame / 255 − mean) / "
                "std, as the bundle says"
            )
        if state.frame_shape is not None and tuple(frame.shape[1:]) != state.frame_shape:
            raise ValueError(
                f"the streams have frames of shape {state.frame_shape}, but this one is {tuple(frame.shape[1:])}; "
                "another size needs a new state from start()"
            )

    def _check_range(self, frame: Tensor) -> None:
        """Of key frames alone, since on a GPU the host waits for it."""
        if self.student.pixel_range is None:
            return
        low, high = self.student.pixel_range
        furthest = float(frame.abs().max())
        if not furthest <= RANGE_FACTOR * max(abs(low), abs(high)):
            raise ValueError(
                f"frames must be normalised as in training, so that they lie from {low:.3g} to {high:.3g}, but this "
                f"one reaches {furthest:.3g}; give (frame / 255 − mean) / std, as the bundle says"
            )

    def _key_frames(self, state: StreamState, thumbnails: Tensor | None) -> list[bool]:
        due = [left <= 0 for left in state.due]
        if self.scene_change is None or thumbnails is None or all(due):
            return due
        if state.thumbnails is None:  # the state is of a runtime without scene_change, which keeps no thumbnails
            return [True] * state.num_streams
        changed = (thumbnails - state.thumbnails).abs().mean((1, 2, 3)) > self.scene_change
        return [a or b for a, b in zip(due, changed.tolist(), strict=True)]

    def _next(self, is_key: bool, age: int, due: int) -> int:
        if not is_key:
            return due - 1
        return (-due if age == NEVER and due else self.keyframe_interval) - 1

    def _mixed(self, frame: Tensor, state: StreamState, is_key: Sequence[bool]) -> tuple[Tensor, State]:
        """Both passes, each on its own rows."""
        keys = [i for i, key in enumerate(is_key) if key]
        others = [i for i, key in enumerate(is_key) if not key]

        def merge(of_keys: Tensor, of_others: Tensor) -> Tensor:
            rows: dict[int, Tensor] = {}
            for i, stream in enumerate(keys):
                rows[stream] = _row(of_keys, i, len(keys))
            for i, stream in enumerate(others):
                rows[stream] = _row(of_others, i, len(others))
            return torch.cat([rows[stream] for stream in range(len(is_key))])

        take = _once(lambda tensor: torch.cat([_row(tensor, i, len(is_key)) for i in others]))
        before: State = {name: tuple(map(take, parts)) for name, parts in state.tensors.items()}
        key_output, key_state = self._key(torch.cat([_row(frame, i, len(is_key)) for i in keys]))
        output, after = self._delta(take(frame), before)
        merge_once = _once(merge)
        tensors: State = {name: tuple(map(merge_once, key_state[name], after[name])) for name in key_state}
        return merge(key_output, output), tensors

    def _key(self, frame: Tensor) -> tuple[Tensor, State]:
        if not self.compile:
            return self.student.key(frame)
        layout, key, _ = self._graphs(frame)
        output, *tensors = _own(key(frame), frame)
        return output, layout.nested(tuple(tensors))

    def _delta(self, frame: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.compile:
            return self.student.delta(frame, state)
        layout, _, delta = self._graphs(frame)
        result = delta(frame, *layout.flat(state))
        if isinstance(result, Tensor):
            return _own((result,), frame)[0], state
        output, *tensors = _own(result, frame)
        return output, layout.nested(tuple(tensors))

    def _graphs(self, frame: Tensor) -> tuple[StateLayout, Callable[..., Any], Callable[..., Any]]:
        device = str(frame.device)
        if device not in self._compiled:
            layout = layout_of(self.student, frame)
            how: dict[str, Any] = {"mode": "reduce-overhead"} if frame.is_cuda else {"options": {"freezing": True}}
            with third_party_warnings():
                key = torch.compile(KeyPass(self.student, layout), **how)
                delta = torch.compile(DeltaPass(self.student, layout), **how)
                delta(frame, *layout.flat(self.student.key(frame)[1]))  # what warns, warns when it first runs
                key(frame)
            self._compiled[device] = layout, key, delta
        if frame.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._compiled[device]


def _own(results: Sequence[Tensor], frame: Tensor) -> tuple[Tensor, ...]:
    """A captured graph writes its results to the same memory each time: take them out of there."""
    return tuple(map(_once(lambda tensor: tensor.clone()), results)) if frame.is_cuda else tuple(results)


def _row(tensor: Tensor, stream: int, num_streams: int) -> Tensor:
    """What of a tensor belongs to one of its streams."""
    rows = tensor.shape[0] // num_streams
    return tensor.narrow(0, stream * rows, rows)


def _once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Apply `function` once to tensors that are the same memory, so that what shares memory before shares it after."""
    done: dict[tuple[Any, ...], Tensor] = {}

    def apply(*tensors: Tensor) -> Tensor:
        identity = tuple(map(same_memory, tensors))
        if identity not in done:
            done[identity] = function(*tensors)
        return done[identity]

    return apply
