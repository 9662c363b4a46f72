"""Tables of ablations: knobs as rows and columns, a mean with its interval in each cell, and differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, get_args

from nas_kd.analysis.statistics import (
    MIN_VALUES,
    Estimate,
    estimate_mean,
    paired_difference,
    seed_values,
    welch_difference,
)
from nas_kd.analysis.text import MISSING, count, flops_label, si
from nas_kd.trials.record import KnobValue, Metric, Split, Stage, TrialRecord

Key: TypeAlias = tuple[KnobValue, ...]
Pairing: TypeAlias = Literal["paired", "unpaired"]
Seeds: TypeAlias = dict[tuple[frozenset[tuple[str, KnobValue]], int], list[float]]
Measured: TypeAlias = Mapping[int, tuple[float, ...]]  # number of a trial -> the metric of each of its trainings


@dataclass(frozen=True)
class PivotCell:
    """What is known of one combination of row and column.

    Attributes:
        row: values of the row knobs.
        column: values of the column knobs.
        trials: numbers of the complete trials whose values are pooled here.
        values: the metric, one value a training, in order of the trials.
        estimate: their mean and its 95 % t-interval.
        flops: mean over the trials.
        difference: to the baseline's cell, mean and 95 % interval; None without one, and for the baseline itself.
        pairing: whether the difference was taken seed by seed.
        is_baseline: whether others are compared with this cell.
    """

    row: Key
    column: Key
    trials: tuple[int, ...]
    values: tuple[float, ...]
    estimate: Estimate
    flops: float
    difference: Estimate | None = None
    pairing: Pairing | None = None
    is_baseline: bool = False


@dataclass(frozen=True)
class PivotTable:
    """A table of cells by the values of knobs.

    Attributes:
        rows: names of the row knobs.
        columns: names of the column knobs; none for a single column.
        row_keys: values of the row knobs, in the order in which trials introduced them.
        column_keys: values of the column knobs, in the same order.
        cells: (row, column) -> cell; combinations without a measured trial are missing.
        metric: what is measured; of others than the primary one the direction is not known.
        split: on which it was measured.
        stage: of the student that was measured.
        against: knob -> value of the baseline; empty without one.
        notes: what a reader must know beside the numbers, one sentence each.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_keys: tuple[Key, ...]
    column_keys: tuple[Key, ...]
    cells: Mapping[tuple[Key, Key], PivotCell]
    metric: Metric
    split: Split
    stage: Stage
    against: Mapping[str, KnobValue] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def pivot(
    records: Sequence[TrialRecord],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    metric: str | None = None,
    stage: Stage = "retrained",
    *,
    against: Mapping[str, KnobValue] | None = None,
    where: Mapping[str, KnobValue] | None = None,
) -> PivotTable:
    """Group trials by knobs, and estimate a metric in each group.

    A cell holds the values of all trainings (`TrialRecord.repeats`; without repeats the trial's one value) of all
    complete trials with its values of the knobs. Their mean has Student's interval, see `estimate_mean`. Differences to
    a baseline are means of differences seed by seed where both have two seeds or more in common, or where each has one
    value, of the same seed; else differences of means with Welch's interval. The i-th training of a trial has the
    trial's seed plus i.

    Args:
        records: trials of one run.
        rows: knobs by whose values to make rows. With neither rows nor columns the knobs that vary are taken, the last
            of them for columns; with one of the two the other takes the rest of them.
        columns: knobs by whose values to make columns.
        metric: `split/name`; by default the primary metric on `test`.
        stage: of the student.
        against: knob -> value: compare each cell with that which has these values and otherwise its own. These knobs
            must be among rows and columns.
        where: knob -> value: leave out all other trials.

    Raises:
        ValueError: no trial to show, a knob, value or metric that there is not, or a baseline that no cell can be.
    """
    if not records:
        raise ValueError("there is no trial to show; run the campaign first")
    knobs = _values(records)
    asked = {name: resolve(knobs, name, value) for name, value in (where or {}).items()}
    chosen = [r for r in records if all(r.knobs.get(name) == value for name, value in asked.items())]
    if not chosen:
        raise ValueError(f"no trial has {assignments(asked)} together; ask for fewer of them")
    chosen.sort(key=lambda record: record.number)
    row_names, column_names = _axes(_values(chosen), knobs, rows, columns)
    split, shown = _metric(chosen, metric, stage)
    baseline = {name: resolve(knobs, name, value) for name, value in (against or {}).items()}
    names = (*row_names, *column_names)
    for name in baseline:
        if name not in names:
            raise ValueError(
                f"the baseline is a cell, so {name} must be among rows and columns, but those are "
                f"{', '.join(names)}; add it to one of them"
            )
    measured = {record.number: _measured(record, split, stage, shown.name) for record in chosen}
    grouped: dict[tuple[Key, Key], list[TrialRecord]] = {}
    row_keys: dict[Key, None] = {}
    column_keys: dict[Key, None] = {}
    for record in chosen:
        if all(name in record.knobs for name in names):
            key = _key(record, row_names), _key(record, column_names)
            row_keys[key[0]] = column_keys[key[1]] = None
            if measured[record.number]:
                grouped.setdefault(key, []).append(record)
    if not grouped:
        raise ValueError(
            f"no complete trial has {stage} {split} {shown.name}, so there is nothing to show; `nas-kd report` shows "
            "what failed"
        )

    def partner(row: Key, column: Key) -> tuple[Key, Key]:
        values = tuple(baseline.get(name, value) for name, value in zip(names, (*row, *column), strict=True))
        return values[: len(row)], values[len(row) :]

    cells = {key: _cell(key, partner(*key), grouped, baseline, measured) for key in grouped}
    table = PivotTable(
        rows=row_names,
        columns=column_names,
        row_keys=tuple(row_keys),
        column_keys=tuple(column_keys),
        cells=cells,
        metric=shown,
        split=split,
        stage=stage,
        against=baseline,
    )
    notes = _notes(table, chosen, [record for group in grouped.values() for record in group])
    return replace(table, notes=tuple(notes))


