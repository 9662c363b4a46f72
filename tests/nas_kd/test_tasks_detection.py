from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nas_kd.data import DataInfo, GeneratedConfig
from nas_kd.data.generated import GeneratedDataset
from nas_kd.tasks import Detection, DetectionConfig, decode
from nas_kd.tasks.box_average_precision import FrameBoxes, box_average_precision
from nas_kd.tasks.boxes import (
    boxes_at,
    centre_cells,
    focal_loss,
    gaussian_radius,
    generalized_iou,
    heat_targets,
    owners,
)
from nas_kd.teachers import FrameNet, FrameNetSettings

HEIGHT, WIDTH = 32, 48  # of frames; maps are 8 × 12, so a cell is 4 × 4 pixels
Box = list[float]


def info(frames: int = 1, classes: int = 2) -> DataInfo:
    return DataInfo(2, ("a", "b"), frames, HEIGHT, WIDTH, "toy", box_names=tuple(f"c{i}" for i in range(classes)))


def truth(*frames: list[Box]) -> Tensor:
    """(1, T, B, 5), with absent rows."""
    rows = max(len(frame) for frame in frames) + 1
    boxes = torch.full((1, len(frames), rows, 5), -1.0)
    for t, frame in enumerate(frames):
        for b, box in enumerate(frame):
            boxes[0, t, b] = torch.tensor(box)
    return boxes


