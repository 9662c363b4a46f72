"""Exports of a run: which student is taken, and what is written of it, or of every student of the front."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from nas_kd.deploy.bundle import read_info
from nas_kd.deploy.export import ExportError, ExportRecord, Format, export_student
from nas_kd.deploy.measure import LabelledSet
from nas_kd.files import write_text_atomically
from nas_kd.runs.labelled import calibration_items, campaign_data, labelled_split
from nas_kd.runs.own_space import own_space
from nas_kd.runs.run import Run, load_run
from nas_kd.trials import Objective, Ranking, TrialRecord
from nas_kd.trials.files import trial_directory

if TYPE_CHECKING:
    from nas_kd.analysis import ParetoFront
    from nas_kd.analysis.axes import Axis

ALL_FORMATS: tuple[Format, ...] = ("safetensors", "pt2", "onnx")
# As a campaign's budget names them -> the cost, or those of which one is known.
LIMITS: Mapping[str, tuple[str, ...]] = {
    "max_flops": ("flops",),
    "max_latency_ms": ("latency_ms", "predicted_latency_ms"),
    "max_params": ("parameters",),
    "max_worst_frame_flops": ("worst_frame_flops",),
    "max_state_bytes": ("state_bytes",),
}
INDEX_CSV, INDEX_MD = "index.csv", "index.md"


def pick(
    records: Sequence[TrialRecord],
    *,
    ranking: Ranking | None = None,
    trial: int | None = None,
    limits: Mapping[str, float | None] | None = None,
    knee: bool = False,
    tolerance: float | None = None,
) -> TrialRecord:
    """The trial to export: the one named, the best one within limits, the knee, or the recommended one.

    The recommended one is that of the report, by the same rule: the cheapest within a tolerance of the best, by the
    objectives of the campaign.

    Args:
        records: of the run.
        ranking: objectives and constraints of the campaign; by default the metric of the records and FLOPs.
        trial: number of the trial.
        limits: key of `LIMITS`, such as `max_flops` -> the most that the student may cost; the best one by the first
            metric is taken. A latency is the one that was measured, where the records have it (see `Run`), else the
            one that a campaign with a budget of latency predicts.
        knee: take the point where the front bends most.
        tolerance: how much worse than the best the recommended one may be, in the metric's unit.

    Raises:
        ValueError: more than one is given, or there is no such trial; the sentence lists what there is.

    Examples:
        >>> nas_kd.pick(nas_kd.load_run("runs/demo").records, limits={"max_flops": 1_000_000}).number
        0
    """
    from nas_kd.analysis import ParetoFront

    given_limits = {name: value for name, value in (limits or {}).items() if value is not None}
    given = {"trial": trial, "knee": knee or None, "tolerance": tolerance}
    named = [f"{name} = {value}" for name, value in given.items() if value is not None]
    of_limits = ", ".join(f"{name} = {value}" for name, value in given_limits.items())
    named += [of_limits] if of_limits else []
    if len(named) > 1:
        raise ValueError(
            f"one of {', '.join(given)} or limits ({', '.join(LIMITS)}) decides which trial is picked, but got "
            f"{' and '.join(named)}"
        )
    complete = [r for r in records if r.state == "complete" and r.cost is not None]
    if not complete:
        raise ValueError("there is no complete trial to export; `nas-kd report` shows what failed")
    if trial is not None:
        for record in complete:
            if record.number == trial:
                return record
        raise ValueError(f"trial {trial} is not among the complete ones: {', '.join(str(r.number) for r in complete)}")
    front = ParetoFront.from_records(_within(complete, given_limits), ranking=ranking, tolerance=tolerance)
    if knee and not front.is_plane:
        raise ValueError("a front of three objectives has no knee; pick by trial or by a limit such as max_flops")
    picked = front.knee if knee else front.best if given_limits else front.pick
    if picked is None and front.left_out:
        listed = " and ".join(str(constraint) for constraint in front.ranking.constraints)
        raise ValueError(f"no complete trial keeps the constraints ({listed}); pick by trial, or loosen them")
    if picked is None:
        raise ValueError("no complete trial has a validation value of a trained student; pick by trial")
    return picked


def _within(complete: Sequence[TrialRecord], limits: Mapping[str, float]) -> list[TrialRecord]:
    """The trials that cost no more than any of the limits.

    Raises:
        ValueError: there is none.
    """
    left = list(complete)
    for name, limit in limits.items():
        axis = _axis_of(name, complete)
        costs = [(record, axis.of(record)) for record in left]
        kept = [record for record, cost in costs if cost is not None and cost <= limit]
        if not kept:
            known = [cost for _, cost in costs if cost is not None]
            cheapest = f"; the cheapest costs {_exactly(min(known))}" if known else ""
            among = " within the other limits" if len(left) < len(complete) else ""
            raise ValueError(
                f"no complete trial costs at most {_exactly(limit)} {axis.unit}{among}{cheapest}; raise the budget or "
                "pick by trial"
            )
        left = kept
    return left


def _axis_of(limit: str, complete: Sequence[TrialRecord]) -> Axis:
    """The cost of a limit: of a latency the one measured where it was measured, else the one predicted.

    Raises:
        ValueError: no student has it.
    """
    from nas_kd.analysis import Axis

    for name in LIMITS[limit]:
        axis = Axis(Objective(name=name))
        if any(axis.of(record) is not None for record in complete):
            return axis
    if limit == "max_latency_ms":
        raise ValueError(
            "no student has a latency: none was measured after the trials, and the campaign's budget is max_flops; the "
            "`nas-kd search` command of the run measures those of the front, or pick by max_flops"
        )
    raise ValueError(f"students of this run have no {LIMITS[limit][0]}, so {limit} says nothing; pick by max_flops")


def _exactly(cost: float) -> str:
    """Counts to the last one, since a budget may be that close; milliseconds as they are read."""
    from nas_kd.analysis.text import ms_text

    return f"{cost:,}" if isinstance(cost, int) else ms_text(cost)


def export(
    run_dir: Path | str,
    *,
    trial: int | None = None,
    max_flops: int | None = None,
    max_latency_ms: float | None = None,
    max_params: int | None = None,
    max_worst_frame_flops: int | None = None,
    max_state_bytes: int | None = None,
    knee: bool = False,
    tolerance: float | None = None,
    formats: Sequence[Format] = ALL_FORMATS,
    out_dir: Path | str | None = None,
    with_data: bool = True,
    with_preprocessing: bool = False,
    dynamic_frames: bool = False,
    license: str = "",
    intended_use: str = "",
) -> tuple[Path, ExportRecord]:
    """Export the student of a run; see `pick` for which one.

    Args:
        run_dir: the run's folder.
        trial: see `pick`.
        max_flops: a limit, see `pick`, as the four that follow; with several all of them hold.
        max_latency_ms: a limit.
        max_params: a limit.
        max_worst_frame_flops: a limit.
        max_state_bytes: a limit.
        knee: see `pick`.
        tolerance: see `pick`.
        formats: what to write.
        out_dir: where to; `export/trial-NNNN` in the run's folder by default.
        with_data: whether outputs are compared on the validation split and its metric is measured from each form.
        with_preprocessing: whether an ONNX graph that reads the bytes of clips is written too.
        dynamic_frames: whether graphs take any number of frames, where the student does.
        license: of the weights, for the model card.
        intended_use: what the student is meant for, for the model card.

    Returns:
        The folder with the files, and the record of the comparison.

    Raises:
        ValueError: nothing to export, or the data cannot be read.
        ExportError: what was written does not compute what was trained.

    Examples:
        >>> folder, record = nas_kd.export("runs/demo", max_flops=1_000_000, formats=("safetensors",))
        >>> sorted(path.name for path in folder.iterdir())
        ['MODEL_CARD.md', 'arch.json', 'student.safetensors', 'verification.json']
    """
    run_dir = Path(run_dir)
    run = load_run(run_dir)
    record = pick(
        run.records,
        ranking=run.config.ranking,
        trial=trial,
        limits={
            "max_flops": max_flops,
            "max_latency_ms": max_latency_ms,
            "max_params": max_params,
            "max_worst_frame_flops": max_worst_frame_flops,
            "max_state_bytes": max_state_bytes,
        },
        knee=knee,
        tolerance=tolerance,
    )
    folder = Path(out_dir or run_dir / "export" / export_name(record.number))
    options = _Options(tuple(formats), with_preprocessing, dynamic_frames, license, intended_use)
    return folder, _export(run, record, folder, options, _data(run, record, formats) if with_data else _Data())


def export_front(
    run_dir: Path | str,
    *,
    formats: Sequence[Format] = ALL_FORMATS,
    out_dir: Path | str | None = None,
    with_data: bool = True,
    with_preprocessing: bool = False,
    dynamic_frames: bool = False,
    license: str = "",
    intended_use: str = "",
) -> tuple[Path, list[ExportRecord]]:
    """Export every student of a run's front, each to a folder of its own, with a table of them.

    Args:
        run_dir: the run's folder.
        formats: as for `export`, as those that follow.
        out_dir: gets `trial-NNNN` of each student, `index.csv` and `index.md`; `export/front` in the run's folder by
            default.
        with_data: as for `export`.
        with_preprocessing: as for `export`.
        dynamic_frames: as for `export`.
        license: as for `export`.
        intended_use: as for `export`.

    Returns:
        The folder, and the records of the comparisons by increasing cost.

    Raises:
        ValueError: nothing to export, or the data cannot be read.
        ExportError: a student's file does not compute what was trained; the students before it are kept.

    Examples:
        >>> folder, records = nas_kd.export_front("runs/demo", formats=("safetensors",), with_data=False)
        >>> sorted(path.name for path in folder.iterdir())
        ['index.csv', 'index.md', 'trial-0000']
    """
    from nas_kd.analysis import ParetoFront

    run_dir = Path(run_dir)
    run = load_run(run_dir)
    complete = [record for record in run.records if record.state == "complete"]
    front = ParetoFront.from_records(complete, ranking=run.config.ranking)
    if not front.records:
        keeping = " that keeps the constraints" if front.left_out else ""
        raise ValueError(f"there is no complete trial{keeping} to export; `nas-kd report` shows what failed")
    folder = Path(out_dir or run_dir / "export" / "front")
    data = _data(run, front.records[0], formats) if with_data else _Data()  # all students read the same items
    options = _Options(tuple(formats), with_preprocessing, dynamic_frames, license, intended_use)
    for index in (INDEX_CSV, INDEX_MD):  # of an earlier export
        (folder / index).unlink(missing_ok=True)
    made: list[ExportRecord] = []
    for record in front.records:
        try:
            made.append(_export(run, record, folder / export_name(record.number), options, data))
        except ExportError as error:
            raise ExportError(f"trial {record.number}: {error}") from error
    _write_index(folder, front, made)
    return folder, made


def export_name(number: int) -> str:
    """The folder of a trial's student among the exports of a run."""
    return f"trial-{number:04d}"


