from __future__ import annotations

import functools
import itertools
import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from nas_kd.data import GeneratedConfig, GeneratedDataset, check_sample, load, normalize
from nas_kd.data.generated import MOTIONS, _Painter, _source_images

SMALL = GeneratedConfig(num_train=24, num_val=12, num_test=12)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        SMALL.model_copy(update={"size": 21, "frames": 5, "distractors": 2, "motions": tuple(MOTIONS)}),
        SMALL.model_copy(update={"digits": ((0, 1), (2, 3, 4)), "motions": ("still",)}),
    ],
)
def test_samples_keep_the_contract(config, split):
    dataset = GeneratedDataset(config, split)
    for index in range(len(dataset)):
        check_sample(dataset[index], config.info, f"{split}[{index}]")
    assert dataset.labels == dataset.tensors["label"].tolist()


def test_an_item_depends_on_seed_split_and_index_alone():
    few = GeneratedDataset(SMALL.model_copy(update={"num_train": 3}), "train")
    many = GeneratedDataset(SMALL, "train")
    other_seed = GeneratedDataset(SMALL.model_copy(update={"seed": 1}), "train")
    other_split = GeneratedDataset(SMALL, "val")
    for key, value in many[2].items():
        assert torch.equal(value, few[2][key])
        assert torch.equal(value, many.make(2)[key])
        assert torch.equal(value, pickle.loads(pickle.dumps(many))[2][key])
    assert not torch.equal(many[2]["clip"], other_seed[2]["clip"])
    assert not torch.equal(many[2]["clip"], other_split[2]["clip"])


def test_a_pickle_carries_no_clips():
    dataset = GeneratedDataset(SMALL, "train")
    assert dataset.tensors["clip"].nbytes > 100_000
    assert len(pickle.dumps(dataset)) < 2_000


def test_splits_use_disjoint_digit_images():
    # Eight bits a pixel tell images apart; the few true doubles of the source may fall on both sides.
    seen = {
        split: [image.tobytes() for digit in _source_images(0, split) for image in digit]
        for split in ("train", "val", "test")
    }
    assert sum(map(len, seen.values())) == 1797
    together = set().union(*map(set, seen.values()))
    assert sum(len(set(images)) for images in seen.values()) == len(together)


def test_box_is_the_tight_box_of_the_mask_where_no_edge_cuts_the_digit():
    dataset = GeneratedDataset(SMALL, "train")
    compared = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        for mask, boxes in zip(sample["mask"], sample["boxes"], strict=True):
            rows, columns = torch.where(mask > 0)
            if {0, 31} <= set(rows.tolist()):
                continue
            group = int(sample["label"]) // len(SMALL.motions)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, group]
            assert boxes[0].tolist() == [float(value) for value in tight]
            assert set(mask[mask > 0].tolist()) == {group + 1}
            compared += 1
    assert compared > 100


def test_box_of_a_cut_digit_is_its_larger_part():
    sample = GeneratedDataset(SMALL, "train")
    cut = 0
    for index in range(len(sample)):
        for mask, boxes in zip(sample[index]["mask"], sample[index]["boxes"], strict=True):
            filled = torch.where(mask.any(dim=1))[0].tolist()
            if {0, 31} <= set(filled):
                x0, y0, x1, y1, _ = boxes[0].int().tolist()
                inside = int((mask[y0:y1, x0:x1] > 0).sum())
                assert 0 <= y0 < y1 <= 32
                assert y1 - y0 >= len(filled) / 2
                assert inside > 0
                cut += 1
    assert cut > 10


@pytest.mark.parametrize(("motion", "opposite"), [("up", "down"), ("up_fast", "down_fast")])
def test_motion_goes_where_its_name_says(motion, opposite):
    config = GeneratedConfig(digits=((1,),), motions=(motion, opposite), speed_jitter=0, num_train=2, frames=8)
    for index, sign in ((0, -1), (1, 1)):
        rows = (GeneratedDataset(config, "train")[index]["mask"] > 0).sum(dim=2)  # pixels of the digit in each row
        step = abs(MOTIONS[motion][0]) * 32 // 8
        assert rows.any()
        for now, later in itertools.pairwise(rows):
            assert torch.equal(later, now.roll(sign * step))


