"""One trial under other settings than the default ones; the promises themselves: test_campaign."""

from __future__ import annotations

import gc
import json
import platform
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_kd.campaign import search
from nas_kd.config import CampaignConfig
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.runs import export
from nas_kd.tasks.item_scores import wilson_interval
from nas_kd.trial import CampaignContext, Learner, SearchTrial, Trial, TrialFunction, build_context, load_context
from nas_kd.trial.memory import OUTSIDE_OF_TORCH, release_memory
from nas_kd.trial.trial import Derived
from nas_kd.trials import Cost, Event, Metric, OutOfGpuMemoryError, TrialContext, TrialRecord

SPACE = """
import torch
from torch import nn
from nas_kd.search_spaces import Edge, ModuleSpace

def make(num_classes, width):
    def build():
        edge = Edge({"wide": nn.Conv3d(3, width, 3, padding=1), "thin": nn.Conv3d(3, width, 1)})
        return nn.Sequential(edge, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, num_classes))
    return ModuleSpace(build, torch.zeros(1, 3, 4, 16, 16), name="mine")
"""


def ready(config: CampaignConfig) -> CampaignContext:
    prepare_teacher(build_context(config, "cpu"), config.run_dir)
    return load_context(config.model_dump_json(), config.run_dir, "cpu")


