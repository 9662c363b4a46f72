"""Export a student to other formats, and compare outputs and FLOPs of every file with the trained student."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nas_kd.callbacks import no_progress
from nas_kd.deploy.backends import Backend, open_backend
from nas_kd.deploy.bundle import ARCH_NAME, WEIGHTS_NAME, BundleInfo, load_bundle, save_bundle, write_info
from nas_kd.deploy.export_stream import export_stream
from nas_kd.deploy.lengths import Lengths, batches_of_lengths, lengths_of, open_or_refused, open_sizes
from nas_kd.deploy.measure import LabelledSet, differs, losses, measure
from nas_kd.deploy.model_card import CARD_NAME, model_card
from nas_kd.deploy.onnx_graph import first_output, largest_difference, names_of, random_batches, write_graph
from nas_kd.deploy.predictor import Predictor
from nas_kd.deploy.preprocessed import FILE_NAME as UINT8_NAME
from nas_kd.deploy.preprocessed import Preprocessed, write_preprocessed
from nas_kd.deploy.record import (
    RECORD_NAME,
    TOLERANCE,
    ExportError,
    ExportRecord,
    FileMetrics,
    Format,
    FormLatency,
    LatencyRecord,
    Parity,
    need_onnx,
    save_program,
    third_party_warnings,
)
from nas_kd.deploy.reduced import ENDINGS, REDUCED
from nas_kd.deploy.reduced_stream import REDUCED_STREAMS
from nas_kd.deploy.timing import summary, timed
from nas_kd.files import write_text_atomically
from nas_kd.search_spaces import SearchSpace, count_flops
from nas_kd.tasks import TASKS
from nas_kd.training.measure import environment

LATENCY_ROUNDS = 2
SCRIPT, SCRIPT_NAME = Path(__file__).parent / "run_bundle.py", "run.py"
_ENDINGS = ("pt2", "onnx", *ENDINGS.values())
# What an export into the same folder may have left, of the same student or of another one; weights are always written.
_EARLIER = (
    *(f"{part}.{ending}" for part in ("student", "key", "delta") for ending in _ENDINGS),
    *(UINT8_NAME, SCRIPT_NAME, RECORD_NAME, CARD_NAME),
)

__all__ = ["WRITERS", "ExportError", "ExportRecord", "Format", "Parity", "export_student"]


def export_student(
    bundle: Path | str,
    out_dir: Path | str,
    formats: Sequence[Format] = ("safetensors", "pt2", "onnx"),
    *,
    space: SearchSpace | None = None,
    seed: int = 0,
    validation: LabelledSet | None = None,
    calibration: Tensor | None = None,
    with_preprocessing: bool = False,
    dynamic_frames: bool = False,
    with_latency: bool = True,
    license: str = "",
    intended_use: str = "",
) -> ExportRecord:
    """Write the student of a bundle in the formats asked for, read each again and compare.

    Outputs are compared on random inputs and, with `validation`, on real ones, on which the metric is measured again
    from each form; it must be the one that the bundle states.

    A student that keeps a state between frames becomes two graphs, one for key frames and one for the others:
    `export_stream`.

    Args:
        bundle: folder of the trained student.
        out_dir: gets `student.safetensors` + `arch.json` (always), `student.pt2`, `student.onnx`, `verification.json`
            and `MODEL_CARD.md`; of a student with a state `key.pt2`, `delta.pt2`, `key.onnx` and `delta.onnx`. With
            ONNX `run.py`, which runs it on videos without torch, where the bundle states all that it needs.
        formats: what to write; the batch dimension of graphs is dynamic. `onnx-int8` and `onnx-fp16` are of less
            precision (`nas_kd.deploy.reduced`).
        space: needed where the student's space is your own, as by `load_bundle`.
        seed: of the random inputs that are compared.
        validation: the validation split of the student's campaign.
        calibration: items of the training split, for `onnx-int8`.
        with_preprocessing: whether `student_uint8.onnx` is written too, which reads the bytes of clips.
        dynamic_frames: whether `student.pt2` and `student.onnx` take any number of frames, where the student does; they
            are compared at several numbers. FLOPs and metrics are those of the number that it was trained with.
        with_latency: whether each form is timed.
        license: of the weights, for the model card.
        intended_use: what the student is meant for, for the model card.

    Raises:
        ValueError: the bundle cannot be read, a format is unknown, or the student takes one number of frames only.
        ExportError: an output, a FLOP count or the metric differs, or a package is missing; the file in question is
            removed.

    Examples:
        >>> record = nas_kd.export_student("runs/demo/trials/0000", "student", formats=("safetensors",))
        >>> [entry.file for entry in record.parity]
        ['student.safetensors']
    """
    for name in formats:
        if name not in WRITERS and name not in REDUCED:
            raise ValueError(f"unknown format {name!r}; choose from {', '.join((*WRITERS, *REDUCED))}")
    reduced = [name for name in dict.fromkeys(formats) if name in REDUCED]
    formats = [name for name in dict.fromkeys(formats) if name in WRITERS]
    if "onnx-int8" in reduced:
        if calibration is None:
            raise ValueError("onnx-int8 is calibrated on training clips; give the data, or leave it out")
        formats = list(dict.fromkeys((*formats, "onnx")))  # which it is made from
    if dynamic_frames and not {"pt2", "onnx"} & set(formats):
        raise ValueError(
            "dynamic_frames is of graphs, but none is written; add pt2 or onnx to the formats, or leave it out"
        )
    student, info = load_bundle(bundle, space)
    stated = {"license": license or info.license, "intended_use": intended_use or info.intended_use}
    info = info.model_copy(update=stated)
    if with_preprocessing:
        Preprocessed(student, info)  # raises before anything is written where it cannot be
    lengths = lengths_of(student, info) if dynamic_frames else None
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for file in _EARLIER:
        (out_dir / file).unlink(missing_ok=True)
    keeps_a_state = info.input_type.students_keep_a_state
    if keeps_a_state:
        record = export_stream(student, info, out_dir, formats, space=space, seed=seed)
    else:
        record = _export_clip_student(student, info, out_dir, formats, lengths, space=space, seed=seed)
    if with_preprocessing:
        made = write_preprocessed(student, info, out_dir, seed)
        record = record.model_copy(update={"parity": (*record.parity, made)})
    for name in reduced:
        rounded = (REDUCED_STREAMS if keeps_a_state else REDUCED)[name](student, info, out_dir, calibration, seed)
        record = record.model_copy(update={"parity": (*record.parity, *rounded)})
    files = [entry.file for entry in record.parity]
    if "onnx" in formats and _runs_alone(info):
        shutil.copyfile(SCRIPT, out_dir / SCRIPT_NAME)
        files.append(SCRIPT_NAME)
    info = write_info(out_dir, info, files)
    backends: list[Backend] = []
    if with_latency or validation is not None:
        names = dict.fromkeys(("safetensors", *formats, *reduced))
        backends = [open_backend(out_dir, info, name, "cpu", space) for name in names]
    if with_latency:
        record = record.model_copy(update={"latency": _latency(backends, info)})
    if validation is not None:
        found = _validated(out_dir, info, backends, validation, space)
        told = losses(found, type(validation.make_task()))
        about = {"validated_on": validation.name, "validation": tuple(found), "warnings": told}
        record = record.model_copy(update=about)
    content = json.dumps(record.model_dump(mode="json"), indent=2) + "\n"
    write_text_atomically(out_dir / RECORD_NAME, content)
    write_text_atomically(out_dir / CARD_NAME, model_card(info, record))
    return record


def _runs_alone(info: BundleInfo) -> bool:
    """Whether the script that needs no torch can prepare the student's input and read its output."""
    is_stated = info.view is not None or not info.input_type.students_fit_items
    return info.mean is not None and is_stated and info.task in TASKS