@dataclass(frozen=True)
class _Options:
    """Of an export, see `export`."""

    formats: tuple[Format, ...]
    with_preprocessing: bool
    dynamic_frames: bool
    license: str
    intended_use: str


@dataclass(frozen=True)
class _Data:
    """What students are measured on, and what 8-bit ranges are calibrated on; nothing of both without the data."""

    validation: LabelledSet | None = None
    calibration: Tensor | None = None


def _export(run: Run, record: TrialRecord, folder: Path, options: _Options, data: _Data) -> ExportRecord:
    """Export the student of one trial."""
    bundle = trial_directory(run.run_dir, record.number)
    return export_student(
        bundle,
        folder,
        options.formats,
        space=own_space(run.config, run.run_dir, read_info(bundle)),
        validation=data.validation,
        calibration=data.calibration,
        with_preprocessing=options.with_preprocessing,
        dynamic_frames=options.dynamic_frames,
        license=options.license,
        intended_use=options.intended_use,
    )


def _data(run: Run, record: TrialRecord, formats: Sequence[Format]) -> _Data:
    """The validation split, and items of training where a format is calibrated on them.

    Raises:
        ValueError: the data cannot be read; the sentence says how to export without them.
    """
    try:
        splits = campaign_data(run.config)
    except ValueError as error:
        raise ValueError(
            f"an export measures the student on the validation split, but {error}; or export without the data "
            "(--no-data), which compares outputs on random inputs alone"
        ) from error
    calibration = None
    if "onnx-int8" in formats:
        key = read_info(trial_directory(run.run_dir, record.number)).input_type.key
        calibration = calibration_items(run.config, splits, key)
    return _Data(labelled_split(run.config, splits, "val"), calibration)


