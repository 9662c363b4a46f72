"""Commands that export a student, reproduce it and use it: export, reproduce, evaluate, predict."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas_kd.callbacks import no_progress
from nas_kd.cli.console import listed, plain_errors, progress_bar, say, say_table, termination_is_interrupt
from nas_kd.cli.options import Tolerance

if TYPE_CHECKING:
    from nas_kd.deploy.record import ExportRecord

BACKEND_HELP = (
    "safetensors: PyTorch, from the weights; pt2: the graph of torch.export; onnx, onnx-int8, onnx-fp16: ONNX Runtime. "
    "Default: safetensors, or a graph where the student needs code of your own."
)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    trial: Annotated[int | None, typer.Option(help="Export this trial.")] = None,
    max_flops: Annotated[
        str | None,
        typer.Option(help="Export the best student within these FLOPs, such as 50M; several limits hold together."),
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(
            help="Export the best student within this latency: the one measured, else the "
            "one that a campaign with a budget of latency predicts."
        ),
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(help="Of the students within this many parameters the best.")
    ] = None,
    max_worst_frame_flops: Annotated[
        str | None, typer.Option(help="Best student within these FLOPs of the worst frame.")
    ] = None,
    max_state_bytes: Annotated[
        str | None, typer.Option(help="Best student within this many bytes between frames.")
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="Export the student where the front bends most.")] = False,
    all_front: Annotated[
        bool, typer.Option("--all-front", help="Export each student of the front, to a folder each, with a table.")
    ] = False,
    tolerance: Tolerance = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="safetensors, pt2, onnx, onnx-int8, onnx-fp16; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the export.")] = None,
    with_preprocessing: Annotated[
        bool, typer.Option(help="Write student_uint8.onnx too, which reads the bytes of clips and gives scores.")
    ] = False,
    dynamic_frames: Annotated[
        bool, typer.Option("--dynamic-frames", help="Write graphs that take any number of frames.")
    ] = False,
    license: Annotated[str, typer.Option(help="License of the weights, for the model card.")] = "",
    intended_use: Annotated[str, typer.Option(help="What the student is meant for, for the model card.")] = "",
    data: Annotated[
        bool, typer.Option(help="Compare outputs on the validation split, and measure its metric from each file.")
    ] = True,
) -> None:
    """Export a student, and compare its files with it. By default the one that the report recommends."""
    with plain_errors():
        from nas_kd import runs as run_folders
        from nas_kd.settings.sizes import parse_size

        counts = {
            "max_flops": (max_flops, "FLOPs"),
            "max_params": (max_params, "parameters"),
            "max_worst_frame_flops": (max_worst_frame_flops, "FLOPs"),
            "max_state_bytes": (max_state_bytes, "bytes"),
        }
        how: dict[str, Any] = {
            "formats": listed(formats) or ("safetensors", "pt2", "onnx"),  # unknown names are refused with a sentence
            "out_dir": out,
            "with_data": data,
            "with_preprocessing": with_preprocessing,
            "dynamic_frames": dynamic_frames,
            "license": license,
            "intended_use": intended_use,
        }
        if all_front:
            which: dict[str, Any] = {"--trial": trial, "--max-latency-ms": max_latency_ms}
            which |= {f"--{name.replace('_', '-')}": text for name, (text, _) in counts.items()}
            which |= {"--knee": knee or None, "--tolerance": tolerance}
            named = [name for name, value in which.items() if value is not None]
            if named:
                raise ValueError(f"--all-front exports every student of the front; leave out {' and '.join(named)}")
            folder, records = run_folders.export_front(run, **how)
            for record in records:
                assert record.trial is not None, "students of a run are of trials"
                _say_export(record, folder / run_folders.export_name(record.trial))
            say(f"table: {folder / 'index.md'}")
            return
        limits: dict[str, Any] = {
            name: None if text is None else parse_size(text, what, "50M") for name, (text, what) in counts.items()
        }
        folder, record = run_folders.export(
            run,
            trial=trial,
            max_latency_ms=max_latency_ms,
            knee=knee,
            tolerance=tolerance,
            **limits,
            **how,
        )
        _say_export(record, folder)


def reproduce(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    trial: Annotated[
        int | None, typer.Option(help="Reproduce this trial. Default: the one that the report recommends.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the new record, weights and comparison. Default: reproduced/NAME-trial-NNNN beside the "
            "run's."
        ),
    ] = None,
) -> None:
    """Run a trial again, elsewhere, and compare it with its record. Exit status 0 where it gives the same."""
    with plain_errors(), termination_is_interrupt():
        from nas_kd import campaign

        try:
            with progress_bar() as progress:
                found = campaign.reproduce(run, trial=trial, out_dir=out, progress=progress, note=say)
        except KeyboardInterrupt:
            say("interrupted; run the same command again to continue")
            raise typer.Exit(130) from None
        say_table(found.agreement.table())
        for sentence in found.agreement.sentences():
            say(sentence)
        say(f"record, weights and comparison: {found.folder}")
    if not found.agreement.is_reproduced:
        raise typer.Exit(1)


def _say_export(record: ExportRecord, folder: Path) -> None:
    """What was written of a student, and how it compares."""
    say(f"trial {record.trial}, {record.flops:,} FLOPs, in {folder}")
    for item in record.parity:
        say(
            f"  {item.file}: {item.bytes:,} bytes, largest difference to the trained student "
            f"{item.max_abs_difference:.1e} (largest output {item.largest_logit:.1f})"
        )
    for form in record.validation:
        say(
            f"  {' + '.join(form.files)}: {form.metric} {form.value:.4f} on {record.validated_on} "
            f"({form.measured.num_items} items)"
        )
    for warning in record.warnings:
        say(f"  warning: {warning}")


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of an exported student.")],
    data: Annotated[Path, typer.Argument(help="Campaign file or folder of a run; or a folder with labels.csv.")],
    split: Annotated[
        str | None, typer.Option(help="val or test. Default: test of a campaign, all rows of a folder.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help=BACKEND_HELP)] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Items at once.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Measure an exported student on labelled data. From any of its files."""
    with plain_errors():
        from nas_kd import evaluation

        quiet = contextlib.nullcontext(no_progress)
        with quiet if as_json else progress_bar() as progress:
            found = evaluation.evaluate(
                bundle,
                data,
                split=split,  # type: ignore[arg-type]  # others are refused with a sentence
                backend=backend,
                device=device,
                batch_size=batch_size,
                progress=progress,
            )
        if as_json:
            say(json.dumps(found.model_dump(mode="json"), indent=2))
            return
        rests = found.measured
        groups = (
            "" if rests.num_groups is None else f" of {rests.num_groups} group{'' if rests.num_groups == 1 else 's'}"
        )
        interval = "" if rests.low is None else f", 95 % interval {rests.low:.4f} to {rests.high:.4f}"
        say(f"{found.metric} {found.value:.4f} on {rests.num_items} items{groups}{interval} ({', '.join(found.files)})")
        for name, value in found.metrics.items():
            if name != found.metric:
                say(f"  {name} {value:.4f}")


