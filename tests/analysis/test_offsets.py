"""Streaming students: values per offset from the key frame, their drift, their cost, and a report that runs nothing."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from synthetic import HOSTILE, MIOU, STREAM_TEACHER, hostile_streams, record, run, stream, stream_run
from test_html_report import Page, check_harmless, report

from nas_kd.analysis import (
    COLUMNS,
    ParetoFront,
    TeacherPoint,
    drift,
    front_chart,
    front_figure,
    mean_of_delta_frames,
    offset_scores,
    offsets_chart,
    offsets_figure,
    trial_table,
    write_picture,
)
from nas_kd.analysis.interactive import hover_text
from nas_kd.analysis.offset_figures import splits_with_offsets
from nas_kd.analysis.offset_sections import drift_sentences
from nas_kd.analysis.offsets import offsets_of, secondary_names
from nas_kd.analysis.text import bytes_text, signed_text
from nas_kd.trials.record import Metric, TrialRecord

TWO_POINTS = 0.02  # trial 1, with three seeds, is the cheapest so close to the best
K_3 = "teacher at K = 3: framewise"
# Student's t for 95 % and two degrees of freedom.
T_2 = 4.302653


def test_the_run_has_the_front_that_these_tests_count_on() -> None:
    front = ParetoFront.from_records(stream_run(), tolerance=TWO_POINTS)
    assert [r.number for r in front.records] == [0, 1, 2]
    assert front.pick is not None
    assert front.pick.number == 1


def test_offsets_are_read_from_names_in_numeric_order() -> None:
    named = {
        "miou": 0.5,
        "miou@10": 0.1,
        "miou@2": 0.2,
        "miou@0": 0.3,
        "miou@02": 9,
        "miou@x": 9,
        "loss@1": 9,
        "miou@": 9,
    }
    one = record(0, 5, metric=MIOU, metrics={"retrained": {"val": named}, "gated": {"val": {"miou@7": 1.0}}})
    assert list(offset_scores(one).items()) == [(0, 0.3), (2, 0.2), (10, 0.1)]
    assert offset_scores(one, "test") == {}
    assert offset_scores(one, stage="gated") == {7: 1.0}
    assert offsets_of([one, stream(1, 9, 1, [(0.5, 0.4)], [(0.5, 0.4)])]) == [0, 1, 2, 10]


def test_drift_is_the_last_offset_minus_the_key_frame() -> None:
    found = drift(stream(0, 9, 1, [(0.75, 0.62, 0.55)]))
    assert found is not None
    assert (found.mean, found.interval) == (pytest.approx(-0.20), None)


def test_drift_pairs_the_seeds() -> None:
    # Per seed: -0.04, -0.04, -0.07; mean -0.05, s = sqrt(0.0003), half width t * s / sqrt(3).
    found = drift(stream(0, 9, 1, [(0.76, 0.75, 0.72), (0.81, 0.75, 0.77), (0.78, 0.75, 0.71)]))
    assert found is not None
    half = T_2 * math.sqrt(0.0003) / math.sqrt(3)
    assert found.mean == pytest.approx(-0.05)
    assert found.interval == pytest.approx((-0.05 - half, -0.05 + half), abs=1e-6)


@pytest.mark.parametrize(
    "unknown",
    [
        record(0, 5, 0.5),
        stream(0, 9, 1, [(0.5,)]),
        stream(0, 9, 1, [(0.5, 0.4)], metrics={"retrained": {"val": {"miou": 0.5, "miou@1": 0.4}}}),
        stream(0, 9, 1, [(0.5, 0.4)], metrics={"retrained": {"val": {"miou": 0.5, "miou@0": 0.4}}}),
    ],
    ids=["no stream", "key frames only", "no key frame", "no last offset"],
)
def test_drift_is_unknown_without_both_ends(unknown: TrialRecord) -> None:
    assert drift(unknown) is None


def test_mean_of_delta_frames_leaves_the_key_frame_out() -> None:
    assert mean_of_delta_frames(stream(0, 9, 1, [(0.75, 0.62, 0.55)])) == pytest.approx(0.585)
    gap = {"retrained": {"val": {"miou@0": 0.7, "miou@2": 0.5}}}
    assert mean_of_delta_frames(stream(0, 9, 1, [(0.7, 0.6, 0.5)], metrics=gap)) is None
    assert mean_of_delta_frames(stream(0, 9, 1, [(0.5,)])) is None


def test_secondary_metrics_are_named_once_with_steadiness_first() -> None:
    front = ParetoFront.from_records(stream_run(), tolerance=TWO_POINTS)
    assert secondary_names(front, None) == ["label_stability", "temporal_consistency", "loss"]
    extra = TeacherPoint("t", 1, 0.5, secondary={"val/f1": 0.1, "val/miou": 0.2, "val/miou@1": 0.3, "train/x": 0.4})
    assert secondary_names(front, extra) == ["label_stability", "temporal_consistency", "f1", "loss"]


def test_a_teacher_keeps_its_secondary_metrics_to_itself() -> None:
    given = {"val/f1": 0.1}
    teacher = TeacherPoint("t", 1, 0.5, secondary=given)
    given["val/f1"] = 0.9
    assert teacher.secondary == {"val/f1": 0.1}
    with pytest.raises(TypeError, match="cannot be changed"):
        teacher.secondary["val/f1"] = 0.9  # type: ignore[index]
    assert hash(teacher) == hash(TeacherPoint("t", 1, 0.5))


def test_sizes_and_signs_as_people_read_them() -> None:
    assert [bytes_text(n) for n in (0, 64, 1500, 6_300_000, None)] == ["0 B", "64 B", "1.5 kB", "6.3 MB", "–"]
    assert signed_text(-0.0123, MIOU) == "−1.2"
    assert signed_text(0.5, Metric(name="loss")) == "+0.5"


def test_table_has_the_cost_of_streams_and_a_column_an_offset() -> None:
    records = [*stream_run(), record(5, 50, 0.1, metric=MIOU, knobs={"width": 8})]
    table = trial_table(records).set_index("trial", drop=False)
    per_offset = [f"{split}_metric@{k}" for split in ("val", "test") for k in range(3)]
    assert list(table.columns) == [*COLUMNS, *per_offset, "knobs.width"]
    expected = {
        "flops": 17_000_000_000, "keyframe_interval": 3, "keyframe_flops": 41_000_000_000,
        "delta_flops": 5_000_000_000, "worst_frame_flops": 41_000_000_000, "state_bytes": 6_300_000,
        "latency_ms": 2.0, "keyframe_latency_ms": 5.0, "delta_latency_ms": 0.5,
    }  # fmt: skip
    assert {name: table.loc[1, name] for name in expected} == expected
    assert [table.loc[1, name] for name in per_offset] == pytest.approx([0.77, 0.75, 0.73, 0.76, 0.74, 0.72])
    assert table.loc[2, "val_metric@1"] == 0.76
    assert table.loc[2, ["val_metric@2", "test_metric@0"]].isna().all()
    assert table.loc[5, [*list(expected)[1:6], *per_offset]].isna().all()
    assert not any("@" in name for name in trial_table(run(5)).columns)


def test_axes_say_that_the_cost_is_amortised() -> None:
    records = stream_run()
    label = "amortised FLOPs per frame (1 multiply-accumulate = 1 FLOP)"
    assert front_figure(records).axes[0].get_xlabel() == label
    assert json.loads(front_chart(records).to_json())["layout"]["xaxis"]["title"]["text"] == label
    assert "key frame 41 G FLOPs, others 5 G, one key frame in 3" in hover_text(
        records[1], ParetoFront.from_records(records)
    )


def test_interactive_offsets_hold_a_line_a_front_trial_and_the_teacher() -> None:
    front = ParetoFront.from_records(stream_run(), tolerance=TWO_POINTS)
    figure = json.loads(offsets_chart(front, teacher=STREAM_TEACHER).to_json())
    lines = {trace["name"]: trace for trace in figure["data"] if "name" in trace}
    assert list(lines) == [
        "teacher at K = 2: framewise", "teacher at K = 3: framewise", "trial 0, 14 G FLOPs",
        "pick: trial 1, 17 G FLOPs", "trial 2, 34 G FLOPs",
    ]  # fmt: skip
    assert lines["teacher at K = 2: framewise"]["y"] == [0.77, 0.78]
    assert lines["teacher at K = 3: framewise"]["y"] == [0.77, 0.78, 0.79]
    pick = lines["pick: trial 1, 17 G FLOPs"]
    assert (pick["x"], pick["customdata"]) == ([0, 1, 2], [1, 1, 1])
    assert pick["y"] == pytest.approx([0.77, 0.75, 0.73])
    assert lines["trial 2, 34 G FLOPs"]["y"] == [0.77, 0.76]
    assert "2 frames after the key frame<br>validation miou: 73.0 %<br>over 3 seeds: " in pick["hovertext"][2]
    assert "key frame<br>" in pick["hovertext"][0]

    bars = [trace for trace in figure["data"] if "name" not in trace]
    assert len(bars) == 1  # trial 1 alone was repeated
    assert bars[0]["x"] == [0, 0, None, 1, 1, None, 2, 2, None]
    half = T_2 * 0.01 / math.sqrt(3)
    assert bars[0]["y"][6:8] == pytest.approx([0.73 - half, 0.73 + half])
    assert figure["layout"]["yaxis"]["tickformat"] == ".3~p"

    on_test = json.loads(offsets_chart(front, "test", teacher=STREAM_TEACHER).to_json())["data"]
    assert on_test[0]["name"] == "teacher: framewise"  # trial 2 was not measured there, so one interval is left
    assert on_test[0]["y"] == [0.76, 0.77, 0.78]
    assert not any("trial 2" in trace.get("name", "") for trace in on_test)
    without = json.loads(offsets_chart(front, "test", teacher=TeacherPoint("t", 9, 0.9)).to_json())["data"]
    assert not any("teacher" in trace.get("name", "") for trace in without)


def test_static_offsets_have_a_panel_a_split() -> None:
    front = ParetoFront.from_records(stream_run(), tolerance=TWO_POINTS)
    validation, test = offsets_figure(front, title="T", teacher=STREAM_TEACHER).axes
    assert (validation.get_title(), test.get_title()) == ("validation miou", "test miou")
    for axes, last, knee in ((validation, 0.79, [0.77, 0.75, 0.73]), (test, 0.78, [0.76, 0.74, 0.72])):
        level = next(line for line in axes.lines if str(line.get_label()) in (K_3, "teacher: framewise"))
        assert list(level.get_ydata()) == [last - 0.02, last - 0.01, last]
        line = next(line for line in axes.lines if str(line.get_label()).startswith("pick: trial 1"))
        assert list(line.get_ydata()) == pytest.approx(knee)
    assert len(offsets_figure(ParetoFront.from_records([stream(0, 9, 1, [(0.5, 0.4)])])).axes) == 1


def test_a_long_front_names_the_pick_only() -> None:
    records = [stream(n, 10**9, 10**7 * (n + 1) ** 2, [(0.5 + 0.05 * math.log(n + 1), 0.4)]) for n in range(20)]
    front = ParetoFront.from_records(records)
    assert len(front.records) == 20
    assert front.pick is not None
    traces = json.loads(offsets_chart(front).to_json())["data"]
    named = [trace["name"] for trace in traces if trace["showlegend"]]
    assert len(traces) == 20
    assert len(named) == 1
    assert named[0].startswith(f"pick: trial {front.pick.number},")
    assert len(offsets_figure(front).legends[0].get_texts()) == 1


def cells_after(page: Page, heading: str) -> str:
    return page.text.split(heading, 1)[1]


def test_report_of_streams(tmp_path: Path) -> None:
    records = stream_run()
    paths, page = report(records, tmp_path, teacher=STREAM_TEACHER, tolerance=TWO_POINTS)
    check_harmless(page)
    for part in (
        "From offset 0 to offset 2, the validation miou of trial 1 changes by −4.0 points (95 % interval −4.0 to −4.0 "
        "over 3 seeds), that of the teacher on the same frames by +2.0 points: at offset 2 the student differs from "
        "the teacher by −6.0 points (95 % interval −8.5 to −3.5 over 3 seeds); its mean without key frames is 74.0 %.",
        "From offset 0 to offset 2, the test miou of trial 1 changes by −4.0 points",
        "The frames at one offset are others than those at the next",
        "Offset 0 is the key frame, where the pure teacher answers: it flatters the mean",
    ):
        assert part in page.text, part
    # Trial 1: link, badge, K, amortised, key, delta, worst, teacher's / amortised, state, latencies.
    cost = "1 pick" + "3" + "17.0 G" + "41.0 G" + "5.00 G" + "41.0 G" + "2.35×" + "6.3 MB" + "2" + "5" + "0.5"
    assert cost in cells_after(page, "Streams")
    offsets = cells_after(page, "miou per offset from the key frame")
    assert "teachersame frames, K = 378.0 %77.0 %78.0 %79.0 %+2.0" in offsets
    assert "teachersame frames, K = 277.5 %77.0 %78.0 %–+1.0" in offsets
    assert "teachersame frames, K = 377.0 %76.0 %77.0 %78.0 %+2.0" in offsets  # on the test split
    assert "0 64.0 %75.0 %−2.0 to teacher62.0 %−16.0 to teacher55.0 %−24.0 to teacher−20.0" in offsets
    # Its interval is 2: offset 1 is its last.
    assert "2 76.5 %77.0 %+0.0 to teacher76.0 %−2.0 to teacher–−1.0" in offsets
    assert "75.0 %−3.0 to teacher (−3.0 to −3.0, n = 3)" in offsets
    others = cells_after(page, "Other metrics of the teacher and the front")
    assert "teacher90.0 %–87.1 %86.2 %––" in others
    assert "0 91.0 %91.0 %88.5 %88.5 %0.43210.4321" in others
    assert "2 ––88.0 %–––" in others
    assert len(page.data) == 7  # the five of any run with a failure, and two of offsets
    assert sum(tag == "img" for tag, _ in page.elements) == 2
    assert paths.offsets == tmp_path / "offsets.png"
    assert paths.offsets.read_bytes().startswith(b"\x89PNG")


def test_nothing_changes_without_streams(tmp_path: Path) -> None:
    paths, page = report(run(), tmp_path, teacher=STREAM_TEACHER)
    assert paths.offsets is None
    assert not (tmp_path / "offsets.png").exists()
    assert "Streams" not in page.text
    assert "per offset" not in page.text
    assert "one FLOP each" not in page.text
    assert "87.1 %" in page.text  # what is known of the teacher is shown all the same
    _, page = report(run(), tmp_path, teacher=TeacherPoint("t", 9, 0.9))
    assert "Other metrics" not in page.text


def test_streams_off_the_front_and_without_offsets_are_explained(tmp_path: Path) -> None:
    better = record(9, 10, 0.99, metric=MIOU)
    paths, page = report([*stream_run(), better], tmp_path)
    assert "No streaming student is on the front." in page.text
    assert paths.offsets is None

    bare = stream(0, 9, 1, [(0.5, 0.4)], metrics={"retrained": {"val": {"miou": 0.45}}})
    front = ParetoFront.from_records([bare])
    assert splits_with_offsets(front) == []
    assert drift_sentences(front) == []
    paths, page = report([bare], tmp_path)
    assert paths.offsets is None
    assert "key-frame interval K" in page.text
    assert "per offset" not in page.text
    write_picture(offsets_figure(front), tmp_path / "empty.png")


def test_names_of_streams_never_run(tmp_path: Path) -> None:
    records = hostile_streams()
    teacher = TeacherPoint(HOSTILE, 10**10, 0.9, 0.8, secondary={"val/" + HOSTILE.replace("@", ""): 0.5})
    paths, page = report(records, tmp_path, HOSTILE, teacher)
    check_harmless(page)
    assert sum(tag == "img" for tag, _ in page.elements) == 2  # the fallback pictures
    assert not any("document.title='run'" in script for script in page.scripts)
    assert "=1+1" + HOSTILE in page.text
    front = ParetoFront.from_records(records)
    for split in splits_with_offsets(front):
        text = offsets_chart(front, split, teacher=teacher).to_json()
        assert "<img" not in text
        assert "<script" not in text
    assert list(offset_scores(records[0])) == [0, 1]
    assert paths.offsets is not None
    with paths.trials.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][-4:] == ["val_metric@0", "val_metric@1", "test_metric@0", "test_metric@1"]
    assert not any(cell.startswith(tuple("=+-@\t\r\n")) for row in rows for cell in row)