def _export_clip_student(
    student: nn.Module,
    info: BundleInfo,
    out_dir: Path,
    formats: Sequence[Format],
    lengths: Lengths | None,
    *,
    space: SearchSpace | None,
    seed: int,
) -> ExportRecord:
    """Of a student without a state; arguments as of `export_stream`, and the numbers of frames that graphs take."""
    inputs, expected = random_batches(student, info, seed)
    if lengths is not None:
        more, outputs = batches_of_lengths(student, info, lengths, seed)
        inputs, expected = inputs + more, expected + outputs
    parity = []
    for name in dict.fromkeys(("safetensors", *formats)):
        path, run, flops = WRITERS[name](student, info, out_dir, space, lengths)
        try:
            with open_or_refused(lengths):
                found = largest_difference(run, inputs, expected)
        except ExportError:
            path.unlink()
            raise
        entry = Parity.of(path, *found, flops)
        if flops is not None and flops != info.flops:
            path.unlink()
            raise ExportError(f"{path.name} costs {flops:,} FLOPs, but the trained student {info.flops:,}; not kept")
        parity.append(entry)
    return ExportRecord(
        arch_id=info.arch_id,
        trial=info.trial,
        flops=info.flops,
        compared_frames=() if lengths is None else lengths.compared,
        seed=seed,
        parity=tuple(parity),
        environment=environment("cpu"),
    )


