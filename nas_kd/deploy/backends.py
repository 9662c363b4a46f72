"""Run a student from one of the files of its bundle: its weights, a graph of torch, or an ONNX graph.

Shape legend: N items, T frames, H and W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.deploy.bundle import WEIGHTS_NAME, BundleInfo, NeedsCodeError, check_file, load_bundle
from nas_kd.deploy.pt2_archive import check_graph
from nas_kd.deploy.record import third_party_warnings
from nas_kd.deploy.reduced import ENDINGS
from nas_kd.deploy.streaming import StreamingStudent, StreamState
from nas_kd.inputs import Passes
from nas_kd.search_spaces import KeyFrameNet, SearchSpace

Step = Callable[[Tensor], Tensor]
"""One frame (N, 3, H, W) of each stream -> its output; keeps the state of the streams."""

Pass = Callable[[], Any]


class Backend(ABC):
    """A student that is ready to run.

    Attributes:
        name: of the backend, a key of `BACKENDS`.
        files: of the bundle, that it runs.
        interval: frames from key frame to key frame, of students that keep a state; None of others.
    """

    name: str
    files: tuple[str, ...]
    interval: int | None

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs (N, ...) of prepared inputs (N, *input_shape), for students that keep no state."""

    @abstractmethod
    def start(self) -> Step:
        """New streams of frames; of a student without a state, the student itself."""

    def passes(self, example: Tensor) -> Passes:
        """What is timed of it.

        Args:
            example: an input (N, *input_shape).
        """
        if self.interval is None:
            return Passes.whole(lambda: self(example))
        return Passes.interval(*self._both_kinds(example[:, :, 0].contiguous()), frames=self.interval)

    @abstractmethod
    def _both_kinds(self, frame: Tensor) -> tuple[Pass, Pass]:
        """A key frame of a student with a state, and a frame after it with the state that it left."""

    def clips(self, clips: Tensor) -> Tensor:
        """Outputs (N, T, ...) of whole clips (N, 3, T, H, W), frame by frame."""
        step = self.start()
        return torch.stack([step(clips[:, :, t]) for t in range(clips.shape[2])], 1)


class WeightsBackend(Backend):
    """`student.safetensors`: the net is built from `arch.json`, and the weights are loaded into it.

    Args:
        folder: of the bundle.
        info: of the bundle.
        device: where it runs.
        space: as for `load_bundle`.
    """

    name = "safetensors"
    files = (WEIGHTS_NAME,)

    def __init__(self, folder: Path, info: BundleInfo, device: str, space: SearchSpace | None) -> None:
        student, _ = load_bundle(folder, space)
        self.student = student.to(device)
        self.device, self.interval = device, info.keyframe_interval
        self._runtime: StreamingStudent | None = None

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.student(inputs.to(self.device))
        return result.cpu()

    def start(self) -> Step:
        if not isinstance(self.student, KeyFrameNet):
            return self
        if self._runtime is None:
            self._runtime = StreamingStudent(self.student)
        runtime = self._runtime
        states: list[StreamState] = []  # of the last frame, once there was one

        def step(frame: Tensor) -> Tensor:
            before = states.pop() if states else runtime.start(len(frame))
            output, state = runtime.step(frame.to(self.device), before)
            states.append(state)
            return output.cpu()

        return step

    def _both_kinds(self, frame: Tensor) -> tuple[Pass, Pass]:
        assert isinstance(self.student, KeyFrameNet)
        return both_kinds(StreamingStudent(self.student), frame.to(self.device))

    def clips(self, clips: Tensor) -> Tensor:
        """Of a student with a state as in its evaluation: the whole clip at once."""
        return self(clips) if isinstance(self.student, KeyFrameNet) else super().clips(clips)