def resolve(knobs: Mapping[str, Sequence[KnobValue]], name: str, value: KnobValue) -> KnobValue:
    """The value of a knob that is meant, also where it is given as text, such as `0`, `0.0`, `true` or `uniform`.

    Args:
        knobs: name -> the values there are.
        name: of the knob.
        value: what was asked for.

    Raises:
        ValueError: there is no such knob or value; the sentence lists those there are.
    """
    _check_knob(name, knobs)
    for known in knobs[name]:
        if _same(known, value):
            return known
    raise ValueError(f"no trial has {name} = {value}; there are {', '.join(str(known) for known in knobs[name])}")


def _check_knob(name: str, knobs: Iterable[str]) -> None:
    if name not in knobs:
        raise ValueError(f"there is no knob {name!r}; the trials have {', '.join(knobs) or 'none'}")


def _same(known: KnobValue, value: KnobValue) -> bool:
    if isinstance(known, bool) or isinstance(value, bool):
        return str(known).lower() == str(value).lower()
    if isinstance(known, str) or not isinstance(value, str):
        return known == value or known == str(value)
    try:
        return float(value) == known
    except ValueError:
        return False


def _values(records: Iterable[TrialRecord]) -> dict[str, list[KnobValue]]:
    """All knobs with their values, in the order in which trials introduced them."""
    found: dict[str, list[KnobValue]] = {}
    for record in sorted(records, key=lambda record: record.number):
        for name, value in record.knobs.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return found


