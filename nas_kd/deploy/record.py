"""`ExportRecord`: the comparison of exported files with the trained student."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from nas_kd.deploy.bundle import Measured
from nas_kd.files import sha256_of
from nas_kd.search_spaces import CONVENTION

Format = Literal["safetensors", "pt2", "onnx", "onnx-int8", "onnx-fp16"]
RECORD_NAME = "verification.json"
BATCHES = (1, 3)  # both are compared, so that a batch size frozen into a graph is found
TOLERANCE = 1e-3  # largest difference of an output, relative to the largest output (at least 1)


class ExportError(RuntimeError):
    """A written file does not compute what the student computes, or needs a package that is not installed.

    Examples:
        >>> try:
        ...     folder, record = nas_kd.export("runs/demo", formats=("safetensors",), out_dir="student")
        ... except nas_kd.ExportError as error:
        ...     print(error)
    """


class Parity(BaseModel):
    """What comparing one written file with the trained student gave.

    Attributes:
        file: name of the file.
        sha256: of its bytes.
        bytes: its size.
        max_abs_difference: largest difference of a logit over the compared batches.
        largest_logit: largest absolute logit of the student there, to judge the difference by.
        flops: counted on the reloaded graph; None for ONNX, whose operators fvcore does not read.
        is_exact: whether it computes what was trained; False for files of less precision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str
    bytes: int
    max_abs_difference: float
    largest_logit: float
    flops: int | None
    is_exact: bool = True

    @classmethod
    def of(
        cls, path: Path, difference: float, largest: float, flops: int | None = None, *, is_exact: bool = True
    ) -> Parity:
        """The entry of a file.

        Args:
            path: of the file.
            difference: largest one to the trained student.
            largest: logit of the trained student.
            flops: of its graph, where they are counted.
            is_exact: whether the difference must be within `TOLERANCE`; of a file of less precision it is noted.

        Raises:
            ExportError: the difference is too large; the file is removed.
        """
        if is_exact and not difference <= TOLERANCE * max(1.0, largest):
            path.unlink()
            raise ExportError(f"{path.name} differs from the trained student by {difference:.3g}; it was not kept")
        return cls(
            file=path.name,
            sha256=sha256_of(path),
            bytes=path.stat().st_size,
            max_abs_difference=difference,
            largest_logit=largest,
            flops=flops,
            is_exact=is_exact,
        )


class FileMetrics(BaseModel):
    """What one form of a student reached on labelled data.

    Attributes:
        backend: that ran it.
        files: of the bundle that were run.
        metric: name of the primary metric.
        metrics: name -> value.
        measured: number of items, and the interval of the primary metric.
        max_abs_difference: largest difference of an output to that of the weights on these items; None where nothing
            was compared.
        largest_output: largest absolute output there, to judge the difference by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    files: tuple[str, ...]
    metric: str
    metrics: Mapping[str, float]
    measured: Measured
    max_abs_difference: float | None = None
    largest_output: float

    @property
    def value(self) -> float:
        """Of the primary metric."""
        return self.metrics[self.metric]


class FormLatency(BaseModel):
    """Of one form of a student, in milliseconds at batch 1 on the CPU.

    Attributes:
        ms: median; of a stream the mean of a frame over the interval from key frame to key frame.
        low: 10 % quantile.
        high: 90 % quantile.
        keyframe_ms: median of a key frame; None for students without.
        delta_ms: median of a frame after a key frame.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ms: float
    low: float
    high: float
    keyframe_ms: float | None = None
    delta_ms: float | None = None


class LatencyRecord(BaseModel):
    """How fast the forms of a student ran when they were exported, in turns.

    Attributes:
        threads: that each had.
        waited_share: share of the time in which the process did not run, because others did; above a tenth the figures
            tell little.
        forms: backend -> its latency.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int
    waited_share: float
    forms: Mapping[str, FormLatency]


class StateTensor(BaseModel):
    """One tensor that the key graph gives and the delta graph takes.

    Attributes:
        name: `layer#i`; also the name of the ONNX graphs' output and input.
        rows: rows a stream; the first dimension is rows · streams.
        shape: of one row.
        bytes: a stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rows: int
    shape: tuple[int, ...]
    bytes: int


