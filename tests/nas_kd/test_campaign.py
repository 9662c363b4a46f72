from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from commands import cli, succeed
from conftest import TINY, tiny_campaign
from torch import nn

import nas_kd
from nas_kd.analysis import estimate_mean
from nas_kd.campaign.campaign import Campaign
from nas_kd.config import CampaignConfig, load_config, validate
from nas_kd.data import MemoryDataset
from nas_kd.deploy.bundle import load_bundle
from nas_kd.preparation import teacher as prepared
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.search_spaces import ArchSpec
from nas_kd.trial import CampaignContext, SearchTrial, Trial, build_context, load_context
from nas_kd.trials import TrialContext, TrialRecord

KNOBS = {"max_flops": 250_000, "resolution": 16}


def ready(config: CampaignConfig) -> CampaignContext:
    run_dir = config.run_dir
    prepare_teacher(build_context(config, "cpu"), run_dir)
    return load_context(config.model_dump_json(), run_dir, "cpu")


def run(context: CampaignContext, folder: Path, **changes: object) -> TrialRecord:
    own = TrialContext(number=0, knobs={**KNOBS, **changes}, seed=5, directory=folder)  # type: ignore[dict-item]
    return SearchTrial(context, context.config.with_knobs(own.knobs), own).run()


def content(record: TrialRecord) -> dict[str, object]:
    """What a seed decides."""
    kept = record.model_dump(mode="json", exclude={"durations_s", "started_at", "cost"})
    return {**kept, "flops": record.cost.flops if record.cost else None}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> CampaignContext:
    """Of the tiny campaign, ready for its trials."""
    return ready(tiny_campaign(tmp_path_factory.mktemp("campaign")))


@pytest.fixture(scope="module")
def whole(context: CampaignContext, tmp_path_factory: pytest.TempPathFactory) -> TrialRecord:
    """Of a trial that was run without a stop."""
    before = {name: value.clone() for name, value in context.teacher_model.state_dict().items()}
    record = run(context, tmp_path_factory.mktemp("whole"))
    assert all(torch.equal(before[n], v) for n, v in context.teacher_model.state_dict().items())
    return record


def test_a_trial_keeps_the_promises(context: CampaignContext, whole: TrialRecord, tmp_path: Path) -> None:
    record = whole
    assert record.cost is not None
    assert record.arch is not None
    arch = ArchSpec.from_dict(record.arch)
    assert record.cost.flops == context.space.cost(arch)
    assert 0.95 * 250_000 <= record.cost.flops <= 250_000
    assert set(record.metrics) == {"gated", "derived", "retrained"}
    assert "test" not in record.metrics["gated"]
    assert "test" not in record.metrics["derived"]
    assert content(run(context, tmp_path / "b")) == content(record)  # promise 8


