"""Contents of the sections of the report as plain data, which `templates/report.html` lays out."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from nas_kd.analysis.axes import Axis
from nas_kd.analysis.cells import Cell, Table, badge, interval_text, number_cell, saving_cell, trial_cell
from nas_kd.analysis.failures import failure_groups
from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.intervals import Uncertain
from nas_kd.analysis.latencies import Latencies
from nas_kd.analysis.layers import Layers, layer_chart
from nas_kd.analysis.page import Chart, json_for_html, visible
from nas_kd.analysis.statistics import (
    MIN_PAIRS,
    estimate_mean,
    group_by_arch,
    paired_difference,
    seed_values,
    stage_correlations,
)
from nas_kd.analysis.table import COLUMNS, duration_s
from nas_kd.analysis.text import (
    COST_CONVENTION,
    MISSING,
    count,
    error_headline,
    flops_label,
    in_percent,
    metric_text,
    ms_text,
    range_text,
    share_text,
    si,
    signed_text,
)
from nas_kd.trials.objectives import Objective
from nas_kd.trials.record import Metric, TrialRecord

_MAX_ERROR_CHARS = 4000
_MAX_ERRORS = 12
_MAX_NUMBERS = 20  # of trials that are named
_MAX_REPEATED = 12
_OWN_COLUMNS = ("flops", "parameters", "latency_ms")  # costs that tables show whatever ranks the trials

Pairs = list[tuple[str, str]]  # names and what they stand for


def export_command(run: str, number: int) -> str:
    """The command that exports a trial's student, with the run's name quoted for a shell."""
    return f"nas-kd export {shlex.quote(run)} --trial {number}"


def reproduce_command(run: str, number: int) -> str:
    """The command that runs a trial again and compares it with its record, quoted likewise."""
    return f"nas-kd reproduce {shlex.quote(run)} --trial {number}"


def front_table(front: ParetoFront, teacher: TeacherPoint | None, latencies: Latencies | None = None) -> Table:
    """The front by increasing first cost, with intervals and, of a line, the paired gain over the next cheaper point.

    Args:
        front: its trials.
        teacher: for how many times cheaper they are.
        latencies: for the spread of those in the records.
    """
    shown = [axis for axis in front.axes if axis.name not in _OWN_COLUMNS]
    with_latency = any(record.cost is not None and record.cost.latency_ms is not None for record in front.records)
    rows = []
    previous: TrialRecord | None = None
    for record in front.records:
        cost = record.cost
        assert cost is not None, "comparable records carry their cost"
        cells = [
            trial_cell(record, front),
            number_cell(metric_text(record.score(front.split, front.stage), record.metric)),
            _interval_cell(front.interval(record), record.metric, front.num_trainings(record)),
            *([number_cell(_gain(previous, record, front))] if front.is_plane else []),
            number_cell(metric_text(record.score("test", front.stage), record.metric)),
            *(number_cell(axis.number(axis.of(record, front.split, front.stage), trim=False)) for axis in shown),
        ]
        cells += [
            number_cell(si(cost.flops, trim=False)),
            saving_cell(teacher, cost.flops),
            number_cell(si(cost.params, trim=False)),
        ]
        if with_latency:
            cells.append(_latency_cell(record, latencies))
        cells.append(number_cell(share_text(front.contributions[record.number])))
        rows.append(cells)
        previous = record
    metric = front.records[0].metric.name
    unit = ", points" if in_percent(front.records[0].metric) else ""
    headers = [
        "trial",
        f"validation {metric}",
        "95 % interval, over",
        *([f"gain over the row above{unit}"] if front.is_plane else []),
        f"test {metric} *",
        *(axis.header for axis in shown),
    ]
    headers += [
        "FLOPs",
        "teacher's FLOPs / its own",
        "parameters",
        *(["latency, ms"] if with_latency else []),
        "hypervolume contribution",
    ]
    return Table(headers, rows)


@dataclass(frozen=True)
class Architecture:
    """What was chosen for a trial of the front.

    Attributes:
        heading: the trial, what it reaches and what it costs.
        is_pick: whether it is the recommended trial.
        tally: how often each operator was chosen, where one was chosen more than once.
        choices: one line a cell.
        space: name of the space.
        settings: of the space.
        json: the architecture as it is, where it has neither choices nor settings.
        knobs: of the trial.
        commands: one that exports it, and one that runs it again.
        layers: its layers by their FLOPs; None where they are not known.
    """

    heading: str
    is_pick: bool
    tally: str
    choices: Pairs
    space: str
    settings: Pairs
    json: str
    knobs: Pairs
    commands: str
    layers: Chart | None = None


def architecture(record: TrialRecord, front: ParetoFront, run: str, layers: Layers = ()) -> Architecture:
    """The choices of a front point, readable, with its knobs and commands."""
    value = metric_text(record.score(front.split, front.stage), record.metric)
    cost = front.place_text(record)
    arch = dict(record.arch or {})
    choices, settings = arch.get("choices"), arch.get("settings")
    choices = choices if isinstance(choices, Mapping) else {}
    settings = settings if isinstance(settings, Mapping) else {}
    # Numbers, such as widths, say nothing by themselves.
    tally = Counter(choice for choice in choices.values() if isinstance(choice, str))
    is_other_shape = bool(arch) and not choices and not settings
    return Architecture(
        heading=f"trial {record.number}: {value} at {cost}, architecture {record.arch_id or 'unnamed'}",
        is_pick=front.pick is not None and front.pick.number == record.number,
        tally=", ".join(f"{number} × {choice}" for choice, number in tally.most_common())
        if len(tally) < tally.total()
        else "",
        choices=_grouped(choices),
        space=str(arch.get("space", "")),
        settings=_shown({name: value for name, value in settings.items() if value is not None}),
        json=json.dumps(arch, indent=2, default=str) if is_other_shape else "",
        knobs=_shown(record.knobs),
        commands="\n".join((export_command(run, record.number), reproduce_command(run, record.number))),
        layers=layer_chart(f"layers-{record.number}", layers, f"trial {record.number}") if layers else None,
    )


def _grouped(choices: Mapping[str, Any]) -> Pairs:
    """Choices by what stands before the last dot of their name: one line a cell, in order."""
    groups: dict[str, list[str]] = {}
    for name, choice in choices.items():
        group, _, leaf = str(name).rpartition(".")
        groups.setdefault(group or str(name), []).append(f"{leaf}: {choice}" if group else str(choice))
    return [(group, ", ".join(members)) for group, members in groups.items()]


def _shown(values: Mapping[str, Any]) -> Pairs:
    return [(str(name), _value_text(str(name), value)) for name, value in values.items()]


def _value_text(name: str, value: object) -> str:
    if name.endswith("flops") and isinstance(value, int | float):
        return si(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, default=str) if isinstance(value, Mapping | list | tuple) else str(value)


def correlations(records: Sequence[TrialRecord]) -> Table:
    """How well each stage ranks the trials for the next, for stages that were measured."""
    rows = [
        [
            Cell(f"{earlier} → {later}"),
            number_cell(_correlation(result.kendall if result.num_pairs >= MIN_PAIRS else None)),
            number_cell(_correlation(result.spearman if result.num_pairs >= MIN_PAIRS else None)),
            number_cell(str(result.num_pairs)),
        ]
        for (earlier, later), result in stage_correlations(records).items()
        if result.num_pairs
    ]
    return Table(["stages", "Kendall's tau-b", "Spearman's rho", "trials"], rows)


@dataclass(frozen=True)
class Repeated:
    """Architectures that several trials trained.

    Attributes:
        table: the first of them.
        number: how many there are.
    """

    table: Table
    number: int


def repeated_architectures(records: Sequence[TrialRecord]) -> Repeated | None:
    """Architectures that several complete trials trained, with the spread of their values; None without any."""
    rows = []
    for arch_id, group in group_by_arch(records).items():
        scores = [record.score("val", "retrained") for record in group]
        values = [value for value in scores if value is not None]
        if len(values) > 1:
            estimate, metric = estimate_mean(values), group[0].metric
            rows.append(
                [
                    Cell(arch_id),
                    Cell(", ".join(str(record.number) for record in group)),
                    number_cell(metric_text(estimate.mean, metric)),
                    number_cell(interval_text(estimate, metric)),
                ]
            )
    if not rows:
        return None
    headers = ["architecture", "trials", "validation mean", "95 % interval (n trials)"]
    return Repeated(Table(headers, rows[:_MAX_REPEATED]), len(rows))


@dataclass(frozen=True)
class Failure:
    """One way in which trials failed: which trials, what went wrong, and the traceback of the first."""

    heading: str
    text: str


def failures(records: Sequence[TrialRecord]) -> list[Failure]:
    """The ways in which trials failed, the most frequent first."""
    found = []
    for reason, group in failure_groups(records)[:_MAX_ERRORS]:
        text = group[0].error or "The trial left no error text."
        cut = text if len(text) <= _MAX_ERROR_CHARS else "… " + text[-_MAX_ERROR_CHARS:]
        numbers = ", ".join(str(record.number) for record in group[:_MAX_NUMBERS])
        if len(group) > _MAX_NUMBERS:
            numbers += f" and {len(group) - _MAX_NUMBERS} more"
        found.append(Failure(f"{count(len(group), 'trial')} ({numbers}): {reason}", cut))
    return found


def warnings(records: Sequence[TrialRecord]) -> list[tuple[str, list[int]]]:
    """Each warning once, with the numbers of the trials that gave it, the most frequent first."""
    trials: dict[str, list[int]] = {}
    for record in records:
        for warning in record.warnings:
            trials.setdefault(warning, []).append(record.number)
    ranked = sorted(trials.items(), key=lambda item: -len(item[1]))
    return [(warning, list(dict.fromkeys(numbers))) for warning, numbers in ranked]


@dataclass(frozen=True)
class Header:
    """A column that can be sorted: its name, what is shown when it is pointed at, and how it is drawn."""

    name: str
    title: str
    kind: Literal["text", "badge", "code", "long"] = "text"


@dataclass(frozen=True)
class Row:
    """A trial in the table of all trials; `place` is `pick` or `front` where the trial is that."""

    number: int
    place: str | None
    cells: Sequence[Cell]


@dataclass(frozen=True)
class TrialTable:
    """All trials in one table that sorts by any column and filters by text.

    The page draws its rows from data: 10,000 rows in the document would take a browser half a minute.

    Attributes:
        headers: of the columns.
        rows: one a trial.
        command: by which a complete trial is run again, without its number; the page shows it of a point that is
            clicked.
    """

    headers: Sequence[Header]
    rows: Sequence[Row]
    command: str

    @property
    def data(self) -> Markup:
        """Columns and rows as JSON for `script.js`. A number is its text and what it is sorted by."""
        columns = [{"name": header.name, "kind": header.kind} for header in self.headers]
        rows = []
        for row in self.rows:
            rows.append({"number": row.number, "place": row.place, "cells": [_as_json(cell) for cell in row.cells]})
        content = {"columns": columns, "rows": rows, "command": visible(self.command)}
        return json_for_html(json.dumps(content, separators=(",", ":")))


def _as_json(cell: Cell) -> str | list[str | float | None]:
    text = visible(cell.text)
    if not cell.is_number:
        return text
    return [text, None if cell.sort_key == "" else cell.sort_key]


def _without_empty_columns(table: TrialTable) -> TrialTable:
    """Without columns in which no trial has a value, such as those of a search that the campaign did not make."""
    kept = [
        index
        for index in range(len(table.headers))
        if any(row.cells[index].text not in ("", MISSING) for row in table.rows)
    ]
    rows = [Row(row.number, row.place, [row.cells[index] for index in kept]) for row in table.rows]
    return TrialTable([table.headers[index] for index in kept], rows, table.command)


def all_trials(records: Sequence[TrialRecord], front: ParetoFront, run: str) -> TrialTable:
    """The table of all trials of a run, by number."""
    axis = front.axis
    knobs = sorted({name for record in records for name in record.knobs if name != axis.budget})
    headers = [Header("trial", COLUMNS["trial"]), Header("state", COLUMNS["state"], "badge")]
    headers.append(Header("budget", f"budget, in {axis.unit}"))
    headers += [Header(each.header, f"ranked by: {each.noun}") for each in _further(front)]
    named = [
        ("flops", "FLOPs"), ("params", "parameters"), ("latency_ms", "latency, ms"), ("val_metric", "validation"),
        ("test_metric", "test *"), ("gated_val", "gated"), ("derived_val", "derived"),
        ("hv_contribution", "contribution"), ("duration_s", "duration, s"), ("arch_id", "architecture"),
        ("seed", "seed"),
    ]  # fmt: skip
    headers += [Header(name, COLUMNS[column], "code" if column == "arch_id" else "text") for column, name in named]
    headers += [Header(name, "knob") for name in knobs]
    headers.append(Header("error", COLUMNS["error"], "long"))
    ordered = sorted(records, key=lambda record: record.number)
    rows = [_trial_row(record, front, knobs) for record in ordered]
    return _without_empty_columns(TrialTable(headers, rows, reproduce_command(run, 0).removesuffix(" 0")))


def _further(front: ParetoFront) -> list[Axis]:
    """What trials are ranked by and has no column of its own: objectives, and metrics or costs that are limited."""
    ranked = front.ranking.ranked[1:]
    percent = front.axis.percent
    judged = front.ranking.objectives[0].name
    names = dict.fromkeys(each.name for each in ranked if each.name not in (judged, *_OWN_COLUMNS))
    return [Axis(Objective(name=name), percent) for name in names]


def _trial_row(record: TrialRecord, front: ParetoFront, knobs: Sequence[str]) -> Row:
    cost, axis, place = record.cost, front.axis, badge(record, front)
    cells = [
        Cell(str(record.number), is_number=True, sort_key=record.number),
        Cell(record.state),
        _cost_cell(axis.budget_of(record), front),
    ]
    for each in _further(front):
        ranked = each.of(record, front.split, front.stage)
        cells.append(Cell(each.number(ranked, trim=False), is_number=True, sort_key=_sort_key(ranked)))
    cells += [
        _quantity(cost.flops if cost else None),
        _quantity(cost.params if cost else None),
        _milliseconds(cost.latency_ms if cost else None),
    ]
    scores = [
        record.score(front.split, front.stage),
        record.score("test", front.stage),
        record.score("val", "gated"),
        record.score("val", "derived"),
    ]
    for score in scores:
        cells.append(Cell(metric_text(score, record.metric), is_number=True, sort_key=_sort_key(score)))
    share = front.contributions.get(record.number)
    cells += [
        Cell(MISSING if share is None else share_text(share), is_number=True, sort_key=_sort_key(share)),
        _sortable_cell(duration_s(record), "{:.0f}"),
        Cell(record.arch_id or ""),
        _sortable_cell(record.seed, "{}"),
    ]
    for name in knobs:
        value = record.knobs.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            cells.append(_sortable_cell(value, "{:.4g}" if isinstance(value, float) else "{}"))
        else:
            cells.append(Cell("" if value is None else str(value)))
    cells.append(Cell(error_headline(record.error)))
    return Row(record.number, place, cells)


def convention(records: Sequence[TrialRecord]) -> str:
    """How cost was counted, said once."""
    return f"{COST_CONVENTION} Here they are {flops_label(records)}."


def environment(records: Sequence[TrialRecord], metadata: Mapping[str, str]) -> Pairs:
    """Settings and software of the run, and where its trials ran; values that differ between trials are all listed."""
    values: dict[str, Counter[str]] = {}
    for record in records:
        for name, value in record.environment.items():
            values.setdefault(name, Counter())[value] += 1
    pairs = dict(metadata)
    for name, counted in sorted(values.items()):
        each = [value if len(counted) == 1 else f"{value} ({count(n, 'trial')})" for value, n in counted.most_common()]
        pairs[name if name not in pairs else f"{name} (trials)"] = ", ".join(each)
    hashes = len({record.config_hash for record in records})
    if records:
        pairs["configurations"] = f"{hashes} ({records[0].config_hash})" if hashes == 1 else str(hashes)
    return list(pairs.items())


def _latency_cell(record: TrialRecord, latencies: Latencies | None) -> Cell:
    """The median, and below it the range."""
    value = record.cost.latency_ms if record.cost is not None else None
    known = latencies.nets.get(str(record.number)) if latencies is not None else None
    text = MISSING if value is None else ms_text(value)
    return Cell(text, note=None if known is None else known.text, is_number=True)


def _interval_cell(interval: Uncertain | None, metric: Metric, trainings: int) -> Cell:
    """An interval, and below it what it rests on; without one, how many trainings there are."""
    if interval is None:
        return Cell("none", note=count(trainings, "training"), is_number=True)
    return Cell(range_text(interval.low, interval.high, metric), note=interval.basis, is_number=True)


def _sortable_cell(value: float | None, pattern: str) -> Cell:
    """A right-aligned number that sorts by its value."""
    return Cell(MISSING if value is None else pattern.format(value), is_number=True, sort_key=_sort_key(value))


def _milliseconds(value: float | None) -> Cell:
    return Cell(MISSING if value is None else ms_text(value), is_number=True, sort_key=_sort_key(value))


def _quantity(value: int | None) -> Cell:
    return Cell(si(value, trim=False), is_number=True, sort_key=_sort_key(value))


def _cost_cell(value: float | None, front: ParetoFront) -> Cell:
    return Cell(front.axis.number(value, trim=False), is_number=True, sort_key=_sort_key(value))


def _sort_key(value: float | None) -> float | str:
    return "" if value is None else value


def _gain(previous: TrialRecord | None, record: TrialRecord, front: ParetoFront) -> str:
    """Difference to the next cheaper front point, with its interval where both were repeated alike."""
    if previous is None:
        return MISSING
    before, after = seed_values(previous, front.split, front.stage), seed_values(record, front.split, front.stage)
    sign = 1.0 if record.metric.maximize else -1.0
    if len(before) == len(after) > 1:
        gain = paired_difference([sign * value for value in after], [sign * value for value in before])
        ends = [signed_text(end, record.metric) for end in gain.interval or ()]
        return signed_text(gain.mean, record.metric) + (f" [{', '.join(ends)}]" if ends else "")
    old, new = (item.score(front.split, front.stage) or 0.0 for item in (previous, record))
    return signed_text(sign * (new - old), record.metric)


def _correlation(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.2f}".replace("-", "−")