class StreamRecord(BaseModel):
    """How the two graphs of a delta student belong together.

    Attributes:
        keyframe_interval: K; frames 0, K, 2K, … go to the key graph, with no state, all others to the delta graph.
        form: `delta` keeps (z_0, x_0) of a layer, `residual` keeps z_0 − h(x_0).
        interval_flops: FLOPs of the trained student for K frames.
        keyframe_flops: of the key graph.
        delta_flops: of the delta graph.
        state: in the order of the key graph's outputs after the first one, and of the delta graph's inputs after it.
        state_bytes: of one stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keyframe_interval: int
    form: Literal["delta", "residual"]
    interval_flops: int
    keyframe_flops: int
    delta_flops: int
    state: tuple[StateTensor, ...]
    state_bytes: int


class ExportRecord(BaseModel):
    """What stands in `verification.json`.

    Attributes:
        arch_id: of the student.
        trial: its trial.
        flops: of the trained student, for one clip; amortised a frame where it runs frame by frame.
        flops_convention: what is counted.
        compared_batches: batch sizes at which outputs were compared.
        compared_frames: numbers of frames at which they were compared beside that of the training, of graphs that take
            any number.
        seed: of the compared inputs.
        parity: one entry a file.
        validated_on: the labelled data on which each form of the student was measured again; empty where it was not.
        validation: metrics on these data from each form, and its largest difference to the weights there.
        warnings: a sentence for each file of less precision that is much worse than the weights there.
        latency: of each form.
        stream: of a student that runs frame by frame.
        environment: versions and hardware.

    Examples:
        >>> from pathlib import Path
        >>> text = Path("runs/demo/export/trial-0000/verification.json").read_text()
        >>> record = nas_kd.ExportRecord.model_validate_json(text)
        >>> record.parity[0].file, record.parity[0].max_abs_difference
        ('student.safetensors', 0.0)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    arch_id: str
    trial: int | None
    flops: int
    flops_convention: str = CONVENTION
    compared_batches: tuple[int, ...] = BATCHES
    compared_frames: tuple[int, ...] = ()
    seed: int
    parity: tuple[Parity, ...]
    validated_on: str = ""
    validation: tuple[FileMetrics, ...] = ()
    warnings: tuple[str, ...] = ()
    latency: LatencyRecord | None = None
    stream: StreamRecord | None = None
    environment: Mapping[str, str]


def batch_dim() -> Any:
    """The open first dimension of exported graphs."""
    return torch.export.Dim("batch", min=1, max=65536)


def save_program(program: torch.export.ExportedProgram, path: Path, extra_files: Mapping[str, str]) -> None:
    """Write an exported graph.

    The examples of its inputs are saved too: as views of a single zero, since they could be most of the file.
    """
    zero, (inputs, _) = torch.zeros(()), program.example_inputs
    program.example_inputs = (tuple(zero.expand_as(tensor) for tensor in inputs), {})
    content = io.BytesIO()  # torch writing to a full disk ends the whole process
    torch.export.save(program, content, extra_files=dict(extra_files))
    path.write_bytes(content.getbuffer())


def need_onnx() -> Any:
    """onnxruntime.

    Raises:
        ExportError: a package is missing.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch needs it, and says so less clearly
    except ImportError as error:
        raise ExportError(f"ONNX export needs {error.name}; install it with: pip install 'nas-kd[onnx]'") from error
    return onnxruntime


@contextmanager
def third_party_warnings() -> Iterator[None]:
    """The exporters warn of their own deprecations and optional parts, on which no user of this package can act."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
