"""The report of a run: one HTML file that works offline, two CSV files and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nas_kd.analysis import offset_sections, sections
from nas_kd.analysis.ablation_section import ablation_section
from nas_kd.analysis.advice import advise
from nas_kd.analysis.bench import Bench
from nas_kd.analysis.drivers import drivers_section
from nas_kd.analysis.explore import free_chart
from nas_kd.analysis.exported import Exported
from nas_kd.analysis.figures import front_figure, write_picture
from nas_kd.analysis.formats import check_formats, write_formats
from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.interactive import (
    STAGE_WORDS,
    failure_chart,
    front_chart,
    hypervolume_chart,
    measured_stages,
    stage_chart,
)
from nas_kd.analysis.latencies import Latencies
from nas_kd.analysis.layers import layer_chart, read_layers, teacher_layers
from nas_kd.analysis.offset_figures import offsets_figure, splits_with_offsets
from nas_kd.analysis.offsets import has_streaming_students
from nas_kd.analysis.page import chart, render
from nas_kd.analysis.references import ReferencePoint
from nas_kd.analysis.search_figures import MOST_SHOWN, gate_order, gates_picture
from nas_kd.analysis.search_files import SearchFileError, read_search
from nas_kd.analysis.search_numbers import budget_table, epoch_table, probability_table
from nas_kd.analysis.search_section import SearchSection, search_section
from nas_kd.analysis.summary import RunProgress, constraint_sentence, progress_sentence, summarise, trials_sentence
from nas_kd.analysis.table import front_rows, seconds_spent, trial_table, write_csv
from nas_kd.trials.objectives import Ranking
from nas_kd.trials.record import TrialRecord

_POINTS_CAPTION = (
    "Each point is a trained student. With three objectives the front is no line: its points are those that no other "
    "one beats in all three, and their colour is the third. Point at a mark for details; click it to find the trial in "
    "the table."
)
_STEP_CAPTION = (
    "Each point is a trained student. The line is what a budget buys: at each cost, the best value of any trial that "
    "costs no more. Point at a mark for details; click it to find the trial in the table."
)


@dataclass(frozen=True)
class ReportPaths:
    """Where `write_report` put its files.

    Attributes:
        report: the page.
        trials: all trials as CSV.
        front: those of the front as CSV.
        picture: the front as PNG.
        offsets: None where no student of the front was measured per offset.
        search: of the shared search its picture, and its numbers as CSV; empty without one.
        search_headline: the shared search in one sentence, or what is wrong with its files; empty without one.
        others: in the further formats that were asked for.
    """

    report: Path
    trials: Path
    front: Path
    picture: Path
    offsets: Path | None = None
    search: tuple[Path, ...] = ()
    search_headline: str = ""
    others: tuple[Path, ...] = ()


def write_report(
    records: Sequence[TrialRecord],
    out_dir: Path | str,
    *,
    title: str,
    teacher: TeacherPoint | None,
    metadata: Mapping[str, str],
    run_dir: Path | str | None = None,
    search_dir: Path | str | None = None,
    ranking: Ranking | None = None,
    budgets: Sequence[float] = (),
    tolerance: float | None = None,
    progress: RunProgress | None = None,
    latencies: Latencies | None = None,
    bench: Bench | None = None,
    exported: Exported | None = None,
    with_grid: bool = False,
    formats: Sequence[str] = (),
    references: Sequence[ReferencePoint] = (),
) -> ReportPaths:
    """Write `report.html`, `trials.csv`, `front.csv` and `front.png`; older ones are replaced.

    Where a streaming student of the front was measured per offset from its key frame, `offsets.png` is written as well;
    for a shared search `search.png`, `search.csv`, `search_probabilities.csv` and `search_epochs.csv`.

    Selection, front and advice use the validation split only. No text from records, title or metadata can run or be
    read as markup in any of the files.

    Args:
        records: all trials of the run, also failed and stopped ones; may be empty.
        out_dir: created if missing.
        title: headline of the report.
        teacher: drawn beside the students and compared with the pick; None if unknown.
        metadata: facts about the run, printed at the end. `run` names the run's directory in the commands.
        run_dir: folder of the run, for the layers that its trials and its teacher have left there; None without.
        search_dir: folder that a shared search has left; where it is damaged, the report says so.
        ranking: objectives and constraints of the campaign; see `ParetoFront.from_records`.
        budgets: of the campaign on its first cost; the best student within each is named.
        tolerance: how much worse than the best a student may be that is recommended for being cheaper, in the metric's
            unit; see `ParetoFront`.
        progress: how far the campaign is; a report of one that has not ended says so.
        with_grid: whether the campaign has a grid, whose table of means is then shown.
        latencies: that were measured after the trials, for the spread of those in the records and the teacher's.
        bench: latencies of the front in several runtimes.
        exported: what exports measured; files of less precision are drawn beside the front.
        references: points drawn beside the front.
        formats: further ones, of `nas_kd.analysis.formats.ReportFormat`.

    Returns:
        The paths of the files.

    Raises:
        ValueError: the records do not share one primary metric, or there is no such format.
        OSError: a file cannot be written.
    """
    check_formats(formats)
    front, out_dir = ParetoFront.from_records(records, ranking=ranking, tolerance=tolerance), Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    if exported is not None:
        references = (*references, *exported.points(front.axis))
    paths = ReportPaths(
        report=out_dir / "report.html",
        trials=out_dir / "trials.csv",
        front=out_dir / "front.csv",
        picture=out_dir / "front.png",
        offsets=out_dir / "offsets.png" if splits_with_offsets(front) else None,
    )
    table = trial_table(records, front)
    write_csv(table, paths.trials)
    write_csv(front_rows(table, front), paths.front)
    picture = front_figure(records, title=title, teacher=teacher, front=front, references=references)
    write_picture(picture, paths.picture)
    if paths.offsets is not None:
        write_picture(offsets_figure(front, title=title, teacher=teacher), paths.offsets)
    pick = advise(front, teacher, budgets)
    values = _values(records, front, title, teacher, metadata, paths, run_dir, references) | {
        "pick": pick,
        "pick_command": sections.export_command(metadata.get("run", "RUN"), pick.pick.number) if pick else "",
        "progress": progress_sentence(records, progress),
        "ablation": ablation_section(records) if with_grid else None,
        # Trials of a grid that share an architecture are its arms and no repeats.
        "repeated": None if with_grid else sections.repeated_architectures(records),
        "latency_note": latencies.note if latencies is not None else "",
        "bench": bench,
        "exported": exported,
    }
    front_table = sections.front_table(front, teacher, latencies) if front.records else None
    values["front_table"] = front_table
    commands = [sections.reproduce_command(metadata.get("run", "RUN"), record.number) for record in front.records]
    others = write_formats(formats, out_dir, figure=picture, trials=table, front=front_table, commands=commands)
    paths = replace(paths, others=others)
    if search_dir is not None:
        section, files = _search(search_dir, out_dir, records, title)
        values["search"] = section
        if section is not None:
            words = " ".join((section.headline, *section.problems)).strip()
            paths = replace(paths, search=files, search_headline=words)
    paths.report.write_text(render("report.html", values), encoding="utf-8", newline="\n")
    return paths


def _search(
    search_dir: Path | str, out_dir: Path, records: Sequence[TrialRecord], title: str
) -> tuple[SearchSection | None, tuple[Path, ...]]:
    """The section on the shared search, and the files beside the report; None and no files without a search."""
    try:
        search = read_search(search_dir)
    except SearchFileError as error:
        return SearchSection(problems=(str(error),)), ()
    if search is None:
        return None, ()
    picture = out_dir / "search.png"
    write_picture(gates_picture(search.result, gate_order(search.result)[:MOST_SHOWN], title), picture)
    files = [picture]
    for name, table in (
        ("search.csv", budget_table(search, records)),
        ("search_probabilities.csv", probability_table(search)),
        ("search_epochs.csv", epoch_table(search)),
    ):
        write_csv(table, out_dir / name)
        files.append(out_dir / name)
    return search_section(search, records, picture.read_bytes()), tuple(files)


def _values(
    records: Sequence[TrialRecord],
    front: ParetoFront,
    title: str,
    teacher: TeacherPoint | None,
    metadata: Mapping[str, str],
    paths: ReportPaths,
    run_dir: Path | str | None,
    references: Sequence[ReferencePoint],
) -> dict[str, object]:
    """What `templates/report.html` names; a section without content is None or empty."""
    run = metadata.get("run", "RUN")
    with_streaming = has_streaming_students(records)
    # Students of clips have their other metrics in their records; they are shown where the teacher's stand beside.
    with_secondary = with_streaming or (teacher is not None and bool(teacher.secondary))
    values: dict[str, object] = {
        "title": title,
        "counts": trials_sentence(records) if records else "",
        "any_complete": any(record.state == "complete" for record in records),
        "is_line": front.is_plane,
        "constraints": constraint_sentence(front) if front.left_out else "",
        "summary": summarise(records, front, teacher),
        "front": None,
        "streaming": None,
        "search": None,
        "secondary": offset_sections.secondary(front, teacher) if with_secondary else None,
        "warnings": sections.warnings(records),
        "failures": sections.failures(records),
        "failure_chart": chart("failures", failure_chart(records), "Failed trials by what went wrong.", is_sized=True),
        "trials": sections.all_trials(records, front, run) if records else None,
        "convention": sections.convention(records),
        "environment": sections.environment(records, metadata),
    }
    if with_streaming:
        picture = paths.offsets.read_bytes() if paths.offsets is not None else None
        values["streaming"] = offset_sections.streaming_section(front, teacher, picture)
    if front.records:
        values |= _front_values(records, front, teacher, run, paths, run_dir, references)
    return values


def _front_values(
    records: Sequence[TrialRecord],
    front: ParetoFront,
    teacher: TeacherPoint | None,
    run: str,
    paths: ReportPaths,
    run_dir: Path | str | None,
    references: Sequence[ReferencePoint],
) -> dict[str, object]:
    picture = paths.picture.read_bytes()
    spent = seconds_spent(records)
    layers = {} if run_dir is None else {r.number: read_layers(Path(run_dir), r.number) for r in front.records}
    of_teacher = () if run_dir is None else teacher_layers(Path(run_dir))
    stages = measured_stages(records)
    return {
        "front": {
            "chart": chart(
                "front",
                front_chart(records, front=front, teacher=teacher, references=references),
                _STEP_CAPTION if front.is_plane else _POINTS_CAPTION,
                fallback_png=picture,
            ),
            "architectures": [
                sections.architecture(record, front, run, layers.get(record.number, ())) for record in front.records
            ],
            "teacher_layers": layer_chart("layers-teacher", of_teacher, "the teacher", is_teacher=True)
            if of_teacher
            else None,
        },
        "free": free_chart(records, front),
        "drivers": drivers_section(front),
        "correlations": sections.correlations(records),
        "stage_words": " and ".join(STAGE_WORDS[stage] for stage in stages),
        "stage_chart": chart(
            "stages",
            stage_chart(records, front),
            f"From {STAGE_WORDS[stages[0]]} to {STAGE_WORDS[stages[-1]]}, one line a trial.",
        )
        if len(stages) > 1
        else None,
        "history_chart": chart(
            "history",
            hypervolume_chart(front),
            "Hypervolume over the trials: while the curve climbs, more trials are worth running.",
        ),
        "time_chart": chart(
            "history-time",
            hypervolume_chart(front, spent),
            "Hypervolume over the time of the trials added up, also of failed and stopped ones; without teacher and "
            "shared search.",
        )
        if spent
        else None,
    }
