"""Which knobs the trials follow, and what the free chart offers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from synthetic import record, run

from nas_kd.analysis.drivers import drivers, drivers_section, explained_variance
from nas_kd.analysis.explore import costs, free_chart, metrics
from nas_kd.analysis.front import ParetoFront
from nas_kd.trials.record import Cost, TrialRecord


def test_explained_variance_is_that_of_the_textbook() -> None:
    groups, values = ["a", "a", "b", "b", "c", "c"], np.array([1.0, 3.0, 4.0, 6.0, 9.0, 7.0])
    # Between the means 2, 5, 8: 2 * (9 + 0 + 9) = 36 with 2 degrees of freedom; within: 6 with 3, so 2 each.
    assert explained_variance(groups, values) == pytest.approx((36 - 2 * 2) / (42 + 2))
    assert explained_variance(["a"] * 6, values) == 0
    assert explained_variance(groups, np.ones(6)) == 0
    rng = np.random.default_rng(0)
    chance = [explained_variance(rng.integers(0, 5, 40).tolist(), rng.normal(size=40)) for _ in range(50)]
    assert np.mean(chance) < 0.05  # where the plain ratio of sums of squares has 4 / 39


def trials() -> list[TrialRecord]:
    """`op` decides the accuracy, `width` the cost, `rate` nothing; `depth` is there with one operator only."""
    found = []
    for number in range(24):
        width, op = (8, 16, 32)[number % 3], ("conv", "shift")[number // 3 % 2]
        knobs = {"width": width, "op": op, "rate": 0.1 + ((7 * number) % 24) / 100, "max_flops": 10**6 + number}
        if op == "conv":
            knobs["depth"] = 2
        value = {"conv": 0.8, "shift": 0.6}[op] + 0.001 * (number % 5)
        found.append(record(number, width * 1000 + number, value, knobs=knobs))
    return found


def test_drivers_are_found_and_the_budget_is_none() -> None:
    found = {driver.knob: driver for driver in drivers(ParetoFront.from_records(trials()))}
    assert set(found) == {"width", "op", "rate", "depth"}
    assert found["op"].metric == pytest.approx(1, abs=0.01)
    assert found["depth"].metric == found["op"].metric  # whether it is there says the same
    assert found["width"].cost == pytest.approx(1, abs=0.01)
    assert max(found["width"].metric, found["op"].cost, found["rate"].metric, found["rate"].cost) < 0.2
    assert drivers_section(ParetoFront.from_records(trials()[:19])) is None
    section = drivers_section(ParetoFront.from_records(trials()))
    assert section is not None
    bars = json.loads(section.importance.data)["data"]
    assert [bar["name"] for bar in bars] == ["accuracy", "FLOPs"]
    lines = json.loads(section.parallel.data)["data"]
    assert sum(line["x"].count(0) for line in lines) == 24


def test_the_free_chart_has_every_cost_and_metric_that_was_measured() -> None:
    stream = Cost(flops=10, params=5, keyframe_flops=30, delta_flops=4, keyframe_interval=4, state_bytes=64)
    scores = {"retrained": {"val": {"accuracy": 0.5, "f1": 0.25}, "test": {"accuracy": 0.75}}}
    records = [
        record(0, 20, 0.5, durations_s={"total": 3.0}),
        record(1, metrics=scores, cost=stream),
        record(2, state="failed", metrics={}, cost=None),
    ]
    front = ParetoFront.from_records(records)
    offered = free_chart(records, front)
    assert offered is not None
    data = json.loads(offered.data)
    assert (data["trials"], data["pick"]) == ([0, 1], 1)
    assert {one["label"]: one["values"] for one in data["costs"]} == {
        "FLOPs (per clip, or for streaming students amortised per frame)": [20, 10],
        "FLOPs of the worst frame": [None, 30],
        "parameters": [2, 5],
        "state of a stream (bytes)": [None, 64],
        "time of the trial (s)": [3, None],
    }
    assert [(one["label"], one["values"], one["better"], one["percent"]) for one in data["metrics"]] == [
        ("accuracy (validation)", [0.5, 0.5], "max", True),
        ("accuracy (test, not used for selection)", [None, 0.75], "max", True),
        ("f1 (validation)", [None, 0.25], "", False),
    ]
    assert free_chart([records[2]], front) is None
    (first, *_) = metrics(run(4), ParetoFront.from_records(run(4)))
    assert first.name == "accuracy (validation)"
    assert costs([records[2]]) == []
