from __future__ import annotations

import multiprocessing
import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nas_kd.data import (
    AugmentConfig,
    ClipLoader,
    DataError,
    MemoryDataset,
    MixConfig,
    Subset,
    Views,
    augment_batch,
    normalize,
)
from nas_kd.data.augment import NUM_DRAWS
from nas_kd.data.pace import PaceMeter
from nas_kd.data.reader import end_with_parent


def make_set(items=10, frames=2, height=8, width=12):
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (items, 3, frames, height, width), generator=generator, dtype=torch.uint8)
    return MemoryDataset({"clip": clip, "label": torch.arange(items) % 3})


class Lazy:
    """The same items one by one, as a set too large for memory gives them."""

    def __init__(self, base):
        self.base = base

    def __len__(self):
        return len(self.base)

    def __getitem__(self, index):
        return self.base[index]


def same(first, second):
    assert len(first) == len(second)
    for left, right in zip(first, second, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


class Ahead(Lazy):
    """The same, which a thread may read."""

    reads_ahead = True


@pytest.mark.parametrize("augment", ["none", "flip", "flip+crop"])
def test_memory_lazy_and_ahead_reads_agree(augment):
    memory = make_set()
    options = {"seed": 4, "shuffle": True, "augment": augment}
    fast = list(ClipLoader(memory, 4, **options).epoch(2))
    for dataset in (Lazy(memory), Ahead(memory)):
        same(fast, list(ClipLoader(dataset, 4, **options).epoch(2)))
    assert [len(batch["label"]) for batch in fast] == [4, 4, 2]


class Noisy(Lazy):
    """Items with a random part, of which the one labelled 2 cannot be read where it is said."""

    def __init__(self, base, broken=False):
        super().__init__(base)
        self.broken = broken

    def __getitem__(self, index):
        sample = self.base[index]
        if self.broken and sample["label"] == 2:
            raise DataError("a damaged file")
        draws = [torch.rand(()), torch.tensor(random.random()), torch.tensor(np.random.random())]
        return {**sample, "noise": torch.stack([draw.float() for draw in draws])}


def test_workers_give_the_same_batches_in_every_epoch_and_their_noise_follows_seed_and_epoch():
    memory = make_set()
    options = {"seed": 4, "shuffle": True, "augment": "flip+crop"}
    state = torch.random.get_rng_state()
    loader = ClipLoader(Noisy(memory), 4, num_workers=2, **options)
    next(loader.epoch(1))  # an epoch that is not read to its end
    noise = []
    for epoch in (2, 0, 2):
        batches = list(loader.epoch(epoch))
        noise.append(torch.cat([batch.pop("noise") for batch in batches]))
        same(batches, list(ClipLoader(memory, 4, **options).epoch(epoch)))
    assert torch.equal(noise[0], noise[2])
    assert len(torch.cat(noise[:2]).flatten().unique()) == 60
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(DataError, match=r"^a damaged file$"):
        list(ClipLoader(Noisy(memory, broken=True), 4, num_workers=1).epoch(0))
    with pytest.raises(DataError, match=r"data.workers needs data sets that can be sent .* set data.workers: 0"):
        next(ClipLoader(Noisy(memory, broken=lambda: None), 4, num_workers=1).epoch(0))


def test_a_worker_ends_with_the_process_that_it_reads_for(monkeypatch):
    mine, its = multiprocessing.Pipe()
    ended = threading.Event()
    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(sentinel=mine))
    monkeypatch.setattr("os._exit", lambda _: ended.set())
    end_with_parent(0)
    assert not ended.wait(0.02)
    its.close()  # as the system does when a process dies
    assert ended.wait(10)


def test_a_thread_reads_a_bounded_number_of_batches_ahead_and_passes_errors_on():
    read, third = [], threading.Event()

    class Watched(Ahead):
        def __getitem__(self, index):
            read.append(index)
            if index == 5:
                third.set()
            if index == 20:
                raise DataError("a damaged file")
            return self.base[index]

    batches = ClipLoader(Watched(make_set(30)), 2).epoch(0)
    next(batches)
    next(batches)
    assert third.wait(10)  # the third batch was read before it is asked for
    assert max(read) <= 7
    with pytest.raises(DataError, match="a damaged file"):
        list(batches)
    assert max(read) <= 23
    batches = ClipLoader(Watched(make_set(30)), 2).epoch(0)
    next(batches)
    batches.close()
    assert not any("ThreadPool" in thread.name for thread in threading.enumerate())