def predict(
    bundle: Annotated[Path, typer.Argument(help="Folder of an exported student.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Videos, images, folders of images, folders of videos; or camera (camera:1, …) alone.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for predictions.json and, of students that answer for frames, arrays and overlays; those "
            "write to `predictions` by default, others nothing."
        ),
    ] = None,
    backend: Annotated[str | None, typer.Option(help=BACKEND_HELP)] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    top: Annotated[int | None, typer.Option(min=1, help="Labels that are given of a clip. Default: 3.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    overlay: Annotated[
        bool | None,
        typer.Option(
            "--overlay/--no-overlay",
            help="Whether students that answer for frames write videos with what was found in them. Default: they do.",
        ),
    ] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Of a camera: end after so many frames.")] = None,
) -> None:
    """Run an exported student on videos. Gives labels with scores, or overlay videos and arrays."""
    with plain_errors():
        from nas_kd.data.live import camera, live_frames
        from nas_kd.deploy.predict_files import files_to_read, predict_files, predict_live
        from nas_kd.deploy.predictor import load

        student = load(bundle, backend=backend, device=device)
        folder = out or (Path("predictions") if student.has_maps else None)
        cameras = [source for source in sources if source.partition(":")[0] == "camera"]
        if cameras and len(sources) > 1:
            raise ValueError(f"a camera is read alone, but {len(sources)} sources are named; leave out the others")
        if max_frames is not None and not cameras:
            raise ValueError("--max-frames ends a camera, but files are named, which are read whole; leave it out")
        if student.has_maps and top is not None:
            raise ValueError("--top is of labels of clips, but this student answers for frames; leave it out")
        if not student.has_maps and overlay is not None:
            drawn = "--overlay" if overlay else "--no-overlay"
            raise ValueError(f"{drawn} is of videos of frames, but this student gives labels of clips; leave it out")
        top, overlay = top or 3, overlay is not False
        if cameras:
            which = cameras[0].partition(":")[2]
            frames = live_frames(*camera(which))
            results = [predict_live(student, frames, "camera", folder, overlay=overlay, max_frames=max_frames)]
        else:
            files, quiet = files_to_read([Path(source) for source in sources]), contextlib.nullcontext(no_progress)
            with quiet if as_json else progress_bar() as progress:
                results = predict_files(student, files, folder, overlay=overlay, progress=progress)
        if as_json:
            say(json.dumps([result.as_dict(top) for result in results], indent=2))
        else:
            for note in student.notes:
                say(note)
            for line in (line for result in results for line in result.lines(top)):
                say(line)
    if any(result.error is not None for result in results):
        raise typer.Exit(1)


COMMANDS = (export, reproduce, evaluate, predict)
