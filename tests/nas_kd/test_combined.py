"""Objectives in combination, by the example that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import nas_kd
from nas_kd.config import load_config, validate

EXAMPLE = Path(__file__).parents[2] / "examples" / "combined.yaml"


def test_the_example_trains_with_every_term_and_ends_with_the_labels_alone(tmp_path: Path) -> None:
    tiny = load_config(EXAMPLE).model_dump(mode="json") | {
        "runs": str(tmp_path),
        "trials": 1,
        "data": {"num_train": 24, "num_val": 8, "num_test": 8, "frames": 6, "size": 16},
        "rehearse": False,
        "resources": {"executor": "inline"},
    }
    tiny["teacher"]["fit"]["epochs"] = 1
    tiny["search"]["epochs"] = 1
    tiny["search"]["local"]["steps"] = 0
    tiny["space"] = {"name": "delta_blocks", "keyframe_interval": [3], "candidates": ["full", "pointwise4"]}
    tiny["retrain"]["epochs"] = 5
    (record,) = nas_kd.search(validate(tiny, source="combined")).records
    assert record.state == "complete", record.error
    lines = [json.loads(line) for line in (tmp_path / "combined/trials/0000/log.jsonl").read_text().splitlines()]
    retrained = [line for line in lines if line["stage"] == "retrain-0"]
    assert {"task", "delta", "cross_resolution", "response"} < retrained[0].keys()
    assert retrained[-1].keys() == {"stage", "epoch", "task", "total"}
    assert retrained[-1]["total"] == retrained[-1]["task"]
