"""Latencies of the front in several runtimes, and what the report says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nas_kd.analysis.bench import Bench, BenchRow, Skipped, read_bench
from nas_kd.config import CampaignConfig
from nas_kd.runs import Run
from nas_kd.runs.runtimes import bench
from tests.nas_kd.test_deploy import bundle, record
from tests.nas_kd.test_export_stream import IDENTITY, space_of
from tests.nas_kd.test_export_stream import bundle as stream


def test_students_of_the_front_are_measured_in_each_runtime(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tiny().space.build(4)
    records = [record(2, 300, 0.8), record(0, 100, 0.3), record(1, 400, 0.7)]  # trial 1 is not on the front
    for each in records:
        bundle(tmp_path / "trials" / f"{each.number:04d}", space, seed=each.number)
    monkeypatch.setattr("nas_kd.runs.runtimes.load_run", lambda run: Run(run, tiny(), tuple(records)))

    reasons = iter(["no C++ compiler", "out of memory"] * 2)  # of both students, with either number of threads

    def no_compiler(*arguments: object, **options: object) -> None:
        raise RuntimeError(next(reasons))

    monkeypatch.setattr("torch.compile", no_compiler)
    monkeypatch.setattr("nas_kd.deploy.timing.ROUNDS", 1)
    made = bench(tmp_path, runtimes=("eager", "compiled"), threads=2)
    assert [(row.trial, row.flops, row.runtime, row.threads) for row in made.rows] == [
        (0, 100, "eager", 1),
        (2, 300, "eager", 1),
        (0, 100, "eager", 2),
        (2, 300, "eager", 2),
    ]
    assert all(0 < row.low <= row.ms <= row.high for row in made.rows)
    assert [(each.runtime, each.reason, each.trials) for each in made.skipped] == [
        ("compiled", "no C++ compiler", (0,)),
        ("compiled", "out of memory", (2,)),
    ]
    assert read_bench(tmp_path) == made
    assert "PyTorch, compiled was skipped for trial 2: out of memory." in made.sentences()
    with pytest.raises(ValueError, match="there is no runtime 'tflite'; choose from eager, compiled, onnx"):
        bench(tmp_path, runtimes=("tflite",))


def test_the_order_by_flops_is_compared_with_that_by_time() -> None:
    times = [1.0, 2.0, 4.0, 3.0, 5.0, 6.0]
    rows = [
        BenchRow(trial=n, flops=100 * n, runtime="onnx", threads=1, ms=ms, low=ms, high=ms)
        for n, ms in enumerate(times)
    ]
    made = Bench(environment={}, passes=50, waited_share=0.5, rows=tuple(rows), skipped=())
    first, second = made.sentences()
    assert (
        "ONNX Runtime, 1 thread: rank correlation of FLOPs and time: Kendall's tau 0.87" in first
    )  # 14 − 1 of 15 pairs
    assert "busy with other work (50%" in second
    assert [cell.text for cell in made.table().rows[2]] == ["2", "200", "4 (4 – 4)"]
    few = made.model_copy(update={"rows": made.rows[:2], "waited_share": 0.0})
    assert few.sentences() == [
        "ONNX Runtime, 1 thread: 2 students are too few for a rank correlation of FLOPs and time."
    ]
    one = few.model_copy(update={"rows": (rows[0].model_copy(update={"ms": 1403.2, "high": 2030.0}),)})
    assert one.sentences() == ["ONNX Runtime, 1 thread: 1 student is too few for a rank correlation of FLOPs and time."]
    assert [cell.text for cell in one.table().rows[0]][2] == f"1,403 ({times[0]:.3g} – 2,030)"


def test_key_frames_and_those_after_them_are_measured_apart_and_averaged_over_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = space_of(IDENTITY)
    stream(tmp_path / "trials" / "0000", space)  # a key frame every 3 frames
    monkeypatch.setattr("nas_kd.runs.runtimes.load_run", lambda run: Run(run, CampaignConfig(), (record(0, 100, 0.3),)))
    monkeypatch.setattr("nas_kd.runs.runtimes.own_space", lambda *arguments: None)
    monkeypatch.setattr("nas_kd.deploy.timing.ROUNDS", 1)
    monkeypatch.setattr("nas_kd.deploy.timing.PASSES", 1)  # so that each median is the one pass
    made = bench(tmp_path, runtimes=("eager",), threads=1)
    assert len(made.rows) == 1
    for row in made.rows:
        assert row.keyframe_ms is not None
        assert row.delta_ms is not None
        assert row.ms == pytest.approx((row.keyframe_ms + 2 * row.delta_ms) / 3)
    (cells,) = made.table().rows
    assert cells[2].note == f"key {made.rows[0].keyframe_ms:.3g}, delta {made.rows[0].delta_ms:.3g}"


def test_what_a_runtime_could_not_run_is_one_sentence_for_each_reason() -> None:
    skipped = Skipped(runtime="onnx", reason="no such operator.", trials=(1, 3, 4))
    assert skipped.sentence == "ONNX Runtime was skipped for trials 1, 3 and 4: no such operator."
