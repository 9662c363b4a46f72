from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import TEACHER, record

from nas_kd.analysis import ComparedRun, compare, write_comparison
from nas_kd.analysis.text import range_text
from nas_kd.trials.record import Metric, TrialRecord

COSTS = (1_000_000, 2_000_000, 4_000_000)


def student(number: int, flops: int, val: float, operator: str = "conv") -> TrialRecord:
    metrics = {"retrained": {"val": {"accuracy": val}, "test": {"accuracy": val - 0.05}}}
    arch = {"choices": {"op": operator, "width": 8}}
    return record(number, flops, val, metrics=metrics, arch=arch, arch_id=f"{operator}{number}")


def campaign(name: str, seed: int, values: tuple[float, ...], **settings: Any) -> ComparedRun:
    operator = "shift" if settings else "conv"
    records = [student(i, cost, value, operator) for i, (cost, value) in enumerate(zip(COSTS, values, strict=True))]
    return ComparedRun(name, seed, {"search.epochs": 12, **settings}, records, COSTS[1:], TEACHER)


SLOW = [campaign(f"slow-{i}", i, (0.5 + i / 100, 0.6 + i / 100, 0.7 + i / 100)) for i in range(3)]
FAST = [
    campaign(f"fast-{i}", i, (0.5 + i / 100, 0.65 + i / 100, 0.8 + i / 100), **{"search.epochs": 6}) for i in range(3)
]


def test_campaigns_that_differ_in_their_seed_alone_are_repeats() -> None:
    made = compare([SLOW[0], FAST[0], *SLOW[1:], *FAST[1:]])
    assert [group.name for group in made.groups] == ["slow-0 (3 seeds)", "fast-0 (3 seeds)"]
    assert [run.name for run in made.groups[0].runs] == ["slow-0", "slow-1", "slow-2"]
    assert made.setting_differences() == {"search.epochs": [12, 6]}
    # The box goes from no cost to 1.1 times the dearest one, and from 0 to 1: (1 x .5 + 2 x .6 + .4 x .7) / 4.4
    assert made.groups[0].hypervolumes[0] == pytest.approx((0.5 + 2 * 0.6 + 0.4 * 0.7) / 4.4)
    gain = made.gain(made.groups[1])
    assert gain is not None
    assert gain.mean == pytest.approx((2 * 0.05 + 0.4 * 0.1) / 4.4)  # paired by seed: the same for each
    assert gain.interval == pytest.approx((gain.mean, gain.mean))
    assert made.gain(made.groups[0]) is None


def test_the_same_seed_twice_is_no_repeat(tmp_path: Path) -> None:
    made = compare([SLOW[0], SLOW[0], SLOW[1]])
    assert [len(group.runs) for group in made.groups] == [2, 1]
    (sentence,) = write_comparison(SLOW, tmp_path).headline
    assert sentence.startswith("The campaigns differ in their seed alone: mean hypervolume 0.")


def test_students_at_a_budget_are_chosen_on_validation_and_compared_on_test() -> None:
    made = compare([*SLOW, *FAST])
    assert made.costs == [2_000_000, 4_000_000]
    slow, fast = made.at(2_000_000)
    assert slow.val is not None
    assert fast.test is not None
    assert fast.difference is not None
    assert slow.val.mean == pytest.approx(0.61)
    assert fast.test.mean == pytest.approx(0.66 - 0.05)
    assert fast.difference.mean == pytest.approx(0.05)
    assert slow.difference is None
    assert [r.number for r in fast.records] == [1, 1, 1]
    assert made.choice_differences(2_000_000) == {"op": [["conv"] * 3, ["shift"] * 3]}
    assert made.cautions() == ()


def test_what_else_may_make_a_campaign_look_better_is_said(tmp_path: Path) -> None:
    mixed = [student(0, COSTS[0], 0.5), student(1, COSTS[1], 0.65)]
    other = [
        ComparedRun("mixed", 0, {"search.epochs": 12, "data.num_val": 9}, [*mixed, student(2, COSTS[2], 0.7, "pool")]),
        ComparedRun("mixed-1", 1, {"search.epochs": 12, "data.num_val": 9}, mixed),
    ]
    data, trials = compare([*SLOW, *other]).cautions()
    assert "differ in data.num_val: their values can be compared only if" in data
    assert "have 2 to 3 complete trials" in trials
    made = compare([*SLOW, *other])
    assert made.choice_differences(COSTS[2]) == {"op": [["conv"] * 3, ["pool", "conv"]]}
    page = write_comparison([*SLOW, *other], tmp_path).page.read_text()
    assert "pool (1 of 2), conv (1 of 2)" in page
    assert "fewer than three seeds" in page
    assert trials in page


