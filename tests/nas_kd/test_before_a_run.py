"""What is asked before a long run: `nas-kd init`, `search --dry-run`, `doctor`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import cli, succeed
from PIL import Image

from nas_kd.campaign import dry_run
from nas_kd.campaign.dry_run import StepClock
from nas_kd.config import CampaignConfig, ConfigError, validate
from nas_kd.data import SOURCES
from nas_kd.data.source import Recognised
from nas_kd.preflight import doctor, overview, starter
from nas_kd.preflight.doctor import Finding, diagnose
from nas_kd.search_spaces.knapsack import cost_range
from nas_kd.trial import build_context

SMALL = {"widths": [[4], [6]], "depths": [[1], [1]], "ops": ["shift_k1", "conv2d_k3"]}  # few FLOPs to count


def table(root: Path, text: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.csv").write_text(text)
    return root


def recognised(root: Path) -> dict[str, Recognised]:
    found = {name: kind.recognise(root) for name, kind in SOURCES.items()}
    return {name: each for name, each in found.items() if each is not None}


def test_a_folder_is_recognised_as_one_kind_of_data(tmp_path: Path) -> None:
    videos = table(tmp_path / "videos", "path,label,split\na.mp4,cat,train\n")
    assert {name: each.task for name, each in recognised(videos).items()} == {"folder": "classification"}
    features = table(tmp_path / "features", "path,label,split\na.npy,cat;dog,train\nb.npy,cat,val\n")
    for name, frames in (("a", 4), ("b", 6)):
        np.save(features / f"{name}.npy", np.zeros((frames, 3), np.float32))
    assert recognised(features) == {
        "features": Recognised({"root": str(features), "labels": "labels.csv", "frames": 5}, "multilabel")
    }
    records = tmp_path / "records"
    records.mkdir()
    (records / "train1.tfrecord").touch()
    assert recognised(records)["youtube8m"].data["num_classes"] == 3862
    assert recognised(tmp_path) == {}
    with pytest.raises(ConfigError, match=r"holds no labels\.csv"):
        starter.starter_file("c.yaml", None, tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 255], {"binary": True}),
        ([0, 1, 2, 255], {"classes": ["class_0", "class_1", "class_2"], "ignore": [255]}),
    ],
)
def test_label_images_say_which_classes_there_are(
    tmp_path: Path, values: list[int], expected: dict[str, object]
) -> None:
    root = table(tmp_path, "path,label,split,sequence,frame\na.jpg,a.png,train,s,0\n")
    Image.fromarray(np.array([values], np.uint8)).save(root / "a.png")
    (found,) = recognised(root).values()
    assert {key: found.data[key] for key in found.data if key not in ("root", "labels", "frames", "size")} == expected
    validate({"task": "segmentation", "data": {"source": "sequences", **found.data}}, source="test")


def test_init_writes_a_file_with_the_meaning_of_each_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(starter, "build_context", lambda *_, **__: None)  # the data are not read for these budgets:
    monkeypatch.setattr(starter, "_budgets", lambda context: [1_234_567.0, 99_500.0, 2.0e9])
    monkeypatch.setattr(overview, "overview", lambda config: [f"checked: {config.name}"])
    output = succeed("init", "c.yaml")
    text = Path("c.yaml").read_text()
    config = validate(yaml.safe_load(text), source="test")
    assert "checked: c\n" in output
    assert (config.trials, config.task, config.data.source) == (12, "classification", "generated")
    assert config.budget.max_flops == (1_300_000, 100_000, 2_000_000_000)
    assert config.space.model_extra == {"resolution": [16, 32], "frames": [4, 8]}
    assert "# Passes over the training split.\n  epochs: 16" in text
    assert "\n# Which Optuna sampler proposes the knobs.\n#sampler: known_cost\n" in text
    assert "#objectives: [accuracy, flops]\n" in text
    assert "For example:\n#constraints: {latency_ms: {max: 5}}\n" in text
    code, output = cli("init", "c.yaml")
    assert code == 2
    assert "is there already" in output


def test_budgets_lie_between_the_cheapest_student_and_half_of_the_teacher(tiny: Callable[..., CampaignConfig]) -> None:
    context = build_context(tiny(space=SMALL), "cpu")
    low, *between, high = starter._budgets(context)
    ranges = [cost_range(context.table({"resolution": side, "frames": 4})) for side in (12, 16)]
    teacher, _ = context.input_type.teacher_flops(context.teacher_model, context.teacher_example(), context.space)
    assert low == pytest.approx(1.1 * max(least for least, _ in ranges))
    assert high == pytest.approx(min(max(most for _, most in ranges), teacher / 2))
    assert len(between) == 2
    assert between[0] / low == pytest.approx(high / between[1])


def test_a_dry_run_times_the_steps_and_writes_nothing(
    tiny: Callable[..., CampaignConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "rehearse", lambda *_: None)  # test_rehearsal.py
    config = tiny(space=SMALL, retrain={"num_seeds": 3})
    lines = dry_run.dry_run(config)
    starts = ["teacher: 3 batches", "the teacher's outputs", "trials: 2 of about", "in all about", "memory:"]
    for start in [*starts, "caches on disk", "run folder"]:
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)
    assert not config.run_dir.exists()


def test_the_time_of_a_step_is_the_median_between_two_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter([10.0, 11.0, 12.5, 22.5, 30.0, 31.0])
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(ends))
    clock = StepClock(threads=1)
    clock.see(0.0, "rehearsal, teacher")
    for step in range(4):
        clock.see(step / 4, "teacher, epoch 1/1")
    clock.see(0.0, "rehearsal, search")
    clock.see(0.5, "search 1/1")
    clock.see(0.9, "deriving students, budget 1/2")
    clock.see(1.0, "search 1/1")
    assert (clock.seconds("teacher", "epoch"), clock.seconds("search", "search")) == (1.5, 1.0)
    assert clock.seconds("trial", "epoch") == 0.0
    assert clock.beside_steps("teacher", 20.0) == 20 - 12.5 - 1.5  # its first step is taken to be like the others
    assert clock.beside_steps("search", 5.0) == 5 - 1 - 1
    assert clock.beside_steps("trial", 3.0) == 3.0


def findings(config: CampaignConfig) -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnose(config)}


def test_the_doctor_finds_nothing_here(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    found = findings(tiny(storage=f"sqlite:///{tmp_path}/study.db"))
    assert {"versions", "cpu", "gpu", "memory", "shared memory", "decoders", "database", "cluster"} <= found.keys()
    assert [each for each in found.values() if each.state == "fail"] == []
    assert "torch" in found["versions"].text


def test_the_doctor_says_what_is_wrong(tiny: Callable[..., CampaignConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(
        storage="mysql+nodriver://me:secret@127.0.0.1:1/x",
        resources={"gpus_per_trial": 1, "executor": "ray", "address": "127.0.0.1:1"},
    )
    free = shutil.disk_usage("/")._replace(free=5)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(doctor, "_memory", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "DECODERS", ("h264", "nocodec"))
    found = findings(config)
    expected = {
        "memory": "fail",
        "decoders": "warn",
        "disk, runs": "fail",
        "disk, temporary files": "fail",
        "database": "fail",
        "cluster": "fail",
    }
    assert {name: found[name].state for name in expected} == expected
    assert "secret" not in found["database"].text
    assert "no cluster answers at 127.0.0.1:1" in found["cluster"].text
    assert found["decoders"].text.startswith("this PyAV cannot decode nocodec;")