def path_of(motion: str, seed: int, **change: object) -> list[int]:
    """Rows of the digit's corner; equal seeds start at equal places, whatever the motion."""
    return painter_of(**change)._path(np.random.default_rng(seed), motion)[:, 0].tolist()


@functools.cache
def painter_of(**change: object) -> _Painter:
    return _Painter(SMALL.model_copy(update={"speed_jitter": 0.0, **change}), "train")


@pytest.mark.parametrize("frames", [8, 16])
@pytest.mark.parametrize("seed", range(5))
def test_aliasing_hides_the_motion_from_few_frames(seed, frames):
    up, down, up_fast, down_fast = (path_of(motion, seed, frames=frames) for motion in SMALL.motions)
    for first, second, step in ((up, down, frames // 2), (up_fast, down_fast, frames // 4)):
        assert first[::step] == second[::step]
        assert first[:: step // 2] != second[:: step // 2]
    assert up[0] == up_fast[0]
    assert up[:: frames // 2] != up_fast[:: frames // 2]


def test_every_start_is_equally_likely_for_every_motion():
    for motion in SMALL.motions:
        rows = [path_of(motion, seed)[3] for seed in range(640)]
        counts = np.bincount(rows, minlength=32)
        assert np.abs(counts - 20).max() < 5 * np.sqrt(20)


def test_classes_are_balanced_in_every_split_and_share():
    splits = load(GeneratedConfig(num_train=120, num_val=24, num_test=24), seed=3, gate_share=0.5)
    for part in (splits.weights, splits.gates, splits.val, splits.test):
        counts = np.bincount(part.labels, minlength=12)
        assert counts.min() == counts.max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"motions": ("up", "spin")}, "unknown motion 'spin'; choose from"),
        ({"motions": ("up", "up")}, "motions must differ"),
        ({"digits": ((3,), (3, 5))}, "no digit twice"),
        ({"digits": ((3,), ())}, "non-empty groups"),
        ({"digits": ((3,),), "motions": ("up",)}, "at least 2 classes"),
        ({"digits": (tuple(range(10)),), "distractors": 1}, "leave one out"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_config_refuses(change, words):
    with pytest.raises(ValidationError, match=words):
        GeneratedConfig(**change)


def test_left_and_right_are_not_flip_safe():
    assert SMALL.info.flip_safe
    assert not GeneratedConfig(motions=("left", "up")).info.flip_safe


def test_a_tiny_net_needs_the_frames():
    """The cheap part of the benchmark: the slow motions are learnt from 8 frames and stay at chance from one."""
    config = GeneratedConfig(num_train=128, num_test=64, size=16, digits=((0,),), motions=("up", "down"), texture=0.05)
    clips = {
        split: normalize(GeneratedDataset(config, split).tensors["clip"], (0.3,) * 3, (0.25,) * 3)
        for split in ("train", "test")
    }
    labels = {split: GeneratedDataset(config, split).tensors["label"] for split in ("train", "test")}
    accuracy = {}
    for frames in (8, 1):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv3d(3, 8, 3, (1, 2, 2), 1), nn.BatchNorm3d(8), nn.ReLU(),
            nn.Conv3d(8, 16, 3, (1, 2, 2), 1), nn.BatchNorm3d(16), nn.ReLU(),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 2),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
        for _ in range(12):
            for rows in torch.randperm(128).split(32):
                loss = F.cross_entropy(net(clips["train"][rows, :, :frames]), labels["train"][rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        net.eval()
        with torch.no_grad():
            found = net(clips["test"][:, :, :frames]).argmax(1)
        accuracy[frames] = (found == labels["test"]).float().mean().item()
    assert accuracy[8] > 0.9
    assert accuracy[1] < 0.75
