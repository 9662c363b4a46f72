"""The command line `nas-kd`: search, status, report, table, export, bench, evaluate, predict, and what comes before
a run."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live

from nas_kd import cli_start
from nas_kd.callbacks import no_progress
from nas_kd.console import console, listed, plain_errors, progress_bar, say, say_table, termination_is_interrupt

if TYPE_CHECKING:
    from nas_kd.deploy.record import ExportRecord

# As nas_kd.search_spaces.CONVENTION, which would bring torch along: `--help` answers at once.
CONVENTION = (
    "fvcore: one multiply-accumulate is one FLOP; element-wise operators and reductions are not counted, but the "
    "additions and subtractions of delta layers are"
)

TOLERANCE_HELP = (
    "Recommend the cheapest student that is at most so much worse than the best one, in the metric's unit: 0.01 is a "
    "point of a metric in percent. Default: a point, or 1 % of the best value of another metric; or one standard error "
    "of the best, where that is more."
)

BACKEND_HELP = (
    "safetensors: PyTorch, from the weights; pt2: the graph of torch.export; onnx, onnx-int8, onnx-fp16: ONNX Runtime. "
    "Default: safetensors, or a graph where the student needs code of your own."
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"Find the cheap students of a heavy video model. FLOPs: {CONVENTION}.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from nas_kd import __version__

        say(f"nas-kd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of all commands."""


cli_start.add_to(app)


@app.command()
def search(
    file: cli_start.CampaignFile = None,
    overrides: cli_start.Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Rehearse it and time some steps: say what it takes, and run no trial.")
    ] = False,
) -> None:
    """Launch a campaign, or resume it: the same command after any crash goes on with what is missing."""
    with plain_errors(), termination_is_interrupt():
        from nas_kd import campaign as campaigns  # torch and the rest load after --help has been answered
        from nas_kd.config import load_config
        from nas_kd.trials import Progress as TrialsProgress

        config = load_config(file, overrides or ())
        if dry_run:
            from nas_kd.campaign.dry_run import dry_run as try_out

            with progress_bar() as progress:
                lines = try_out(config, say, progress)
            for line in lines:
                say(line)
            return
        say(f"run folder: {config.run_dir}")
        with campaigns.Campaign(config) as campaign:
            try:
                with progress_bar() as progress:
                    ledger = campaign.prepare(progress, say)
            except KeyboardInterrupt:  # as while trials run; the teacher goes on from its last epoch
                say("interrupted; run the same command again to continue")
                raise typer.Exit(130) from None
            with TrialsProgress(ledger.ranking, ledger.records(), console=console) as table:
                result = campaign.run(table)
        say(result.summary)
        say(f"next: nas-kd report {config.run_dir}")
        if config.grid:
            say(f"      nas-kd table {config.run_dir}")
    if result.summary.interrupted:
        raise typer.Exit(130)
    if result.summary.num_complete == 0:
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folder of the run; several are compared on one page.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report. Default: `report` in the run's, `comparison` beside the first of several."
        ),
    ] = None,
    tolerance: Annotated[float | None, typer.Option(help=TOLERANCE_HELP)] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Beside HTML, CSV and PNG: svg, pdf, markdown, latex, parquet; repeatable or comma-separated.",
        ),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(
            help="CSV file of published nets to draw beside the front: name, cost (in the campaign's unit), value."
        ),
    ] = None,
) -> None:
    """Write the Pareto-front report of a run, or compare several: an HTML file that works offline, CSV and PNG."""
    with plain_errors():
        from nas_kd import runs as run_folders

        if len(runs) > 1:
            if tolerance is not None or formats or points is not None:
                raise ValueError(
                    "--tolerance, --format and --points are for the report of one run; leave them out to compare runs"
                )
            compared = run_folders.compare(runs, out)
            for sentence in compared.headline:
                say(sentence)
            for path in (compared.page, compared.picture, compared.students):
                say(path)
            return
        paths = run_folders.report(runs[0], out, tolerance=tolerance, formats=listed(formats), points=points)
        if paths.search_headline:
            say(paths.search_headline)
        pictures = (paths.report, paths.picture, paths.offsets, paths.front, paths.trials)
        for written in (*pictures, *paths.search, *paths.others):
            if written is not None:  # as that of offsets is, without a stream on the front
                say(written)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show it again until the campaign ends or stops.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON and nothing else.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Of --watch: seconds between two looks.")] = 5.0,
) -> None:
    """Say how a campaign stands, while it runs or after: trials, front, hypervolume, time left."""
    with plain_errors():
        from nas_kd import runs as run_folders
        from nas_kd.runs.status import render

        with contextlib.suppress(KeyboardInterrupt):
            shown = Live(console=console) if watch and console.is_terminal and not as_json else contextlib.nullcontext()
            with shown as live:
                while True:
                    found = run_folders.status(run)
                    if as_json:
                        say(found.to_json())
                    elif live is not None:
                        live.update(render(found), refresh=True)
                    else:
                        console.print(render(found))
                    if not watch or found.state in ("complete", "interrupted"):
                        break
                    time.sleep(interval)


def _assigned(items: list[str] | None, option: str) -> dict[str, str]:
    """`knob=value` items by knob."""
    values = {}
    for item in items or ():
        name, equals, value = item.rpartition("=")
        if not equals or not name:
            raise ValueError(f"{option} takes knob=value, but got {item!r}")
        values[name] = value
    return values


