from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nas_kd.data import DataError, DataInfo, MemoryDataset, make_splits
from nas_kd.data.sample import IGNORE
from nas_kd.tasks import Segmentation, SegmentationConfig, segmentation
from nas_kd.tasks.segmentation import class_iou, hard_pixels, label_stability, pixel_losses, temporal_consistency


def info(classes: int = 3, frames: int = 4) -> DataInfo:
    names = tuple(f"c{i}" for i in range(classes))
    return DataInfo(2, ("a", "b"), frames, 6, 8, "toy", mask_names=names)


def one_hot(predicted: Tensor, classes: int = 3) -> Tensor:
    """Maps (N, T, C, H, W) whose largest channel is the prediction (N, T, H, W)."""
    return 20.0 * F.one_hot(predicted.long(), classes).permute(0, 1, 4, 2, 3).float()


def random_masks(seed: int, shape: tuple[int, ...] = (2, 4, 6, 8), classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, classes, shape, generator=generator).to(torch.uint8)
    still = torch.rand(shape, generator=generator) < 0.8  # or hardly a pixel would keep its class
    for t in range(1, shape[1]):
        mask[:, t] = torch.where(still[:, t], mask[:, t - 1], mask[:, t])
    mask[torch.rand(shape, generator=generator) < 0.1] = IGNORE
    wrong = torch.rand(shape, generator=generator) < 0.3
    guess = torch.randint(0, classes, shape, generator=generator).to(torch.uint8)
    return torch.where(wrong | (mask == IGNORE), guess, mask), mask


def slow_miou(predicted: Tensor, mask: Tensor, classes: int) -> tuple[float, dict[int, float]]:
    pairs = [(p, m) for p, m in zip(predicted.flatten().tolist(), mask.flatten().tolist(), strict=True) if m != IGNORE]
    ious = {}
    for c in range(classes):
        union = sum(p == c or m == c for p, m in pairs)
        if union:
            ious[c] = sum(p == c and m == c for p, m in pairs) / union
    return sum(ious.values()) / len(ious), ious


def slow_consistency(predicted: Tensor, mask: Tensor, window: int, *, right: bool) -> list[float]:
    shares = []
    for p, m in zip(predicted.tolist(), mask.tolist(), strict=True):
        for start in range(len(m) - window + 1):
            frames = range(start, start + window)
            good = total = 0
            for y in range(len(m[0])):
                for x in range(len(m[0][0])):
                    truth, guess = {m[t][y][x] for t in frames}, {p[t][y][x] for t in frames}
                    if len(truth) == 1 and truth != {IGNORE}:
                        total += 1
                        good += guess == truth if right else len(guess) == 1
            if total:
                shares.append(good / total)
    return shares


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_their_slow_twins(seed: int) -> None:
    predicted, mask = random_masks(seed)
    task = Segmentation(info())
    for n in range(2):  # two batches count as one split
        task.update(one_hot(predicted[n : n + 1]), {"mask": mask[n : n + 1]})
    values = task.compute()
    miou, ious = slow_miou(predicted, mask, 3)
    assert values["miou"] == pytest.approx(miou)
    assert {k: v for k, v in values.items() if k.startswith("iou_")} == pytest.approx(
        {f"iou_c{c}": v for c, v in ious.items()}
    )
    known = mask != IGNORE
    assert values["pixel_accuracy"] == pytest.approx(float((predicted == mask)[known].double().mean()))
    for name, window, right in (("temporal_consistency", 4, True), ("label_stability", 2, False)):
        shares = slow_consistency(predicted, mask, window, right=right)
        assert values[name] == pytest.approx(sum(shares) / len(shares)), name
    with pytest.raises(ValueError, match="at least one labelled pixel"):
        task.compute()  # the last call cleared them


