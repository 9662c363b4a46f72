"""ONNX graphs of students without a state: written with a free batch dimension, run, compared with the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.record import batch_dim, need_onnx, third_party_warnings


def names_of(student: nn.Module, info: BundleInfo) -> tuple[str, str]:
    """Names of a graph's input (`clip` or `features`) and of its output (`logits`, `maps` or `outputs`).

    Args:
        student: in evaluation mode.
        info: of its bundle.
    """
    with torch.no_grad():
        gives = student(torch.zeros(1, *info.input_shape))
    result = "maps" if gives.ndim > 2 else "logits" if info.class_names else "outputs"
    return "features" if len(info.input_shape) == 2 else "clip", result


def write_graph(
    module: nn.Module, example: Tensor, path: Path, names: tuple[str, str], sizes: Mapping[int, Any] | None = None
) -> None:
    """Write a module of one input and one output.

    Args:
        module: in evaluation mode.
        example: an input with batch size 2, so that the size is not taken for one that is fixed.
        path: of the file.
        names: of the input and of the output.
        sizes: dimensions of the input that are not fixed; the batch by default.
    """
    with third_party_warnings(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=(sizes or {0: batch_dim()},),
            input_names=[names[0]],
            output_names=[names[1]],
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)


def open_graph(path: Path) -> Callable[[Tensor], Tensor]:
    """What runs a graph of one input and one output on the CPU.

    Raises:
        ExportError: a package is missing.
    """
    session: Any = need_onnx().InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {name: inputs.numpy()})[0]))

    return run


def largest_difference(
    run: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], expected: Sequence[Tensor]
) -> tuple[float, float]:
    """(largest difference of an output, largest output) over some batches.

    Args:
        run: what is compared.
        inputs: the batches.
        expected: outputs of the student for each.
    """
    differences = [(run(x) - y).abs().max() for x, y in zip(inputs, expected, strict=True)]
    # By torch: Python's `max` may pass over a value that is not a number.
    return float(torch.stack(differences).max()), float(torch.stack([y.abs().max() for y in expected]).max())


def random_batches(
    student: nn.Module, info: BundleInfo, sizes: Sequence[int], seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Random inputs of some batch sizes, and what the student gives for them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(size, *info.input_shape, generator=generator) for size in sizes]
    with torch.no_grad():
        return inputs, [student(x) for x in inputs]
