from __future__ import annotations

import os
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from small_sets import FRAME_HEADER, rows_of, write_table

from nas_kd.data import (
    IGNORE,
    AugmentConfig,
    ClipLoader,
    DataError,
    SequencesConfig,
    Subset,
    UnusableRowsError,
    check_sample,
    load,
)
from nas_kd.data.cache import ClipCache
from nas_kd.data.frame_store import Frame
from nas_kd.data.label_image import boxes_of, nearest
from nas_kd.data.sample import stack
from nas_kd.data.sequence_items import CameraDataset, WindowDataset, windows
from nas_kd.data.sequences import load_labelled
from nas_kd.tasks import Segmentation

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
HEIGHT, WIDTH = 20, 30
NAMES = ("sky", "road", "car")
CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)


def pixels(number, sequence="a"):
    """A frame and its labels: grey by number, a corner by the sequence; sky, road from row 10 on, a car that moves, one
    pixel without a class."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[10:] = 1
    labels[12:16, 2 + number : 8 + number] = 2
    labels[0, 0] = 9
    frame = np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)
    frame[labels == 2] = 250
    frame[-1, -1] = ord(sequence[0])
    return frame, labels


def write(root, sequence, split, numbers, mode="L"):
    """Frames and label images of one sequence; returns their rows."""
    rows = []
    for place, number in enumerate(numbers):
        frame, labels = pixels(place, sequence)
        stem = f"{split}_{sequence}_{number}"
        (root / "frames").mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(root / f"frames/{stem}.png")
        image = Image.fromarray(labels)
        if mode == "P":
            image.putpalette([7] * 768)
        if mode == "1":
            image = Image.fromarray((labels == 2) * np.uint8(255)).convert("1")
        image.save(root / f"frames/{stem}_label.png")
        rows.append((f"frames/{stem}.png", f"frames/{stem}_label.png", split, sequence, str(number)))
    return rows


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "set"
    rows = []
    for sequence, split, count in (("a", "train", 9), ("b", "train", 6), ("c", "val", 8), ("d", "test", 11)):
        rows += write(root, sequence, split, range(count))
    write_table(root, rows, FRAME_HEADER)
    return root


def config(root, **change):
    options = {"root": root, "frames": 4, "size": (HEIGHT, WIDTH), "classes": NAMES, "ignore": (9,)}
    return SequencesConfig.model_validate({**options, "cache_dir": root.parent / "cache", **change})


def test_windows_of_each_split(root):
    splits = load(config(root), seed=0)
    base = splits.weights.base
    assert isinstance(base, WindowDataset)
    # Half a window apart and up to the end: 0, 2, 4, 5 of the nine frames of a, 0, 2 of the six of b.
    assert base.starts == (0, 2, 4, 5, 9, 11)
    assert (splits.val.starts, splits.test.starts) == ((0, 4), (0, 4))
    assert splits.notes == ("3 of 11 test frames fill no window of 4 frames (max_gap 1) and are left out",)
    assert {splits.weights.indices, splits.gates.indices} == {(0, 1, 2, 3), (4, 5)}
    assert base.without_overlap([5, 4, 3, 2, 1, 0]) == [0, 2, 4]
    assert splits.compared.indices == ((0, 2) if 0 in splits.gates.indices else (4,))  # share no frame
    info = splits.info
    assert (info.num_classes, info.mask_names, info.box_names, info.name) == (3, NAMES, (), "set")
    for part in (splits.weights, splits.gates, splits.val, splits.test):
        for index in range(len(part)):
            check_sample(part[index], info, "sample")
    sample = splits.val[1]
    for place in range(4):
        frame, labels = pixels(4 + place, "c")
        expected = np.where(labels == 9, IGNORE, labels)
        assert (sample["clip"][:, place].permute(1, 2, 0).numpy() == frame).all()
        assert (sample["mask"][place].numpy() == expected).all()


def test_windows_to_measure_a_student_on_are_those_of_the_split(root):
    splits = load(config(root, boxes=True), seed=0)
    found = load_labelled(config(root, boxes=True), "test")
    assert (found.info, tuple(found.groups)) == (splits.info, splits.groups["test"])
    assert len(found.dataset) == len(splits.test) == 2
    for index in range(2):
        assert found.dataset[index].keys() == splits.test[index].keys()
        for key, value in splits.test[index].items():
            assert torch.equal(found.dataset[index][key], value)
    moving = {"camera": {"splits": ["test"], "clips_per_image": 2}}
    expected, found = load(config(root, **moving), seed=0), load_labelled(config(root, **moving), "test")
    assert (len(found.dataset), found.groups) == (22, list(expected.groups["test"]))
    assert torch.equal(found.dataset[5]["clip"], expected.test[5]["clip"])
    write_table(root, [(*row[:2], *row[3:]) for row in rows_of(root)], "path,label,sequence,frame")  # without splits
    found = load_labelled(config(root), None)
    assert found.groups == ["a", "a", "b", "c", "c", "d", "d"]
    with pytest.raises(UnusableRowsError, match=r"a_0\.png: label image .*: label values must lie in 0\.\.1"):
        load_labelled(config(root, classes=NAMES[:2]), None)
    with pytest.raises(DataError, match=r"12 frames of a sequence whose numbers are at most 1 apart, .* 34 rows hold"):
        load_labelled(config(root, frames=12), None)


def test_training_windows_hold_more_frames_for_windows_in_time(root):
    splits = load(config(root, frames=2, stored_frames=5, boxes=True), seed=0)
    assert splits.weights.base.starts == (0, 2, 4, 9, 10)
    assert splits.val.starts == (0, 2, 4, 6)
    assert (splits.info.stored[0], splits.info.frames) == (5, 2)
    item = splits.weights.base[0]
    check_sample(item, splits.info, "train[0]")

    def shown(base, augment):
        options = {"augment": augment, "seen": splits.info.seen, "consecutive": splits.info.consecutive}
        return next(ClipLoader(base, 1, **options).epoch(0))

    middle = shown(splits.weights.base, "none")
    for key, dim in (("clip", 1), ("mask", 0), ("boxes", 0)):
        assert torch.equal(middle[key][0], item[key].narrow(dim, 1, 2))
    whole = shown(splits.weights.base, AugmentConfig(temporal={"window": (1, 1)}))
    assert torch.equal(whole["mask"][0], item["mask"][[1, 3]])
    assert torch.equal(shown(splits.val, "none")["clip"][0], splits.val[0]["clip"])
    with pytest.raises(ValueError, match="stored_frames must be at least frames, 4, but is 3"):
        config(root, stored_frames=3)
    with pytest.raises(ValueError, match=r"stored_size is a key of source folder: .*; raise size, and let augment"):
        config(root, stored_size=24)


def test_samples_say_which_video_they_are_of(root):
    splits = load(config(root), seed=0)
    assert [int(splits.weights.base[i]["sequence"]) for i in range(6)] == [0, 0, 0, 0, 1, 1]
    assert {int(splits.test[i]["sequence"]) for i in range(2)} == {0}
    moving = load(config(root, camera={"clips_per_image": 2}), seed=0)
    sequences = [int(moving.weights.base[i]["sequence"]) for i in range(30)]
    assert sequences == [0] * 18 + [1] * 12
    batch = next(ClipLoader(splits.retrain, 6, keys=("clip", "sequence")).epoch(0))
    assert batch["sequence"].tolist() == [0, 0, 0, 0, 1, 1]


def frames_of(**numbers):
    return [Frame(Path(), Path(), "train", name, number) for name in numbers for number in numbers[name]]


@pytest.mark.parametrize(
    ("numbers", "stride", "max_gap", "to_end", "starts", "left_out"),
    [
        ({"a": range(8)}, 4, 1, False, [0, 4], 0),
        ({"a": range(7)}, 4, 1, False, [0], 3),
        ({"a": range(7)}, 4, 1, True, [0, 3], 0),
        ({"a": range(3)}, 4, 1, True, [], 3),
        ({"a": range(5), "b": range(5)}, 1, 1, True, [0, 1, 5, 6], 0),
        ({"a": [0, 1, 2, 3, 5, 6, 7, 8]}, 1, 1, True, [0, 4], 0),
        ({"a": [0, 1, 2, 3, 5, 6, 7, 8]}, 1, 2, True, [0, 1, 2, 3, 4], 0),
        ({"a": [0, 2, 4, 6, 36, 66, 96]}, 4, 30, False, [0], 3),
        ({}, 1, 1, True, [], 0),
        ({"a": range(20)}, 7, 1, False, [0, 7, 14], 8),
    ],
)
def test_windows_keep_to_runs(numbers, stride, max_gap, to_end, starts, left_out):
    assert windows(frames_of(**numbers), 4, stride, max_gap, to_end=to_end) == (starts, left_out)


def test_windows_hold_their_own_frames_alone(root):
    base = load(config(root, boxes=True), seed=0).weights.base
    clips = [base[index]["clip"] for index in range(len(base))]
    assert max(clip.untyped_storage().nbytes() for clip in clips) == 4 * 4 * HEIGHT * WIDTH  # with the labels
    text = pickle.dumps(base)
    assert len(text) < 4 * HEIGHT * WIDTH * 15  # what workers receive has no frames in it
    assert torch.equal(pickle.loads(text)[3]["clip"], clips[3])


@pytest.mark.parametrize("camera", [None, {"splits": ["train", "val"], "clips_per_image": 2}])
def test_memory_and_disk_give_the_same_batches(root, camera):
    part = load(config(root, boxes=True, camera=camera), seed=0).retrain
    held = Subset(stack(part.base), part.indices)
    read = [list(ClipLoader(each, 4, shuffle=True, augment="flip+crop").epoch(1)) for each in (held, part)]
    for first, second in zip(*read, strict=True):
        assert all(torch.equal(first[key], second[key]) for key in ("clip", "mask", "boxes", "label", "index"))


def test_frames_are_decoded_once_and_shared_by_all_settings_of_windows(root, monkeypatch):
    load(config(root), seed=0)
    (shard,) = ClipCache(root.parent / "cache", 10**9).shards
    assert len(shard) == 9 + 6 + 8 + 11
    with monkeypatch.context() as patch:
        patch.setattr("nas_kd.data.frame_store.read_still", lambda *_: pytest.fail("decoded again"))
        load(config(root, frames=3, stride=1, boxes=True), seed=1)
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(root / rows_of(root)[0][1])
    assert (load(config(root), seed=0).weights.base[0]["mask"][0] == 1).all()


def test_boxes_are_the_tight_boxes_of_all_classes_but_the_first(root):
    splits = load(config(root, boxes=True), seed=0)
    assert splits.info.box_names == ("road", "car")
    check_sample(splits.val[0], splits.info, "val[0]")
    for _ in range(2):  # found, and kept
        boxes = splits.val[0]["boxes"]
        for place in range(4):
            assert boxes[place].tolist() == [[0, 10, WIDTH, HEIGHT, 0], [2 + place, 12, 8 + place, 16, 1]]
    few = load(config(root, boxes=True, min_box_pixels=25), seed=0).val[0]["boxes"]
    assert (few[:, 1] == -1).all()
    assert (few[:, 0, 4] == 0).all()


def test_boxes_agree_with_the_obvious_way():
    rng = np.random.default_rng(0)
    mask = np.where(rng.random((6, 9, 7)) < 0.8, 0, rng.integers(0, 5, (6, 9, 7))).astype(np.uint8)
    mask[0], mask[1] = 0, IGNORE
    boxes = boxes_of(mask, 4, 2)
    for frame, found in zip(mask, boxes, strict=True):
        for number in range(4):
            rows, columns = np.nonzero(frame == number + 1)
            expected = [-1.0] * 5
            if len(rows) >= 2:
                expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, number]
            assert found[number].tolist() == expected


@pytest.mark.parametrize("mode", ["1", "L"])
def test_binary_masks(tmp_path, mode):
    rows = [
        row
        for name, split in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "test"))
        for row in write(tmp_path, name, split, range(4), mode)
    ]
    write_table(tmp_path, rows, FRAME_HEADER)
    splits = load(config(tmp_path, classes=(), ignore=(), binary=True, boxes=True), seed=0)
    assert splits.info.mask_names == splits.info.class_names == ("background", "object")
    _, labels = pixels(1)
    expected = labels == 2 if mode == "1" else labels > 0
    assert (splits.test[0]["mask"][1].numpy() == expected).all()


def test_a_palette_counts_by_its_indices(tmp_path):
    rows = [
        row
        for name, split in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "test"))
        for row in write(tmp_path, name, split, range(4), "P")
    ]
    write_table(tmp_path, rows, FRAME_HEADER)
    assert set(load(config(tmp_path), seed=0).test[0]["mask"].unique().tolist()) == {0, 1, 2, IGNORE}


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(10, 10), (8, 24), (40, 60), (15, 11)])
def test_labels_are_scaled_with_the_geometry_of_the_frames(root, fit, size):
    splits = load(config(root, size=size, fit=fit), seed=0)
    sample = splits.test[0]
    bright, car = sample["clip"][0] > 128, sample["mask"] == 2
    assert car.any()
    overlap = (bright & car).sum() / (bright | car).sum()
    assert overlap > 0.6


def test_nearest_repeats_and_skips_whole_pixels():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (nearest(labels, 6, 8, "stretch") == labels.repeat(2, 0).repeat(2, 1)).all()
    assert (nearest(labels.repeat(3, 0).repeat(3, 1), 3, 4, "crop") == labels).all()
    assert (nearest(labels, 3, 2, "crop") == labels[:, 1:3]).all()


def test_every_unusable_row_is_listed_before_anything_is_trained(root):
    rows = rows_of(root)
    good = rows[0][1]
    damage = {
        "missing_frame": ("nowhere.png", good, "no such file"),
        "missing_label": (None, "nowhere.png", "label image nowhere.png: no such file"),
        "blank_label": (None, "", "the label is empty"),
        "outside": ("../outside.png", good, "leaves the root"),
        "outside_label": (None, "../outside.png", "leaves the root"),
        "text": ("text.png", good, "not a readable image"),
        "folder": ("frames", good, "not a readable image"),
        "text_label": (None, "text.png", "label image text.png: not a readable image"),
        "cut_label": (None, "cut.png", "label image cut.png: not a readable image"),
        "small_label": (None, "small.png", "size of its frame, 20x30, but it has 5x6"),
        "high_label": (None, "high.png", "such as 77; list it in ignore"),
        "lossy_label": (None, "lossy.jpg", "a format that keeps every value, such as PNG, but it is a JPEG"),
        "stack_label": (None, "stack.tif", "must be a single frame, but it has 2"),
        "colour_label": (None, "colour.png", "one channel of class indices, but its mode is RGB"),
    }
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(root.parent / "outside.png")
    os.mkfifo(root / "pipe.png")
    (root / "text.png").write_text("no image")
    (root / "cut.png").write_bytes((root / good).read_bytes()[:60])
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(root / "small.png")
    Image.fromarray(np.full((HEIGHT, WIDTH), 77, np.uint8)).save(root / "high.png")
    grey = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8))
    grey.save(root / "lossy.jpg")
    grey.save(root / "stack.tif", save_all=True, append_images=[grey])
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(root / "colour.png")
    expected = {}
    for name, (path, label, words) in damage.items():
        if path is None:
            path = f"{name}.png"
            Image.fromarray(pixels(0)[0]).save(root / path)
        rows.append([path, label, "train", name, "0"])
        expected[path] = words
    for name, row, words in (
        ("dev.png", [good, "dev", "x", "1"], "unknown split 'dev'"),
        ("minus.png", [good, "train", "x", "-1"], "whole number ≥ 0, but it holds '-1'"),
        ("long.png", [good, "train", "x", "9" * 5000], "whole number ≥ 0, but it holds '999"),
        ("pipe_label.png", ["pipe.png", "train", "x", "7"], "label image pipe.png: it is neither a file nor a folder"),
        ("nameless.png", [good, "train", "", "1"], "the column sequence is empty"),
        ("twin.png", [good, "train", "a", "003"], "same split, sequence and frame number as line 5"),
    ):
        Image.fromarray(pixels(0)[0]).save(root / name)
        rows.append([name, *row])
        expected[name] = words
    rows.append([rows[0][0], good, "test", "z", "0"])
    expected[rows[0][0]] = "names the same file as line 2"
    write_table(root, rows, FRAME_HEADER)
    with pytest.raises(UnusableRowsError) as caught:
        load(config(root), seed=0)
    problems = dict(caught.value.problems)
    assert problems.keys() == expected.keys()
    for path, words in expected.items():
        assert words in problems[path], (path, problems[path])
    message = str(caught.value)
    assert "mend the files or remove the rows" in message
    assert message.isprintable()


def test_val_is_carved_by_sequences(root):
    rows = [[*row[:2], "train" if row[2] == "val" else row[2], *row[3:]] for row in rows_of(root)]
    write_table(root, rows, FRAME_HEADER)
    for camera in (None, {"margin": 0.5}):
        splits = load(config(root, camera=camera), seed=0)
        assert "1 of 3 training sequences validate (seed 0)" in splits.notes[0]
        carved = {frame.sequence for frame in splits.val.store.frames}
        assert len(carved) == 1
        assert splits.val.store.size == (HEIGHT, WIDTH)
    only = [row for row in rows if row[2] == "test" or row[3] == "a"]
    write_table(root, only, FRAME_HEADER)
    with pytest.raises(DataError, match="val must have rows where fewer than 2 training sequences"):
        load(config(root), seed=0)


def copy_frames(root, of, to):
    """The frames of a sequence get the pixels of another one's, under their own names and with their own labels."""
    rows = {(row[3], row[4]): row[0] for row in rows_of(root)}
    for (sequence, number), path in rows.items():
        if sequence == to and (of, number) in rows:
            (root / path).write_bytes((root / rows[of, number]).read_bytes())