def test_the_pace_of_reading_is_told_once_beside_that_of_training():
    told = []
    meter = PaceMeter(told.append, readers=2)
    for number in range(20):
        slow = number < 2  # the first batches do not count
        meter.add(16, read_s=9.0 if slow else 0.4, wait_s=9.0 if slow else 0.15, step_s=0.05)
    (pace,) = told
    assert (pace.batch_size, round(pace.read_per_s), round(pace.step_s, 6)) == (16, 80, 0.05)
    assert round(pace.waiting, 6) == 0.75
    assert pace.describe("do this") == (
        "reading: 80 items a second; a training step of 16 items takes 50 ms, so it uses 320 items a second, and waits "
        "for data for 75% of the time: do this"
    )
    meter = PaceMeter(told.append, readers=1)
    for _ in range(10):
        meter.add(4, read_s=0.004, wait_s=0.001, step_s=0.1)
    assert told[1].describe("do this").endswith("takes 100 ms, so it uses 40 items a second")


def pace(read_s, wait_s, step_s):
    """How ten batches of four items are described."""
    told = []
    meter = PaceMeter(told.append, readers=1)
    for _ in range(10):
        meter.add(4, read_s, wait_s, step_s)
    return told[0].describe("do this").partition(" items a second; ")[2].partition("so it uses ")[2]


def test_the_hint_on_reading_does_not_contradict_its_figures():
    assert pace(0.1, 0.06, 0.05) == "80 items a second, and waits for data for 55% of the time: do this"
    # On a busy machine a training may wait although its batches are read faster than it uses them.
    assert pace(0.04, 0.03, 0.05) == (
        "80 items a second; it waits for data for 38% of the time all the same, since batches take unequally long or "
        "the machine does other work"
    )
    # What is read when it is needed is waited for, however fast.
    assert pace(0.04, 0.04, 0.05) == "80 items a second, and waits for data for 44% of the time: do this"
    # The batches that were read before the first step hide slow reading at first.
    assert pace(0.1, 0.001, 0.05) == "80 items a second, which reading does not keep up with: do this"
    assert pace(0.001, 0.0, 0.05) == "80 items a second"


def test_the_pace_of_a_loader_is_told_once():
    seen = []
    loader = ClipLoader(make_set(), 2, on_pace=seen.append)
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert [pace.batch_size for pace in seen] == [2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "options",
    [
        {"augment": "flip+crop"},
        {
            "augment": AugmentConfig(flip=True, resized_crop={}, color={"hue": 0.2, "contrast": 0.3}, temporal={}),
            "seen": (1, 6, 8),
            "mix": MixConfig(cutmix=1),
        },
        {"mix": MixConfig(mixup=1)},
    ],
)
def test_a_gpu_gives_the_same_batches(options):
    part = Subset(make_set(), [8, 1, 6, 3])
    options = {"seed": 4, "shuffle": True, **options}
    for dataset in (part, Lazy(part)):  # of which the second has indices, and so augmentations, of its own
        expected = ClipLoader(dataset, 3, **options).epoch(1)
        for batch, cpu in zip(ClipLoader(dataset, 3, device="cuda", **options).epoch(1), expected, strict=True):
            assert all(value.is_cuda for value in batch.values())
            assert torch.equal(batch["label"].cpu(), cpu["label"])
            assert (batch["clip"].cpu().int() - cpu["clip"].int()).abs().max() <= 1


def test_epochs_differ_and_repeat_in_any_order():
    loader = ClipLoader(make_set(), 4, seed=1, shuffle=True, augment="flip+crop")
    third, first = list(loader.epoch(2)), list(loader.epoch(0))
    same(third, list(ClipLoader(make_set(), 4, seed=1, shuffle=True, augment="flip+crop").epoch(2)))
    assert [b["index"].tolist() for b in third] != [b["index"].tolist() for b in first]
    for epoch in (first, third):
        assert sorted(torch.cat([batch["index"] for batch in epoch]).tolist()) == list(range(10))


