from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from small_sets import features_of, rows_of, write_table

from nas_kd.data import ClipLoader, DataError, FeaturesConfig, UnusableRowsError, check_sample, load
from nas_kd.data.arrays import ArrayFiles, parse_place
from nas_kd.data.features import FeaturesDataset, load_labelled
from nas_kd.data.sample import DecodeError

T, D = 6, 3
COUNTS = {"train": 8, "val": 4, "test": 4}


def values(split: str) -> np.ndarray:
    """Item i of a split has i + t / 10 + d / 100 at frame t and feature d, and 100, 200 on top for val and test."""
    first = 100 * list(COUNTS).index(split)
    items, frames, features = np.meshgrid(np.arange(COUNTS[split]), np.arange(T), np.arange(D), indexing="ij")
    return first + items + frames / 10 + features / 100


@pytest.fixture
def root(tmp_path):
    """One .npy file a split; labels alternate between a and b."""
    root = tmp_path / "set"
    root.mkdir()
    rows = []
    for split, count in COUNTS.items():
        np.save(root / f"{split}.npy", values(split).astype(np.float32))
        rows += [(f"{split}.npy#{index}", "ab"[index % 2], split) for index in range(count)]
    write_table(root, rows)
    return root


def config(root: Path, **change: object) -> FeaturesConfig:
    return FeaturesConfig.model_validate({"root": root, "cache_dir": root.parent / "cache", **change})


def test_rows_of_arrays_become_four_splits(root):
    splits = load(config(root), seed=0)
    assert (splits.info.input_key, splits.info.input_shape) == ("features", (T, D))
    assert (splits.info.class_names, splits.info.multi_label, splits.info.flip_safe) == (("a", "b"), False, False)
    assert [len(part) for part in (splits.weights, splits.gates, splits.val, splits.test)] == [4, 4, 4, 4]
    assert (splits.skipped, splits.notes) == ((), ())
    for name in ("retrain", "val", "test"):
        expected = values("train" if name == "retrain" else name)
        np.testing.assert_array_equal(features_of(splits, name).numpy(), expected.astype(np.float32))
        dataset = getattr(splits, name)
        assert [int(dataset[index]["label"]) for index in range(len(dataset))] == [0, 1] * (len(dataset) // 2)
        check_sample(dataset[0], splits.info, name)
    assert "labels" not in splits.test[0]
    (batch,) = ClipLoader(splits.test, 8).epoch(0)
    assert batch["features"].shape == (4, T, D)


@pytest.mark.parametrize(("frames", "positions"), [(2, [1, 4]), (3, [1, 3, 5]), (12, sorted([*range(T)] * 2))])
def test_items_are_brought_to_the_frames_asked_for(root, frames, positions):
    splits = load(config(root, frames=frames), seed=0)
    assert splits.info.frames == frames
    np.testing.assert_array_equal(features_of(splits, "val").numpy(), values("val").astype(np.float32)[:, positions])


def test_items_of_several_lengths_need_frames(root):
    np.save(root / "long.npy", np.ones((9, D), np.float16))
    write_table(root, [*rows_of(root), ("long.npy", "a", "train")])
    with pytest.raises(DataError, match=r"they have 6 to 9; set for example frames: 6"):
        load(config(root), seed=0)
    splits = load(config(root, frames=4), seed=0)
    assert splits.retrain[8]["features"].dtype == torch.float32  # as the others
    assert splits.retrain[8]["features"].shape == (4, D)


def test_more_frames_are_stored_than_are_seen(root):
    splits = load(config(root, frames=2, stored_frames=5), seed=0)
    assert (splits.info.frames, splits.info.stored, splits.info.seen) == (2, (5, 0, 0), (2, 0, 0))
    check_sample(splits.val[0], splits.info, "val[0]")
    (batch,) = ClipLoader(splits.val, 4, seen=splits.info.seen).epoch(0)
    stored = values("val").astype(np.float32)[:, [0, 1, 3, 4, 5]]
    np.testing.assert_array_equal(batch["features"].numpy(), stored[:, [1, 3]])
    for change in ({"stored_frames": 5}, {"frames": 3, "stored_frames": 2}):
        with pytest.raises(ValueError, match="stored_frames must come with frames, and be at least as many"):
            config(root, **change)


def test_equal_items_of_two_files_are_named(root):
    np.save(root / "copy.npy", values("train")[2])
    write_table(root, [*rows_of(root), ("copy.npy", "b", "test")])
    notes = load(config(root), seed=0).notes
    assert notes[0].endswith("so scores may be too good: copy.npy is train.npy#2")
    assert notes[1].endswith("another label: train.npy#2 is 'a' and copy.npy 'b'; mend or remove one of both")


def test_archives_and_whole_files_are_read_as_arrays_are(root):
    train = values("train").astype(np.float32)
    np.savez(root / "one.npz", only=train)
    np.savez_compressed(root / "two.npz", rgb=train, **{"7": train[7]})
    np.save(root / "item.npy", np.asfortranarray(train[6]))
    np.savez(root / "item.npz", item=train[5].astype(">f4"))
    paths = ["one.npz#0", "two.npz#rgb#1", "two.npz#rgb#2", "one.npz#3", "train.npy#4", "item.npz", "item.npy"]
    old = rows_of(root)
    write_table(root, [(path, *old[index][1:]) for index, path in enumerate(paths)] + old[7:])
    splits = load(config(root), seed=0)
    np.testing.assert_array_equal(features_of(splits).numpy(), train)
    cached = {path.name: path.stat().st_size for path in splits.weights.base._cache.folder.glob("*.clips")}
    assert 5 * train[0].nbytes < sum(cached.values()) < 6 * train[0].nbytes + 500  # only what lies in archives
    (root / "two.npz").unlink()
    assert splits.retrain[1]["features"].tolist() == train[1].tolist()
    assert pickle.loads(pickle.dumps(splits.weights.base))[2]["features"].tolist() == train[2].tolist()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a.npy", ("a.npy", "", None)),
        ("a/b.NPY#12", ("a/b.NPY", "", 12)),
        ("a.npz#007", ("a.npz", "", 7)),
        ("a.npz#x", ("a.npz", "x", None)),
        ("a.npz#x#7", ("a.npz", "x", 7)),
        ("a.npz#3#7", ("a.npz", "3", 7)),
    ],
)
def test_paths_follow_one_rule(text, place):
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text", ["", "a", "a.npy#", "a.npy#x", "a.npy#-1", "a.npy#1#2", "a.npz#x#y", "a.npz##1", "a.npz#x#1#2", "a.txt#1"]
)
def test_other_paths_are_refused(text):
    with pytest.raises(DecodeError):
        parse_place(text)