def test_splits_that_share_frames_are_named(root):
    copy_frames(root, "a", "d")
    assert load(config(root), seed=0).notes[0] == (
        "warning: 9 files of labels.csv in test have the content of files in train, so scores may be too good: "
        + ", ".join(f"frames/test_d_{k}.png is frames/train_a_{k}.png" for k in range(9))
    )


def test_frames_with_two_label_images_are_named(root):
    path = root / "frames/train_b_0.png"
    path.write_bytes((root / "frames/train_b_1.png").read_bytes())
    expected = (
        "warning: 1 files of labels.csv have the content of another with another label: frames/train_b_0.png is "
        "'frames/train_b_0_label.png' and frames/train_b_1.png 'frames/train_b_1_label.png'; mend or remove one of both"
    )
    assert expected in load(config(root), seed=0).notes
    # Of a picture that was shown twice, people look at other points.
    assert load(config(root, points=True, classes=(), ignore=()), seed=0).notes == load(config(root), seed=0).notes[1:]


def test_sequences_that_share_frames_stay_on_one_side(root):
    rows = [[*row[:2], "train" if row[2] == "val" else row[2], *row[3:]] for row in rows_of(root)]
    write_table(root, rows + write(root, "e", "train", range(7)), FRAME_HEADER)
    copy_frames(root, "a", "e")
    copy_frames(root, "b", "c")
    for seed in range(4):
        splits = load(config(root), seed=seed)
        carved = {frame.sequence for frame in splits.val.store.frames}
        assert carved in ({"a", "e"}, {"b", "c"})
        assert not any("content of files in" in note for note in splits.notes)
    splits = load(config(root, val_share=0.01), seed=0)
    assert {frame.sequence for frame in splits.val.store.frames} == {"b", "c"}
    # Weights and gates, too: b and c against a and e, where val has sequences of its own.
    write_table(root, rows_of(root) + write(root, "f", "val", range(4)), FRAME_HEADER)
    splits = load(config(root), seed=0)
    base = splits.weights.base
    sides = [
        {base.store.frames[base.starts[i]].sequence for i in part.indices} for part in (splits.weights, splits.gates)
    ]
    assert sorted(map(sorted, sides)) == [["a", "e"], ["b", "c"]]


