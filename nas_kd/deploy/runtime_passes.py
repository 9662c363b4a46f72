"""What is timed of a student in the runtimes in which it is deployed: PyTorch, compiled, ONNX Runtime; batch 1."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_kd.deploy.backends import OnnxBackend, both_kinds
from nas_kd.deploy.bundle import BundleInfo, read_info
from nas_kd.deploy.export import export_student
from nas_kd.deploy.streaming import StreamingStudent
from nas_kd.inputs import Passes
from nas_kd.search_spaces import KeyFrameNet, SearchSpace

RUNTIMES = ("eager", "compiled", "onnx")


def runtime_passes(name: str, student: nn.Module, info: BundleInfo, bundle: Path, space: SearchSpace | None) -> Passes:
    """One pass of a student through a runtime: a clip or, of a stream, a key frame and a frame after it.

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
            export_student(bundle, folder, ("onnx",), space=space, with_latency=False)
            return OnnxBackend(Path(folder), read_info(folder), "cpu", None).passes(example)
    if isinstance(student, KeyFrameNet):
        runtime, frame = StreamingStudent(student, compile=name == "compiled"), example[:, :, 0].contiguous()
        return Passes.interval(*both_kinds(runtime, frame), frames=student.keyframe_interval)
    run: Callable[..., Any] = torch.compile(student) if name == "compiled" else student
    return Passes.whole(lambda: run(example))
