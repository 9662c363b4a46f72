"""Tables of ablations: grouping, intervals, differences by seed, notes, and text that tries to leave its place."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from synthetic import DIVERGED, HOSTILE, record

from nas_kd.analysis import pivot_frame, pivot_markdown, pivot_rich, welch_difference, write_pivot
from nas_kd.analysis.pivot import PivotTable, pivot
from nas_kd.analysis.pivot_text import _estimate, escape_markdown
from nas_kd.analysis.statistics import estimate_mean
from nas_kd.trials.record import KnobValue, Metric, TrialRecord

VALUES = {
    ("uniform", 4): (0.70, 0.72, 0.71),
    ("uniform", 8): (0.80, 0.79, 0.84),
    ("first", 4): (0.60, 0.63, 0.60),
    ("first", 8): (0.68, 0.66, 0.73),
}


def trained(number: int, values: tuple[float, ...], seed: int = 3, **fields: Any) -> TrialRecord:
    """A complete trial with these test accuracies, one a seed."""
    repeats = {"retrained/test/accuracy": values} if len(values) > 1 else {}
    metrics = {"retrained": {"val": {"accuracy": 0.5}, "test": {"accuracy": sum(values) / len(values), "loss": 1.5}}}
    return record(number, 2_000_000 + number * 100_000, metrics=metrics, repeats=repeats, seed=seed, **fields)


def grid(**fields: Any) -> list[TrialRecord]:
    return [
        trained(number, values, knobs={"max_flops": 5, "selector": selector, "frames": frames}, **fields)
        for number, ((selector, frames), values) in enumerate(VALUES.items())
    ]


def text(table: PivotTable) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(pivot_rich(table))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_cells_hold_means_with_their_t_interval() -> None:
    table = pivot(grid()[::-1], ["selector"], ["frames"])
    assert (table.row_keys, table.column_keys) == ((("uniform",), ("first",)), ((4,), (8,)))  # as trials came
    for (selector, frames), values in VALUES.items():
        cell = table.cells[(selector,), (frames,)]
        assert cell.values == values
        assert cell.estimate.mean == pytest.approx(np.mean(values))
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert cell.estimate.interval == pytest.approx((low, high))
        assert cell.difference is None
    assert table.cells[("first",), (4,)].flops == 2_200_000
    shown = text(table)
    half = stats.t.ppf(0.975, 2) * stats.sem(VALUES["uniform", 4]) * 100
    assert f"71.00 ± {half:.2f}" in shown
    assert "accuracy on test, retrained student, in %" in shown
    assert "frames = 4" in shown
    assert "n = 3" in shown


def test_two_values_have_no_interval_and_no_note_of_one() -> None:
    two = [
        trained(n, values[:2], knobs={"selector": s, "frames": f}) for n, ((s, f), values) in enumerate(VALUES.items())
    ]
    table = pivot(two, ["selector"], ["frames"], against={"frames": 4})
    notes = " ".join(table.notes)
    assert "±" not in notes
    assert "(n = 2) has no interval: a small difference to it may be chance." in notes
    assert "taken seed by seed: 2 cells." in notes


def test_rows_and_columns_default_to_the_knobs_that_vary() -> None:
    def axes(*arguments: list[str], **options: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        table = pivot(grid(), *arguments, **options)
        return table.rows, table.columns

    assert axes() == (("selector",), ("frames",))
    assert axes(["frames"]) == (("frames",), ("selector",))
    assert axes([], ["selector"]) == (("frames",), ("selector",))
    assert axes(where={"frames": "8"}) == (("selector",), ())
    assert axes(where={"frames": 8, "selector": "first"}) == (("max_flops",), ())
    assert axes(["selector", "frames"], ["max_flops"]) == (("selector", "frames"), ("max_flops",))
    shown = text(pivot(grid(), where={"frames": 4}))
    assert "61.00 ±" in shown
    assert "69.00 ±" not in shown


def test_differences_pair_by_seed_and_are_welch_where_seeds_differ() -> None:
    records = grid()
    paired = pivot(records, ["selector"], ["frames"], against={"selector": "uniform"})
    cell = paired.cells[("first",), (8,)]
    differences = np.array(VALUES["first", 8]) - np.array(VALUES["uniform", 8])
    assert cell.pairing == "paired"
    assert cell.difference is not None
    assert cell.difference.mean == pytest.approx(differences.mean())
    assert cell.difference.interval == pytest.approx(
        stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    )
    assert paired.cells[("uniform",), (8,)].is_baseline
    assert "baseline" in text(paired)
    assert any("seed by seed" in note and "2 cells" in note for note in paired.notes)

    other = [r.model_copy(update={"seed": 100 * r.number}) for r in records]
    unpaired = pivot(other, ["selector"], ["frames"], against={"selector": "uniform"})
    cell = unpaired.cells[("first",), (8,)]
    test = stats.ttest_ind(VALUES["first", 8], VALUES["uniform", 8], equal_var=False).confidence_interval()
    assert cell.pairing == "unpaired"
    assert cell.difference is not None
    assert cell.difference.interval == pytest.approx((test.low, test.high))
    assert "*" in text(unpaired)
    assert any("Welch" in note for note in unpaired.notes)

    # Seeds 3, 4, 5 and 4, 5, 6 share two: the second and third training pair with the first and second.
    shifted = [r.model_copy(update={"seed": 4}) if r.knobs["selector"] == "first" else r for r in records]
    cell = pivot(shifted, ["selector"], ["frames"], against={"selector": "uniform"}).cells[("first",), (4,)]
    assert cell.pairing == "paired"
    assert cell.difference is not None
    assert cell.difference.num_values == 2
    assert cell.difference.mean == pytest.approx(((0.60 - 0.72) + (0.63 - 0.71)) / 2)


def test_pairs_agree_in_all_other_knobs_of_a_pooled_cell() -> None:
    values = {("a", 1): 0.5, ("a", 2): 0.9, ("a", 3): 0.9, ("b", 1): 0.6, ("b", 2): 0.95, ("b", 3): 0.975}
    records = [
        trained(n, (value,), knobs={"loss": loss, "budget": budget})
        for n, ((loss, budget), value) in enumerate(values.items())
    ]
    table = pivot(records, ["loss"], where={"budget": 1}, against={"loss": "a"})
    difference = table.cells[("b",), ()].difference
    assert difference is not None
    assert (difference.mean, difference.interval) == (pytest.approx(0.1), None)
    extra = [r.model_copy(update={"knobs": {**r.knobs, "col": 0}}) for r in records]
    table = pivot(extra, ["loss"], ["col"], against={"loss": "a"})
    cell = table.cells[("b",), (0,)]
    assert cell.trials == (3, 4, 5)
    assert cell.difference is not None
    assert cell.difference.mean == pytest.approx(0.075)
    assert cell.difference.low == pytest.approx(0.075 - stats.t.ppf(0.975, 2) * 0.025 / math.sqrt(3))
    assert any("which differ in budget" in note for note in table.notes)


def test_welch_is_scipys_and_knows_its_limits() -> None:
    rng = np.random.default_rng(0)
    for a, b in ((rng.normal(0, 1, 4), rng.normal(1, 3, 7)), (rng.normal(0, 0.1, 3), rng.normal(1, 9, 3))):
        expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
        assert welch_difference(a.tolist(), b.tolist()).interval == pytest.approx((expected.low, expected.high))
    assert welch_difference([1.0] * 3, [0.5] * 3).interval == (0.5, 0.5)
    assert welch_difference([1.0, 1.1], [0.5, 0.7, 0.6]).interval is None


def test_what_is_missing_is_said() -> None:
    records = grid()
    failed = record(9, state="failed", knobs={"max_flops": 5, "selector": "last", "frames": 4}, error=DIVERGED)
    stopped = record(10, state="stopped", knobs=dict(records[3].knobs))
    plain = trained(3, (0.7,), knobs=dict(records[3].knobs), config_hash="1" * 12)
    foreign = trained(11, (0.1,), knobs={"max_flops": 5})
    table = pivot([*records[:3], plain, failed, stopped, foreign], ["selector"], ["frames"], against={"frames": 4})
    assert table.row_keys == (("uniform",), ("first",), ("last",))
    assert ("last",) not in {row for row, _ in table.cells}
    notes = "\n".join(table.notes)
    for sentence in (
        "1 trial failed and left out: 9.",
        "1 trial stopped early and left out: 10.",
        "2 cells without a complete trial, shown as –.",
        "1 complete trial left out that lack",
        "(n = 1) has no interval",
        "2 versions of the campaign file",
    ):
        assert sentence in notes
    shown = text(table)
    assert "70.00 (n = 1)" in shown
    assert "–" in shown


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rows": ["selectr"]}, "there is no knob 'selectr'; the trials have max_flops, selector, frames"),
        ({"rows": ["frames"], "columns": ["frames"]}, "frames is named twice"),
        (
            {"metric": "test/gap"},
            "no trial has the metric test/gap at stage retrained; there are val/accuracy, test/acc",
        ),
        ({"metric": "train/accuracy"}, "split/name with split val or test, but got 'train/accuracy'"),
        ({"metric": "accuracy"}, "split/name with split val or test"),
        ({"metric": "val"}, "split/name with split val or test"),
        ({"where": {"frames": 5}}, "no trial has frames = 5; there are 4, 8"),
        ({"against": {"select": 5}}, "there is no knob 'select'"),
        ({"against": {"max_flops": 5}}, "so max_flops must be among rows and columns"),
    ],
)
def test_a_mistake_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        pivot(grid(), **options)
    assert "\n" not in str(caught.value)


def test_there_must_be_something_to_show() -> None:
    with pytest.raises(ValueError, match="there is no trial to show"):
        pivot([])
    with pytest.raises(ValueError, match="no complete trial has retrained test accuracy"):
        pivot([record(0, state="failed", knobs={"frames": 4}, error=DIVERGED)])
    diagonal = [r for r in grid() if r.number in (0, 3)]
    with pytest.raises(ValueError, match="no trial has selector = uniform, frames = 8 together"):
        pivot(diagonal, where={"selector": "uniform", "frames": 8})


@pytest.mark.parametrize(
    ("known", "asked", "same"),
    [(0.0, "0", True), (1e-3, "0.001", True), (True, "true", True), (1, "true", False), (False, 0, False),
     ("8", "8", True), (8, "8", True), (8, "08.0", True), ("none", "None", False), (8, "eight", False)],
)  # fmt: skip
def test_values_are_found_by_what_they_mean(known: KnobValue, asked: KnobValue, same: bool) -> None:
    records = [trained(0, (0.5,), knobs={"knob": known})]
    if same:
        assert len(pivot(records, where={"knob": asked}).cells) == 1
    else:
        with pytest.raises(ValueError, match=r"no trial has knob = "):
            pivot(records, where={"knob": asked})


def test_other_metrics_are_shown_in_their_own_unit() -> None:
    table = pivot(grid(), metric="test/loss")
    assert table.metric.is_same_as(Metric(name="loss"))
    assert "1.5" in text(table)
    assert "%" not in pivot_markdown(table).splitlines()[0]
    assert pivot(grid(), metric="val/accuracy").cells[("first",), (4,)].values == (0.5,)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1.5, 1.6, 1.7], "1.60 ± 0.25"),
        ([0.07, 0.08, 0.05], "0.067 ± 0.038"),
        ([1234, 1300, 1250], "1261 ± 86"),
        ([2.0, 2.0, 2.0], "2 ± 0"),
        ([1.23456], "1.235"),
    ],
)
def test_a_mean_has_the_decimals_of_its_interval(values: list[float], shown: str) -> None:
    assert _estimate(estimate_mean(values), False, sign="") == shown


def test_markdown_and_csv_hold_what_is_shown(tmp_path: Path) -> None:
    table = pivot(grid(), against={"selector": "uniform"})
    markdown, values = write_pivot(table, tmp_path / "out")
    lines = markdown.read_text(encoding="utf-8").splitlines()
    assert lines[2] == "| selector | frames = 4 | frames = 8 |"
    assert lines[3] == "|---|---:|---:|"
    assert lines[4].startswith("| uniform | 71.00 ± ")
    assert sum(line.startswith("| first | −") for line in lines) == 1
    rows = list(csv.DictReader(io.StringIO(values.read_text(encoding="utf-8"))))
    assert [row["knobs.selector"] for row in rows] == ["uniform", "uniform", "first", "first"]
    assert [float(row["mean"]) for row in rows] == pytest.approx([np.mean(v) for v in VALUES.values()])
    assert [row["pairing"] for row in rows] == ["baseline", "baseline", "paired", "paired"]
    assert rows[3]["values"] == "[0.68, 0.66, 0.73]"
    assert math.isclose(float(rows[2]["difference"]), 0.61 - 0.71)


def test_hostile_knobs_stay_in_their_cells(tmp_path: Path) -> None:
    name, values = "a|b\n" + HOSTILE, ("=1+1|x" + HOSTILE, "[bold]`y`[/bold]\r\n| z |", "\ud800\u202e")
    records = [trained(n, (0.5,), knobs={name: value, "k": n % 2}) for n, value in enumerate(values)]
    table = pivot(records, [name], ["k"])
    shown = pivot_markdown(table)
    lines = shown.splitlines()
    assert len(lines) == 2 + 2 + len(values) + 1 + len(table.notes)  # title, header, a line a value, notes
    for line in lines[2:7]:
        unescaped = line.replace("\\\\", "").replace("\\|", "")
        assert unescaped.count("|") == 4, line
    assert "\\<script\\>" in shown
    assert "<script" not in shown.replace("\\<", "")
    assert "[bold]`y`[/bold]" in text(table)  # as it is
    _, csv_file = write_pivot(table, tmp_path)
    rows = list(csv.reader(io.StringIO(csv_file.read_bytes().decode("utf-8"), newline="")))
    assert rows[1][0].startswith("'=1+1|x")


def test_escaped_text_has_no_markup() -> None:
    assert escape_markdown("a_b*c|d\\e\n<i>`$[x]&amp;~") == r"a\_b\*c\|d\\e \<i\>\`\$\[x\]\&amp;\~"
    assert pivot_frame(pivot(grid())).shape == (4, 13)
