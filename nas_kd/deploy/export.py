"""Export of a student, with the proof that what was written computes what was trained."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from nas_kd.deploy.bundle import ARCH_NAME, WEIGHTS_NAME, BundleInfo, load_bundle, save_bundle
from nas_kd.training.measure import environment
from search_spaces import CONVENTION, SearchSpace, count_flops

Format = Literal["safetensors", "pt2", "onnx"]
BATCHES = (1, 3)  # both are compared, so that a batch size frozen into a graph is found
TOLERANCE = 1e-3  # largest difference of a logit, relative to the largest logit (at least 1)


class ExportError(RuntimeError):
    """A written file does not compute what the student computes, or needs a package that is not installed."""


class Parity(BaseModel):
    """What comparing one written file with the trained student gave.

    Attributes:
        file: name of the file.
        sha256: of its bytes.
        bytes: its size.
        max_abs_difference: largest difference of a logit over the compared batches.
        largest_logit: largest absolute logit of the student there, to judge the difference by.
        flops: counted on the reloaded graph; None for ONNX, whose operators fvcore does not read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str
    bytes: int
    max_abs_difference: float
    largest_logit: float
    flops: int | None


class ExportRecord(BaseModel):
    """What stands in `export.json`.

    Attributes:
        arch_id: of the student.
        trial: its trial.
        flops: of the trained student, for one clip.
        flops_convention: what is counted.
        compared_batches: batch sizes at which outputs were compared.
        seed: of the compared inputs.
        parity: one entry a file.
        environment: versions and hardware.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    arch_id: str
    trial: int | None
    flops: int
    flops_convention: str = CONVENTION
    compared_batches: tuple[int, ...] = BATCHES
    seed: int
    parity: tuple[Parity, ...]
    environment: Mapping[str, str]


def export_student(
    bundle: Path,
    out_dir: Path,
    formats: Sequence[Format] = ("safetensors", "pt2", "onnx"),
    *,
    space: SearchSpace | None = None,
    seed: int = 0,
) -> ExportRecord:
    """Write the student of a bundle in the formats asked for, read each again and compare.

    Args:
        bundle: folder of the trained student.
        out_dir: gets `student.safetensors` + `arch.json` (always), `student.pt2`, `student.onnx` and `export.json`.
        formats: what to write; the batch dimension of graphs is dynamic.
        space: needed where the student's space is your own.
        seed: of the inputs that are compared.

    Raises:
        ValueError: the bundle cannot be read, or a format is unknown.
        ExportError: an output or a FLOP count differs, or a package is missing; the file in question is removed.
    """
    for name in formats:
        if name not in WRITERS:
            raise ValueError(f"unknown format {name!r}; choose from {', '.join(WRITERS)}")
    student, info = load_bundle(bundle, space)
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(n, *info.input_shape, generator=generator) for n in BATCHES]
    with torch.no_grad():
        expected = [student(x) for x in inputs]
    largest = max(float(y.abs().max()) for y in expected)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "export.json").unlink(missing_ok=True)
    parity = []
    for name in dict.fromkeys(("safetensors", *formats)):
        path, run, flops = WRITERS[name](student, info, out_dir, space)
        difference = max(float((run(x) - y).abs().max()) for x, y in zip(inputs, expected, strict=True))
        if not difference <= TOLERANCE * max(1.0, largest):
            path.unlink()
            raise ExportError(f"{path.name} differs from the trained student by {difference:.3g}; it was not kept")
        if flops is not None and flops != info.flops:
            path.unlink()
            raise ExportError(f"{path.name} costs {flops:,} FLOPs, but the trained student {info.flops:,}; not kept")
        parity.append(
            Parity(
                file=path.name,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                bytes=path.stat().st_size,
                max_abs_difference=difference,
                largest_logit=largest,
                flops=flops,
            )
        )
    record = ExportRecord(
        arch_id=info.arch_id,
        trial=info.trial,
        flops=info.flops,
        seed=seed,
        parity=tuple(parity),
        environment=environment("cpu"),
    )
    (out_dir / "export.json").write_text(json.dumps(record.model_dump(mode="json"), indent=2) + "\n")
    return record


Run = Callable[[Tensor], Tensor]
Written = tuple[Path, Run, int | None]


def _write_safetensors(student: nn.Module, info: BundleInfo, folder: Path, space: SearchSpace | None) -> Written:
    save_bundle(folder, student, info)
    again, _ = load_bundle(folder, space)
    return folder / WEIGHTS_NAME, _quiet(again), count_flops(again, torch.zeros(1, *info.input_shape)).total


def _write_pt2(student: nn.Module, info: BundleInfo, folder: Path, space: SearchSpace | None) -> Written:
    path = folder / "student.pt2"
    with _third_party_warnings():
        program = torch.export.export(student, (torch.zeros(2, *info.input_shape),), dynamic_shapes=_dynamic_batch())
        torch.export.save(program, path, extra_files={ARCH_NAME: json.dumps(info.model_dump(mode="json"))})
        graph = torch.export.load(path).module()
        flops = count_flops(graph, torch.zeros(1, *info.input_shape)).total
    return path, _quiet(graph), flops


def _write_onnx(student: nn.Module, info: BundleInfo, folder: Path, space: SearchSpace | None) -> Written:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch needs it, and says so less clearly
    except ImportError as error:
        raise ExportError(f"ONNX export needs {error.name}; install it with: pip install 'nas-kd[onnx]'") from error
    path = folder / "student.onnx"
    with _third_party_warnings():
        program = torch.onnx.export(
            student,
            (torch.zeros(2, *info.input_shape),),
            dynamo=True,
            dynamic_shapes=_dynamic_batch(),
            input_names=["clip"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(["logits"], {"clip": x.numpy()})[0]))

    return path, run, None


Writer = Callable[[nn.Module, BundleInfo, Path, "SearchSpace | None"], Written]
WRITERS: dict[str, Writer] = {"safetensors": _write_safetensors, "pt2": _write_pt2, "onnx": _write_onnx}
"""Format -> function that writes the file, reads it again, and returns its path, how to run it, and its FLOPs."""


def _dynamic_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch", min=1, max=65536)},)


def _quiet(module: nn.Module) -> Run:
    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            output = module(x)
        assert isinstance(output, Tensor)
        return output

    return run


@contextmanager
def _third_party_warnings() -> Any:
    """The exporters warn of their own deprecations and optional parts, on which no user of ours can act."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