def test_float16_stays_float16_and_bytes_become_floats(root):
    for split in COUNTS:
        np.save(root / f"{split}.npy", (values(split)).astype(np.float16))
    assert features_of(load(config(root), seed=0)).dtype == torch.float16
    for split, count in COUNTS.items():
        np.save(root / f"{split}.npy", np.arange(count * T * D).astype(np.uint8).reshape(count, T, D))
    splits = load(config(root), seed=0)
    assert features_of(splits).dtype == torch.float32
    assert features_of(splits)[1, 0].tolist() == [18, 19, 20]
    for split in COUNTS:
        np.save(root / f"{split}.npy", values(split))
    np.testing.assert_array_equal(features_of(load(config(root), seed=0)).numpy(), values("train").astype(np.float32))


def test_rows_with_several_classes(root):
    rows = rows_of(root)
    rows[0] = (rows[0][0], "c; a", "train")
    write_table(root, rows)
    splits = load(config(root), seed=0)
    assert (splits.info.multi_label, splits.info.class_names) == (True, ("a", "b", "c"))
    first, second = splits.retrain[0], splits.retrain[1]
    assert (first["labels"].tolist(), int(first["label"])) == ([1, 0, 1], 2)
    assert (second["labels"].tolist(), int(second["label"])) == ([0, 1, 0], 1)
    check_sample(first, splits.info, "x")


def test_labels_may_be_asked_for(root):
    splits = load(config(root, multi_label=True), seed=0)
    assert splits.info.multi_label
    assert [splits.val[index]["labels"].tolist() for index in range(2)] == [[1, 0], [0, 1]]


def test_items_to_measure_a_student_on_are_those_of_the_split(root):
    rows = [(place, "a;b" if place.endswith("#2") else label, split) for place, label, split in rows_of(root)]
    write_table(root, [(*row, f"r{n // 2}") for n, row in enumerate(rows)], "path,label,split,recording")
    options = {"frames": 2, "stored_frames": 4, "group": "recording"}
    splits = load(config(root, **options), seed=0)
    known = config(root, **options, classes=("a", "b"), multi_label=True)
    found = load_labelled(known, "test")
    assert found.info == splits.info
    assert tuple(found.groups) == splits.groups["test"] == ("r6", "r6", "r7", "r7")
    for index in range(4):
        for key, value in splits.test[index].items():
            assert torch.equal(found.dataset[index][key], value)
    write_table(root, [row[:2] for row in rows], "path,label")  # a table of one's own
    found = load_labelled(known, None)
    assert (len(found.dataset), found.groups) == (16, None)
    with pytest.raises(UnusableRowsError, match=r"#2: its label 'b' is none of the student's classes"):
        load_labelled(config(root, frames=2, classes=("a", "c"), multi_label=True), None)
    with pytest.raises(UnusableRowsError, match=r"#2: it has several labels, but the student gives one class"):
        load_labelled(config(root, frames=2, classes=("a", "b")), None)


