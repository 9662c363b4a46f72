"""ONNX graphs of students: written with a free batch dimension, run; what files are compared with the student on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.record import BATCHES, batch_dim, need_onnx, third_party_warnings

Graph = Callable[..., tuple[Tensor, ...]]


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
    module: nn.Module,
    examples: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    sizes: tuple[Mapping[int, Any], ...] | None = None,
) -> None:
    """Write a module.

    Args:
        module: in evaluation mode.
        examples: inputs with batch size 2, so that the size is not taken for one that is fixed.
        path: of the file.
        inputs: their names.
        outputs: names of the outputs.
        sizes: of each input the dimensions that are not fixed; the batch by default.
    """
    with third_party_warnings(), torch.no_grad():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            dynamic_shapes=sizes or tuple({0: batch_dim()} for _ in examples),
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)


def open_graph(path: Path) -> Graph:
    """A graph on the CPU: tensors in the order of its inputs -> tensors in the order of its outputs.

    Raises:
        ExportError: a package is missing.
    """
    session: Any = need_onnx().InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return tuple(torch.from_numpy(np.asarray(result)) for result in session.run(None, feed))

    return run


def first_output(path: Path) -> Callable[[Tensor], Tensor]:
    """What runs a graph of one input and one output; errors as of `open_graph`."""
    graph = open_graph(path)
    return lambda inputs: graph(inputs)[0]


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


def random_inputs(student: nn.Module, shapes: Iterable[Sequence[int]], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Random inputs of some shapes, and what the student gives for them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(*shape, generator=generator) for shape in shapes]
    with torch.no_grad():
        return inputs, [student(x) for x in inputs]


def random_batches(student: nn.Module, info: BundleInfo, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """The same at the compared batch sizes, which a graph must not freeze."""
    return random_inputs(student, [(size, *info.input_shape) for size in BATCHES], seed)