def test_one_training_sequence_is_noted(root):
    write_table(root, [row for row in rows_of(root) if row[3] != "b"], FRAME_HEADER)
    splits = load(config(root), seed=0)
    assert len(splits.weights) == len(splits.gates) == 2
    assert "one training sequence" in splits.notes[-1]


def test_a_split_without_windows_says_what_would_help(root):
    rows = [[*row[:4], str(30 * int(row[4])) if row[3] == "d" else row[4]] for row in rows_of(root)]
    write_table(root, rows, FRAME_HEADER)
    with pytest.raises(DataError, match=r"split 'test' must hold at least one window of 4 .* set max_gap: 30"):
        load(config(root), seed=0)
    assert len(load(config(root, max_gap=30), seed=0).test) == 2
    with pytest.raises(DataError, match="lower frames, add rows with split=train"):
        load(config(root, max_gap=30, frames=10), seed=0)
    # Each frame is a clip of its own under a camera, however far apart frames are.
    splits = load(config(root, camera={"splits": ["test"]}), seed=0)
    assert len(splits.test) == 11


def test_camera_clips_are_made_of_single_frames(root, monkeypatch):
    change = {"boxes": True, "camera": {"clips_per_image": 2, "shift": 0.05, "noise": 0.02}}
    splits = load(config(root, **change), seed=0)
    assert (len(splits.retrain), len(splits.val)) == (30, 2)
    assert {len(splits.weights), len(splits.gates)} == {18, 12}
    base = splits.weights.base
    assert isinstance(base, CameraDataset)
    again = load(config(root, cache_dir=root.parent / "other", **change), seed=7).weights.base
    for index in (0, 1, 29):
        check_sample(base[index], splits.info, "sample")
        assert all(torch.equal(base[index][key], again[index][key]) for key in base[index])
    with monkeypatch.context() as patch:
        patch.setattr("nas_kd.data.sequence_items.warp", lambda *_: pytest.fail("made again"))
        lazy = load(config(root, **change), seed=7).weights.base
        assert torch.equal(lazy[29]["mask"], base[29]["mask"])
    assert not torch.equal(lazy[0]["clip"], lazy[1]["clip"])
    assert not torch.equal(lazy[0]["clip"][:, 0], lazy[0]["clip"][:, 3])
    with pytest.raises(IndexError):
        lazy[30]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ()}, "at least 2 label values, but it names 0"),
        ({"classes": ("a", "a")}, "classes must be names that differ"),
        ({"binary": True}, "name background and object"),
        ({"classes": tuple(map(str, range(256)))}, "at most 255"),
        ({"frames": 0}, "greater than or equal to 1"),
        ({"max_gap": 0}, "greater than or equal to 1"),
        ({"camera": {"speed": 1}}, "Extra inputs"),
    ],
)
def test_config_refuses(root, change, words):
    with pytest.raises(ValidationError, match=words):
        config(root, **change)


