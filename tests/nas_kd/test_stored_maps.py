"""Maps that come with the data as the teacher of a campaign."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import nas_kd
from nas_kd.config import validate
from nas_kd.data import DataInfo
from nas_kd.preflight.checks import check_fit
from nas_kd.tasks.saliency_metrics import nss
from nas_kd.teachers import StoredMaps, TeacherConfig, build_teacher_model
from nas_kd.trial import build_context

SIZE = 32
INFO = DataInfo(num_classes=2, class_names=("a", "b"), frames=2, height=4, width=6, name="x", map_names=("one", "two"))


def box_mask(sequence: int, number: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4 * sequence : 4 * sequence + 8, 5 * number : 5 * number + 9] = 1
    return mask


def stored(sequence: int, number: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng((sequence, number, seed)).random((SIZE, SIZE))
    return (0.5 * box_mask(sequence, number) + 0.5 * noise).astype(np.float32)


@pytest.fixture
def campaign(tmp_path: Path) -> dict[str, Any]:
    """A campaign of one trial on six sequences with the maps of both branches."""
    rows = []
    for folder in ("frames", "spatial/frames", "temporal/frames"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for sequence, split in enumerate(("train", "train", "train", "train", "val", "test")):
        for number in range(4):
            stem = f"frames/{sequence}_{number}"
            pixels = np.random.default_rng((sequence, number)).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / f"{stem}.jpg")
            Image.fromarray(box_mask(sequence, number)).save(tmp_path / "set" / f"{stem}_mask.png")
            for seed, stream in enumerate(("spatial", "temporal")):
                np.save(tmp_path / "set" / stream / f"{stem}.npy", stored(sequence, number, seed))
            rows.append((f"{stem}.jpg", f"{stem}_mask.png", split, str(sequence), str(number)))
    with (tmp_path / "set" / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "sequence", "frame"), *rows])
    data = {"source": "sequences", "root": str(tmp_path / "set"), "binary": True, "frames": 2, "stride": 1}
    return {
        "name": "maps",
        "runs": str(tmp_path / "runs"),
        "task": "saliency",
        "trials": 1,
        "data": {
            **data,
            "size": SIZE,
            "maps": {"spatial": "spatial", "temporal": "temporal"},
            "cache_dir": str(tmp_path / "cache"),
        },
        "teacher": {"model": "maps"},
        "space": {
            "name": "saliency",
            "net": ["fused"],
            "side": [32],
            "spatial": {"widths": [[4], [4], [4], [4]], "depths": [1], "ops": ["conv_k3"]},
            "temporal": {"widths": [[4], [4], [4], [4]], "depths": [1], "ops": ["conv_k3"]},
            "decoder": {"widths": [[4], [4], [4], [4], [4]], "ops": ["conv_k3"]},
        },
        "budget": {"max_flops": "50M"},
        "retrain": {"epochs": 1, "batch_size": 4, "lr": 1e-3},
        "rehearse": False,
        "resources": {"executor": "inline"},
    }


def test_a_campaign_takes_the_maps_as_its_teacher_and_trains_none(
    campaign: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = nas_kd.search(validate(campaign, source="maps"))
    (record,) = result.records
    assert record.state == "complete", record.error
    folder = Path(campaign["runs"]) / "maps"
    known = json.loads((folder / "teacher" / "teacher.json").read_text())
    by_hand = []
    for number in range(4):
        mean = (stored(5, number, 0) + stored(5, number, 1)) / 2
        by_hand.append(nss(torch.from_numpy(mean), torch.from_numpy(box_mask(5, number) > 0)))
    assert known["test/nss"] == pytest.approx(np.mean(by_hand[::2]), abs=1e-4)  # of pairs (0, 1) and (2, 3)
    assert known["params"] == 0
    assert "flops" not in known
    page = nas_kd.report(folder).report.read_text()
    assert "what it costs is not known" in page

    monkeypatch.setenv("HOME", str(tmp_path))  # files of a folder are decoded into the cache there
    found = nas_kd.evaluate(folder / "trials" / "0000", tmp_path / "set", split="test")
    assert found.metrics == pytest.approx(record.metrics["retrained"]["test"], abs=1e-6)


def test_a_term_that_asks_for_modules_of_the_teacher_is_refused(campaign: dict[str, Any]) -> None:
    config = validate({**campaign, "objective": {"feature": {"weight": 1}}}, source="maps")
    with pytest.raises(ValueError, match="feature: no module of the teacher gives feature maps"):
        check_fit(config, build_context(config, "cpu"))


def test_maps_are_those_of_the_first_frames_and_their_mean_is_the_answer() -> None:
    model = build_teacher_model(TeacherConfig(model="maps"), 1, INFO)
    assert isinstance(model, StoredMaps)
    one, two = torch.rand(3, 2, 4, 6), torch.rand(3, 2, 4, 6)
    maps = model.take({"map.one": one, "map.two": two})
    assert torch.equal(maps, torch.stack([one[:, 0], two[:, 0]], 1))
    assert torch.equal(model(maps), (one[:, :1] + two[:, :1]) / 2)
    (only,) = build_teacher_model(TeacherConfig(model="maps", settings={"names": ["two"]}), 1, INFO).names  # type: ignore[misc]
    assert only == "two"


@pytest.mark.parametrize(
    ("settings", "outputs", "names", "words"),
    [
        ({}, 1, (), "the data have none; name their folders in data.maps"),
        ({}, 4, ("one",), "the task needs 4 outputs; choose the saliency task"),
        ({"names": ["three"]}, 1, ("one",), "names of data.maps, but three is none of them"),
        ({"width": 3}, 1, ("one",), "width"),
    ],
)
def test_maps_that_cannot_be_a_teacher(
    settings: dict[str, Any], outputs: int, names: tuple[str, ...], words: str
) -> None:
    info = DataInfo(2, ("a", "b"), 2, 4, 6, name="x", map_names=names)
    with pytest.raises(ValueError, match=words):
        build_teacher_model(TeacherConfig(model="maps", settings=settings), outputs, info)
