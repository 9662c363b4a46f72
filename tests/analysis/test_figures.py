"""Pictures carry the right points and labels, and interpret no text from a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import HOSTILE, TEACHER, hostile_run, record, run

from nas_kd.analysis import (
    ParetoFront,
    TeacherPoint,
    comparable,
    failure_chart,
    front_chart,
    front_figure,
    hypervolume_chart,
    interactive,
    stage_chart,
    write_picture,
)
from nas_kd.analysis.figures import cost_ticks, printable
from nas_kd.analysis.interactive import hover_text, plain
from nas_kd.trials.record import TrialRecord

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (10e6, 24e6, [10e6, 12.5e6, 15e6, 17.5e6, 20e6, 22.5e6]),
        (3e6, 50e6, [3e6, 5e6, 10e6, 20e6, 30e6, 50e6]),
        (4e6, 2.5e9, [5e6, 1e7, 2e7, 5e7, 1e8, 2e8, 5e8, 1e9, 2e9]),
        (1, 1e9, [1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9]),
        (0.5, 4, [0.5, 0.6, 0.8, 1, 1.5, 2, 3, 4]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert cost_ticks(low, high) == pytest.approx(expected)


def test_printable_is_one_clean_line() -> None:
    assert printable("a\n\tb\x00\u202ec\u2028d") == "a b c d"
    assert printable("x" * 100, 10) == "xxxxxxxxx…"


def test_plain_escapes_what_plotly_would_read() -> None:
    assert plain("<b>&amp;</b>") == "&lt;b&gt;&amp;amp;&lt;/b&gt;"


def test_static_front_draws_line_points_and_labels() -> None:
    records = run()
    front = ParetoFront.from_records(records)
    axes = front_figure(records, title="T", teacher=TEACHER, front=front).axes[0]
    assert axes.get_xlabel() == "FLOPs per clip (1 multiply-accumulate = 1 FLOP)"
    assert axes.get_ylabel() == "validation accuracy"
    assert axes.get_xscale() == "log"
    step = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert step.get_xdata()[:-1].tolist() == front.points[:, 0].tolist()  # type: ignore[union-attr]
    texts = [text.get_text() for text in axes.texts]
    assert front.pick is not None
    assert any(text.startswith(f"trial {front.pick.number}: ") for text in texts)
    assert "teacher: R3D, width 64" in texts
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["front", "95 % interval", "suggested pick", "dominated trial", "budget"]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(0, 5, 0.5)],
        [record(0, 0, 0.5), record(1, 3, 0.6)],
        [record(0, state="failed")],
        hostile_run(),
        run(200),
    ],
    ids=["empty", "one", "zero FLOPs", "none complete", "hostile", "many"],
)
@pytest.mark.parametrize("teacher", [None, TeacherPoint(HOSTILE, 10**7, 0.9)])
def test_any_run_can_be_drawn(records: list[TrialRecord], teacher: TeacherPoint | None, tmp_path: Path) -> None:
    write_picture(front_figure(records, title=HOSTILE, teacher=teacher), tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(PNG)
    front = ParetoFront.from_records(records)
    for figure in (
        front_chart(records, teacher=teacher),
        hypervolume_chart(front),
        stage_chart(records, front),
        failure_chart(records),
    ):
        assert "<script" not in figure.to_json()
        assert "<img" not in figure.to_json()


def test_interactive_front_holds_every_comparable_trial_once(monkeypatch: pytest.MonkeyPatch) -> None:
    records = run(50)
    front = ParetoFront.from_records(records)
    figure = json.loads(front_chart(records, teacher=TEACHER).to_json())
    traces = {trace.get("name"): trace for trace in figure["data"]}
    numbers = traces["dominated"]["customdata"] + traces["front"]["customdata"]
    assert sorted(numbers) == [r.number for r, _, _ in comparable(records)]
    assert set(traces["front"]["customdata"]) == front.numbers
    assert sorted(traces["front"]["x"]) == front.points[:, 0].tolist()
    pick = next(trace for name, trace in traces.items() if name and name.startswith("pick"))
    assert front.pick is not None
    assert pick["customdata"] == [front.pick.number]
    assert (traces["teacher: R3D, width 64"]["x"], traces["teacher: R3D, width 64"]["y"]) == ([1_910_000_000], [0.957])
    bars = traces["95 % interval"]
    assert len(bars["x"]) == 3 * len(front.records)
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert not any("hovertemplate" in trace for trace in figure["data"])
    budgets = sorted({record.knobs["max_flops"] for record in records})
    assert traces["budget"]["x"] == budgets
    monkeypatch.setattr(interactive, "_MAX_MARKS", 20)  # more cannot be told apart, and take long to draw
    (thinned,) = [trace for trace in front_chart(records).data if trace.name == "budget"]
    assert list(thinned.x) == budgets[::3]


def test_hover_says_value_interval_test_and_cost() -> None:
    metrics = {"retrained": {"val": {"accuracy": 0.8}, "test": {"accuracy": 0.7}}}
    repeats = {"retrained/val/accuracy": (0.79, 0.80, 0.81)}
    knobs = {"max_flops": 13_000_000, "rate": 0.123456, "a<b": "<i>"}
    one = record(3, 12_000_000, metrics=metrics, repeats=repeats, knobs=knobs)
    text = hover_text(one, ParetoFront.from_records([one]))
    for part in (
        "<b>trial 3</b>", "validation accuracy: 80.0 %", "95 % interval over 3 seeds: 77.5 % to 82.5 %",
        "test, not used for selection: 70.0 %", "12 M FLOPs, 1.2 M parameters", "max_flops = 13 M", "rate = 0.1235",
        "a&lt;b = &lt;i&gt;",
    ):  # fmt: skip
        assert part in text


def test_stages_and_failures_show_what_happened() -> None:
    records = run()
    lines = json.loads(stage_chart(records, ParetoFront.from_records(records)).to_json())["data"]
    steps = [value for trace in lines for value in trace["y"] if value is not None]
    assert len(steps) == 3 * sum(r.state == "complete" for r in records)
    bars = json.loads(failure_chart(records).to_json())["data"][0]
    assert sorted(bars["x"]) == [1, 2]