def test_a_table_without_the_columns_is_named(root):
    with pytest.raises(DataError, match="must have the columns path,label,split,sequence,time, but it lacks time"):
        load(config(root, order="time"), seed=0)


def real(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs ../shared/data/{name} beside the checkout")
    return SHARED / name


def test_davis16_reads(tmp_path):
    root = real("davis16-val-saliency")
    splits = load(
        SequencesConfig(root=root, size=(16, 28), binary=True, boxes=True, cache_dir=tmp_path / "cache"), seed=0
    )
    base = splits.weights.base
    parts = (base.store, splits.val.store, splits.test.store)
    assert [len({frame.sequence for frame in store.frames}) for store in parts] == [12, 3, 5]
    assert [len(store.frames) for store in parts] == [858, 169, 349]
    assert len(splits.val) == sum(count // 8 for count in (40, 49, 80))
    check_sample(splits.test[0], splits.info, "test[0]")
    masks = torch.stack([splits.test[index]["mask"] for index in range(len(splits.test))])
    assert 0.02 < (masks == 1).float().mean() < 0.3
    sequences = [
        {base.store.frames[base.starts[i]].sequence for i in part.indices} for part in (splits.weights, splits.gates)
    ]
    assert not sequences[0] & sequences[1]


def test_camvid_reads(tmp_path):
    root = real("camvid-segnet")
    camera = {"splits": ["train", "test"]}
    splits = load(
        SequencesConfig.model_validate(
            {
                **{"root": root, "size": (12, 16), "classes": CAMVID, "ignore": (11,), "order": "source_frame"},
                **{"max_gap": 2, "camera": camera, "cache_dir": tmp_path / "cache"},
            }
        ),
        seed=0,
    )
    assert splits.val.starts == tuple(range(0, 96, 8))
    assert splits.notes[-1] == "5 of 101 val frames fill no window of 8 frames (max_gap 2) and are left out"
    shared = [(note.partition(" are in ")[2].partition(",")[0], note.split(": ")[-1]) for note in splits.notes[:-1]]
    assert shared == [("train and in val", "0016E5"), ("train and in test", "0001TP")]  # as the set is published
    assert (len(splits.retrain), len(splits.test)) == (367, 233)
    check_sample(splits.val[0], splits.info, "val[0]")
    seen = set(splits.val[0]["mask"].unique().tolist())
    assert {0, 1, 3} <= seen


def test_the_advice_for_masks_of_0_and_255_leads_to_the_object(tmp_path):
    rows = []
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for number in range(count):
            for frame in range(2):
                name = f"{split}{number}_{frame}"
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{name}.jpg")
                Image.fromarray(np.pad(np.full((4, 8), 255, np.uint8), ((4, 0), (0, 0)))).save(tmp_path / f"{name}.png")
                rows.append((f"{name}.jpg", f"{name}.png", split, f"{split}{number}", str(frame)))
    write_table(tmp_path, rows, FRAME_HEADER)
    options = {"root": tmp_path, "frames": 2, "size": 8, "cache_dir": tmp_path / "cache"}
    with pytest.raises(UnusableRowsError, match="such as 255; set binary: true if that is the object"):
        load(SequencesConfig(**options, classes=("background", "object")), seed=0)
    advised = load(SequencesConfig(**options, classes=("background", "object"), binary=True), seed=0)
    assert advised.test[0]["mask"].flatten().bincount().tolist() == [64, 64]
    ignored = load(SequencesConfig(**options, classes=("background", "object"), ignore=(255,)), seed=0)
    with pytest.raises(DataError, match="need binary: true, not ignore"):
        Segmentation(ignored.info).check_splits(ignored)


def test_the_advice_for_a_net_of_clips_leads_to_its_maps(root, monkeypatch):
    page = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page.partition("## Segmentation nets of clips")[2], re.DOTALL)
    place = root.parent / "data" / "frames"
    place.parent.mkdir()
    root.rename(place)
    monkeypatch.chdir(root.parent)

    class OfClips(torch.nn.Module):
        """The class is 2 where a pixel is bright; elsewhere the number of the frame in its clip, odd or even."""

        def forward(self, clip):
            odd = (torch.arange(clip.shape[2]) % 2).view(1, 1, -1, 1, 1).expand_as(clip[:, :1])
            return torch.cat([1 - odd, odd.float(), 2.0 * (clip[:, :1] > 0.9)], 1)

    module = ModuleType("mymodels")
    module.unet_of_clips = OfClips
    monkeypatch.setitem(sys.modules, "mymodels", module)
    exec(compile(code, "docs/teachers.md", "exec"), {})
    splits = load(config(place, labels="labels-of-net.csv"), seed=0)
    base, own = splits.weights.base, load(config(place), seed=0)
    for window, start in enumerate(base.starts):
        for t in range(4):
            number = start + t - (9 if start >= 9 else 0)  # in its sequence
            bright = np.array(pixels(number, "a" if start < 9 else "b")[0][..., 0] == 250)
            assert (base[window]["mask"][t].numpy() == np.where(bright, 2, number % 2)).all()
    assert torch.equal(splits.val[1]["mask"], own.val[1]["mask"])
