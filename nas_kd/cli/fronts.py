"""Commands that read the students of a run: report, table, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas_kd.cli.console import listed, plain_errors, progress_bar, say, say_table
from nas_kd.cli.options import Tolerance


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folder of the run; several are compared on one page.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report. Default: `report` in the run's, `comparison` beside the first of several."
        ),
    ] = None,
    tolerance: Tolerance = None,
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
    """Write the Pareto-front report of a run, or compare several. An HTML file that works offline, CSV and PNG."""
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


def _assigned(items: list[str] | None, option: str) -> dict[str, str]:
    """`knob=value` items by knob."""
    values = {}
    for item in items or ():
        name, equals, value = item.rpartition("=")
        if not equals or not name:
            raise ValueError(f"{option} takes knob=value, but got {item!r}")
        values[name] = value
    return values


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
    """Print the students of a run by the values of knobs. Each with its interval: the table of an ablation."""
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


def bench(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    runtimes: Annotated[
        list[str] | None, typer.Option("--runtime", help="eager, compiled or onnx; repeatable or comma-separated.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Measured beside one thread. Default: torch's.")] = None,
) -> None:
    """Measure the latency of the front's students. In PyTorch, compiled, and in ONNX Runtime, with 1 and n threads."""
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


COMMANDS = (report, table, bench)