def test_augmentation_follows_the_index_and_not_the_batch():
    base = make_set()
    part = Subset(base, [7, 2, 5])
    whole = next(ClipLoader(base, 10, seed=3, augment="flip+crop").epoch(1))
    some = next(ClipLoader(part, 3, seed=3, augment="flip+crop").epoch(1))
    assert some["index"].tolist() == [7, 2, 5]
    assert torch.equal(some["clip"], whole["clip"][[7, 2, 5]])


def test_an_item_has_as_many_views_as_are_stated_and_all_trainings_share_them():
    views = Views("flip+crop", seed=5, count=3)
    base, seen = make_set(), {}
    for seed, dataset in ((0, base), (1, Subset(base, [7, 2, 5]))):
        loader = ClipLoader(dataset, 2, seed=seed, shuffle=True, augment=views)
        for epoch in range(12):
            for batch in loader.epoch(epoch):
                for index, view, clip in zip(batch["index"], batch["view"], batch["clip"], strict=True):
                    known = seen.setdefault((int(index), int(view)), clip)
                    assert torch.equal(known, clip)
    assert (
        {(item, view) for item in (2, 5, 7) for view in range(3)}
        <= set(seen)
        <= {(item, view) for item in range(10) for view in range(3)}
    )
    raw = next(ClipLoader(base, 10).epoch(0))
    for view in range(3):
        shown = views.show(raw, view, len(base))
        assert shown["view"].tolist() == [view] * 10
        assert all(torch.equal(shown["clip"][item], seen[item, view]) for item in (2, 5, 7))
    assert not torch.equal(seen[2, 0], seen[2, 1])
    other = Views("flip+crop", seed=6, count=3).show(raw, 0, len(base))
    assert not torch.equal(other["clip"], views.show(raw, 0, len(base))["clip"])


def test_views_are_drawn_anew_in_each_epoch_and_alike_after_a_restart():
    loader = ClipLoader(make_set(300), 300, seed=1, augment=Views("flip", seed=5, count=4))
    first, second = (next(loader.epoch(epoch))["view"] for epoch in (0, 1))
    assert torch.equal(next(loader.epoch(1))["view"], second)
    assert torch.bincount(first, minlength=4).min() > 50
    assert 150 < int((first != second).sum()) < 290  # three quarters of them change
    still = next(ClipLoader(make_set(), 10, augment=Views("none", seed=5, count=1)).epoch(3))
    assert still["view"].tolist() == [0] * 10
    assert torch.equal(still["clip"], make_set().tensors["clip"])
    for augment, count in (("none", 2), ("flip", 0)):
        with pytest.raises(DataError, match="number of views must be at least 1"):
            Views(augment, seed=0, count=count)


def test_index_of_a_subset_is_that_of_its_base():
    batch = next(ClipLoader(Subset(make_set(), [9, 4]), 2).epoch(0))
    assert batch["index"].tolist() == [9, 4]
    assert batch["label"].tolist() == [0, 1]


def test_drop_last_and_length():
    assert len(ClipLoader(make_set(), 4)) == 3
    loader = ClipLoader(make_set(), 4, drop_last=True, keys=("label",))
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 2
    assert set(batches[0]) == {"label", "index"}


@pytest.mark.parametrize(
    ("items", "batch", "drop", "words"),
    [(0, 4, False, "empty"), (3, 0, False, "at least 1"), (3, 4, True, "lower batch_size")],
)
def test_loader_refuses(items, batch, drop, words):
    with pytest.raises(DataError, match=words):
        ClipLoader(make_set(items), batch, drop_last=drop)


def test_unknown_augmentations_and_keys_list_the_known():
    with pytest.raises(DataError, match=r"unknown augmentation 'mixup'; choose from none, flip, flip\+crop"):
        ClipLoader(make_set(), 2, augment="mixup")
    for dataset in (make_set(), Lazy(make_set())):
        with pytest.raises(DataError, match="no 'mask'; choose from clip, label"):
            next(ClipLoader(dataset, 2, keys=("clip", "mask")).epoch(0))


