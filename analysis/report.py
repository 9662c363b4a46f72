"""The report of a run: one HTML file that works offline, two CSV files and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import sections, stream_sections
from analysis.advice import advise, summarise
from analysis.figures import front_figure, write_png
from analysis.front import ParetoFront, TeacherPoint
from analysis.interactive import failure_chart, front_chart, hypervolume_chart, ladder_chart
from analysis.page import Child, Markup, chart, element, join, render
from analysis.stream_figures import offsets_figure, splits_with_offsets
from analysis.streams import has_streams
from analysis.table import trial_table, write_csv
from trials.record import TrialRecord

_STEP_CAPTION = (
    "Each point is a trained student. The line is what a budget buys: at each cost, the best value of any trial that "
    "costs no more. Point at a mark for details; click it to find the trial in the table."
)


@dataclass(frozen=True)
class ReportPaths:
    """Where `write_report` put its files; `offsets` is None where no stream of the front was measured per offset."""

    report: Path
    trials: Path
    front: Path
    picture: Path
    offsets: Path | None = None


def write_report(
    records: Sequence[TrialRecord],
    out_dir: Path | str,
    *,
    title: str,
    teacher: TeacherPoint | None,
    metadata: Mapping[str, str],
) -> ReportPaths:
    """Write `report.html`, `trials.csv`, `front.csv` and `front.png`; older ones are replaced.

    Where a stream of the front was measured per offset from its key frame, `offsets.png` is written as well.

    Selection, front and advice use the validation split only. No text from records, title or metadata can run or be
    read as markup in any of the files.

    Args:
        records: all trials of the run, also failed and stopped ones; may be empty.
        out_dir: created if missing.
        title: headline of the report.
        teacher: drawn beside the students and compared with the pick; None if unknown.
        metadata: facts about the run, printed at the end. `run` names the run's directory in the export commands.

    Returns:
        The paths of the files.

    Raises:
        ValueError: the records do not share one primary metric.
        OSError: a file cannot be written.
    """
    front, out_dir = ParetoFront.from_records(records), Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(
        report=out_dir / "report.html",
        trials=out_dir / "trials.csv",
        front=out_dir / "front.csv",
        picture=out_dir / "front.png",
        offsets=out_dir / "offsets.png" if splits_with_offsets(front) else None,
    )
    table = trial_table(records, front)
    write_csv(table, paths.trials)
    write_csv(table[table["on_front"].astype(bool)].sort_values(["flops", "trial"]), paths.front)
    write_png(front_figure(records, title=title, teacher=teacher, front=front), paths.picture)
    if paths.offsets is not None:
        write_png(offsets_figure(front, title=title, teacher=teacher), paths.offsets)
    body = _body(records, front, title, teacher, metadata, paths)
    paths.report.write_text(render(title, body), encoding="utf-8", newline="\n")
    return paths


def _body(
    records: Sequence[TrialRecord],
    front: ParetoFront,
    title: str,
    teacher: TeacherPoint | None,
    metadata: Mapping[str, str],
    paths: ReportPaths,
) -> Markup:
    run = metadata.get("run", "RUN")
    advice = advise(front, teacher)
    times = sorted(record.started_at for record in records if record.started_at)
    parts: list[Child] = [
        element("h1", title),
        element("p", f"Trials started from {times[0]} to {times[-1]}" if times else "", class_="subtitle"),
    ]
    if not records:
        return join(
            parts, element("p", "This run holds no trial yet. Start or resume its campaign, then report again.")
        )
    parts += [
        sections.tiles(records, front),
        sections.pick(advice, run) if advice else _nothing_to_pick(records),
        element("h2", "Summary"),
        element("ul", [element("li", sentence) for sentence in summarise(records, front, teacher)]),
    ]
    if front.records:
        parts += [
            element("h2", "Front"),
            chart(
                "front",
                front_chart(records, front=front, teacher=teacher),
                _STEP_CAPTION,
                fallback_png=paths.picture.read_bytes(),
            ),
            sections.front_table(front, teacher),
            *_streams(records, front, teacher, paths),
            element("h2", "Architectures on the front"),
            sections.architectures(front, run),
            element("h2", "Can the numbers be trusted?"),
            sections.correlations(records),
            sections.repeated_architectures(records),
            element(
                "div",
                chart(
                    "ladder", ladder_chart(records, front), "From gated supernet to trained student, one line a trial."
                ),
                chart(
                    "history",
                    hypervolume_chart(records, front),
                    "Hypervolume over the trials: a curve that still climbs asks for more trials.",
                ),
                class_="two",
            ),
        ]
    if (warned := sections.warnings_list(records)) is not None:
        parts += [element("h2", "Warnings"), warned]
    if any(record.state == "failed" for record in records):
        parts += [
            element("h2", "Failures"),
            chart("failures", failure_chart(records), "Failed trials by what went wrong.", low=True),
            sections.failures(records),
        ]
    parts += [
        element("h2", "All trials"),
        element("p", element("input", type="search", placeholder="filter, e.g. failed", aria_label="filter trials")),
        sections.trial_rows(records, front),
        element("p", "* The test split is shown and never used for selection.", class_="note"),
        element("h2", "Convention and environment"),
        sections.convention(records),
        sections.environment(records, metadata),
    ]
    return join(parts)


def _streams(
    records: Sequence[TrialRecord], front: ParetoFront, teacher: TeacherPoint | None, paths: ReportPaths
) -> list[Child]:
    if has_streams(records):
        picture = paths.offsets.read_bytes() if paths.offsets is not None else None
        return [element("h2", "Streams"), stream_sections.streams(front, teacher, picture)]
    # Students of clips have their other metrics in their records; they are shown where the teacher's stand beside.
    return [stream_sections.secondary(front, teacher)] if teacher is not None and teacher.secondary else []


def _nothing_to_pick(records: Sequence[TrialRecord]) -> Markup:
    states = {record.state for record in records}
    if "complete" in states:
        text = "There is nothing to pick yet: no complete trial has a validation value of a trained student."
    else:
        text = "There is nothing to pick yet: no trial is complete."
    return element("div", element("p", text, class_="lead"), class_="pick")