def promising(rows):
    """The header of a file of numpy with many more rows than follow."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 4), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_rows_that_cannot_be_used_are_all_named(root):
    spoilt = values("train")
    spoilt[3, 2, 1], spoilt[4, 5, 0], spoilt[5, 0, 0] = np.nan, -np.inf, 1e300
    np.save(root / "train.npy", spoilt)
    np.save(root / "wide.npy", np.ones((2, T, D + 1)))
    np.save(root / "flat.npy", np.ones(7))
    np.save(root / "empty.npy", np.ones((0, D)))
    np.save(root / "whole.npy", np.ones((T, D), np.int64))
    np.save(root / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(root / "two.npz", a=np.ones((T, D)), b=np.ones((T, D)))
    np.savez(root / "none.npz")
    np.savez(root / "objects.npz", a=np.array([{}], dtype=object))
    np.save(root / "bytes.npy", np.ones((T, D), np.uint8))
    np.savez(root / "locked.npz", a=np.ones((T, D)))
    locked = bytearray((root / "locked.npz").read_bytes())
    locked[locked.find(b"PK\x01\x02") + 8] |= 1
    locked[6] |= 1
    (root / "locked.npz").write_bytes(locked)
    with zipfile.ZipFile(root / "promise.npz", "w") as archive:
        archive.writestr("a.npy", promising(10**15))
    os.mkfifo(root / "pipe.npy")
    (root / "text.npy").write_text("no array")
    (root / "text.npz").write_text("no archive")
    (root / "cut.npz").write_bytes((root / "two.npz").read_bytes()[:300])
    (root / "single.npz").write_bytes((root / "flat.npy").read_bytes())
    (root / "cut.npy").write_bytes((root / "train.npy").read_bytes()[:500])
    (root.parent / "outside.npy").write_bytes((root / "whole.npy").read_bytes())
    wrong = {
        "train.npy#3": "finite",
        "train.npy#4": "finite",
        "train.npy#5": "finite",
        "train.npy#8": r"0..7, but it is 8",
        "train.npy": "name its row after a #",
        "wide.npy#1": "have 4 features, but most items' have 3",
        "flat.npy": "the shape (7,)",
        "flat.npy#0": "the shape (7,)",
        "empty.npy": "the shape (0, 3)",
        "whole.npy": "but are int64",
        "objects.npy": "cannot be read",
        "two.npz": "must be named after a #: a, b",
        "two.npz#c": "no array 'c'; choose from a, b",
        "two.npz#a#0": "rows need an array",
        "none.npz": "it holds none",
        "objects.npz": "cannot be read",
        "text.npy": "cannot be read",
        "text.npz": "cannot be read",
        "single.npz": "holds a single array",
        "cut.npy": "cannot be read",
        "cut.npz": "cannot be read",
        "locked.npz": "is encrypted",
        "promise.npz": "cannot be read",
        "pipe.npy": "it is neither a file nor a folder",
        "bytes.npy": "its features are bytes (uint8), but most items' are floats",
        "../outside.npy": "leaves the root",
        "absent.npy#0": "no such file",
        "train.mat": "must lie in .npy or .npz files",
        "./train.npy#0": "names the same item as line 2",
    }
    kept = [row for row in rows_of(root) if row[0] not in wrong]
    more = [("val.npy#x", "a", "val"), ("", "a", "val"), ("whole.npy#1", "", "val"), ("whole.npy#2", "a;", "val")]
    more += [("whole.npy#3", "a;a", "val"), ("whole.npy#4", "a", "dev")]
    write_table(root, [*kept, *((path, "a", "train") for path in wrong), *more])
    with pytest.raises(UnusableRowsError, match="35 of 48 are not") as caught:
        load(config(root), seed=0)
    reasons = dict(caught.value.problems)
    for path, words in wrong.items():
        assert words in reasons[path], (path, reasons[path])
    assert reasons["line 45"] == "the path is empty"
    assert "file.npy#row" in reasons["val.npy#x"]
    assert reasons["whole.npy#1"] == "the label is empty"
    assert "has an empty part" in reasons["whole.npy#2"]
    assert "names a class twice" in reasons["whole.npy#3"]
    assert "unknown split 'dev'" in reasons["whole.npy#4"]

    splits = load(config(root, on_error="skip"), seed=0)
    assert len(splits.retrain) == 5
    assert len(splits.skipped) == 35
    assert splits.notes == ("35 of 48 rows of labels.csv were left out",)


def test_val_is_carved_where_there_is_none(root):
    write_table(root, [(path, label, "train" if split == "val" else split) for path, label, split in rows_of(root)])
    splits = load(config(root, val_share=1 / 3), seed=0)
    assert (len(splits.retrain), len(splits.val)) == (8, 4)
    assert [int(splits.val[index]["label"]) for index in range(4)].count(0) == 2
    assert splits.notes == ("labels.csv has no usable val rows: 4 of 12 training items validate (stratified, seed 0)",)
    assert not torch.equal(features_of(load(config(root, val_share=1 / 3), seed=1), "val"), features_of(splits, "val"))


def test_rows_of_one_group_stay_on_one_side(root):
    rows = [
        (path, label, "train" if split == "val" else split, str(index // 2))
        for index, (path, label, split) in enumerate(rows_of(root))
    ]
    write_table(root, rows, "path,label,split,take")
    splits = load(config(root, group="take", val_share=0.3), seed=0)
    base, val = splits.weights.base, splits.val
    parts = [{base.rows[index].group for index in part.indices} for part in (splits.weights, splits.gates)]
    parts.append({row.group for row in val.rows})
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 6


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("train.npy#0", "a", "train"), ("train.npy#1", "b", "train")], "the split 'test' must hold"),
        ([("train.npy#0", "a", "test"), ("train.npy#1", "b", "test")], "the split 'train' must hold"),
        (
            [("train.npy#0", "a", "train"), ("train.npy#1", "b", "train"), ("test.npy#1", "z", "test")],
            "'z' in test only",
        ),
    ],
)
def test_a_table_that_cannot_serve_is_one_sentence(root, rows, words):
    write_table(root, rows)
    with pytest.raises(DataError, match=words) as caught:
        load(config(root), seed=0)
    assert "\n" not in str(caught.value)


def test_train_share_keeps_the_same_share_of_each_class(root):
    splits = load(config(root, train_share=0.5), seed=0)
    kept = features_of(splits)[:, 0, 0].tolist()
    assert len(kept) == 4
    assert sum(round(item) % 2 for item in kept) == 2
    np.testing.assert_array_equal(features_of(splits, "val").numpy(), values("val").astype(np.float32))
    assert splits.notes == ("train_share 0.5: 4 of 8 training items are kept",)
    # By the data's own seed, not by that of the campaign.
    assert sorted(features_of(load(config(root, train_share=0.5), seed=9))[:, 0, 0].tolist()) == kept
    others = [features_of(load(config(root, train_share=0.5, seed=s), seed=0))[:, 0, 0].tolist() for s in range(1, 5)]
    assert any(other != kept for other in others)


def test_a_class_that_train_share_leaves_nothing_of_is_noted(root):
    np.save(root / "rare.npy", np.ones((T, D), np.float32))
    write_table(root, [*rows_of(root), ("rare.npy", "rare", "train")])
    splits = load(config(root, train_share=0.25), seed=0)
    assert splits.notes[1] == "train_share 0.25 leaves no training item of 1 classes: rare"


def test_shuffled_frames_are_the_same_frames(root):
    plain, one = features_of(load(config(root), seed=0)), features_of(load(config(root, shuffle_frames=True), seed=0))
    assert torch.equal(one.sort(dim=1).values, plain)
    orders = one[:, :, 0] - plain[:, :1, 0]
    assert len({tuple(order.round(decimals=2).tolist()) for order in orders}) > 4  # not one order for all
    assert torch.equal(one, features_of(load(config(root, shuffle_frames=True), seed=5)))
    assert not torch.equal(one, features_of(load(config(root, shuffle_frames=True, seed=1), seed=0)))


@pytest.mark.parametrize("frames", [3, 6, 12])
def test_distractors_are_frames_of_other_items_of_the_same_split(root, frames):
    share = 1 / 3
    for name, split in (("retrain", "train"), ("test", "test")):
        found = features_of(load(config(root, distractors=share, frames=frames), seed=0), name).numpy()
        plain = features_of(load(config(root, frames=frames), seed=0), name).numpy()
        changed = (found != plain).any(axis=2)
        owner = np.floor(found[:, :, 0] + 1e-3).astype(int) - np.floor(values(split)[0, 0, 0]).astype(int)
        assert changed.sum(axis=1).tolist() == [frames // 3] * COUNTS[split]
        assert (owner >= 0).all()
        assert (owner < COUNTS[split]).all()
        own = np.arange(COUNTS[split])[:, None]
        assert ((owner != own) == changed).all()
        whole_frames = {tuple(frame) for item in plain.tolist() for frame in item}
        assert {tuple(frame) for item in found.tolist() for frame in item} <= whole_frames
        assert len({tuple(row) for row in changed.tolist()}) > 1  # not the same places in all items


def test_a_distractor_needs_another_item(root):
    rows = [row for row in rows_of(root) if row[0] not in ("test.npy#1", "test.npy#2", "test.npy#3")]
    write_table(root, rows)
    with pytest.raises(DataError, match="'test' holds one item only"):
        load(config(root, distractors=0.5), seed=0)


def test_noise_is_in_units_of_each_features_own_spread(tmp_path):
    root = tmp_path / "noise"
    root.mkdir()
    rng = np.random.default_rng(0)
    spread = np.array([0.0, 0.5, 20.0])
    rows = []
    for split, shift in (("train", 0.0), ("test", 1000.0)):
        np.save(root / f"{split}.npy", shift + spread * rng.standard_normal((100, 10, 3)))
        rows += [(f"{split}.npy#{index}", "ab"[index % 2], split) for index in range(100)]
    write_table(root, rows)
    plain, noisy = (load(config(root, noise=noise, val_share=0.5), seed=0) for noise in (0.0, 2.0))
    for name in ("retrain", "val", "test"):
        added = (features_of(noisy, name) - features_of(plain, name)).flatten(0, 1)
        assert (added[:, 0] == 0).all()  # a constant feature stays one
        # The deviation of 500 to 1000 numbers is known to about 3 %, and that of the training split likewise.
        assert added[:, 1:].std(0).numpy() == pytest.approx(2 * spread[1:], rel=0.15)
        assert added[:, 1:].mean(0).numpy() == pytest.approx([0, 0], abs=5 * 2 * 20 / 500**0.5)
    train = features_of(plain).double().flatten(0, 1)
    lazy = load(config(root, noise=2.0, val_share=0.5), seed=0)
    np.testing.assert_allclose(lazy.weights.base._deviation, train.std(0, correction=0).numpy(), rtol=1e-6, atol=1e-12)
    assert torch.equal(features_of(lazy, "test"), features_of(noisy, "test"))
    # What train_share leaves out changes neither the noise of an item nor its scale.
    fewer = load(config(root, noise=2.0, train_share=0.5, val_share=0.5), seed=0)
    assert torch.equal(features_of(fewer, "test"), features_of(noisy, "test"))
    left = {tuple(item.flatten().tolist()) for item in features_of(fewer)}
    assert left < {tuple(item.flatten().tolist()) for item in features_of(noisy)}


def test_changes_come_in_the_order_that_is_documented(root):
    splits = load(config(root, distractors=0.5, shuffle_frames=True, noise=0.01), seed=0)
    replaced = features_of(load(config(root, distractors=0.5), seed=0))
    found = features_of(splits)
    spread = values("train").reshape(-1, D).std(axis=0)
    nearest = (found[:, :, None] - replaced[:, None]).abs().amax(-1).amin(-1)
    assert float(nearest.max()) < 0.01 * spread[0] * 5
    assert not torch.equal(found, replaced)


def test_lazy_items_survive_workers_and_files_that_go_away(root):
    splits = load(config(root), seed=0)
    assert isinstance(splits.val, FeaturesDataset)
    again = pickle.loads(pickle.dumps(splits.val))
    assert torch.equal(again[1]["features"], splits.val[1]["features"])
    with pytest.raises(IndexError):
        splits.val[4]
    (root / "val.npy").unlink()
    with pytest.raises(DataError, match="but no longer"):
        pickle.loads(pickle.dumps(splits.val))[0]


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr("nas_kd.data.arrays._OPEN_MAPS", 2)
    for index in range(4):
        np.save(tmp_path / f"{index}.npy", np.full((1, 1), index, np.float32))
    files = ArrayFiles()
    read = [float(files.item(tmp_path / f"{index}.npy", "", None)[0, 0]) for index in (0, 1, 0, 2, 3, 0)]
    assert read == [0, 1, 0, 2, 3, 0]
    assert len(files._maps) == 2


@pytest.mark.parametrize(
    "change",
    [{"frames": 0}, {"val_share": 1}, {"train_share": 0}, {"distractors": 1}, {"noise": -1}, {"seed": -1}, {"size": 3}],
)
def test_config_refuses(root, change):
    with pytest.raises(ValidationError):
        config(root, **change)