@app.command()
def table(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    rows: Annotated[
        list[str] | None, typer.Option(help="Knobs of the rows; repeatable or comma-separated. Default: what varies.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Knobs of the columns; repeatable or comma-separated.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Metric of the task; the primary one by default.")] = None,
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="KNOB=VALUE", help="Differences to the cells with this value; repeatable."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="KNOB=VALUE", help="Only trials with this value; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for table.md and table.csv.")] = None,
) -> None:
    """Print the students of a run by the values of knobs, each with its interval: the table of an ablation."""
    with plain_errors():
        from nas_kd import runs as run_folders
        from nas_kd.analysis import pivot_rich

        made = run_folders.table(
            run,
            listed(rows),
            listed(columns),
            metric=metric,
            split=split,  # type: ignore[arg-type]  # others are refused with a sentence
            against=_assigned(against, "--against"),
            where=_assigned(where, "--where"),
            out_dir=out,
        )
        say_table(pivot_rich(made))
        if out is not None:
            for name in ("table.md", "table.csv"):
                say(out / name)


@app.command()
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
    tolerance: Annotated[float | None, typer.Option(help=TOLERANCE_HELP)] = None,
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
    """Export a student and compare the files with the trained one; by default the one that the report recommends."""
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


def _say_export(record: ExportRecord, folder: Path) -> None:
    """What was written of a student, and how it compares."""
    say(f"trial {record.trial}, {record.flops:,} FLOPs, in {folder}")
    for item in record.parity:
        say(
            f"  {item.file}: {item.bytes:,} bytes, largest difference to the trained student "
            f"{item.max_abs_difference:.1e} (largest logit {item.largest_logit:.1f})"
        )
    for form in record.validation:
        say(
            f"  {' + '.join(form.files)}: {form.metric} {form.value:.4f} on {record.validated_on} "
            f"({form.measured.num_items} items)"
        )


@app.command()
def bench(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    runtimes: Annotated[
        list[str] | None, typer.Option("--runtime", help="eager, compiled or onnx; repeatable or comma-separated.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Measured beside one thread. Default: torch's.")] = None,
) -> None:
    """Measure the latency of the front's students in PyTorch, compiled, and in ONNX Runtime, with 1 and n threads."""
    with plain_errors():
        from rich.table import Table

        from nas_kd import runs as run_folders

        how: dict[str, Any] = {"runtimes": listed(runtimes)} if runtimes else {}
        with progress_bar() as progress:
            made = run_folders.bench(run, threads=threads, progress=progress, **how)
        shown = made.table()
        table = Table(*map(str, shown.headers))
        for row in shown.rows:
            table.add_row(*(cell.text + (f"\n{cell.note}" if cell.note else "") for cell in row))
        say_table(table)
        for sentence in made.sentences():
            say(sentence)
        say(f"{run / 'bench.json'}; nas-kd report {run} shows it")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of an exported student.")],
    data: Annotated[
        Path, typer.Argument(help="Campaign file or folder of a run; or a folder with labels.csv (path,label).")
    ],
    split: Annotated[
        str | None, typer.Option(help="val or test. Default: test of a campaign, all rows of a folder.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help=BACKEND_HELP)] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Items at once.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Measure an exported student on labelled data, from any of its files."""
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
        groups = "" if rests.num_groups is None else f" of {rests.num_groups} groups"
        interval = "" if rests.low is None else f", 95 % interval {rests.low:.4f} to {rests.high:.4f}"
        say(f"{found.metric} {found.value:.4f} on {rests.num_items} items{groups}{interval} ({', '.join(found.files)})")
        for name, value in found.metrics.items():
            if name != found.metric:
                say(f"  {name} {value:.4f}")


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Folder of an exported student.")],
    source: Annotated[
        str, typer.Argument(help="A video, an image, a folder of images, a folder of videos, or camera (camera:1, …).")
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
    top: Annotated[int, typer.Option(min=1, help="Labels that are given of a clip.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    overlay: Annotated[bool, typer.Option(help="Write videos with what was found in them.")] = True,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Of a camera: end after so many frames.")] = None,
) -> None:
    """Run an exported student on videos: labels with scores, or overlay videos and arrays."""
    with plain_errors():
        from nas_kd.data.live import camera, live_frames
        from nas_kd.deploy.predict_files import files_to_read, predict_files, predict_live
        from nas_kd.deploy.predictor import load

        student = load(bundle, backend=backend, device=device)
        folder = out or (Path("predictions") if student.has_maps else None)
        name, _, which = source.partition(":")
        if name == "camera":
            frames = live_frames(*camera(which))
            results = [predict_live(student, frames, "camera", folder, overlay=overlay, max_frames=max_frames)]
        else:
            paths, quiet = files_to_read(Path(source)), contextlib.nullcontext(no_progress)
            with quiet if as_json else progress_bar() as progress:
                results = predict_files(student, paths, folder, Path(source), overlay=overlay, progress=progress)
        if as_json:
            say(json.dumps([result.as_dict(top) for result in results], indent=2))
        else:
            for note in student.notes:
                say(note)
            for line in (line for result in results for line in result.lines(top)):
                say(line)
    if any(result.error is not None for result in results):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="nas-kd")


if __name__ == "__main__":
    main()
