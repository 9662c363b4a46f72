"""All records as one flat table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from trials.record import TrialRecord

FIRST_COLUMNS = ("number", "state", "score", "flops", "params", "arch_id", "seed", "config_hash", "started_at", "error")


def records_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row a trial, ordered by number.

    Columns, always there: `number`, `state`, `score` (the primary metric on `val` of the last stage that has it),
    `flops`, `params`, `arch_id`, `seed`, `config_hash`, `started_at`, `error` (its last line). Then, where any
    trial has them: `knob.NAME`, `cost.NAME` (the other fields of `Cost`), `STAGE/SPLIT/NAME` for each metric,
    `diagnostic.NAME`, `duration_s.NAME`. What a trial does not have is missing (`NaN` or `None`).
    """
    rows = [_row(record) for record in sorted(records, key=lambda record: record.number)]
    rest: dict[str, None] = {}  # an ordered set: columns come as the trials introduce them
    for row in rows:
        rest.update(dict.fromkeys(column for column in row if column not in FIRST_COLUMNS))
    return pd.DataFrame(rows, columns=[*FIRST_COLUMNS, *sorted(rest, key=_column_order)])


def _column_order(column: str) -> int:
    prefixes = ("knob.", "cost.", "teacher/", "gated/", "derived/", "retrained/", "diagnostic.", "duration_s.")
    return next(index for index, prefix in enumerate(prefixes) if column.startswith(prefix))


def _row(record: TrialRecord) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": record.number,
        "state": record.state,
        "score": record.score(),
        "flops": None if record.cost is None else record.cost.flops,
        "params": None if record.cost is None else record.cost.params,
        "arch_id": record.arch_id,
        "seed": record.seed,
        "config_hash": record.config_hash,
        "started_at": record.started_at,
        "error": record.reason(),
    }
    row |= {f"knob.{name}": value for name, value in record.knobs.items()}
    if record.cost is not None:
        cost = record.cost.model_dump(exclude={"flops", "params"}, exclude_none=True)
        row |= {f"cost.{name}": value for name, value in cost.items()}
    for stage, splits in record.metrics.items():
        for split, values in splits.items():
            row |= {f"{stage}/{split}/{name}": value for name, value in values.items()}
    row |= {f"diagnostic.{name}": value for name, value in record.diagnostics.items()}
    row |= {f"duration_s.{name}": value for name, value in record.durations_s.items()}
    return row