@pytest.mark.parametrize("window", [2, 3, 4])
def test_windows_slide_over_the_clip(window: int) -> None:
    predicted, mask = random_masks(7)
    ours = temporal_consistency(predicted, mask, window)
    assert len(ours) == 2 * (4 - window + 1)
    # The twin goes clip by clip, we go window by window.
    assert sorted(ours) == pytest.approx(sorted(slow_consistency(predicted, mask, window, right=True)))


def test_flicker_and_steady_mistakes_are_told_apart() -> None:
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    steady = torch.ones_like(mask)
    assert label_stability(steady, mask) == [1.0]  # wrong, but steady
    assert temporal_consistency(steady, mask, 2) == [0.0]
    flicker = mask.clone()
    flicker[0, 1, 0, 0] = 1
    assert label_stability(flicker, mask) == temporal_consistency(flicker, mask, 2) == [0.75]
    mask[0, 1] = IGNORE
    assert label_stability(steady, mask) == temporal_consistency(steady, mask, 2) == []


def test_one_frame_has_no_consistency() -> None:
    mask = torch.zeros(2, 1, 6, 8, dtype=torch.uint8)
    task = Segmentation(info(frames=1))
    task.update(one_hot(mask), {"mask": mask})
    values = task.compute()
    assert set(values) == {"miou", "pixel_accuracy", "cross_entropy", "iou_c0"}
    assert values["miou"] == values["pixel_accuracy"] == values["iou_c0"] == 1.0  # absent classes are no part


def test_iou_in_closed_form() -> None:
    confusion = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    iou = class_iou(confusion)
    assert iou[:2].tolist() == pytest.approx([6 / 9, 3 / 6])
    assert math.isnan(iou[2])
    assert class_iou(torch.tensor([[0, 4], [0, 0]])).tolist() == [0.0, 0.0]  # missed, and only imagined


def test_offsets_have_a_metric_each_and_their_mean() -> None:
    predicted, mask = random_masks(3)
    task = Segmentation(info())
    task.update(one_hot(predicted), {"mask": mask}, offsets=[0, 1, 0, 1])
    values = task.compute()
    twins = [slow_miou(predicted[:, k::2], mask[:, k::2], 3)[0] for k in (0, 1)]
    assert [values["miou@0"], values["miou@1"]] == pytest.approx(twins)
    assert values["miou"] == pytest.approx(sum(twins) / 2)
    assert values["iou_c1"] == pytest.approx(slow_miou(predicted, mask, 3)[1][1])


def test_an_offset_without_labels_is_left_out() -> None:
    mask = torch.zeros(1, 2, 6, 8, dtype=torch.uint8)
    mask[:, 0] = IGNORE
    task = Segmentation(info(frames=2))
    task.update(one_hot(torch.zeros_like(mask)), {"mask": mask}, offsets=[0, 1])
    values = task.compute()
    assert "miou@0" not in values
    assert values["miou"] == values["miou@1"] == 1.0
    assert "label_stability" not in values


def test_many_classes_are_not_named() -> None:
    mask = torch.zeros(1, 1, 6, 8, dtype=torch.uint8)
    task = Segmentation(info(classes=21, frames=1))
    task.update(one_hot(mask, 21), {"mask": mask})
    assert not any(key.startswith("iou_") for key in task.compute())


