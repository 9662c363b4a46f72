"""The band of fronts over seeds, published points, and hypervolume over time."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import ACCURACY, record

from nas_kd.analysis.attainment import attainment
from nas_kd.analysis.front import ParetoFront
from nas_kd.analysis.interactive import front_chart, hypervolume_chart
from nas_kd.analysis.references import ReferencePoint, read_points
from nas_kd.analysis.table import seconds_spent
from nas_kd.trials.record import Metric, TrialRecord


def repeated(number: int, flops: int, values: tuple[float, ...], metric: Metric | None = None) -> TrialRecord:
    metric = metric or Metric(name="accuracy")
    repeats = {f"retrained/val/{metric.name}": values}
    return record(number, flops, sum(values) / len(values), repeats=repeats, metric=metric)


def test_the_band_is_what_the_worst_and_the_best_seed_attain() -> None:
    trials = [
        repeated(0, 10, (0.5, 0.25, 0.75)),
        repeated(1, 20, (0.25, 0.5, 0.5)),
        repeated(2, 20, (0.75, 0.25, 0.25)),  # of the same cost
        repeated(3, 30, (0.25, 0.25, 0.25)),  # no seed is better here
    ]
    band = attainment(ParetoFront.from_records(trials))
    assert band is not None
    assert band.costs.tolist() == [10, 20, 30]
    assert band.worst.tolist() == [0.25, 0.5, 0.5]
    assert band.best.tolist() == [0.75, 0.75, 0.75]
    assert band.num_seeds == 3
    error = Metric(name="mae", maximize=False)
    band = attainment(ParetoFront.from_records([repeated(0, 1, (3, 2, 4), error), repeated(1, 2, (1, 5, 3), error)]))
    assert band is not None
    assert (band.worst.tolist(), band.best.tolist()) == ([4, 3], [2, 1])
    for trial in (record(4, 5, 0.5), repeated(4, 5, (0.5, 0.5))):
        assert attainment(ParetoFront.from_records([*trials, trial])) is None
    assert attainment(ParetoFront.from_records([])) is None


def test_published_points_are_read_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("\ufeffvalue,year,name,cost\n0.76,2020,X3D-M <b>,6.2e9\n")
    assert read_points(path) == (ReferencePoint("X3D-M <b>", 6.2e9, 0.76),)
    figure = front_chart([record(0, 10, 0.5)], references=read_points(path))
    (trace,) = [trace for trace in figure.data if trace.name == "published"]
    assert (trace.x, trace.y, trace.text) == ((6.2e9,), (0.76,), ("X3D-M &lt;b&gt;",))
    for text, sentence in (
        ("name,value\nx,1\n", "missing: \\['cost'\\]"),
        ("name,cost,value\nx,0,1\n", "line 2: a point needs a name, a cost above 0 and a value"),
        ("name,cost,value\nx,1,1\nx,1 G,1\n", "line 3: .* got 'x', '1 G', '1'"),
        ("name,cost,value\nx,1\n", "line 2"),
        ("name,cost,value\nx,inf,1\n", "line 2"),
        ("name,cost,value\nx,1,0.7\nx,1,76\n", "line 3: accuracy is written as a share of 1, .* write 0.76 for 76 %"),
        ("name,cost,value\n", "has no point below its first line"),
        (f"name,cost,value\n{'x' * 200_000},1,1\n", "cannot be read \\(field larger than field limit"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_points(path, ACCURACY)
    path.write_text("name,cost,value\nx,1,76\n")
    assert read_points(path, Metric(name="reward"))[0].value == 76
    with pytest.raises(ValueError, match="cannot be read"):
        read_points(tmp_path)


def test_hypervolume_is_drawn_over_the_time_of_all_trials() -> None:
    trials = [
        record(2, 10, 0.5, durations_s={"total": 60.0}),
        record(0, 20, 0.5, durations_s={"search": 30.0, "retrain": 30.0}),
        record(1, state="failed", durations_s={"total": 120.0}),
        record(3, 30, 0.75),
    ]
    spent = seconds_spent(trials)
    assert spent == {0: 60, 1: 180, 2: 240, 3: 240}
    figure = hypervolume_chart(ParetoFront.from_records(trials), spent)
    assert list(figure.data[0].x) == [1, 4, 4]
    assert figure.layout.xaxis.title.text == "minutes of all trials so far"
    assert seconds_spent([trials[3]]) == {}