def test_a_killed_trial_goes_on_and_ends_the_same(
    context: CampaignContext, whole: TrialRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    steps = [0]
    original = Trial._stage

    def stage(self: Trial, start: float, share: float) -> Callable[[float, str], None]:
        inner = original(self, start, share)

        def progress(done: float, words: str) -> None:
            steps[0] += 1
            if steps[0] == 11:  # six steps of search, then in the second epoch of retraining
                raise Killed
            inner(done, words)

        return progress

    monkeypatch.setattr(Trial, "_stage", stage)
    with pytest.raises(Killed):
        run(context, tmp_path / "b")
    assert (tmp_path / "b" / "checkpoint-retrain-0.pt").is_file()
    assert content(run(context, tmp_path / "b")) == content(whole)


def test_repeats_and_fresh_weights_and_dotted_knobs(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    context = ready(tiny(retrain={"num_seeds": 3, "init": "fresh"}, knobs={}))
    record = run(context, tmp_path / "a")
    values = record.repeats["retrained/val/accuracy"]
    assert len(values) == 3
    assert record.metrics["retrained"]["val"]["accuracy"] == pytest.approx(sum(values) / 3)

    assert record.arch is not None
    knobs = context.space.knobs_of(ArchSpec.from_dict(record.arch))
    student, info = load_bundle(tmp_path / "a")  # the metrics of a bundle are those of its weights
    assert record.chosen_repeat == values.index(max(values))
    assert info.trainings is not None
    assert info.trainings.chosen == record.chosen_repeat
    assert info.seed == record.seed + record.chosen_repeat
    for split, dataset in (("val", context.splits.val), ("test", context.splits.test)):
        measured = context.evaluate_student(student, dataset, knobs)
        assert info.metrics[split] == pytest.approx(measured)
        spread = info.trainings.metrics[split]["accuracy"]
        assert spread.values == record.repeats[f"retrained/{split}/accuracy"]
        assert (spread.low, spread.high) == pytest.approx(estimate_mean(spread.values).interval)
    config = context.config.with_knobs({"objective.response.weight": 0.25, "max_flops": 3})
    assert config.objective.response.weight == 0.25


def test_the_cache_gives_what_the_teacher_gives(context: CampaignContext) -> None:
    cache, search = context.caches["none"], context.config.search
    batch = next(context.loader(context.splits.gates, search, seed=3, train=True, views=cache.views).epoch(0))
    cached = cache(batch)
    from nas_kd.teachers import Teacher

    teacher = Teacher(context.teacher_model, cache.taps)
    live = teacher(context.input_type.read(batch))
    teacher.close()
    assert torch.allclose(cached.logits, live.logits, rtol=2.0**-11, atol=1e-5)
    assert cached.features.keys() == live.features.keys() != set()
    for name, value in live.features.items():
        assert torch.allclose(cached.features[name], value, rtol=2.0**-11, atol=1e-5)


def test_a_path_is_printed_in_one_line(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    config = tiny(name="long-" * 40, budget={"max_flops": 1000})
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    code, output = cli("search", file)
    assert code == 2
    assert f"run folder: {config.run_dir}\n" in output


def records_of(config: CampaignConfig, trial: int) -> str:
    return (config.run_dir / "trials" / f"{trial:04d}" / "record.json").read_text()


def longer_and_wider_clips() -> dict[str, object]:
    """Noise that is brighter at one end of time and of each row, by class; nets see 4 of 8 frames and 16 of 20 pixels
    of a row."""
    generator, sets = torch.Generator().manual_seed(0), {}
    for name, number in {"train": 48, "val": 24, "test": 24}.items():
        labels = torch.arange(number) % 2
        clips = torch.randint(0, 156, (number, 3, 8, 16, 20), generator=generator, dtype=torch.uint8)
        clips[labels == 0, :, :3, :, :3] += 100
        clips[labels == 1, :, 5:, :, 17:] += 100
        sets[name] = MemoryDataset({"clip": clips, "label": labels})
    return {**sets, "class_names": ["first", "last"], "frames": 4, "size": (16, 16)}


def by_hand(net: nn.Module, split: str) -> dict[str, float]:
    """Metrics of the mean logits over two halves of a clip and three windows along its rows."""
    data: Any = longer_and_wider_clips()[split]
    clips = torch.stack([data[i]["clip"] for i in range(24)]) / 255
    parts = [clips[:, :, t : t + 4, :, x : x + 16] for t in (0, 4) for x in (0, 2, 4)]
    with torch.no_grad():
        logits = sum(net.eval()((part - 0.45) / 0.225) for part in parts) / 6
    labels = torch.arange(24) % 2
    right = (logits.argmax(1) == labels).double().mean().item()
    return {"accuracy": right, "cross_entropy": F.cross_entropy(logits, labels).item()}


def test_search_report_export_and_again(tmp_path: Path) -> None:
    one_cell = {"widths": [[6, 8]], "depths": [[1]], "strides": [1], "resolution": [16]}  # for the exporters
    content = {**TINY, "runs": str(tmp_path / "runs"), "space": {**TINY["space"], **one_cell}}
    content["data"] = {"source": "own", "function": f"{__name__}:longer_and_wider_clips"}
    content["evaluation"] = {"clips": 2, "window": 0.5, "crops": 3, "batch_size": 5}
    config = validate(content, source="test")
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    output = succeed("search", file)
    assert "2 of 2 trials complete" in output
    records = {p: p.read_text() for p in config.run_dir.glob("trials/*/record.json")}
    assert len(records) == 2
    assert {json.loads(r)["knobs"]["max_flops"] for r in records.values()} == {150_000, 250_000}
    assert not list(config.run_dir.glob("trials/*/checkpoint*"))

    output = succeed("search", file, "--set", "trials=3")  # two are there already
    assert len(list(config.run_dir.glob("trials/*/record.json"))) == 3
    assert all(path.read_text() == text for path, text in records.items())

    output = succeed("report", config.run_dir)
    assert {p.name for p in (config.run_dir / "report").iterdir()} >= {"report.html", "front.png", "front.csv"}

    run = nas_kd.load_run(config.run_dir)
    assert run.trials["trial"].tolist() == [0, 1, 2]
    assert sorted(run.front["trial"]) == sorted(run.pareto.numbers)
    assert run.front["latency_ms"].notna().all()  # measured after the trials
    assert run.pick is run.pareto.pick
    assert {trace.name for trace in run.figure().data} > {"front", "teacher: r2plus1d"}
    assert run._repr_html_().count("<tr") == 1 + len(run.front)

    output = succeed("export", config.run_dir, "--trial", 1)
    record = json.loads((config.run_dir / "export" / "trial-0001" / "verification.json").read_text())
    assert [p["file"] for p in record["parity"]] == ["student.safetensors", "student.pt2", "student.onnx"]
    assert record["parity"][0]["max_abs_difference"] == 0.0
    assert record["parity"][1]["flops"] == record["flops"]
    assert all(p["max_abs_difference"] < 1e-4 for p in record["parity"])
    trained = json.loads(records_of(config, 1))["metrics"]["retrained"]["val"]["accuracy"]
    assert [form["backend"] for form in record["validation"]] == ["safetensors", "pt2", "onnx"]
    assert [form["metrics"]["accuracy"] for form in record["validation"]] == [trained] * 3
    assert all(0 <= form["max_abs_difference"] < 1e-4 for form in record["validation"])
    assert record["validation"][0]["measured"]["num_items"] == 24
    output = succeed("evaluate", config.run_dir / "export" / "trial-0001", config.run_dir, "--split", "val")
    assert f"accuracy {trained:.4f} on 24 items, 95 % interval" in output

    student, info = load_bundle(config.run_dir / "export" / "trial-0001")
    teacher = json.loads((config.run_dir / "teacher" / "teacher.json").read_text())
    teacher_model = load_context(config.model_dump_json(), config.run_dir, "cpu").teacher_model
    for split in ("val", "test"):
        expected = pytest.approx(by_hand(student, split), rel=1e-4)
        of_record = json.loads(records_of(config, 1))["metrics"]["retrained"][split]
        of_files = nas_kd.evaluate(config.run_dir / "export" / "trial-0001", config.run_dir, split=split)
        for found in (of_record, info.metrics[split], of_files.metrics):
            assert {name: found[name] for name in ("accuracy", "cross_entropy")} == expected
        assert (info.measured[split].views, of_files.measured.views) == (6, 6)
        of_teacher = {name: teacher[f"{split}/{name}"] for name in ("accuracy", "cross_entropy")}
        assert of_teacher == pytest.approx(by_hand(teacher_model, split), rel=1e-4)
    assert record["validation"][1]["metrics"] == pytest.approx(record["validation"][0]["metrics"], rel=1e-4)

    code, output = cli("export", config.run_dir, "--max-flops", "1k")
    assert code == 2
    assert "no complete trial costs at most 1,000 FLOPs" in output
    code, output = cli("export", config.run_dir, "--max-latency-ms", "1e-6")  # measured after the trials
    assert code == 2
    assert "no complete trial costs at most 1e-06 ms; the cheapest costs " in output

    code, output = cli("search", file, "--set", "teacher.fit.epochs=2")
    assert code == 2
    assert "was begun with another teacher.fit.epochs (1 then, 2 now)" in output


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trails=3", "trails: unknown key 'trails'; did you mean 'trials'?"),
        ("trials=many", "trials: input should be a valid integer"),
        ("space.ops=[conv2d_k3,dwconv5]", "unknown op 'dwconv5'; choose from"),
        ("space.wide=3", "unknown key 'wide'; did you mean 'widths'?"),
        ("budget.max_flops=1k", "the cheapest student at resolution 16, frames 4 costs"),
        ("budget.max_flops=lots", "FLOPs must be a number such as 12.5M"),
        ("budget.max_flops=1e400", "budget.max_flops: input should be a finite number, but got inf"),
        ("seed=99999999999999999999", "seed: input should be less than 9223372036854775808"),
        ("space.frames=[8]", "a student may see at most data.frames = 4 frames, but 8"),
        ("data={source: folder, root: /no/such/folder}", "/no/such/folder"),
        ("knobs={objective.respons.weight: {type: float, low: 0, high: 1}}", "did you mean 'response'?"),
        ("knobs={objective.response.weight: {type: float, low: -1, high: 1}}", "may not propose -1"),
        ("teacher.weights=/no/such.safetensors", "there is none at /no/such.safetensors"),
        ("teacher.model=nothing:here", "importing 'nothing' failed"),
    ],
)
def test_a_bad_campaign_is_one_sentence_before_anything_trains(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, override: str, sentence: str
) -> None:
    config = tiny()
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    code, output = cli("search", file, "--set", override)
    assert code == 2, output
    assert sentence in output
    complaints = [line for line in output.splitlines() if line.startswith("nas-kd: ")]
    assert len(complaints) == 1
    assert "Traceback" not in output
    assert not (config.run_dir / "teacher").exists()


def test_the_settings_of_each_record_are_kept_without_passwords(tiny: Callable[..., CampaignConfig]) -> None:
    first = tiny(storage="postgresql://me:topsecret@host/db")
    second = tiny(retrain={"epochs": 5})
    first.run_dir.mkdir(parents=True)
    for config in (first, second, tiny(trials=9)):  # the last one trains as the first did
        Campaign(config)._write_config()
    kept = {path.stem: path.read_text() for path in (first.run_dir / "settings").iterdir()}
    assert set(kept) == {first.digest(), second.digest()}
    assert "topsecret" not in kept[first.digest()]
    assert validate(yaml.safe_load(kept[second.digest()]), source="test").retrain.epochs == 5


def test_the_dumped_campaign_reads_back(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    config = tiny(budget={"max_flops": {"low": "150k", "high": "1.5M"}})
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(file) == config


def test_whoever_stops_the_training_of_the_teacher_is_told_how_to_go_on(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(trials=1, teacher={"fit": {"epochs": 2, "batch_size": 16}})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    loss, steps = prepared.teacher_loss, list[int]()

    def stop(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 5:  # in the second epoch
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(prepared, "teacher_loss", stop)
    code, output = cli("search", tmp_path / "tiny.yaml")
    assert code == 130, output
    assert output.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert (config.run_dir / "teacher" / "checkpoint.pt").is_file()