def test_campaigns_at_chance_and_choices_that_seeds_alone_make_are_told(tmp_path: Path) -> None:
    def seed(name: str, number: int, operator: str, low: float, **settings: Any) -> ComparedRun:
        sure = {"val": {"num_items": 40, "low": low, "high": 0.6, "chance": 0.25, "majority": 0.3}}
        only = student(0, COSTS[0], 0.5, operator).model_dump() | {"evaluated": sure}
        return ComparedRun(name, number, settings, [TrialRecord.model_validate(only)])

    runs = [seed(f"a{n}", n, ("conv", "shift", "conv")[n], 0.29 if n else 0.4) for n in range(3)]
    runs += [seed(f"b{n}", n, ("shift", "conv", "conv")[n], 0.31, x=1) for n in range(3)]
    made = compare(runs)
    assert made.cautions() == (
        "The best student of a1, a2 is not shown to be better than always giving the most frequent answer (30.0 %, "
        "validation): differences to it mean nothing.",
    )
    assert made.choice_differences(COSTS[0]) == {}
    assert "make the same choices, in equally many seeds" in write_comparison(runs, tmp_path).page.read_text()


def test_an_interval_of_a_share_ends_where_shares_end() -> None:
    share, score = Metric(name="miou", percent=("miou",)), Metric(name="nss")
    assert range_text(-0.003, 0.33, share) == "0.0 – 33.0 %"
    assert range_text(0.953, 1.02, share) == "95.3 – 100.0 %"
    assert range_text(-0.003, 1.02, score) == "-0.003 – 1.02"


def test_without_common_budgets_the_fronts_are_compared_at_costs_that_both_reach() -> None:
    dear = ComparedRun("dear", 0, {"space.width": 9}, [student(0, 2_000_000, 0.9)], (7e6,))
    made = compare([SLOW[0], dear])
    assert made.costs == pytest.approx([2e6, 2e6 * 2 ** (1 / 3), 2e6 * 2 ** (2 / 3), 4e6])
    assert [at.val is not None for at in made.at(1e6)] == [True, False]


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        ([SLOW[0]], "needs two campaigns or more, but got 1"),
        ([SLOW[0], ComparedRun("empty", 1, {}, [])], "empty has no complete trial with a trained student"),
        (
            [SLOW[0], ComparedRun("maps", 1, {}, [record(0, 5, 0.4, metric=Metric(name="miou"))])],
            "slow-0 has accuracy and maps has miou",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(runs: list[ComparedRun], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        compare(runs)


def test_the_page_says_what_seeds_can_tell_and_escapes_names(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    one = [SLOW[0], ComparedRun(hostile, 0, {"search.epochs": hostile}, FAST[0].records, COSTS)]
    paths = write_comparison(one, tmp_path / "one")
    assert "With 1 seed this may be chance" in paths.headline[0]
    page = paths.page.read_text()
    assert hostile not in page
    assert "&lt;script&gt;alert(1)" in page
    paths = write_comparison([*SLOW, *FAST], tmp_path / "three")
    assert paths.headline[0].startswith("fast-0 (3 seeds) covers a hypervolume of 0.")
    assert ": more, by +0.0" in paths.headline[0]
    table = pd.read_csv(paths.students)
    assert len(table) == 2 * 6
    assert table.query("run == 'fast-2' and within == 4e6")["val"].item() == pytest.approx(0.82)
    assert paths.picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    data = re.search(r'<script type="application/json">(.*?)</script>', paths.page.read_text(), re.S)
    assert data is not None
    points = [trace for trace in json.loads(data[1])["data"] if trace["mode"] == "markers"]
    assert [trace["showlegend"] for trace in points] == [True, False, False] * 2
