"""Intervals over the items of a split: Wilson's, with groups, and the bootstrap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from nas_kd.data import DataInfo
from nas_kd.preparation.output_checks import describe_certainty
from nas_kd.tasks import Task, make_task
from nas_kd.tasks.item_scores import ItemScores, interval_over_items, mean_of_items, wilson_interval

INFO = DataInfo(
    num_classes=3,
    class_names=("a", "b", "c"),
    frames=2,
    height=8,
    width=8,
    name="made",
    mask_names=("ground", "thing"),
    box_names=("thing", "other"),
)


def scores_of(right: list[bool]) -> ItemScores:
    return ItemScores(len(right), mean_of_items(right), is_share=True)


@pytest.mark.parametrize(("right", "number"), [(0, 5), (7, 10), (60, 60)])
def test_a_share_of_independent_items_has_wilsons_interval(right: int, number: int) -> None:
    expected = binomtest(right, number).proportion_ci(method="wilson")
    low, high = wilson_interval(right / number, number)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    found = interval_over_items([scores_of([i < right for i in range(number)])])
    assert found == pytest.approx((expected.low, expected.high))


def test_items_of_one_recording_count_as_few() -> None:
    right = [i < 30 for i in range(60)]
    whole_groups = [str(i // 10) for i in range(60)]  # three recordings all right, three all wrong
    mixed = [str(i % 6) for i in range(60)]  # half of each recording right
    low, high = interval_over_items([scores_of(right)], whole_groups) or (0.0, 0.0)
    assert high - low > 0.7
    independent = interval_over_items([scores_of(right)]) or (0.0, 0.0)
    among = interval_over_items([scores_of(right)], mixed) or (0.0, 0.0)
    assert independent[1] - independent[0] <= among[1] - among[0] < high - low
    assert interval_over_items([scores_of(right)], ["one"] * 60) is None, "one recording says nothing of others"
    all_right = interval_over_items([scores_of([True] * 60)], whole_groups) or (0.0, 0.0)
    assert all_right[0] < wilson_interval(1, 6)[0], "six recordings, and not sixty items, were right"


def test_a_mean_of_items_has_the_bootstraps_interval() -> None:
    values = np.random.default_rng(0).normal(2, 1, 400)
    low, high = interval_over_items([ItemScores(400, mean_of_items(values.tolist()))]) or (0.0, 0.0)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    both = [ItemScores(400, mean_of_items((values + shift).tolist())) for shift in (0, 2)]
    assert interval_over_items(both) == pytest.approx((low + 1, high + 1))


def test_the_bootstrap_over_few_recordings_covers_what_it_should() -> None:
    # Recordings of 3 frames each vary, frames of one do not: 4 independent values around 0.
    rng, groups, covered = np.random.default_rng(0), np.repeat(list("abcd"), 3).tolist(), 0
    for repeat in range(400):
        scores = ItemScores(12, mean_of_items(np.repeat(rng.normal(size=4), 3).tolist()))
        low, high = interval_over_items([scores], groups, seed=repeat) or (0.0, 0.0)
        covered += low <= 0 <= high
    assert 0.92 < covered / 400 < 0.98, "the percentiles alone cover 0.77"


def test_the_interval_of_a_metric_stays_in_its_span() -> None:
    scores = ItemScores(2, mean_of_items([0.2, 1.0]))
    low, high = interval_over_items([scores]) or (0.0, 0.0)
    # Draws have 0.2, 0.6 and 1, t(1) is 12.706: 0.6 ± 0.4 · √2 · 12.706 / 1.960.
    assert (low, high) == pytest.approx((0.6 - 3.667, 0.6 + 3.667), abs=1e-3)
    assert interval_over_items([replace(scores, span=(0, 1))]) == (0, 1)


def _filled(name: str, info: DataInfo, batches: list[tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> Task:
    task = make_task(name, info, {})
    for outputs, batch in batches:
        task.update(outputs, batch)
    return task


def _batches(name: str, generator: torch.Generator) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    shapes: dict[str, tuple[int, ...]] = {
        "classification": (3, 3),
        "multilabel": (3, 3),
        "segmentation": (3, 2, 2, 4, 4),
        "saliency": (3, 1, 4, 4),
        "detection": (3, 2, 6, 4, 4),
    }
    made = []
    for _ in range(3):
        boxes = torch.tensor([[1.0, 1, 5, 5, 0], [2, 3, 7, 7, 1]]).expand(3, 2, 2, 5)
        batch = {
            "label": torch.randint(3, (3,), generator=generator),
            "labels": torch.randint(2, (3, 3), generator=generator).to(torch.uint8),
            "mask": torch.randint(2, (3, 2, 8, 8), generator=generator).to(torch.uint8),
            "boxes": boxes + torch.rand(boxes.shape, generator=generator).mul(torch.tensor([1.0, 1, 1, 1, 0])),
        }
        made.append((torch.randn(shapes[name], generator=generator), batch))
    return made


@pytest.mark.parametrize("name", ["classification", "multilabel", "segmentation", "saliency", "detection"])
def test_items_that_count_several_times_are_as_items_added_several_times(name: str) -> None:
    info = replace(INFO, multi_label=name == "multilabel")
    batches = _batches(name, torch.Generator().manual_seed(0))
    counts = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1], [2, 0, 1, 0, 3, 1, 0, 1, 1]], dtype=np.float64)
    scores = _filled(name, info, batches).item_scores()
    assert scores is not None
    assert scores.num_items == 9
    for row, value in zip(counts, scores.resample(counts), strict=True):
        repeated: list[Any] = []
        for number, (outputs, batch) in enumerate(batches):
            times = torch.from_numpy(row[3 * number : 3 * number + 3]).long()
            if int(times.sum()):
                parts = {key: tensor.repeat_interleave(times, 0) for key, tensor in batch.items()}
                repeated.append((outputs.repeat_interleave(times, 0), parts))
        task = _filled(name, info, repeated)
        assert value == pytest.approx(task.compute()[task.metric], abs=1e-6)


def test_a_small_validation_set_is_told() -> None:
    small = {"num_items": 60, "num_groups": None, "low": 0.84, "high": 0.96, "majority": 0.5, "chance": 0.25}
    assert describe_certainty(small, 0.9, is_share=True) == (
        "validation: 95 % interval of the teacher's metric 0.840 to 0.960 over 60 items; always giving the most "
        "frequent class has 0.500. Students that differ by less than about 0.06 cannot be told apart by it; give more "
        "validation items"
    )
    large = {**small, "num_items": 2000, "num_groups": 40, "low": 0.88, "high": 0.92, "majority": None}
    assert describe_certainty(large, 0.9, is_share=True) == (
        "validation: 95 % interval of the teacher's metric 0.880 to 0.920 over 2000 items of 40 groups"
    )
    without = "validation: 60 items, without an interval of the metric: "
    assert describe_certainty({"num_items": 60}, 0.9, is_share=True).startswith(f"{without}the task has no item_scores")
    of_one = describe_certainty({"num_items": 60, "num_groups": 1}, 0.9, is_share=True)
    assert of_one == f"{without}all are of one group; give items of other groups"


def test_levels_of_nets_that_say_nothing() -> None:
    batches = _batches("classification", torch.Generator().manual_seed(0))
    for _, batch in batches:
        batch["label"] = torch.tensor([0, 0, 2])
    scores = _filled("classification", INFO, batches).item_scores()
    assert scores is not None
    assert (scores.majority, scores.chance) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    pixels = _batches("segmentation", torch.Generator().manual_seed(0))
    constant = torch.zeros(3, 2, 2, 4, 4)
    constant[:, :, 1] = 1
    for number, (_, batch) in enumerate(pixels):
        batch["mask"] = (torch.arange(64).view(8, 8) >= 16).to(torch.uint8).expand(3, 2, 8, 8).contiguous()
        pixels[number] = constant, batch
    task = _filled("segmentation", INFO, pixels)
    scores = task.item_scores()
    assert scores is not None
    assert scores.majority == pytest.approx(task.compute()["miou"]) == pytest.approx(0.375)
