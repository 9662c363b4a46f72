"""The table of trials, and a CSV that no spreadsheet runs."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pandas as pd
import pytest
from synthetic import hostile_run, record, run

from nas_kd.analysis import COLUMNS, ParetoFront, trial_table, write_csv
from nas_kd.analysis.table import neutral_cell


def test_values_of_a_complete_and_a_failed_trial() -> None:
    metrics = {
        "gated": {"val": {"accuracy": 0.5}},
        "derived": {"val": {"accuracy": 0.4}},
        "retrained": {"val": {"accuracy": 0.8}, "test": {"accuracy": 0.7}},
    }
    complete = record(
        4,
        90,
        metrics=metrics,
        repeats={"retrained/val/accuracy": (0.79, 0.80, 0.81)},
        knobs={"max_flops": 100.0, "frames": 8},
        arch_id="abc",
        durations_s={"search": 1.5, "retrain": 2.0},
        warnings=("w",),
    )
    failed = record(
        2, state="failed", knobs={"width": "slim"}, error="Traceback (most recent call last):\n  x\nE: why\n"
    )
    table = trial_table([complete, failed])
    assert list(table.columns) == [*COLUMNS, "knobs.frames", "knobs.max_flops", "knobs.width"]
    assert table["trial"].tolist() == [2, 4]

    row = table.iloc[1]
    expected = {
        "state": "complete", "max_flops": 100, "flops": 90, "params": 9, "val_metric": 0.8, "test_metric": 0.7,
        "gated_val": 0.5, "derived_val": 0.4, "retrained_val": 0.8, "num_seeds": 3, "on_front": True, "pick": True,
        "knee": True, "arch_id": "abc", "duration_s": 3.5, "num_warnings": 1, "knobs.frames": 8,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["val_low"] < 0.8 < row["val_high"]
    assert row["hv_contribution"] == pytest.approx(0.8 * 9 / 99)

    row = table.iloc[0]
    assert row["error"] == "E: why"
    assert not row["on_front"]
    missing = [
        "max_flops",
        "flops",
        "val_metric",
        "test_metric",
        "num_seeds",
        "val_low",
        "hv_contribution",
        "duration_s",
    ]
    assert all(pd.isna(row[name]) for name in missing)


def test_budget_is_missing_unless_it_is_a_number() -> None:
    budgets: list[float | str | bool] = [1e6, "1e6", True]
    records = [record(n, state="stopped", knobs={"max_flops": budget}) for n, budget in enumerate(budgets)]
    assert trial_table(records)["max_flops"].isna().tolist() == [False, True, True]


def test_empty_run_has_the_columns() -> None:
    table = trial_table([])
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 0


def test_flags_agree_with_the_front() -> None:
    records = run(60)
    front = ParetoFront.from_records(records)
    table = trial_table(records, front)
    assert set(table.loc[table["on_front"], "trial"]) == front.numbers
    assert front.knee is not None
    assert table.loc[table["knee"], "trial"].tolist() == [front.knee.number]
    assert table["hv_contribution"].sum() == pytest.approx(sum(front.contributions.values()))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_formula_starts_are_neutralised(start: str) -> None:
    assert neutral_cell(f"{start}1+1") == f"'{start}1+1"


@pytest.mark.parametrize("value", [-1.5, -3, "a=b", "1-2", "", None, True])
def test_harmless_cells_stay(value: object) -> None:
    assert neutral_cell(value) is value


def test_csv_of_a_hostile_run_has_no_formula_and_reads_back(tmp_path: Path) -> None:
    records = hostile_run()
    table = trial_table(records)
    write_csv(table, tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(records)
    assert {len(row) for row in rows} == {len(table.columns)}
    number = re.compile(r"-\d+(\.\d+)?(e[+-]?\d+)?")  # a negative number is no text
    cells = [cell for row in rows for cell in row if not number.fullmatch(cell)]
    assert [cell for cell in cells if cell.startswith(tuple("=+-@\t\r\n"))] == []
    assert rows[1][rows[0].index("arch_id")] == f"'{records[0].arch_id}"


def test_csv_keeps_numbers_as_numbers(tmp_path: Path) -> None:
    write_csv(trial_table([record(0, 12, 0.5, knobs={"shift": -2, "rate": -0.25})]), tmp_path / "t.csv")
    row = pd.read_csv(tmp_path / "t.csv").iloc[0]
    assert (row["flops"], row["knobs.shift"], row["knobs.rate"]) == (12, -2, -0.25)
