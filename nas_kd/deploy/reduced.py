"""ONNX graphs of less precision: 8-bit integers, calibrated on clips, and 16-bit floating point for GPUs.

They do not compute exactly what was trained, so no tolerance applies: how far they are off, and the metric that they
reach, is measured and stated.

8 bits: activations are rounded to 256 levels and weights to 128 (static quantisation; Jacob et al., Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018), with a scale for each output
channel of the weights and one for each activation, from its smallest and largest value on the clips. Weights have 7 of
the 8 bits because x86 CPUs without VNNI add pairs of products in 16 bits, where those of 8-bit weights saturate.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.onnx_graph import first_output, largest_difference, names_of, random_batches, write_graph
from nas_kd.deploy.record import ExportError, Parity, need_onnx, third_party_warnings

ENDINGS = {"onnx-int8": "int8.onnx", "onnx-fp16": "fp16.onnx"}
"""Format of less precision -> ending of its file."""
CALIBRATION_ITEMS = 64


class Half(nn.Module):
    """A net that computes in 16 bits; what goes in and comes out has 32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).half()

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The net's outputs, rounded."""
        return _float(self.net(inputs.half()))


class HalfWithState(Half):
    """The same of a net that reads a state beside its input."""

    def forward(self, inputs: Tensor, *state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The net's outputs, rounded."""
        return _float(self.net(inputs.half(), *(tensor.half() for tensor in state)))


def _float(outputs: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return outputs.float() if isinstance(outputs, Tensor) else tuple(tensor.float() for tensor in outputs)


def write_fp16(
    student: nn.Module, info: BundleInfo, folder: Path, items: Tensor | None, seed: int
) -> tuple[Parity, ...]:
    """Write `student.fp16.onnx`, and say how far it is off; arguments as of `write_int8`.

    ONNX Runtime computes on a CPU, by its own choice, in 32 bits what it cannot compute in 16; the weights are rounded
    there too.

    Raises:
        ExportError: the student cannot be exported in 16 bits, or a package is missing.
    """
    need_onnx()
    path = folder / f"student.{ENDINGS['onnx-fp16']}"
    with kept_if_it_works((path,), "the student has no form in 16 bits", "onnx-fp16"):
        example, (name, result) = torch.zeros(2, *info.input_shape), names_of(student, info)
        write_graph(Half(student).eval(), (example,), path, [name], [result])
        return (_compared(path, student, info, seed),)


def write_int8(
    student: nn.Module, info: BundleInfo, folder: Path, items: Tensor | None, seed: int
) -> tuple[Parity, ...]:
    """Write `student.int8.onnx` from `student.onnx`, and say how far it is off.

    Args:
        student: in evaluation mode.
        info: of its bundle.
        folder: of the bundle, with `student.onnx`.
        items: what the ranges of activations are measured on, of the data's training split: uint8 (N, 3, T, H, W) or
            frames (N, 3, H, W), or features (N, T, D).
        seed: of the random inputs on which it is compared.

    Raises:
        ValueError: there are no items.
        ExportError: it cannot be quantised, or a package is missing.
    """
    need_onnx()
    source, path = folder / "student.onnx", folder / f"student.{ENDINGS['onnx-int8']}"
    name, _ = names_of(student, info)
    inputs = info.prepare(calibration_of(items))
    if info.input_type.reads == "frames" and inputs.ndim == 5:
        inputs = inputs.transpose(1, 2).flatten(0, 1)
    with kept_if_it_works((path,), "the graph cannot be quantised", "onnx-int8"):
        quantise(source, path, ({name: item[None].numpy()} for item in inputs))
        return (_compared(path, student, info, seed),)


def calibration_of(items: Tensor | None) -> Tensor:
    """The items on which ranges of activations are measured.

    Raises:
        ValueError: there are none.
    """
    if items is None or len(items) == 0:
        raise ValueError("onnx-int8 is calibrated on clips of the training split, but there are none; give the data")
    return items


def quantise(source: Path, path: Path, feeds: Iterator[Mapping[str, Any]]) -> None:
    """Write a graph with 8-bit weights and activations.

    Args:
        source: the graph in 32 bits.
        path: of the new one.
        feeds: inputs by name, on which the ranges of activations are measured.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def get_next(self) -> Mapping[str, Any] | None:
            return next(feeds, None)

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a further step, which is for graphs without shapes
    try:
        with third_party_warnings():
            quantize_static(
                source, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
                activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
    finally:
        root.setLevel(level)


@contextmanager
def kept_if_it_works(paths: Sequence[Path], problem: str, name: str) -> Iterator[None]:
    """Removes files whose writing or first run fails, and says so with the way out.

    Args:
        paths: of the files.
        problem: what could not be done.
        name: of the format.

    Raises:
        ExportError: it failed.
    """
    try:
        yield
    except Exception as error:  # of the exporter or of the runtime, such as a layer without a form in 16 bits
        for path in paths:
            path.unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{problem}: {reason}; leave out {name}") from error


Writer = Callable[[nn.Module, BundleInfo, Path, "Tensor | None", int], tuple[Parity, ...]]
REDUCED: dict[str, Writer] = {"onnx-int8": write_int8, "onnx-fp16": write_fp16}
"""Format of less precision -> function that writes its file and measures how far it is off; of streams, see
`nas_kd.deploy.reduced_stream`."""


def _compared(path: Path, student: nn.Module, info: BundleInfo, seed: int) -> Parity:
    """The difference to the student on random inputs."""
    inputs, expected = random_batches(student, info, seed)
    return Parity.of(path, *largest_difference(first_output(path), inputs, expected), is_exact=False)