def trial(context: CampaignContext, folder: Path, **knobs: Any) -> Trial:
    own = TrialContext(number=0, knobs={"max_flops": 250_000, "resolution": 16, **knobs}, seed=5, directory=folder)
    return SearchTrial(context, context.config.with_knobs(own.knobs), own)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_test_clips_are_read_once_when_everything_is_decided(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ready(tiny())
    names = {id(context.splits.val): "val", id(context.splits.test): "test"}
    seen: list[str] = []
    evaluate = Trial._evaluate

    def spy(self: Trial, model: Any, dataset: Any, scored: Any = None) -> Mapping[str, float]:
        seen.append(names[id(dataset)])
        return evaluate(self, model, dataset, scored)

    monkeypatch.setattr(Trial, "_evaluate", spy)
    record = trial(context, tmp_path / "a").run()
    assert seen == ["val", "val", "val", "test"]  # gated, derived, retrained
    assert record.score() == record.metrics["retrained"]["val"]["accuracy"]
    for split in ("val", "test"):
        dataset, found = getattr(context.splits, split), record.evaluated[split]
        assert (found.num_items, found.num_groups, found.chance) == (
            len(dataset),
            None,
            1 / context.splits.info.num_classes,
        )
        interval = wilson_interval(record.metrics["retrained"][split]["accuracy"], len(dataset))
        assert (found.low, found.high) == pytest.approx(interval)  # metrics are in float32


@pytest.mark.parametrize("init", ["inherit", "fresh"])
def test_a_student_inherits_its_weights_or_starts_afresh(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    found: list[dict[str, Tensor]] = []
    learners: list[Learner] = []
    retrain, learner = Trial._retrain, Trial._learner

    def spy(self: Trial, derived: Derived, cost: Cost) -> Any:
        found.append({name: p.detach().clone() for name, p in derived.student.named_parameters()} | derived.adapters)
        trainings = retrain(self, derived, cost)
        found.append({name: p.detach() for name, p in trainings[0].student.named_parameters()})
        return trainings

    def keep(self: Trial, *args: Any, **options: Any) -> Learner:
        learners.append(learner(self, *args, **options))
        return learners[-1]

    monkeypatch.setattr(Trial, "_retrain", spy)
    monkeypatch.setattr(Trial, "_learner", keep)
    config = tiny(objective={"feature": {"weight": 1}}, retrain={"init": init, "lr": 1e-9, "epochs": 1})
    trial(ready(config), tmp_path).run()
    derived, trained = found
    adapters = learners[-1].objective.searched_tensors()
    assert adapters
    trained |= adapters
    assert all(name in derived for name in adapters)
    for name in [name for name, value in trained.items() if value.ndim > 1]:
        whole = derived[name][tuple(slice(size) for size in trained[name].shape)]
        assert torch.allclose(whole, trained[name], atol=1e-6) == (init == "inherit")


def test_maps_of_other_widths_are_distilled_through_adapters(
    tiny: Callable[..., CampaignConfig], tmp_path: Path
) -> None:
    # Teacher: 4 and 8 channels; students: 4 or 6 and 6 or 8, at 12 pixels, so that maps differ in size too.
    objective = {"response": {"weight": 0}, "task": {"weight": 0}, "feature": {"weight": 1}}
    context = ready(tiny(objective={**objective, "cross_resolution": {"weight": 100}}, retrain={"epochs": 6}))
    record = trial(context, tmp_path / "a", resolution=12).run()
    lines = [line for line in log(tmp_path / "a") if line["stage"] == "retrain-0"]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for name in ("feature", "cross_resolution"):
        assert lines[-1][name] < 0.97 * lines[0][name]
    assert all(
        line["total"] == pytest.approx(line["feature"] + 100 * line["cross_resolution"], rel=1e-3) for line in lines
    )
    assert record.knobs["resolution"] == 12
    arch = json.loads((tmp_path / "a" / "arch.json").read_text())
    assert arch["input_shape"] == [3, 4, 12, 12]


def test_dotted_knobs_reach_the_training(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    knobs = {"retrain.epochs": {"type": "int", "low": 1, "high": 4}}
    context = ready(tiny(knobs=knobs))
    record = trial(context, tmp_path / "a", **{"retrain.epochs": 4, "objective.response.weight": 0.0}).run()
    lines = [line for line in log(tmp_path / "a") if line["stage"] == "retrain-0"]
    assert len(lines) == 4
    assert "response" not in lines[0]
    assert "feature" in lines[0]
    assert record.knobs["retrain.epochs"] == 4


def test_a_budget_that_the_space_cannot_use_is_warned_of(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    record = trial(ready(tiny()), tmp_path / "a", max_flops=100_000_000).run()
    assert record.cost is not None
    assert record.cost.flops < 95_000_000
    assert any("the most expensive student of the space within it costs" in warning for warning in record.warnings)


def test_early_stopping_ends_a_bad_trial_after_its_rung(
    tiny: Callable[..., CampaignConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Trial._evaluate

    def worse_and_worse(self: Trial, model: Any, dataset: Any, scored: Any = None) -> dict[str, float]:
        return {**evaluate(self, model, dataset, scored), "accuracy": 1.0 / (1 + self.context.number)}

    monkeypatch.setattr(Trial, "_evaluate", worse_and_worse)
    budgets = ["150k", "160k", "170k", "180k", "190k", "200k"]  # so every later trial is dominated: dearer and worse
    config = tiny(
        early_stopping={"rungs": [1], "reduction_factor": 2},
        trials=6,
        budget={"max_flops": budgets},
        space={"resolution": [16]},
    )
    live: list[int] = []  # tensors when a trial has ended

    def count(event: Event) -> None:
        if event.kind == "ended":
            live.append(sum(isinstance(found, Tensor) for found in gc.get_objects()))

    result = search(config, count)
    states = [record.state for record in result.records]
    assert states[0] == "complete"
    assert set(states) == {"complete", "stopped"}
    assert len(live) == 6
    assert max(live[3:]) < 1.2 * max(live[:3]), "what a trial has made is freed"
    stopped = next(record for record in result.records if record.state == "stopped")
    lines = log(config.run_dir / "trials" / f"{stopped.number:04d}")
    assert [line["epoch"] for line in lines if line["stage"] == "retrain-0"] == [1]


def test_freed_memory_goes_back_to_the_system() -> None:
    status = Path("/proc/self/status")
    if not status.is_file() or platform.libc_ver()[0] != "glibc":
        pytest.skip("needs Linux with glibc")

    def resident() -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    blocks = [bytes([1]) * 64_000 for _ in range(2000)]
    blocks = blocks[::100]  # those in use hold the others' place
    held = resident()
    release_memory()
    assert held - resident() > 100e6
    assert len(blocks) == 20


def test_a_trial_tells_what_it_took_of_a_gpu_and_that_it_ran_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without a GPU: what torch says of one is set here."""
    measuring, free = {"since": 0}, [70_000_000_000]

    def reset(device: str) -> None:
        measuring["since"] += 1

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5_000_000_000)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2_000_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free[0], 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    record = TrialRecord(
        number=0, state="failed", seed=0, config_hash="", knobs={}, metric=Metric(name="accuracy"), diagnostics={"a": 1}
    )
    function = TrialFunction("", tmp_path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrialFunction, "_run", lambda self, context: record)
    alone, shared = (TrialContext(0, {}, 0, tmp_path, 1, share, "cuda:0") for share in (1.0, 0.5))
    assert function(TrialContext(0, {}, 0, tmp_path)) == record  # a CPU is not measured
    assert measuring["since"] == 0
    peak = 5e9 + OUTSIDE_OF_TORCH
    assert function(shared).diagnostics == {"a": 1, "gpu/peak_bytes": peak}
    assert function(alone).diagnostics == {
        "a": 1,
        "gpu/peak_bytes": peak,
        "gpu/usable_bytes": 72e9 + OUTSIDE_OF_TORCH,
    }
    assert measuring["since"] == 2

    raised: RuntimeError = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    def fail(self: TrialFunction, context: TrialContext) -> TrialRecord:
        raise raised

    monkeypatch.setattr(TrialFunction, "_run", fail)
    with pytest.raises(OutOfGpuMemoryError, match=r"had taken 5\.9 GB \(CUDA out of memory\. Tried to allocate 2 G"):
        function(shared)
    raised = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    with pytest.raises(OutOfGpuMemoryError) as found:
        function(shared)
    assert found.value.peak_bytes == peak
    for message in ("shapes do not match", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"):
        raised = RuntimeError(message)
        with pytest.raises(RuntimeError, match=message):
            function(shared)
    free[0] = 2_000_000  # where nothing is free, libraries of CUDA say that of their own allocations, too
    with pytest.raises(OutOfGpuMemoryError):
        function(shared)


def test_a_compiled_student_trains_alike(tiny: Callable[..., CampaignConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured by torch.compile as in a campaign, but run without its code generator, which takes most of a minute."""
    capture, captured = torch.compile, list[nn.Module]()

    def compile_quickly(net: nn.Module, mode: str | None) -> Any:
        captured.append(net)
        return capture(net, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", compile_quickly)
    context = build_context(tiny(data={"num_train": 24}, retrain={"epochs": 2, "batch_size": 8}), "cpu")
    context.freeze_teacher()
    config, trained = context.config, list[dict[str, torch.Tensor]]()
    for compiled in (False, True):
        torch.manual_seed(0)
        layers = [
            nn.Conv3d(3, 4, 3, padding=1),
            nn.BatchNorm3d(4),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
        ]
        student = nn.Sequential(*layers, nn.Linear(4, 4))
        knobs = context.space.knobs_with({})
        with closing(Learner(context, student, config.objective, knobs, cached=False, compiled=compiled)) as learner:
            assert learner.objective.student_taps
            learner.fit(context.splits.retrain, config.retrain, seed=0)
        trained.append(student.state_dict())
    assert captured == [student]
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, msg=name)


def test_an_own_space_runs_a_campaign_and_is_exported(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gated_space.py").write_text(SPACE)  # a name that no example has: modules stay imported
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny().model_dump(mode="json")
    space = {"name": "gated_space:make", "width": 6}
    config = CampaignConfig.model_validate({**config, "space": space, "budget": {"max_flops": [600_000]}, "trials": 1})
    result = search(config)
    (record,) = result.records
    assert record.state == "complete", record.error
    assert isinstance(record, TrialRecord)
    assert record.cost is not None
    assert record.cost.flops <= 600_000
    folder, exported = export(config.run_dir, formats=["safetensors"])
    assert exported.flops == record.cost.flops
    assert (folder / "student.safetensors").is_file()