def _latency(backends: Sequence[Backend], info: BundleInfo) -> LatencyRecord:
    """The latency of each form of a student, at batch 1 on the CPU."""
    example = torch.zeros(1, *info.input_shape)
    nets = {backend.name: backend.passes(example) for backend in backends}
    times, waited = timed(nets, torch.device("cpu"), no_progress, rounds=LATENCY_ROUNDS)
    forms = {name: FormLatency.model_validate(summary(parts, nets[name])) for name, parts in times.items()}
    return LatencyRecord(threads=torch.get_num_threads(), waited_share=waited, forms=forms)


def _validated(
    folder: Path, info: BundleInfo, backends: Sequence[Backend], validation: LabelledSet, space: SearchSpace | None
) -> list[FileMetrics]:
    """The metrics of each form of a student; one that differs is removed.

    Raises:
        ExportError: outputs on real items differ, or the metric is not the one that the bundle states.
    """
    found = measure([Predictor(folder, info, backend, space) for backend in backends], validation)
    for form in found:
        if form.backend in REDUCED:
            continue  # its metric is its own
        files = " and ".join(form.files)
        expected = info.metrics.get("val", {}).get(form.metric)
        reason = ""
        if not (form.max_abs_difference or 0.0) <= TOLERANCE * max(1.0, form.largest_output):
            reason = f"an output differs from that of the weights by {form.max_abs_difference:.3g}"
        elif expected is not None and differs(form.value, expected, form.measured.num_items):
            reason = (
                f"its {form.metric} is {form.value:.4f}, but the trial measured {expected:.4f}; if the data were "
                "changed since, export without them"
            )
        if reason:
            for file in (*form.files, ARCH_NAME if WEIGHTS_NAME in form.files else form.files[0]):
                (folder / file).unlink(missing_ok=True)
            raise ExportError(f"{files} on {validation.name}: {reason}; not kept")
    return found


Run = Callable[[Tensor], Tensor]
Written = tuple[Path, Run, int | None]


def _write_safetensors(
    student: nn.Module, info: BundleInfo, folder: Path, space: SearchSpace | None, lengths: Lengths | None
) -> Written:
    save_bundle(folder, student, info)
    again, _ = load_bundle(folder, space)
    return folder / WEIGHTS_NAME, _quiet(again), count_flops(again, torch.zeros(1, *info.input_shape)).total


def _write_pt2(
    student: nn.Module, info: BundleInfo, folder: Path, space: SearchSpace | None, lengths: Lengths | None
) -> Written:
    path, example = folder / "student.pt2", torch.zeros(2, *info.input_shape)
    with third_party_warnings():
        with open_or_refused(lengths):
            program = torch.export.export(student, (example,), dynamic_shapes=(open_sizes(lengths),))
        save_program(program, path, {ARCH_NAME: json.dumps(info.model_dump(mode="json"))})
        graph = torch.export.load(path).module()
        flops = count_flops(graph, torch.zeros(1, *info.input_shape)).total
    return path, _quiet(graph), flops


def _write_onnx(
    student: nn.Module, info: BundleInfo, folder: Path, space: SearchSpace | None, lengths: Lengths | None
) -> Written:
    need_onnx()
    path, example = folder / "student.onnx", torch.zeros(2, *info.input_shape)
    name, result = names_of(student, info)
    with open_or_refused(lengths):
        write_graph(student, (example,), path, [name], [result], (open_sizes(lengths),))
    return path, first_output(path), None


Writer = Callable[[nn.Module, BundleInfo, Path, "SearchSpace | None", "Lengths | None"], Written]
WRITERS: dict[str, Writer] = {"safetensors": _write_safetensors, "pt2": _write_pt2, "onnx": _write_onnx}
"""Format -> function that writes the file, reads it again, and returns its path, how to run it, and its FLOPs."""


def _quiet(module: nn.Module) -> Run:
    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            output = module(x)
        assert isinstance(output, Tensor)
        return output

    return run
