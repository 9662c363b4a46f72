"""What is timed of a student in the runtimes in which it is deployed: PyTorch, compiled, ONNX Runtime; batch 1."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_kd.deploy.backends import OnnxBackend
from nas_kd.deploy.bundle import BundleInfo, read_info
from nas_kd.deploy.export import export_student
from nas_kd.deploy.streaming import StreamingStudent
from nas_kd.inputs import Passes
from nas_kd.search_spaces import KeyFrameNet, SearchSpace

RUNTIMES = ("eager", "compiled", "onnx")


def runtime_passes(name: str, student: nn.Module, info: BundleInfo, bundle: Path, space: SearchSpace | None) -> Passes:
    """One pass of a student through a runtime: a clip or, of a stream, an interval from key frame to key frame.

    Args:
        name: of the runtime, one of `RUNTIMES`.
        student: in evaluation mode.
        info: of its bundle.
        bundle: its folder.
        space: as for `load_bundle`.
    """
    example = torch.zeros(1, *info.input_shape)
    if name == "onnx":
        with tempfile.TemporaryDirectory() as folder:
            export_student(bundle, folder, ("onnx",), space=space)
            backend = OnnxBackend(Path(folder), read_info(folder), "cpu", None)
        if backend.interval is None:
            return Passes({"ms": lambda: backend(example)}, {"ms": 1.0})
        return _interval(backend.start(), example, backend.interval)
    if isinstance(student, KeyFrameNet):
        runtime = StreamingStudent(student, compile=name == "compiled")
        state = runtime.start()

        def step(frame: torch.Tensor) -> torch.Tensor:
            nonlocal state
            output, state = runtime.step(frame, state)
            return output

        return _interval(step, example, student.keyframe_interval)
    run: Callable[..., Any] = torch.compile(student) if name == "compiled" else student
    return Passes({"ms": lambda: run(example)}, {"ms": 1.0})


def _interval(step: Callable[[torch.Tensor], Any], example: torch.Tensor, interval: int) -> Passes:
    """The frames of an interval; the latency is that of one."""
    frame = example[:, :, 0].contiguous()

    def run() -> None:
        for _ in range(interval):
            step(frame)

    return Passes({"ms": run}, {"ms": 1 / interval})