def target_batch(height=20, width=28):
    """One bright rectangle a clip, drawn alike in all targets."""
    x0, y0, x1, y1 = 6, 4, 15, 12
    clip = torch.zeros(1, 3, 2, height, width, dtype=torch.uint8)
    clip[..., y0:y1, x0:x1] = 200
    mask = (clip[:, 0] > 0).to(torch.uint8) * 3
    boxes = torch.full((1, 2, 2, 5), -1.0)
    boxes[:, :, 0] = torch.tensor([x0, y0, x1, y1, 2], dtype=torch.float32)
    return {
        "clip": clip,
        "mask": mask,
        "map.seen": (clip[:, 0] > 0).float(),
        "boxes": boxes,
        "label": torch.tensor([2]),
    }


def test_flip_mirrors_every_target():
    batch = target_batch()
    flipped = augment_batch(batch, "flip", torch.zeros(1, NUM_DRAWS))
    assert torch.equal(flipped["clip"], batch["clip"].flip(-1))
    assert torch.equal(flipped["mask"], batch["mask"].flip(-1))
    assert torch.equal(flipped["map.seen"], batch["map.seen"].flip(-1))
    assert flipped["boxes"][0, 0, 0].tolist() == [13, 4, 22, 12, 2]
    assert flipped["boxes"][0, 0, 1].tolist() == [-1] * 5
    kept = augment_batch(batch, "flip", torch.full((1, NUM_DRAWS), 0.7))
    assert all(torch.equal(kept[key], batch[key]) for key in batch)


@pytest.mark.parametrize("seed", range(12))
def test_crop_moves_clip_mask_map_and_boxes_alike(seed):
    batch = target_batch()
    draws = torch.rand(1, NUM_DRAWS, generator=torch.Generator().manual_seed(seed))
    moved = augment_batch(batch, "flip+crop", draws)
    inside = moved["mask"] == 3
    assert moved["clip"].dtype == moved["mask"].dtype == torch.uint8
    assert set(moved["mask"].unique().tolist()) <= {0, 3, 255}
    # Linear and nearest resampling differ by no more than a pixel at the border of the rectangle.
    bright = moved["clip"][:, 0] > 100
    known = moved["mask"] != 255
    assert (bright ^ inside)[known].float().mean() < 0.02
    assert ((moved["map.seen"] > 0.5) ^ inside)[known].float().mean() < 0.02
    rows, columns = torch.where(inside[0, 0])
    tight = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    assert (moved["boxes"][0, 0, 0, :4] - tight).abs().max() <= 1.0
    assert moved["boxes"][0, 0, 1].tolist() == [-1] * 5
    assert torch.equal(batch["clip"], target_batch()["clip"])


def test_a_crop_without_zoom_and_shift_changes_nothing():
    batch = target_batch()
    neutral = torch.tensor([[0.9, (1.0 - 0.75) / 0.35, 0.5, 0.5]], dtype=torch.float64)
    moved = augment_batch(batch, "flip+crop", neutral)
    assert all(torch.allclose(moved[key].float(), batch[key].float(), atol=1e-3) for key in batch)


def test_a_box_that_leaves_the_frame_becomes_absent():
    batch = target_batch()
    batch["boxes"][:, :, 0] = torch.tensor([0.0, 0.0, 2.0, 2.0, 1.0])
    closest = torch.tensor([[0.9, 0.0, 1.0, 1.0]])  # the smallest window, in the lower right
    assert augment_batch(batch, "flip+crop", closest)["boxes"][0, 0, 0].tolist() == [-1] * 5


def test_padding_is_ignored_and_zero_in_maps():
    batch = target_batch()
    batch["map.seen"] = torch.ones_like(batch["map.seen"])
    widest = torch.tensor([[0.9, 1.0, 0.5, 0.5]])
    moved = augment_batch(batch, "flip+crop", widest)
    assert moved["mask"][0, 0, 0, 0] == 255
    assert moved["map.seen"][0, 0, 0, 0] == 0
    assert moved["map.seen"][0, 0, 10, 14] == 1


def test_normalize_is_the_formula():
    clip = make_set().tensors["clip"]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    expected = clip.double() / 255
    for channel in range(3):
        expected[:, channel] = (expected[:, channel] - mean[channel]) / std[channel]
    result = normalize(clip, mean, std)
    assert result.dtype == torch.float32
    assert torch.allclose(result.double(), expected, atol=1e-5)