def _write_index(folder: Path, front: ParetoFront, made: Sequence[ExportRecord]) -> None:
    """`index.csv`, a row for each student in the order of the front, and the same in fewer columns as `index.md`."""
    from nas_kd.analysis.pivot_text import escape_markdown, markdown_line
    from nas_kd.analysis.text import metric_text, ms_text, range_text, si

    rows: list[dict[str, object]] = []
    name = front.records[0].metric.name
    further = [axis for axis in front.axes if axis.name not in ("flops", "parameters", "latency_ms")]
    header = [
        "student",
        *(axis.header for axis in further),
        "FLOPs",
        "parameters",
        "latency, ms",
        f"validation {name}",
        "95 % interval",
        f"test {name}",
        "",
    ]
    lines = [markdown_line(header), "|" + "---|" * len(header)]
    for record, exported in zip(front.records, made, strict=True):
        cost, interval = record.cost, front.interval(record)
        assert cost is not None, "students of a front have a cost"
        roles = [role for role, one in (("recommended", front.pick), ("knee", front.knee)) if one is record]
        row: dict[str, object] = {
            "folder": export_name(record.number),
            "trial": record.number,
            **{axis.name: axis.of(record) for axis in further},
            "flops": cost.flops,
            "params": cost.params,
            "latency_ms": cost.latency_ms,
            f"val_{name}": record.score("val"),
            "val_low": interval.low if interval else None,
            "val_high": interval.high if interval else None,
            f"test_{name}": record.score("test"),
            "role": " and ".join(roles),
        }
        row |= {f"val_{name}_of_{form.backend}": form.value for form in exported.validation}
        rows.append(row)
        cells = [
            *(axis.number(axis.of(record)) for axis in further),
            si(cost.flops),
            si(cost.params),
            "" if cost.latency_ms is None else ms_text(cost.latency_ms),
            metric_text(record.score("val"), record.metric),
            "" if interval is None else range_text(interval.low, interval.high, record.metric),
            metric_text(record.score("test"), record.metric),
            " and ".join(roles),
        ]
        link = f"[{export_name(record.number)}]({export_name(record.number)}/MODEL_CARD.md)"
        lines.append(" | ".join([f"| {link}", *map(escape_markdown, cells)]) + " |")
    with (folder / INDEX_CSV).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_text_atomically(folder / INDEX_MD, "\n".join(lines) + "\n")
