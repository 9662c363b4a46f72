"""Which students of a run are exported: by measured latency, and all of the front."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_kd.analysis.latencies import Latencies, Latency, with_latencies
from nas_kd.config import CampaignConfig
from nas_kd.deploy.bundle import load_bundle
from nas_kd.runs import Run, exports, pick
from tests.nas_kd.commands import cli
from tests.nas_kd.test_deploy import bundle, record


def test_pick_goes_by_measured_latency_where_there_is_any() -> None:
    records = [record(0, 100, 0.7, latency_ms=9.0), record(1, 200, 0.8, latency_ms=1.0)]
    records.append(record(2, 300, 0.9, latency_ms=1.0))  # not on the front that was measured
    nets = {"0": Latency(ms=2.0, low=1.9, high=2.1), "1": Latency(ms=4.0, low=3.9, high=4.1)}
    measured = with_latencies(records, Latencies(environment={}, waited_share=0, passes=50, nets=nets))
    assert pick(measured, limits={"max_latency_ms": 3.0}).number == 0  # trial 1 was only predicted to take 1 ms
    assert pick(measured, limits={"max_latency_ms": 4.0}).number == 1
    with pytest.raises(ValueError, match=r"no complete trial costs at most 1\.5 ms; the cheapest costs 2; raise"):
        pick(measured, limits={"max_latency_ms": 1.5})


def test_all_students_of_the_front_are_exported_with_a_table(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tiny().space.build(4)
    records = [record(2, 300, 0.8), record(0, 100, 0.3), record(1, 400, 0.7)]
    for each in records:
        bundle(tmp_path / "trials" / f"{each.number:04d}", space, seed=each.number)
    monkeypatch.setattr(exports, "load_run", lambda run: Run(run, tiny(), tuple(records)))
    folder, made = exports.export_front(tmp_path, formats=("safetensors",), with_data=False)
    assert folder == tmp_path / "export" / "front"
    with (folder / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["folder"], row["val_accuracy"], row["role"]) for row in rows] == [
        ("trial-0000", "0.3", ""),
        ("trial-0002", "0.8", "recommended and knee"),  # of two points, the knee is the better one
    ]
    for row, exported in zip(rows, made, strict=True):
        assert load_bundle(folder / row["folder"])[1].arch_id == exported.arch_id
        assert f"[{row['folder']}]({row['folder']}/MODEL_CARD.md)" in (folder / "index.md").read_text()
    code, output = cli("export", tmp_path, "--all-front", "--trial", 2, "--knee")
    assert (code, output) == (
        2,
        "nas-kd: --all-front exports every student of the front; leave out --trial and --knee\n",
    )
