"""Frame-wise campaigns with delta students: pairs of frames, the delta objective, whole trials of both tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import nas_kd
from nas_kd.analysis import ParetoFront
from nas_kd.campaign import search
from nas_kd.config import CampaignConfig, ConfigError, validate
from nas_kd.data import GeneratedConfig, load_generated
from nas_kd.data.frame_sampling import random_pairs, take_frames
from nas_kd.inputs.frames import on_frames
from nas_kd.objectives import ObjectiveConfig
from nas_kd.objectives.delta import DeltaLoss
from nas_kd.preparation.offset_metrics import OffsetMetrics
from nas_kd.preparation.teacher import prepare_latency, prepare_teacher
from nas_kd.runs import export, report
from nas_kd.search_spaces import CostTable, DeltaNet, Supernet
from nas_kd.search_spaces.knapsack import cost_range
from nas_kd.taps import Taps
from nas_kd.training.local_search import start_locally
from nas_kd.training.settings import LocalConfig
from nas_kd.trial import CampaignContext, Learner, build_context
from nas_kd.trials import Ledger
from tests.data.small_sets import FRAME_HEADER, write_table

STREAMS: dict[str, Any] = {
    "task": "segmentation",
    "data": {"num_train": 32, "num_val": 8, "num_test": 8, "frames": 6, "size": 24},
    "teacher": {"fit": {"epochs": 1}, "settings": {"widths": [8, 12], "depths": [1, 1], "head_width": 8}},
    "space": {"keyframe_interval": [3], "candidates": ["zero", "split2", "pointwise2", "pair4", "full"]},
    "budget": {"max_flops": ["105k"]},
    "search": {"epochs": 2, "local": {"steps": 8, "probes": 2}},
    "retrain": {"epochs": 2},
    "trials": 1,
    "rehearse": False,
    "resources": {"executor": "inline"},
}


@pytest.fixture
def streams(tmp_path: Path) -> Callable[..., CampaignConfig]:
    """A campaign of seconds; keyword arguments replace or extend whole sections."""

    def make(**changes: Any) -> CampaignConfig:
        data: dict[str, Any] = {**STREAMS, "name": "streams", "runs": str(tmp_path / "runs")}
        for key, value in changes.items():
            data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
        return validate(data, source="test")

    return make


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> CampaignContext:
    """Of a run whose teacher is trained."""
    folder = tmp_path_factory.mktemp("trained")
    context = build_context(validate({**STREAMS, "name": "streams", "runs": str(folder)}, source="test"), "cpu")
    prepare_teacher(context, folder)
    return context


def numbered(frames: int) -> dict[str, Tensor]:
    """Two clips whose pixels hold 10 · clip + frame, in clip and mask."""
    value = torch.arange(2)[:, None] * 10 + torch.arange(frames)
    mask = value[:, :, None, None].expand(2, frames, 2, 2).to(torch.uint8)
    return {"clip": mask[:, None].expand(2, 3, frames, 2, 2), "mask": mask, "label": torch.tensor([0, 1])}


def test_frames_of_clip_and_targets_are_taken_together() -> None:
    taken = take_frames(numbered(5), torch.tensor([[3, 0], [1, 4]]))
    assert taken["clip"].shape == (2, 3, 2, 2, 2)
    assert taken["clip"][:, 0, :, 0, 0].tolist() == [[3, 0], [11, 14]]
    assert taken["mask"][:, :, 0, 0].tolist() == [[3, 0], [11, 14]]


def test_pairs_have_all_distances_below_the_interval_and_start_anywhere() -> None:
    torch.manual_seed(0)
    seen = set()
    for _ in range(400):
        first, last = random_pairs(numbered(6), 4)["mask"][0, :, 0, 0].tolist()
        seen.add((first, last - first))
    assert seen == {(start, d) for d in (1, 2, 3) for start in range(6 - d)}


def test_the_delta_loss_is_one_for_no_change_and_zero_for_the_teacher() -> None:
    torch.manual_seed(0)
    key = [torch.randn(4, 3, 5, 5), 100 * torch.randn(4, 2, 5, 5)]
    frame = [k + d for k, d in zip(key, [torch.randn(4, 3, 5, 5), 7 * torch.randn(4, 2, 5, 5)], strict=True)]
    changes = [float((f - k).square().mean()) for k, f in zip(key, frame, strict=True)]
    half = [(k + f) / 2 for k, f in zip(key, frame, strict=True)]
    by_layer, overall, none = DeltaLoss(2, "layer"), DeltaLoss(2, "overall"), DeltaLoss(2, "none")
    with pytest.raises(ValueError, match="calibrated"):
        by_layer(key, frame)
    for loss in (by_layer, overall):
        loss.calibrate(key, frame)
        assert float(loss(key, frame)) == pytest.approx(1.0)
        assert float(loss(frame, frame)) == 0.0
    assert float(by_layer(half, frame)) == pytest.approx(0.25)
    only_first = [half[0], frame[1]]
    assert float(by_layer(only_first, frame)) == pytest.approx(0.125)
    assert float(overall(only_first, frame)) == pytest.approx(0.25 * changes[0] / sum(changes))
    assert float(none(half, frame)) == pytest.approx(0.25 * sum(changes) / 2)
    restored = DeltaLoss(2, "layer")
    restored.load_state_dict(by_layer.state_dict())
    assert float(restored(half, frame)) == pytest.approx(0.25)


def objective(**delta: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"feature": {"weight": 0}, "delta": {"weight": 1, **delta}})


def student_of(context: CampaignContext, candidate: str) -> DeltaNet:
    choices = {n: candidate if candidate in v else "full" for n, v in context.space.variables.items()}
    student = context.space.student(context.space.arch({"keyframe_interval": 3, **choices}))
    assert isinstance(student, DeltaNet)
    return student


def test_a_copy_of_the_teacher_has_no_delta_loss_and_the_term_ends_with_its_share(context: CampaignContext) -> None:
    batch = next(context.loader(context.splits.weights, context.config.search, seed=0, train=True).epoch(0))
    with closing(
        Learner(context, student_of(context, "full"), objective(), {"keyframe_interval": 3}, cached=False)
    ) as it:
        terms = it.loss(batch)
        assert set(terms) == {"task", "delta"}
        assert float(terms["delta"].detach()) < 1e-9
        it.objective.advance(0.34)
        assert set(it.loss(batch)) == {"task"}
        assert not it.objective.uses_teacher


def test_response_and_feature_compose_with_delta_on_maps(context: CampaignContext) -> None:
    config = ObjectiveConfig.model_validate(
        {"response": {"weight": 1}, "feature": {"weight": 1}, "cross_resolution": {"weight": 1}, "delta": {"weight": 1}}
    )
    batch = next(context.loader(context.splits.weights, context.config.search, seed=0, train=True).epoch(0))
    with closing(Learner(context, student_of(context, "full"), config, {"keyframe_interval": 3}, cached=False)) as it:
        terms = it.loss(batch)
    assert set(terms) == {"task", "response", "feature", "cross_resolution", "delta"}
    for name in ("response", "feature", "cross_resolution", "delta"):
        assert abs(float(terms[name].detach())) < 1e-5


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_the_teachers_layers_train_only_when_asked_and_the_teacher_itself_never(
    context: CampaignContext, scale: float
) -> None:
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in context.teacher_model.state_dict().items()}
    student = student_of(context, "split2")
    started = [p.detach().clone() for p in student.teacher_parameters()]
    knobs = {"keyframe_interval": 3}
    with closing(Learner(context, student, objective(teacher_lr_scale=scale), knobs, cached=False)) as learner:
        learner.fit(context.splits.retrain, context.config.retrain, seed=0)
    moved = [not torch.equal(p, q) for p, q in zip(student.teacher_parameters(), started, strict=True)]
    assert any(moved) == (scale > 0)
    assert all(torch.equal(value, before[name]) for name, value in context.teacher_model.state_dict().items())


def test_the_folded_teacher_gives_what_the_teacher_gave(streams: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    context = build_context(streams(), "cpu")
    original = context.teacher_model
    prepare_teacher(context, tmp_path)
    assert context.teacher_model is not original
    frames = torch.randn(2, 3, 4, 24, 24)
    with torch.no_grad():
        ours, theirs = (on_frames(net, chunk=8)(frames) for net in (context.teacher_model, original))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_teacher_is_measured_on_the_frames_of_each_offset(context: CampaignContext) -> None:
    loader = context.loader(context.splits.val, context.config.search, seed=0, train=False)
    metrics, outputs = OffsetMetrics(context, [3]), []
    for batch in loader.epoch(0):
        outputs.append(torch.randn(len(batch["clip"]), 6, context.task.num_outputs, 6, 6))
        metrics.add(outputs[-1], batch)
    found = metrics.compute("val")["3"]
    for offset in range(3):  # frames 0 and 3, 1 and 4, 2 and 5
        frames = torch.tensor([offset, offset + 3])
        for maps, batch in zip(outputs, loader.epoch(0), strict=True):
            context.task.update(maps[:, frames], take_frames(batch, frames.expand(len(maps), 2)))
        assert found[f"val/miou@{offset}"] == pytest.approx(context.task.compute()["miou"])


UNKNOWN = 200
"""Value of pixels of label images that nobody knows."""


@pytest.fixture(scope="module")
def labelled_frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """The generated clips as files with a label image each, and the names of the values of those."""
    root, rows = tmp_path_factory.mktemp("frames"), []
    splits = load_generated(GeneratedConfig.model_validate({**STREAMS["data"], "num_train": 16, "num_val": 4}), seed=0)
    for split, dataset in (("train", splits.retrain), ("val", splits.val), ("test", splits.test)):
        for index in range(len(dataset)):
            item = dataset[index]
            item["mask"][:, :3] = UNKNOWN
            for t, (frame, mask) in enumerate(zip(item["clip"].unbind(1), item["mask"], strict=True)):
                names = [f"{split}{index}_{t}{kind}.png" for kind in ("", "_labels")]
                for name, pixels in zip(names, (frame.permute(1, 2, 0), mask), strict=True):
                    Image.fromarray(pixels.numpy()).save(root / name)
                rows.append((*names, split, f"{split}{index}", str(t)))
    write_table(root, rows, FRAME_HEADER)
    return root, splits.info.mask_names


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_campaign_of_streams(
    streams: Callable[..., CampaignConfig],
    labelled_frames: tuple[Path, tuple[str, ...]],
    task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, names = labelled_frames
    data = {"source": "sequences", "root": str(root), "frames": 6, "size": 24, "classes": names, "ignore": [UNKNOWN]}
    data |= {"boxes": task == "detection", "min_box_pixels": 9, "cache_dir": str(tmp_path / "cache")}
    config = validate(streams(task=task).model_dump(mode="json") | {"data": data}, source="test")
    result = search(config)
    (record,) = result.records
    assert record.state == "complete", record.error
    cost, metric = record.cost, record.metric.name
    assert cost is not None
    assert cost.keyframe_interval == 3
    assert cost.keyframe_flops is not None
    assert cost.delta_flops is not None
    assert cost.flops == -(-(cost.keyframe_flops + 2 * cost.delta_flops) // 3) <= 105_000
    assert cost.flops >= 0.95 * 105_000
    assert cost.state_bytes
    known = json.loads((result.run_dir / "teacher" / "teacher.json").read_text())
    for split in ("val", "test"):
        values = record.metrics["retrained"][split]
        offsets = [values[f"{metric}@{k}"] for k in range(3)]
        assert values[metric] == pytest.approx(sum(offsets) / 3)
        # The teacher on the same frames: at offset 0 the student is the teacher.
        levels = [known["by_interval"]["3"][f"{split}/{metric}@{k}"] for k in range(3)]
        assert known["by_interval"]["3"][f"{split}/{metric}"] == pytest.approx(sum(levels) / 3)
        assert levels[0] == pytest.approx(offsets[0], abs=1e-3)
    page = report(result.run_dir).report.read_text()
    assert "amortised" in page
    graphs = task == "detection"  # those of segmentation: test_export_stream.py
    folder, exported = export(result.run_dir, formats=("safetensors", "pt2") if graphs else ("safetensors",))
    assert exported.flops == cost.flops
    assert {path.name for path in folder.glob("*.pt2")} == ({"key.pt2", "delta.pt2"} if graphs else set())

    monkeypatch.setenv("HOME", str(tmp_path))  # files of a folder are decoded into the cache there
    measured = record.metrics["retrained"]["test"]
    for backend in ("safetensors", "pt2") if graphs else ("safetensors",):
        found = nas_kd.evaluate(folder, root, split="test", backend=backend)
        assert found.metrics == pytest.approx(measured, abs=1e-6)
        assert found.measured.num_items == 8
        assert found.measured.num_groups == 8


@pytest.mark.parametrize(
    ("campaign", "sentence"),
    [
        ({"space": {"name": "delta_blocks"}}, "'delta_blocks' needs a task that looks at single frames: segmentation"),
        (
            {"task": "segmentation", "space": {"name": "clip_cell"}},
            "'clip_cell' makes students of whole clips, but task 'segmentation'",
        ),
        ({"task": "segmentation", "task_options": {"ohme": True}}, "task_options: ohme: unknown key"),
        (
            {"task": "segmentation", "objective": {"task": {"weight": 0}}},
            "active_share must be 1 where delta is the only term",
        ),
        ({"task": "segmentation", "space": {"candidates": ["spilt4", "full"]}}, "unknown candidate 'spilt4'"),
        ({"objective": {"delta": {"weight": 1}}, "task": "segmentation", "space": {"candidates": ["zero"]}}, "'full'"),
    ],
)
def test_what_does_not_fit_is_refused(campaign: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(campaign, source="test")
    assert sentence in str(caught.value)


def test_an_interval_longer_than_the_clips_is_refused(streams: Callable[..., CampaignConfig]) -> None:
    with pytest.raises(ConfigError, match=r"space.keyframe_interval: .* at most data.frames = 6 frames, but 8"):
        search(streams(space={"keyframe_interval": [8]}))


@pytest.mark.parametrize("shared", [False, True])
def test_a_budget_of_latency_is_met_by_the_measured_table(streams: Callable[..., CampaignConfig], shared: bool) -> None:
    free = streams(budget={"max_latency_ms": [1000.0], "max_flops": []})
    context = build_context(free, "cpu")
    prepare_latency(context, free.run_dir, 1)
    least, most = cost_range(context.latencies["keyframe_interval-3"])
    goal_ms = (least + most) / 2e6
    most_flops = sum(cost_range(context.space.cost_table({"keyframe_interval": 3}))) // 2
    budget = {"max_latency_ms": {"low": goal_ms, "high": goal_ms * 1.001}, "max_flops": most_flops}
    config = streams(budget=budget, search={"shared": shared})
    (record,) = search(config).records
    assert record.state == "complete", record.error
    assert record.arch is not None
    goal_ms = config.budget.highest if shared else float(record.knobs["max_latency_ms"])
    assert record.cost is not None
    assert record.cost.flops <= most_flops
    measured = json.loads((config.run_dir / "latency" / "keyframe_interval-3.json").read_text())
    table = CostTable.from_json(measured["table"])
    assert table.cost(record.arch["choices"]) <= goal_ms * 1e6
    assert shared or record.diagnostics["budget_share"] <= 1
    assert record.cost is not None
    assert record.cost.predicted_latency_ms == table.cost(record.arch["choices"]) / 1e6 <= goal_ms
    assert [each.name for each in Ledger.load(config.run_dir).ranking.objectives] == ["miou", "predicted_latency_ms"]
    front = ParetoFront.from_records([record])
    assert front.points.tolist() == [[record.cost.predicted_latency_ms, record.score("val", "retrained")]]
    if shared:  # the report of the other record is made of the same parts
        page = report(config.run_dir).report.read_text().replace("\u00a0", " ")
        assert f"at {record.cost.predicted_latency_ms:.3g} ms" in page
        assert "predicted latency per frame, amortised (ms)" in page


def test_budgets_of_latency_that_cannot_work_are_refused(streams: Callable[..., CampaignConfig]) -> None:
    with pytest.raises(ConfigError, match="the other one a limit, which is one number, but both have several values"):
        streams(budget={"max_latency_ms": [1.0, 2.0], "max_flops": ["1M", "2M"]})
    with pytest.raises(ConfigError, match="only delta_blocks has a latency table, but the space is 'clip_cell'"):
        validate({"budget": {"max_latency_ms": [1.0]}}, source="test")
    with pytest.raises(ConfigError, match=r"budget.max_latency_ms: the lowest budget is 1e-06 ms, but the cheapest"):
        search(streams(budget={"max_latency_ms": [1e-6], "max_flops": []}))


def test_a_trial_takes_the_next_interval_that_meets_its_budget(streams: Callable[..., CampaignConfig]) -> None:
    config = streams(space={"keyframe_interval": [2, 6]}, budget={"max_flops": ["70k"]}, seed=1)
    (record,) = search(config).records
    assert record.state == "complete", record.error
    assert record.cost is not None
    assert record.cost.keyframe_interval == 6
    assert record.cost.flops <= 70_000
    taken = [w for w in record.warnings if w.startswith("no student with key frames every 2 frames")]
    assert len(taken) == (record.knobs["keyframe_interval"] == 2)


def test_the_delta_loss_to_the_previous_frame_forgives_an_offset_that_stays() -> None:
    torch.manual_seed(0)
    teacher = [torch.randn(6, 3, 4, 4)]  # three frames t − 1, then three frames t
    loss = DeltaLoss(1, "layer", "previous")
    loss.calibrate(teacher, teacher)
    before, now = teacher[0].chunk(2)
    assert float(loss.scales) == pytest.approx(float((now - before).square().mean()))
    assert float(loss([teacher[0] + 5], teacher)) == pytest.approx(0.0, abs=1e-9)
    assert float(loss([torch.cat([before, before])], teacher)) == pytest.approx(1.0)


@pytest.mark.parametrize("interval", [2, 3])
def test_training_to_the_previous_frame_gives_a_copy_no_loss(context: CampaignContext, interval: int) -> None:
    batch = next(context.loader(context.splits.weights, context.config.search, seed=0, train=True).epoch(0))
    config = ObjectiveConfig.model_validate(
        {"response": {"weight": 1}, "feature": {"weight": 1}, "delta": {"weight": 1, "reference": "previous"}}
    )
    student = student_of(context, "full")
    student.keyframe_interval = interval
    with closing(Learner(context, student, config, {"keyframe_interval": interval}, cached=False)) as it:
        terms = it.loss(batch)
    assert all(abs(float(terms[name].detach())) < 1e-5 for name in ("response", "feature", "delta"))


def test_previous_frames_stand_between_key_and_later_frame() -> None:
    torch.manual_seed(0)
    taken = random_pairs(numbered(6), 4, previous=True)["mask"][:, :, 0, 0].long()
    assert taken.shape == (2, 3)
    assert torch.equal(taken[:, 2] - taken[:, 1], torch.tensor([1, 1]))
    assert bool((taken[:, 1] >= taken[:, 0]).all())


def test_a_latency_table_is_measured_again_for_other_candidates(streams: Callable[..., CampaignConfig]) -> None:
    first = streams(budget={"max_latency_ms": [1000.0], "max_flops": []})
    second = streams(budget={"max_latency_ms": [1000.0], "max_flops": []}, space={"candidates": ["split2", "full"]})
    path = first.run_dir / "latency" / "keyframe_interval-3.json"
    contents = []
    for config in (first, first, second):
        context = build_context(config, "cpu")
        prepare_latency(context, config.run_dir, 1)
        assert dict(context.latencies["keyframe_interval-3"].variables) == dict(context.space.variables)
        contents.append(path.read_text())
    assert contents[0] == contents[1] != contents[2]


def test_maps_that_a_net_overwrites_are_tapped_as_they_were() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x)
            out += x
            return out

    net, x = InPlace(), torch.randn(2, 3, 4, 4)
    with Taps(net, ["conv"]) as taps:
        for _ in range(2):
            output = taps(x)
            assert torch.allclose(output.features["conv"], net.conv(x))
            assert torch.allclose(output.logits, net.conv(x) + x)
        output.features["conv"].sum().backward()
    assert net.conv.weight.grad is not None


def test_scales_of_clips_that_hardly_move_stay_finite() -> None:
    loss = DeltaLoss(1, "layer")
    still = [torch.ones(2, 3, 4, 4)]
    loss.calibrate(still, [still[0] + 1e-6])
    assert float(loss.scales) == pytest.approx(1e-4, rel=1e-3)


def test_knobs_that_may_turn_everything_off_are_refused() -> None:
    zero_or_one = {"type": "choice", "values": [0.0, 1.0]}
    knobs = {"objective.task.weight": zero_or_one, "objective.delta.weight": zero_or_one}
    with pytest.raises(ConfigError, match=r"knobs may not propose .* all are 0"):
        validate({"task": "segmentation", "knobs": knobs, "objective": {"delta": {"active_share": 1}}}, source="test")


@pytest.mark.parametrize("steps", [0, 25])
def test_a_local_start_orders_gates_by_what_candidates_miss(context: CampaignContext, steps: int) -> None:
    config = context.config.search
    supernet = Supernet(context.space, seed=0)
    frozen = {n: p.clone() for n, p in supernet.named_parameters() if not p.requires_grad}
    weights = context.loader(context.splits.weights, config, seed=0, train=True)
    gates = context.loader(context.splits.gates, config, seed=1, train=True)
    local = LocalConfig(steps=steps, probes=4, prior=50.0)
    missed = start_locally(context.input_type.read, supernet, weights, gates, config, local, seed=0)
    assert missed.keys() == context.space.variables.keys()
    for name, shares in missed.items():
        assert shares["full"] < (1e-6 if steps == 0 else 0.1)
        assert shares.get("zero", 1.0) == pytest.approx(1.0)
        expected = torch.tensor([-50.0 * min(value, 1.0) for value in shares.values()])
        assert torch.allclose(supernet.gates[name].gate_logits, expected)
    after = dict(supernet.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    pairs = [shares["pair4"] for shares in missed.values() if "pair4" in shares]
    # A non-linear student starts with no change at all; only training makes it miss less than everything.
    if steps == 0:
        assert pairs == pytest.approx([1.0] * len(pairs))
    else:
        assert max(pairs) < 1 - 1e-4


def test_a_local_start_depends_on_its_seed_alone(context: CampaignContext) -> None:
    config = context.config.search
    results = []
    for noise in (1, 2):
        supernet = Supernet(context.space, seed=0)
        torch.manual_seed(noise)
        weights = context.loader(context.splits.weights, config, seed=0, train=True)
        results.append(
            start_locally(
                context.input_type.read, supernet, weights, weights, config, LocalConfig(steps=2, probes=2), seed=3
            )
        )
    linear = [{n: s["split2"] for n, s in result.items() if "split2" in s} for result in results]
    assert linear[0] == linear[1]