def test_the_loss_reads_maps_at_the_size_of_the_mask() -> None:
    torch.manual_seed(0)
    maps, mask = torch.randn(2, 4, 3, 3, 4), random_masks(0)[1]
    raised = F.interpolate(maps.flatten(0, 1), scale_factor=2, mode="bilinear", align_corners=False)
    p = raised.softmax(1)
    truth, known = mask.flatten(0, 1).long(), mask.flatten(0, 1) != IGNORE
    of_truth = p.gather(1, truth.where(known, 0)[:, None])[:, 0]
    expected = -of_truth[known].log().mean()
    task = Segmentation(info())
    assert task.loss(maps, {"mask": mask}).item() == pytest.approx(expected.item(), rel=1e-5)
    task.update(maps, {"mask": mask})
    values = task.compute()
    assert values["cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)
    assert values["miou"] == pytest.approx(slow_miou(raised.argmax(1), mask, 3)[0])


def test_chunks_change_neither_loss_nor_gradient_nor_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mask = random_masks(0)[1]
    results = []
    for chunk in (2**24, 3 * 3 * 6 * 8, 1):
        monkeypatch.setattr(segmentation, "_CHUNK", chunk)
        torch.manual_seed(1)
        maps = torch.randn(2, 4, 3, 3, 4, requires_grad=True)
        task = Segmentation(info(), SegmentationConfig(ohem=True, ohem_threshold=0.3))
        loss = task.loss(maps, {"mask": mask})
        loss.backward()
        task.update(maps, {"mask": mask})
        assert maps.grad is not None
        results.append((loss.item(), maps.grad, task.compute()))
    for loss_, gradient, values in results[1:]:
        assert loss_ == pytest.approx(results[0][0], rel=1e-6)
        assert torch.allclose(gradient, results[0][1], atol=1e-7)
        assert values == pytest.approx(results[0][2])


def slow_hard(losses: list[float], known: list[bool], threshold: float, share: float) -> float:
    """Mean loss over the pixels that count."""
    labelled = sorted((v for v, k in zip(losses, known, strict=True) if k), reverse=True)
    hard = [v for v in labelled if math.exp(-v) < threshold]
    least = max(1, math.ceil(share * len(labelled)))
    counted = hard if len(hard) >= least else labelled[:least]
    return sum(counted) / len(counted)


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("share", [1e-6, 0.3, 1.0])
def test_hard_pixels_equal_their_slow_twin(threshold: float, share: float) -> None:
    torch.manual_seed(2)
    losses, known = torch.rand(60) * 3, torch.rand(60) < 0.8
    losses[10:20] = losses[10]  # ties
    chosen = hard_pixels(losses, known, threshold, share)
    assert not bool((chosen & ~known).any())
    expected = slow_hard(losses.tolist(), known.tolist(), threshold, share)
    assert losses[chosen].mean().item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    mask = torch.full((1, 4, 6, 8), IGNORE, dtype=torch.uint8)
    for config in (SegmentationConfig(), SegmentationConfig(ohem=True)):
        maps = torch.randn(1, 4, 3, 6, 8, requires_grad=True)
        loss = Segmentation(info(), config).loss(maps, {"mask": mask})
        loss.backward()
        assert loss.item() == 0.0
        assert maps.grad is not None
        assert not bool(maps.grad.any())
    assert torch.equal(pixel_losses(maps[0], mask[0]), torch.zeros(4, 6, 8))


def masks_of(*values: int) -> MemoryDataset:
    """One item of two pixels for each value, in it and in a pixel that nobody labelled."""
    mask = torch.tensor([[[[value, IGNORE]]] for value in values], dtype=torch.uint8)
    clip = torch.zeros(len(values), 3, 1, 1, 2, dtype=torch.uint8)
    return MemoryDataset({"clip": clip, "label": torch.zeros(len(values), dtype=torch.int64), "mask": mask})


def test_a_class_that_never_occurs_is_named_and_one_class_alone_is_refused() -> None:
    names = ("background", "cat", "dog")
    info = DataInfo(3, names, 1, 1, 2, "set", mask_names=names)
    task = Segmentation(info)
    splits = make_splits(masks_of(0, 1, 1), masks_of(0, 1, 2), masks_of(1), info, seed=0)
    task.check_splits(splits)
    assert task.hints(splits) == [
        "data: no labelled pixel of dog in the 3 items of train that were looked at; nothing is learnt about it",
        "data: no labelled pixel of background, dog in the 1 items of test that were looked at; metrics leave them out",
    ]
    alone = make_splits(masks_of(0, 0), masks_of(0, 1), masks_of(0, 1), info, seed=0)
    with pytest.raises(DataError, match=r"at least 2 classes, but all .* are 'background'; .* need binary: true"):
        task.check_splits(alone)