def perfect(boxes: Tensor, classes: int = 2, shift: float = 0.0, confidence: float = 8.0) -> Tensor:
    """Maps (N, T, C + 4, 8, 12) that decode to the boxes, shifted to the right by so many pixels."""
    maps = torch.zeros(*boxes.shape[:2], classes + 4, 8, 12)
    maps[:, :, :classes] = -12.0
    for n, t, b in (boxes[..., 4] >= 0).nonzero().tolist():
        x0, y0, x1, y1, c = boxes[n, t, b].tolist()
        column, row = int((x0 + x1) / 2 // 4), int((y0 + y1) / 2 // 4)
        x, y = column * 4 + 2, row * 4 + 2
        maps[n, t, int(c), row, column] = confidence
        distances = torch.tensor([x - x0 - shift, y - y0, x1 + shift - x, y1 - y]) / 4
        maps[n, t, classes:, row, column] = distances.log()
    return maps


BOXES = truth([[4.0, 4, 20, 16, 0], [30, 10, 44, 30, 1]], [], [[8, 9, 31, 27, 1]])


def test_perfect_maps_are_decoded_and_score_one() -> None:
    maps = perfect(BOXES)
    found = decode(maps, HEIGHT, WIDTH, score_threshold=0.5)
    assert [len(f.boxes) for f in found] == [2, 0, 1]
    assert torch.allclose(found[2].boxes[0], BOXES[0, 2, 0, :4], atol=1e-4)
    assert found[2].classes.tolist() == [1]
    assert found[2].scores.item() == pytest.approx(torch.tensor(8.0).sigmoid().item())
    task = Detection(info(3))
    task.update(maps, {"boxes": BOXES})
    values = task.compute()
    assert set(values) == {"map50", "map"}
    assert values["map50"] == values["map"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least one box"):
        task.compute()


def test_decoding_keeps_peaks_cuts_at_the_frame_and_at_the_number() -> None:
    maps = torch.full((1, 5, 8, 12), -12.0)
    maps[0, 0, 3, 3], maps[0, 0, 3, 4], maps[0, 0, 0, 0] = 4.0, 3.0, 2.0  # the second is no peak
    maps[0, 1:] = math.log(2.0)
    found = decode(maps, HEIGHT, WIDTH)[0]
    assert found.boxes.tolist() == [[6.0, 6.0, 22.0, 22.0], [0.0, 0.0, 10.0, 10.0]]  # the last one begins at −6
    assert found.scores.tolist() == pytest.approx(torch.tensor([4.0, 2.0]).sigmoid().tolist())
    assert len(decode(maps, HEIGHT, WIDTH, max_detections=1)[0].boxes) == 1
    assert len(decode(maps, HEIGHT, WIDTH, score_threshold=0.99)[0].boxes) == 0
    with pytest.raises(ValueError, match="at least 5 channels, but got \\(1, 4, 8, 12\\)"):
        decode(maps[:, :4], HEIGHT, WIDTH)


@pytest.mark.parametrize("shift", [0.5, 2.0, 4.0, 7.0])
def test_shifted_boxes_count_up_to_their_overlap(shift: float) -> None:
    boxes = truth([[12.0, 8, 28, 24, 0]])  # side 16: an IoU of (16 − s) / (16 + s)
    iou = (16 - shift) / (16 + shift)
    task = Detection(info())
    task.update(perfect(boxes, shift=shift), {"boxes": boxes})
    values = task.compute()
    assert values["map50"] == pytest.approx(float(iou >= 0.5))
    thresholds = [0.5 + 0.05 * i for i in range(10)]
    assert values["map"] == pytest.approx(sum(iou >= t for t in thresholds) / 10)


def test_a_find_in_an_empty_frame_costs_precision() -> None:
    boxes = truth([[4.0, 4, 20, 16, 0]], [])
    task = Detection(info(2))
    maps = perfect(boxes)
    maps[0, 1] = perfect(truth([[8.0, 8, 24, 24, 0]]), confidence=9.0)[0, 0]  # a surer mistake
    task.update(maps, {"boxes": boxes})
    assert task.compute()["map50"] == pytest.approx(0.5)


def test_offsets_have_a_metric_each_and_their_mean() -> None:
    boxes = truth(*[[[12.0, 8, 28, 24, 0]]] * 4, [])
    maps = perfect(boxes)
    maps[:, 1] = perfect(boxes[:, 1:2], shift=7.0)[:, 0]  # found at offset 1 in one of two frames
    task = Detection(info(5))
    task.update(maps, {"boxes": boxes}, offsets=[0, 1, 0, 1, 2])
    values = task.compute()
    recalls = np.linspace(0, 1, 101)
    # Equal scores: the frame that comes first, a miss, is first. Precision is 1/2 up to a recall of 1/2.
    at_1 = 0.5 * np.mean(recalls <= 0.5)
    assert values["map50@0"] == pytest.approx(1.0)
    assert values["map50@1"] == pytest.approx(at_1)
    assert values["map50"] == pytest.approx((1 + at_1) / 2)
    assert "map50@2" not in values  # no box there
    assert 0 < values["map"] <= values["map50"]


def slow_iou(a: Box, b: Box) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0.0) * max(h, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_ap(frames: list[FrameBoxes], category: int, threshold: float, limit: int) -> float | None:
    """COCO's average precision of one class."""
    hits: list[tuple[float, bool]] = []
    total = 0
    for frame in frames:
        free = [t[:4] for t in frame.truth.tolist() if t[4] == category]
        total += len(free)
        found = sorted((f for f in frame.found.tolist() if f[4] == category), key=lambda f: -f[5])[:limit]
        for box in found:
            overlaps = [slow_iou(box, t) for t in free]
            best = max(range(len(free)), key=lambda i: overlaps[i], default=None)
            hit = best is not None and overlaps[best] >= threshold
            if hit:
                assert best is not None
                free.pop(best)
            hits.append((box[5], hit))
    if total == 0:
        return None
    hits.sort(key=lambda h: -h[0])
    points, right = [], 0
    for n, (_, hit) in enumerate(hits, start=1):
        right += hit
        points.append((right / total, right / n))
    return float(
        np.mean([max((p for r, p in points if r >= level), default=0.0) for level in np.linspace(0.0, 1.0, 101)])
    )


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_its_slow_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(12):
        num = int(rng.integers(0, 4))
        corner = rng.uniform(0, 20, (num, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(4, 20, (num, 2)), rng.integers(0, 2, (num, 1))], 1)
        near = np.repeat(boxes, 2, 0)
        near[:, :4] += rng.normal(0, 1.0, (len(near), 4))
        stray = np.array([[1.0, 1, 9, 9, rng.integers(0, 3)]])
        found = np.concatenate([near, stray])
        frames.append(FrameBoxes(boxes, np.concatenate([found, rng.uniform(0, 1, (len(found), 1))], 1)))
    for limit in (100, 1):
        ours = box_average_precision(frames, 3, limit)
        assert ours is not None
        thresholds = np.linspace(0.5, 0.95, 10)
        classes = [[slow_ap(frames, c, t, limit) for c in range(3)] for t in thresholds]
        assert [c[2] for c in classes] == [None] * 10  # of the third class there are mistakes, but no boxes
        means = [np.mean([v for v in c if v is not None]) for c in classes]
        assert ours.map50 == pytest.approx(means[0], abs=1e-9)
        assert ours.map == pytest.approx(np.mean(means), abs=1e-9)


def test_average_precision_needs_a_box_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    none, box = np.zeros((0, 5)), np.array([[0.0, 0, 4, 4, 0]])
    assert box_average_precision([FrameBoxes(none, np.zeros((0, 6)))], 2, 10) is None
    assert box_average_precision([], 2, 10) is None
    assert box_average_precision([FrameBoxes(box, np.zeros((0, 6)))], 2, 10) == (0.0, 0.0)
    assert not any(capsys.readouterr())


def test_focal_loss_is_the_closed_form() -> None:
    logits, target = torch.tensor([[0.3, -1.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    total = 0.0
    for z, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        total -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
    assert focal_loss(logits, target).item() == pytest.approx(total / 2, rel=1e-5)
    assert focal_loss(torch.tensor([-200.0, 200.0]), torch.tensor([0.0, 1.0])).item() == 0.0
    assert math.isfinite(focal_loss(torch.tensor([200.0]), torch.tensor([0.0])).item())


def test_generalized_iou_is_the_closed_form() -> None:
    box = torch.tensor([0.0, 0, 4, 4])
    others = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [4, 4, 8, 8], [1, 1, 3, 3]])
    expected = [1.0, 8 / 24, 0 - (64 - 32) / 64, 4 / 16]
    assert generalized_iou(box.expand(4, 4), others).tolist() == pytest.approx(expected)


def test_the_radius_keeps_the_overlap() -> None:
    torch.manual_seed(0)
    for h, w in (torch.rand(20, 2) * 30 + 1).tolist():
        for m in (0.3, 0.7):
            r = gaussian_radius(torch.tensor(h), torch.tensor(w), m).item()
            box = [0.0, 0.0, w, h]
            moved = [[r, r, w + r, h + r], [r, r, w - r, h - r], [-r, -r, w + r, h + r]]
            assert min(slow_iou(box, other) for other in moved) == pytest.approx(m, rel=1e-3)


def test_heat_is_one_at_centres_and_the_larger_of_two_between() -> None:
    boxes = truth([[4.0, 4, 20, 16, 0], [12, 4, 28, 16, 0], [30, 10, 44, 30, 1]])[0]
    heat = heat_targets(boxes, 2, 8, 12, HEIGHT, WIDTH)
    row, column = centre_cells(boxes, 8, 12, HEIGHT, WIDTH)
    cells = list(zip(row[0].tolist(), column[0].tolist(), strict=True))[:3]
    assert cells == [(2, 3), (2, 5), (5, 9)]
    radii = [
        math.floor(gaussian_radius(torch.tensor((b[3] - b[1]) / 4), torch.tensor((b[2] - b[0]) / 4), 0.7))
        for b in boxes[0, :3].tolist()
    ]
    for c in range(2):
        for y in range(8):
            for x in range(12):
                values = [
                    math.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
                    for (cy, cx), r, box in zip(cells, radii, boxes[0].tolist(), strict=False)
                    if box[4] == c
                ]
                assert heat[0, c, y, x].item() == pytest.approx(max(values), abs=1e-6)
    assert int((heat == 1).sum()) == 3
    assert not bool(heat_targets(boxes[:, 3:], 2, 8, 12, HEIGHT, WIDTH).any())  # absent rows only


def test_the_smallest_box_owns_a_cell() -> None:
    boxes = truth([[4.0, 4, 24, 24, 0], [8, 8, 20, 20, 1], [8, 8, 20, 20, 0], [30, 10, 44, 30, 1]])[0]
    row, column = centre_cells(boxes, 8, 12, HEIGHT, WIDTH)
    assert owners(boxes, row, column).tolist() == [[False, True, False, True, False]]


def test_the_loss_is_least_for_perfect_maps() -> None:
    task = Detection(info(3))
    maps = perfect(BOXES)
    terms = task.losses(maps, {"boxes": BOXES})
    assert terms["boxes"].item() == pytest.approx(0.0, abs=1e-4)
    off = perfect(BOXES, shift=2.0)
    by_hand = []
    for t, b in ((0, 0), (0, 1), (2, 0)):
        x0, y0, x1, y1, _ = BOXES[0, t, b].tolist()
        by_hand.append(1 - slow_iou([x0, y0, x1, y1], [x0 + 2, y0, x1 + 2, y1]))  # the hull of the two is their union
    terms = task.losses(off, {"boxes": BOXES})
    assert terms["boxes"].item() == pytest.approx(sum(by_hand) / 3, rel=1e-4)
    weighted = Detection(info(3), DetectionConfig(box_weight=3.0))
    expected = terms["heat"] + 3 * terms["boxes"]
    assert weighted.loss(off, {"boxes": BOXES}).item() == pytest.approx(expected.item())


def test_frames_without_boxes_teach_heat_alone() -> None:
    boxes = torch.full((1, 2, 3, 5), -1.0)
    maps = torch.zeros(1, 2, 6, 8, 12, requires_grad=True)
    Detection(info(2)).loss(maps, {"boxes": boxes}).backward()
    assert maps.grad is not None
    assert bool((maps.grad[:, :, :2] > 0).all())
    assert not bool(maps.grad[:, :, 2:].any())


def test_cells_need_not_be_square_nor_whole() -> None:
    maps = torch.zeros(1, 5, 3, 5)
    maps[0, 1:] = torch.tensor([1.0, 2.0, 0.5, 1.0]).log().view(4, 1, 1)
    box = boxes_at(maps[:, 1:], torch.tensor([[1]]), torch.tensor([[2]]), 10, 24)
    assert box[0, 0].tolist() == pytest.approx([1.5 * 4.8, -0.5 * 10 / 3, 3.0 * 4.8, 2.5 * 10 / 3])


def test_a_small_net_learns_a_few_frames() -> None:
    config = GeneratedConfig(num_train=8, num_val=1, num_test=1, frames=2, size=32, digits=((3,), (8,)))
    dataset = GeneratedDataset(config, "train")
    clips = torch.stack([dataset[i]["clip"] for i in range(8)]).float() / 255 - 0.5
    batch = {"boxes": torch.stack([dataset[i]["boxes"] for i in range(8)])}
    torch.manual_seed(0)
    task = Detection(config.info)
    net = FrameNet(task.num_outputs, FrameNetSettings(widths=(16, 24), depths=(1, 1), head_width=16))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    frames = clips.transpose(1, 2).flatten(0, 1)
    losses = []
    for _ in range(80):
        loss = task.loss(net(frames).unflatten(0, (8, 2)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        task.update(net.eval()(frames).unflatten(0, (8, 2)), batch)
    values = task.compute()
    assert values["map50"] > 0.9, (values, losses[-1])
