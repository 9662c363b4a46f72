"""Graphs that take any number of frames, of students that do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.onnx_graph import random_inputs
from nas_kd.deploy.record import ExportError, batch_dim

MOST_FRAMES = 65536


@dataclass(frozen=True)
class Lengths:
    """Numbers of frames that a student takes.

    Attributes:
        axis: of the frames in a batch of inputs.
        low: the smallest number; from there on any is taken.
        compared: numbers at which files are compared with the student, beside that of its training.
    """

    axis: int
    low: int
    compared: tuple[int, ...]


def lengths_of(student: nn.Module, info: BundleInfo) -> Lengths:
    """Find out by running it at some numbers of frames.

    Args:
        student: in evaluation mode, without a state.
        info: of its bundle.

    Raises:
        ValueError: its input has no frames, or it takes one number of frames only.
    """
    axis = {2: 1, 4: 2}.get(len(info.input_shape))  # features (N, T, D), clips (N, 3, T, H, W)
    if axis is None or info.input_type.students_keep_a_state:
        raise ValueError("a student that reads frame by frame has no number of frames; leave out dynamic_frames")
    trained = info.input_shape[axis - 1]
    reason = ""
    # Exported graphs treat a size of one in a way of its own, so none is open below two.
    for low in sorted({2, trained} if trained > 2 else {trained}):
        others = tuple(dict.fromkeys((low, trained + 1, 2 * trained)))
        try:
            with torch.no_grad():
                for number in others:
                    student(torch.zeros(_with_frames((2, *info.input_shape), axis, number)))
        except Exception as error:  # of any layer of any student
            reason = " ".join(str(error).split())[:200]
            continue
        return Lengths(axis, low, tuple(number for number in others if number != trained))
    raise ValueError(f"the student takes {trained} frames and no other number ({reason}); leave out dynamic_frames")


def open_sizes(lengths: Lengths | None) -> Mapping[int, Any]:
    """The dimensions of a graph's input that are not fixed, for `torch.export`."""
    if lengths is None:
        return {0: batch_dim()}
    return {0: batch_dim(), lengths.axis: torch.export.Dim("frames", min=lengths.low, max=MOST_FRAMES)}


def batches_of_lengths(
    student: nn.Module, info: BundleInfo, lengths: Lengths, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Random inputs, two items of each compared number of frames, and what the student gives for them."""
    shapes = [_with_frames((2, *info.input_shape), lengths.axis, number) for number in lengths.compared]
    return random_inputs(student, shapes, seed)


@contextmanager
def open_or_refused(lengths: Lengths | None) -> Iterator[None]:
    """Around the export of a graph with `open_sizes`.

    Raises:
        ExportError: the exporter fixes a number of frames that was to be open.
    """
    try:
        yield
    except Exception as error:
        if lengths is None:
            raise
        raise ExportError(
            "the exporter fixes the number of frames in this student's graph, since a layer loops over frames or "
            "treats some numbers of them differently; leave out dynamic_frames"
        ) from error


def _with_frames(shape: tuple[int, ...], axis: int, number: int) -> tuple[int, ...]:
    return (*shape[:axis], number, *shape[axis + 1 :])