def _axes(
    chosen: Mapping[str, Sequence[KnobValue]],
    knobs: Mapping[str, Sequence[KnobValue]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    for position, name in enumerate(named := [*rows, *columns]):
        _check_knob(name, knobs)
        if name in named[:position]:
            raise ValueError(f"{name} is named twice among rows and columns; name it once")
    rest = [name for name, values in chosen.items() if len(values) > 1 and name not in named]
    if rows and columns:
        return tuple(rows), tuple(columns)
    if rows:
        return tuple(rows), tuple(rest)
    if columns:
        return tuple(rest), tuple(columns)
    rest = rest or list(knobs)[:1]
    return (tuple(rest[:-1]), tuple(rest[-1:])) if len(rest) > 1 else (tuple(rest), ())


def _metric(records: Sequence[TrialRecord], asked: str | None, stage: Stage) -> tuple[Split, Metric]:
    primary = records[0].metric
    if asked is None:
        asked = f"test/{primary.name}"
    split, slash, name = asked.partition("/")
    if not slash or split not in get_args(Split):
        raise ValueError(f"a metric is asked for as split/name with split val or test, but got {asked!r}")
    there = {
        f"{s}/{n}": None for r in records for s, values in r.metrics.get(stage, {}).items() for n in sorted(values)
    }
    if there and asked not in there:
        raise ValueError(f"no trial has the metric {asked} at stage {stage}; there are {', '.join(there)}")
    return split, primary if name == primary.name else Metric(name=name, percent=primary.percent)  # type: ignore[return-value]  # checked


def _key(record: TrialRecord, names: Sequence[str]) -> Key:
    return tuple(record.knobs[name] for name in names)


def _measured(record: TrialRecord, split: Split, stage: Stage, name: str) -> tuple[float, ...]:
    """The metric of each training; empty where the trial did not end with it."""
    if record.state != "complete":
        return ()
    value = record.metrics.get(stage, {}).get(split, {}).get(name)
    return seed_values(record, split, stage, name) or (() if value is None else (float(value),))


def _by_seed(records: Iterable[TrialRecord], baseline: Mapping[str, KnobValue], measured: Measured) -> Seeds:
    """Values by what must agree for a pair: the knobs that the comparison leaves alone, and the training's seed."""
    found: Seeds = {}
    for record in records:
        others = frozenset((knob, value) for knob, value in record.knobs.items() if knob not in baseline)
        for position, value in enumerate(measured[record.number]):
            found.setdefault((others, record.seed + position), []).append(value)
    return found


def _cell(
    key: tuple[Key, Key],
    partner: tuple[Key, Key],
    grouped: Mapping[tuple[Key, Key], Sequence[TrialRecord]],
    baseline: Mapping[str, KnobValue],
    measured: Measured,
) -> PivotCell:
    group = grouped[key]
    values = [value for record in group for value in measured[record.number]]
    difference: Estimate | None = None
    pairing: Pairing | None = None
    if baseline and partner != key and partner in grouped:
        others = grouped[partner]
        seeds = _by_seed(group, baseline, measured)
        other_seeds = _by_seed(others, baseline, measured)
        shared = [seed for seed in seeds if seed in other_seeds]
        other_values = [value for record in others for value in measured[record.number]]
        if len(shared) > 1 or (len(shared) == 1 and len(values) == len(other_values) == 1):
            means = [_mean(seeds[seed]) for seed in shared]
            other_means = [_mean(other_seeds[seed]) for seed in shared]
            difference, pairing = paired_difference(means, other_means), "paired"
        else:
            difference, pairing = welch_difference(values, other_values), "unpaired"
    return PivotCell(
        row=key[0],
        column=key[1],
        trials=tuple(record.number for record in group),
        values=tuple(values),
        estimate=estimate_mean(values),
        flops=_mean(_flops(group)),
        difference=difference,
        pairing=pairing,
        is_baseline=bool(baseline) and partner == key,
    )


def _flops(complete: Iterable[TrialRecord]) -> list[int]:
    return [record.cost.flops for record in complete if record.cost is not None]  # all of them have one


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def value_text(value: KnobValue) -> str:
    """The value of a knob as people read it: `true`, `5,000,000`, `0.5`, `uniform`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def assignments(values: Mapping[str, KnobValue]) -> str:
    """Knobs with their values as people read them: `frames = 4, selector = uniform`."""
    return ", ".join(f"{name} = {value_text(value)}" for name, value in values.items())


def _notes(table: PivotTable, chosen: Sequence[TrialRecord], used: Sequence[TrialRecord]) -> list[str]:
    """What must be known beside the numbers: costs, intervals, differences, and what is missing and why."""
    flops = _flops(used)
    span = " to ".join(dict.fromkeys((si(min(flops)), si(max(flops)))))
    notes = [f"Cost of the students: {span} {flops_label(used)}; one multiply-accumulate is one FLOP."]
    numbers = sorted({cell.estimate.num_values for cell in table.cells.values()})
    if numbers[-1] >= MIN_VALUES:
        each = f"n = {numbers[0]}" if len(numbers) == 1 else "n as given in the cell"
        notes.append(
            f"± is half of the 95 % interval of the mean (Student's t) over trainings with different seeds, {each}. A "
            "trial's trainings share one searched architecture, so it does not cover the chance of the search."
        )
    if few := [str(number) for number in numbers if number < MIN_VALUES]:
        notes.append(
            f"A cell of few values (n = {' or '.join(few)}) has no interval: a small difference to it may be chance."
        )
    notes += _pool_notes(table, used)
    if table.against:
        notes += _difference_notes(table)
    hashes = {record.config_hash for record in used}
    if len(hashes) > 1:
        notes.append(
            f"The trials are of {len(hashes)} versions of the campaign file, which differ in space, search, retraining "
            "or objective: compare them with care."
        )
    missing = len(table.row_keys) * len(table.column_keys) - len(table.cells)
    if missing:
        notes.append(f"{count(missing, 'cell')} without a complete trial, shown as {MISSING}.")
    for state, words in (("failed", "failed"), ("stopped", "stopped early")):
        ended = [str(record.number) for record in chosen if record.state == state]
        if ended:
            listed = ", ".join(ended[:10]) + (", …" if len(ended) > 10 else "")
            notes.append(f"{count(len(ended), 'trial')} {words} and left out: {listed}.")
    unplaced = sum(record.state == "complete" for record in chosen) - len(used)
    if unplaced:
        notes.append(f"{count(unplaced, 'complete trial')} left out that lack the metric or one of the knobs.")
    return notes


def _pool_notes(table: PivotTable, used: Sequence[TrialRecord]) -> list[str]:
    pooled = [cell for cell in table.cells.values() if len(cell.trials) > 1]
    if not pooled:
        return []
    by_number = {record.number: record for record in used}
    within = [_values(by_number[number] for number in cell.trials) for cell in pooled]
    differ = sorted({name for values in within for name, found in values.items() if len(found) > 1})
    beside = [name for name in differ if name not in (*table.rows, *table.columns)]
    why = f", which differ in {', '.join(beside)}" if beside else ""
    return [
        f"{count(len(pooled), 'cell')} of several trials{why}: their values are pooled as if they were repeats of each "
        "other."
    ]


def _difference_notes(table: PivotTable) -> list[str]:
    cells = [cell for cell in table.cells.values() if not cell.is_baseline]
    paired = sum(cell.pairing == "paired" for cell in cells)
    unpaired = sum(cell.pairing == "unpaired" for cell in cells)
    notes = []
    if paired:
        has_interval = any(cell.difference and cell.difference.interval for cell in cells if cell.pairing == "paired")
        interval = ", and ± is half of the 95 % interval of their mean (Student's t)" if has_interval else ""
        notes.append(
            f"Differences to {assignments(table.against)} are taken seed by seed{interval}: {count(paired, 'cell')}."
        )
    if unpaired:
        notes.append(
            f"Differences with * are of means whose trainings have too few seeds in common to be paired, with Welch's "
            f"95 % interval: {count(unpaired, 'cell')}."
        )
    if without := len(cells) - paired - unpaired:
        notes.append(f"{count(without, 'cell')} without a baseline to compare with.")
    return notes
