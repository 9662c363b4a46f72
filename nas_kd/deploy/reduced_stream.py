"""ONNX graphs of less precision of students that keep a state: key frames and the others as two files each.

What goes in and out (frames, outputs, state) has 32 bits. The ranges for 8 bits are measured on clips of the training
split, frame by frame; the state that the delta graph reads there is that of the key graph in 32 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.export_stream import (
    Exported,
    compare_interval,
    random_intervals,
    write_onnx_pair,
)
from nas_kd.deploy.onnx_graph import Graph, open_graph
from nas_kd.deploy.record import Parity, need_onnx
from nas_kd.deploy.reduced import ENDINGS, Half, HalfWithState, Writer, calibration_of, kept_if_it_works, quantise
from nas_kd.search_spaces import KeyFrameNet

Feed = dict[str, Any]


def write_fp16(
    student: nn.Module, info: BundleInfo, folder: Path, items: Tensor | None, seed: int
) -> tuple[Parity, ...]:
    """Write `key.fp16.onnx` and `delta.fp16.onnx`; arguments and errors as of `nas_kd.deploy.reduced.write_fp16`."""
    assert isinstance(student, KeyFrameNet)
    need_onnx()
    key, delta = (folder / f"{name}.{ENDINGS['onnx-fp16']}" for name in ("key", "delta"))
    with kept_if_it_works((key, delta), "the student has no form in 16 bits", "onnx-fp16"):
        pair = copy.copy(Exported(student, (3, student.keyframe_interval, *info.input_shape[2:])))
        pair.key, pair.delta = Half(pair.key).eval(), HalfWithState(pair.delta).eval()
        write_onnx_pair(pair, key, delta)
        return _compared(key, delta, student, info, seed)


def write_int8(
    student: nn.Module, info: BundleInfo, folder: Path, items: Tensor | None, seed: int
) -> tuple[Parity, ...]:
    """Write `key.int8.onnx` and `delta.int8.onnx` from `key.onnx` and `delta.onnx`.

    Arguments and errors as of `nas_kd.deploy.reduced.write_int8`.
    """
    assert isinstance(student, KeyFrameNet)
    need_onnx()
    clips = info.prepare(calibration_of(items))
    exact = folder / "key.onnx", folder / "delta.onnx"
    key, delta = (folder / f"{name}.{ENDINGS['onnx-int8']}" for name in ("key", "delta"))
    names = Exported(student, (3, student.keyframe_interval, *info.input_shape[2:])).layout.names
    with kept_if_it_works((key, delta), "the graphs cannot be quantised", "onnx-int8"):
        run, interval = open_graph(exact[0]), student.keyframe_interval
        quantise(exact[0], key, _key_frames(clips, interval))
        quantise(exact[1], delta, _other_frames(clips, interval, run, names))
        return _compared(key, delta, student, info, seed)


REDUCED_STREAMS: Mapping[str, Writer] = {"onnx-int8": write_int8, "onnx-fp16": write_fp16}
"""Format of less precision -> function that writes both files and measures how far they are off."""


def _key_frames(clips: Tensor, interval: int) -> Iterator[Feed]:
    """The inputs of the key graph, of clips (N, 3, T, H, W)."""
    for clip in clips:
        for t in range(0, clip.shape[1], interval):
            yield {"frame": clip[None, :, t].numpy()}


def _other_frames(clips: Tensor, interval: int, key: Graph, names: tuple[str, ...]) -> Iterator[Feed]:
    """The inputs of the delta graph."""
    for clip in clips:
        state: Feed = {}
        for t in range(clip.shape[1]):
            frame = clip[None, :, t]
            if t % interval == 0:
                _, *tensors = key(frame)
                state = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            else:
                yield {"frame": frame.numpy(), **state}


def _compared(key: Path, delta: Path, student: KeyFrameNet, info: BundleInfo, seed: int) -> tuple[Parity, ...]:
    """The differences to the student over a random interval; that of the delta graph has those of its state in it."""
    clips, expected, largest = random_intervals(student, info, seed)
    graphs = open_graph(key), open_graph(delta)
    apart = [compare_interval(*graphs, clip, y) for clip, y in zip(clips, expected, strict=True)]
    return tuple(
        Parity.of(path, max(each), largest, is_exact=False)
        for path, each in zip((key, delta), zip(*apart, strict=True), strict=True)
    )
