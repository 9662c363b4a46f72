"""Results of a run: its records, the report, and tables of its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_kd.config import CampaignConfig
from nas_kd.config.budget import parse_flops
from nas_kd.runs.run import load_run, open_run, shown_records, teacher_point
from nas_kd.tasks import find_task
from nas_kd.trial.shared import FOLDER as SEARCH_FOLDER
from nas_kd.trial.study_values import CHOICE_PREFIX
from nas_kd.trials import MEASURED_LATENCY, KnobValue, Ledger, Split, TrialRecord, is_driven
from nas_kd.trials.record import FrozenDict

if TYPE_CHECKING:
    from nas_kd.analysis import ComparisonPaths, PivotTable, ReportPaths, RunProgress


def run_progress(run_dir: Path, config: CampaignConfig, ledger: Ledger) -> RunProgress:
    """How far the campaign of a run is."""
    from nas_kd.analysis import RunProgress
    from nas_kd.analysis.search_files import RESULT_NAME

    stage = ""
    if not (run_dir / "teacher" / "teacher.json").is_file():
        stage = "the teacher is not ready"
    elif config.search.shared and not (run_dir / SEARCH_FOLDER / RESULT_NAME).is_file():
        stage = "the search before the trials has not ended"
    known = ledger.count("queued", "running", "complete", "failed", "stopped")
    return RunProgress(max(config.trials, known), ledger.count("running"), is_driven(run_dir), stage)


def report(
    run_dir: Path | str,
    out_dir: Path | str | None = None,
    *,
    tolerance: float | None = None,
    formats: Sequence[str] = (),
    points: Path | str | None = None,
) -> ReportPaths:
    """Write the report of a run: HTML, CSV and PNG.

    Args:
        run_dir: the run's folder.
        out_dir: where to; `report` in the run's folder by default.
        tolerance: how much worse than the best a student may be that is recommended for being cheaper, in the metric's
            unit (0.01 is one point of a metric in percent).
        formats: further ones: `svg`, `pdf`, `markdown`, `latex` of the front, `parquet` of the trials.
        points: a CSV file of nets that were not trained here, with the columns `name`, `cost` (in the campaign's unit)
            and `value` (of its metric), to draw beside the front.

    Raises:
        ValueError: the folder holds no run, there is no such format, or the points cannot be read.

    Examples:
        >>> paths = nas_kd.report("runs/demo")
        >>> paths.report.name, paths.picture.name
        ('report.html', 'front.png')
    """
    from nas_kd.analysis import write_report  # a second of plotting libraries, which a search does without
    from nas_kd.analysis.bench import read_bench
    from nas_kd.analysis.exported import read_exported
    from nas_kd.analysis.latencies import read_latencies
    from nas_kd.analysis.references import read_points

    run_dir = Path(run_dir)
    config, ledger = open_run(run_dir)
    ranking = config.ranking
    latencies = None if MEASURED_LATENCY in ranking.names else read_latencies(run_dir)
    records = shown_records(run_dir, config, ledger.records())
    metric = records[0].metric if records else None
    references = () if points is None else read_points(points, metric)
    facts = {
        "run": str(run_dir),
        "data": config.data.source,
        "task": config.task,
        "space": config.space.name,
        "objectives": str(ranking),
        "sampler": config.sampler,
        "seed": str(config.seed),
    }
    return write_report(
        records,
        out_dir or run_dir / "report",
        title=config.name,
        teacher=teacher_point(run_dir, config),
        metadata=facts,
        run_dir=run_dir,
        search_dir=run_dir / SEARCH_FOLDER if config.search.shared else None,
        ranking=ranking,
        budgets=_budgets(config),
        tolerance=tolerance,
        latencies=latencies,
        bench=read_bench(run_dir),
        exported=read_exported(run_dir, records),
        with_grid=bool(config.grid),
        progress=run_progress(run_dir, config, ledger),
        formats=formats,
        references=references,
    )


def _budgets(config: CampaignConfig) -> tuple[float, ...]:
    """The budgets of a campaign; none where it draws them from a range, or ranks by another cost first."""
    options = config.budget.options
    if not isinstance(options, tuple) or config.ranking.objectives[1].name != config.budget.cost_field:
        return ()
    return tuple(options)


# Of a campaign file: who it is and where it runs, which does not make its results others.
_IDENTITY = ("name", "runs", "seed", "storage", "resources", "trackers")


def compare(run_dirs: Sequence[Path | str], out_dir: Path | str | None = None) -> ComparisonPaths:
    """Write one page that compares runs: fronts, hypervolume over seeds, students at a budget, architectures.

    Args:
        run_dirs: folders of two runs or more, with one metric; runs that differ in their seed alone are repeats.
        out_dir: where to; `comparison` beside the first run by default.

    Raises:
        ValueError: a folder holds no run, or the runs cannot be compared.
    """
    from nas_kd.analysis import ComparedRun, write_comparison

    folders = [Path(folder) for folder in run_dirs]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):  # folders of one name are told apart by where they are
        names = [str(folder) for folder in folders]
    runs = []
    for folder, name in zip(folders, names, strict=True):
        run = load_run(folder)
        settings = {
            name: value
            for name, value in _flat(run.config.model_dump(mode="json")).items()
            if name.partition(".")[0] not in _IDENTITY
        }
        teacher = teacher_point(folder, run.config)
        budgets, ranking = _budgets(run.config), run.config.ranking
        runs.append(ComparedRun(name, run.config.seed, settings, run.records, budgets, teacher, ranking))
    return write_comparison(runs, out_dir or folders[0].parent / "comparison")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of nested sections."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _with_architecture(record: TrialRecord) -> TrialRecord:
    """The record with the choices of its architecture as one knob; as it is where the study did not propose them."""
    knobs = {name: value for name, value in record.knobs.items() if not name.startswith(CHOICE_PREFIX)}
    if len(knobs) == len(record.knobs) or record.arch_id is None:
        return record
    return record.model_copy(update={"knobs": FrozenDict({"architecture": record.arch_id, **knobs})})


def table(
    run_dir: Path | str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    metric: str | None = None,
    split: Split = "test",
    against: Mapping[str, KnobValue] | None = None,
    where: Mapping[str, KnobValue] | None = None,
    out_dir: Path | str | None = None,
) -> PivotTable:
    """The trained students of a run by the values of knobs, with intervals; see `nas_kd.analysis.pivot`.

    Architectures that the study proposed are one knob, `architecture`, unless one of their choices (`arch.…`) is named.

    Args:
        run_dir: the run's folder.
        rows: knobs of the rows; by default those that vary.
        columns: knobs of the columns; by default, what is left of them.
        metric: of the task; the primary one by default.
        split: `test` or `val`.
        against: knob -> value of a baseline, to which differences are taken.
        where: knob -> value: leave out all other trials.
        out_dir: where to write `table.md` and `table.csv`; nothing is written without it.

    Returns:
        The table; `nas_kd.analysis.pivot_rich` and `nas_kd.analysis.pivot_markdown` print it.

    Raises:
        ValueError: the folder holds no run, or no such knob, value or metric.

    Examples:
        >>> table = nas_kd.table("runs/demo", ["resolution"])
        >>> len(table.cells)
        1
    """
    from nas_kd.analysis import write_pivot  # a second of plotting libraries, which a search does without
    from nas_kd.analysis.pivot import pivot

    run = load_run(run_dir)
    named = {*rows, *columns, *(against or {}), *(where or {})}
    is_choice_named = any(name.startswith(CHOICE_PREFIX) for name in named)
    made = pivot(
        run.records if is_choice_named else [_with_architecture(record) for record in run.records],
        rows,
        columns,
        f"{split}/{metric or find_task(run.config.task).metric}",
        against=_flops_read(against),
        where=_flops_read(where),
    )
    if out_dir is not None:
        write_pivot(made, out_dir)
    return made


def _flops_read(values: Mapping[str, KnobValue] | None) -> dict[str, KnobValue]:
    """Values of knobs, with a budget of `5M` as the number that it is."""
    return {name: parse_flops(value) if name == "max_flops" else value for name, value in (values or {}).items()}
