"""Latencies of the front in several runtimes, and what the report says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nas_kd.analysis.bench import Bench, BenchRow, read_bench
from nas_kd.config import CampaignConfig
from nas_kd.runs import Run
from nas_kd.runs.runtimes import bench
from tests.nas_kd.test_deploy import bundle, record


def test_students_of_the_front_are_measured_in_each_runtime(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tiny().space.build(4)
    records = [record(2, 300, 0.8), record(0, 100, 0.3), record(1, 400, 0.7)]  # trial 1 is not on the front
    for each in records:
        bundle(tmp_path / "trials" / f"{each.number:04d}", space, seed=each.number)
    monkeypatch.setattr("nas_kd.runs.runtimes.load_run", lambda run: Run(run, tiny(), tuple(records)))

    def no_compiler(*arguments: object, **options: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("torch.compile", no_compiler)
    monkeypatch.setattr("nas_kd.trial.latency.ROUNDS", 1)
    made = bench(tmp_path, runtimes=("eager", "compiled"), threads=2)
    assert [(row.trial, row.flops, row.runtime, row.threads) for row in made.rows] == [
        (0, 100, "eager", 1),
        (2, 300, "eager", 1),
        (0, 100, "eager", 2),
        (2, 300, "eager", 2),
    ]
    assert all(0 < row.low <= row.ms <= row.high for row in made.rows)
    assert made.skipped == {"compiled": "trial 2: no C++ compiler"}
    assert read_bench(tmp_path) == made
    assert "PyTorch, compiled was skipped: trial 2: no C++ compiler." in made.sentences()
    with pytest.raises(ValueError, match="there is no runtime 'tflite'; choose from eager, compiled, onnx"):
        bench(tmp_path, runtimes=("tflite",))


def test_the_order_by_flops_is_compared_with_that_by_time() -> None:
    times = [1.0, 2.0, 4.0, 3.0, 5.0, 6.0]
    rows = [
        BenchRow(trial=n, flops=100 * n, runtime="onnx", threads=1, ms=ms, low=ms, high=ms)
        for n, ms in enumerate(times)
    ]
    made = Bench(environment={}, passes=50, waited_share=0.5, rows=tuple(rows), skipped={})
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