class GraphBackend(Backend):
    """Graphs that compute without the student's code: `student.*`, or `key.*` and `delta.*` of one with a state.

    Args:
        folder: of the bundle.
        info: of the bundle.
        device: where it runs.
        space: not needed.
    """

    suffix: str

    def __init__(self, folder: Path, info: BundleInfo, device: str, space: SearchSpace | None) -> None:
        self.device = device
        self.interval = info.keyframe_interval
        self.files = self.files_of(info)
        paths = [check_file(folder, info, file) for file in self.files]  # before one of them is opened
        try:
            self.graphs = [self._open(path) for path in paths]
        except (ValueError, ImportError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{' or '.join(self.files)} of {folder} cannot be opened here: {reason}") from error

    @classmethod
    def files_of(cls, info: BundleInfo) -> tuple[str, ...]:
        """Names of the graphs of a bundle."""
        names = ("student",) if info.keyframe_interval is None else ("key", "delta")
        return tuple(f"{name}.{cls.suffix}" for name in names)

    @abstractmethod
    def _open(self, path: Path) -> Callable[..., tuple[Tensor, ...]]:
        """The graph of a file: tensors in the order of its inputs -> tensors in the order of its outputs."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.graphs[0](inputs)[0]

    def start(self) -> Step:
        if self.interval is None:
            return self
        (key, delta), interval = self.graphs, self.interval
        position = 0
        state: tuple[Tensor, ...] = ()

        def step(frame: Tensor) -> Tensor:
            nonlocal position, state
            if position % interval == 0:
                output, *kept = key(frame)
                state = tuple(kept)
            else:
                (output,) = delta(frame, *state)
            position += 1
            return output

        return step

    def _both_kinds(self, frame: Tensor) -> tuple[Pass, Pass]:
        key, delta = self.graphs
        _, *state = key(frame)
        return lambda: key(frame), lambda: delta(frame, *state)


class ProgramBackend(GraphBackend):
    """`*.pt2`, graphs of `torch.export`."""

    name = suffix = "pt2"

    def _open(self, path: Path) -> Callable[..., tuple[Tensor, ...]]:
        check_graph(path)
        with third_party_warnings():
            module: nn.Module = torch.export.load(path).module().to(self.device)

        @torch.no_grad()
        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            result = module(*(tensor.to(self.device) for tensor in tensors))
            outputs = (result,) if isinstance(result, Tensor) else tuple(result)
            return tuple(output.cpu() for output in outputs)

        return run


class OnnxBackend(GraphBackend):
    """`*.onnx`, run by ONNX Runtime."""

    name = suffix = "onnx"

    def _open(self, path: Path) -> Callable[..., tuple[Tensor, ...]]:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError("backend onnx needs onnxruntime; install it with: pip install onnxruntime") from error
        providers = ["CPUExecutionProvider"]
        if self.device != "cpu":
            providers.insert(0, "CUDAExecutionProvider")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # one setting for all backends
        session: Any = onnxruntime.InferenceSession(path, options, providers=providers)
        names = [entry.name for entry in session.get_inputs()]

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            try:
                results = session.run(None, feed)
            except Exception as error:  # ONNX Runtime has its own kinds
                reason = " ".join(str(error).split())[:300]
                raise RuntimeError(f"{path} cannot run on the inputs that arch.json states: {reason}") from error
            return tuple(torch.from_numpy(np.asarray(result)) for result in results)

        return run


class Int8Backend(OnnxBackend):
    """`student.int8.onnx`: 8-bit integers."""

    name, suffix = "onnx-int8", ENDINGS["onnx-int8"]


class HalfBackend(OnnxBackend):
    """`student.fp16.onnx`: 16-bit floating point, for GPUs."""

    name, suffix = "onnx-fp16", ENDINGS["onnx-fp16"]


def both_kinds(runtime: StreamingStudent, frame: Tensor) -> tuple[Pass, Pass]:
    """A key frame of one stream each, and a frame after it with the state that it left."""
    start = runtime.start(len(frame))
    _, state = runtime.step(frame, start)
    return lambda: runtime.step(frame, start), lambda: runtime.step(frame, state)


OpenBackend = Callable[[Path, BundleInfo, str, "SearchSpace | None"], Backend]
BACKENDS: dict[str, OpenBackend] = {
    "safetensors": WeightsBackend,
    "pt2": ProgramBackend,
    "onnx": OnnxBackend,
    "onnx-int8": Int8Backend,
    "onnx-fp16": HalfBackend,
}
"""Name, which is that of an export's format -> backend."""


def open_backend(folder: Path, info: BundleInfo, name: str | None, device: str, space: SearchSpace | None) -> Backend:
    """A student of a bundle, ready to run.

    Args:
        folder: of the bundle.
        info: of the bundle.
        name: of the backend; None takes the weights, or the first graph where the net needs code of the user's.
        device: such as `cpu` or `cuda`.
        space: as for `load_bundle`.

    Raises:
        ValueError: there is no such backend or device, the bundle lacks its files, or one does not fit.
    """
    _check_device(device)
    if name is not None:
        if name not in BACKENDS:
            raise ValueError(f"there is no backend {name!r}; choose from {', '.join(BACKENDS)}")
        return BACKENDS[name](folder, info, device, space)
    try:
        return WeightsBackend(folder, info, device, space)
    except NeedsCodeError:
        for kind in (ProgramBackend, OnnxBackend):
            if set(kind.files_of(info)) <= set(info.files):
                return kind(folder, info, device, space)
        raise


def _check_device(device: str) -> None:
    """Raise `ValueError` where nothing can be computed on a device."""
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA asserts
        raise ValueError(
            f"device is {device!r}, but torch cannot compute there on this machine; take cpu, or cuda where "
            "torch.cuda.is_available()"
        ) from error
