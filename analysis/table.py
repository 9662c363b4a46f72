"""All trials as one table, and as a CSV file whose texts no spreadsheet runs as formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nas_kd.analysis.axes import FLOPS, Axis
from nas_kd.analysis.front import ParetoFront
from nas_kd.analysis.offsets import SPLITS, offset_scores, offsets_of
from nas_kd.analysis.text import error_headline
from nas_kd.trials.objectives import COSTS, Objective
from nas_kd.trials.record import TrialRecord

COLUMNS: dict[str, str] = {
    "trial": "number of the trial in the ledger",
    "state": "complete, failed or stopped",
    "seed": "seed of the trial",
    "max_flops": "budget, in FLOPs",
    "flops": "cost of the student, in FLOPs; amortised per frame for streaming students",
    "params": "number of parameters",
    "latency_ms": "measured latency; amortised per frame for streaming students",
    "predicted_latency_ms": "latency that the campaign's table predicts, by which a budget of latency counts",
    "keyframe_interval": "streaming students: every so many frames, one is a key frame",
    "keyframe_flops": "streaming students: FLOPs of a key frame",
    "delta_flops": "streaming students: FLOPs of a frame between key frames",
    "worst_frame_flops": "streaming students: FLOPs of the most expensive frame",
    "state_bytes": "streaming students: size of the state of one stream between frames, in bytes",
    "keyframe_latency_ms": "streaming students: measured latency of a key frame",
    "delta_latency_ms": "streaming students: measured latency of a frame between key frames",
    "val_metric": "primary metric on the validation split at the front's stage; the selection uses it",
    "test_metric": "primary metric on the test split at that stage; the selection never uses it",
    "gated_val": "validation metric of the supernet with its gates",
    "derived_val": "validation metric of the derived student before it is trained again",
    "retrained_val": "validation metric of the trained student",
    "num_seeds": "number of repeats of the trained student",
    "val_low": "lower end of the 95 % interval of the validation value, over items and repeats as far as known",
    "val_high": "upper end of that interval",
    "keeps_constraints": "whether it keeps the constraints of the campaign; missing without any",
    "on_front": "whether no other complete trial beats it in all objectives, of those that keep the constraints",
    "pick": "whether it is the recommended trial",
    "knee": "whether the front bends most there",
    "hv_contribution": "share of the hypervolume's box that only this trial dominates",
    "arch_id": "content hash of the architecture",
    "duration_s": "total duration",
    "num_warnings": "number of warnings",
    "error": "what went wrong, in one line: the exception, without its traceback",
}
"""Documented columns, in order. Then follow `val_NAME` of each further metric that is an objective or is constrained,
and `val_metric@k` for each offset k, in frames, from a key frame that
was measured in any trial, and the same of `test_metric@k`: the primary metric there, at the front's stage. Last come
columns `knobs.NAME`, one a knob, names sorted."""

_OF_STREAMS = (
    "keyframe_interval", "keyframe_flops", "delta_flops", "worst_frame_flops", "state_bytes", "keyframe_latency_ms",
    "delta_latency_ms",
)  # fmt: skip
_COUNTS = ("max_flops", "flops", "params", "num_seeds", *_OF_STREAMS[:5])
# A spreadsheet takes a text that begins so for a formula (OWASP, "CSV Injection"); the wide forms count too.
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")


def trial_table(records: Sequence[TrialRecord], front: ParetoFront | None = None) -> pd.DataFrame:
    """One row a trial, in order of their numbers: the columns of `COLUMNS`, then those per offset and per knob.

    Args:
        records: the trials.
        front: which trials are on the front, at which stage; built from `records` if None.

    Returns:
        The table; a value that was not measured is missing (NaN, `<NA>` or None), never zero.

    Raises:
        ValueError: the records do not share one primary metric.
    """
    front = ParetoFront.from_records(records) if front is None else front
    ordered = sorted(records, key=lambda record: record.number)
    knobs = sorted({name for record in records for name in record.knobs})
    ranked = {
        f"val_{each.name}": Axis(Objective(name=each.name))
        for each in front.ranking.ranked
        if each.name not in COSTS and each.name != front.ranking.objectives[0].name
    }
    per_offset = [f"{split}_metric@{offset}" for split in SPLITS for offset in offsets_of(records, front.stage)]
    rows = [
        _row(record, front)
        | {name: axis.of(record, front.split, front.stage) for name, axis in ranked.items()}
        | {f"knobs.{name}": record.knobs.get(name) for name in knobs}
        for record in ordered
    ]
    table = pd.DataFrame(rows, columns=[*COLUMNS, *ranked, *per_offset, *(f"knobs.{name}" for name in knobs)])
    return table.astype(dict.fromkeys(_COUNTS, "Int64"))


def _row(record: TrialRecord, front: ParetoFront) -> dict[str, object]:
    estimate, interval = front.estimate(record), front.interval(record)
    cost = record.cost
    return {
        "trial": record.number,
        "state": record.state,
        "seed": record.seed,
        "max_flops": FLOPS.budget_of(record),
        "flops": cost.flops if cost else None,
        "params": cost.params if cost else None,
        "latency_ms": cost.latency_ms if cost else None,
        "predicted_latency_ms": cost.predicted_latency_ms if cost else None,
        **{name: getattr(cost, name) if cost else None for name in _OF_STREAMS},
        "val_metric": record.score(front.split, front.stage),
        "test_metric": record.score("test", front.stage),
        "gated_val": record.score("val", "gated"),
        "derived_val": record.score("val", "derived"),
        "retrained_val": record.score("val", "retrained"),
        "num_seeds": estimate.num_values if estimate else None,
        "val_low": interval.low if interval else None,
        "val_high": interval.high if interval else None,
        "keeps_constraints": front.ranking.keeps(record) if front.ranking.constraints and cost else None,
        "on_front": record.number in front.numbers,
        "pick": front.pick is not None and record.number == front.pick.number,
        "knee": front.knee is not None and record.number == front.knee.number,
        "hv_contribution": front.contributions.get(record.number),
        "arch_id": record.arch_id,
        "duration_s": duration_s(record),
        "num_warnings": len(record.warnings),
        "error": error_headline(record.error) or None,
        **{
            f"{split}_metric@{offset}": value
            for split in SPLITS
            for offset, value in offset_scores(record, split, front.stage).items()
        },
    }


def duration_s(record: TrialRecord) -> float | None:
    """Total duration: the part named `total` where the trial has one, else the sum of its parts."""
    if not record.durations_s:
        return None
    return record.durations_s.get("total", sum(record.durations_s.values()))


def seconds_spent(records: Sequence[TrialRecord]) -> dict[int, float]:
    """Number of a trial -> seconds of all trials up to it, by number; empty where no trial has its duration."""
    spent, total = {}, 0.0
    for record in sorted(records, key=lambda record: record.number):
        total += duration_s(record) or 0.0
        spent[record.number] = total
    return spent if total > 0 else {}


def front_rows(table: pd.DataFrame, front: ParetoFront) -> pd.DataFrame:
    """The rows of `trial_table` that are on the front, in its order."""
    order = {record.number: place for place, record in enumerate(front.records)}
    return table[table["on_front"].astype(bool)].sort_values("trial", key=lambda numbers: numbers.map(order))


def neutral_cell(value: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would run as a formula; numbers stay as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def write_csv(table: pd.DataFrame, path: Path | str) -> None:
    """Write the table as CSV in UTF-8, with every text cell and column name neutralised by `neutral_cell`."""
    safe = table.map(neutral_cell)
    safe.columns = [str(neutral_cell(name)) for name in table.columns]
    safe.to_csv(path, index=False, encoding="utf-8", errors="backslashreplace", lineterminator="\n")
