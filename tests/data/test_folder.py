from __future__ import annotations

import codecs
import gc
import os
import pickle
import resource
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pandas
import pytest
import torch
from pydantic import ValidationError
from small_sets import write_image, write_table, write_video

from nas_kd.data import ClipLoader, DataError, FolderConfig, Subset, UnusableRowsError, check_sample, load
from nas_kd.data.ahead import map_ahead
from nas_kd.data.cache import ClipCache, Entry, cache_key
from nas_kd.data.decode import frame_files, read_clip
from nas_kd.data.file_identity import WHOLE_BYTES, KnownFiles, content_of
from nas_kd.data.folder import FolderDataset
from nas_kd.data.frame_maps import read_map
from nas_kd.data.frame_times import sample_positions
from nas_kd.data.sample import DecodeError, labels_of, stack
from nas_kd.data.shards import SHARD_BYTES, DamagedShardError, Shard
from nas_kd.data.spelling import notes_on_names
from nas_kd.data.splits import keep_classes
from nas_kd.data.table_classes import doubtful_labels
from nas_kd.data.table_groups import groups_of

RISING = (20, 60, 100, 140, 180, 220)


@pytest.fixture
def root(tmp_path):
    """Two classes, four clips each for training and two of each for val and test."""
    root = tmp_path / "set"
    rows = []
    for name, levels in (("dark", (10, 20, 30, 40)), ("light", (200, 210, 220, 230))):
        for split, count in (("train", 4), ("val", 2), ("test", 2)):
            for number in range(count):
                path = f"{split}/{name}{number}.mp4"
                write_video(root / path, [level + len(rows) for level in levels])  # equal files share an entry
                rows.append((path, name, split))
    write_table(root, rows)
    return root


def config(root: Path, **change: object) -> FolderConfig:
    options = {"root": root, "frames": 4, "size": 16, "cache_dir": root.parent / "cache", "val_share": 0.34, **change}
    return FolderConfig.model_validate(options)


def add_rows(root: Path, *rows: tuple[str, str, str]) -> None:
    with (root / "labels.csv").open("a", newline="") as file:
        file.writelines(",".join(row) + "\r\n" for row in rows)


def cached(root: Path) -> list[Shard]:
    return ClipCache(root.parent / "cache", 10**9).shards


def count(root: Path) -> int:
    return sum(len(shard) for shard in cached(root))


def test_a_folder_gives_four_splits(root):
    splits = load(config(root), seed=0)
    assert [len(part) for part in (splits.weights, splits.gates, splits.val, splits.test)] == [4, 4, 4, 4]
    assert splits.info.class_names == ("dark", "light")
    assert splits.retrain.indices == tuple(range(8))
    assert (splits.skipped, splits.notes) == ((), ())
    for part in (splits.weights, splits.val, splits.test):
        for index in range(len(part)):
            sample = part[index]
            check_sample(sample, splits.info, "sample")
            assert (sample["clip"].float().mean() > 128) == bool(sample["label"])


def test_more_can_be_stored_than_nets_see(root):
    splits = load(config(root, frames=2, size=12, stored_frames=4, stored_size=[16, 20]), seed=0)
    assert splits.info.input_shape == (3, 2, 12, 12)
    assert stack(splits.retrain.base).tensors["clip"].shape == (8, 3, 4, 16, 20)
    stored = load(config(root, frames=4, size=(16, 20)), seed=0)  # shares the entries of the cache
    assert count(root) == 16
    raw = stack(stored.val).tensors["clip"]
    shown = next(ClipLoader(splits.val, 4, seen=splits.info.seen).epoch(0))["clip"]
    assert torch.equal(shown, raw[:, :, [1, 3], 2:14, 4:16])
    for wrong, words in (
        ({"stored_frames": 3}, "stored_frames must be at least frames, 4, but is 3"),
        ({"stored_size": [20, 12]}, r"stored_size must be at least size in height and width, \(16, 16\), but is"),
    ):
        with pytest.raises(ValueError, match=words):
            config(root, **wrong)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "2", "0"], ("0", "2", "10")),
        (["10.0", "9.0", "-1.0"], ("-1.0", "9.0", "10.0")),
        (["007", "10", "2"], ("2", "007", "10")),
        (["c10", "c2", "2"], ("2", "c10", "c2")),
        (["1e1", "2", "9"], ("1e1", "2", "9")),
    ],
)
def test_whole_numbers_are_numbered_by_value_and_names_as_text(tmp_path, labels, names):
    rows = []
    for label in labels:
        for split in ("train", "train", "val", "test"):
            rows.append((f"{len(rows)}.png", label, split))
            write_image(tmp_path / rows[-1][0], np.full((8, 8, 3), len(rows), np.uint8))
    write_table(tmp_path, rows)
    splits = load(config(tmp_path), seed=0)
    assert splits.info.class_names == names
    assert [names[label] for label in labels_of(splits.test)] == labels
    assert any("whole numbers but not 0 to 2" in note for note in splits.notes) == all(
        label.lstrip("-").replace(".", "").isdigit() for label in labels
    )


def test_classes_are_those_that_are_listed(root):
    splits = load(config(root, classes=["light", "unseen", "dark"]), seed=0)
    assert splits.info.class_names == ("light", "unseen", "dark")
    assert {name: index for index, name in enumerate(splits.info.class_names)}["dark"] == labels_of(splits.retrain)[0]
    (root / "names.txt").write_text("light\ndark\n")
    assert load(config(root, classes="names.txt"), seed=0).info.class_names == ("light", "dark")
    assert config(root, classes=[0, 1]).classes == ("0", "1")
    with pytest.raises(DataError, match=r"data.classes must list every label of .*, but it lacks 'dark'"):
        load(config(root, classes=["light", "grey"]), seed=0)
    with pytest.raises(DataError, match=r"data.classes must be names that differ, but 'dark' is listed 2 times"):
        load(config(root, classes=["light", "dark", " dark"]), seed=0)
    with pytest.raises(DataError, match=r"lacks 'dark' \(it has 'Dark': write both alike if one class is meant\); add"):
        load(config(root, classes=["light", "Dark"]), seed=0)
    splits = load(config(root, classes=["light", "dark", "Dark"]), seed=0)
    assert splits.remarks[-1].startswith(f"warning: classes of {root.name} that differ in case")
    table = (root / "labels.csv").read_text()
    (root / "quoted.csv").write_text(table.replace(",dark,", ', "dark" , '))
    assert load(config(root, labels="quoted.csv"), seed=0).info.class_names == ("dark", "light")
    with pytest.raises(DataError, match=r"with one class a line, but .*none.txt gave: No such file"):
        load(config(root, classes="none.txt"), seed=0)


def test_progress_is_told_where_there_is_no_terminal(root, capsys):
    load(config(root), seed=0)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "decoding clips: 16 to do"
    assert last.startswith("decoding clips: 16 of 16 in ")
    assert last.endswith(" a second, 49.2 kB, the cache holds 49.2 kB of 20 GB")
    load(config(root), seed=0)
    assert capsys.readouterr().err == ""


def test_clips_are_read_one_batch_at_a_time_from_few_files(root):
    """Of 16 clips in the cache, a batch holds its own two; what is read ahead is bounded, too."""
    splits = load(config(root), seed=0)
    (shard,) = cached(root)
    assert len(shard) == 16
    base, live, most = splits.retrain.base, [], 0
    assert isinstance(base, FolderDataset)
    for batch in ClipLoader(splits.retrain, 2).epoch(0):
        live.append(weakref.ref(batch["clip"]))
        del batch
        most = max(most, sum(reference() is not None for reference in live))
    assert (len(live), most) == (4, 1)
    held = [value for value in gc.get_objects() if isinstance(value, np.ndarray) and value.shape == (3, 4, 16, 16)]
    assert held == []
    assert len(pickle.dumps(base)) < 8 * 3 * 4 * 16 * 16  # what workers receive has no clips in it


def test_files_are_decoded_once_and_again_when_they_change(root, monkeypatch):
    load(config(root), seed=0)
    assert count(root) == 16
    with monkeypatch.context() as patch:
        patch.setattr("nas_kd.data.folder.read_clip", lambda *_: pytest.fail("decoded again"))
        load(config(root), seed=0)
    write_video(root / "train/dark0.mp4", (250, 250, 250, 250))
    assert float(load(config(root), seed=0).retrain[0]["clip"].float().mean()) > 200
    assert count(root) == 17
    load(config(root, frames=2), seed=0)
    assert count(root) == 33


def test_a_lost_or_damaged_cache_entry_is_decoded_again(root):
    splits = load(config(root), seed=0)
    expected = [splits.test[index]["clip"] for index in range(4)]
    (shard,) = cached(root)
    content = shard.path.read_bytes()
    bad = {"gone": None, "cut": content[:-1], "flipped": bytes([content[0] ^ 1]) + content[1:], "no shard": b"text"}
    for name, damaged in bad.items():
        for left in cached(root):
            left.path.unlink()
        shard.path.write_bytes(content)
        again = load(config(root), seed=0)
        if damaged is None:
            shard.path.unlink()
        else:
            shard.path.write_bytes(damaged)
        for splits in (again, load(config(root), seed=0)):
            assert all(torch.equal(splits.test[index]["clip"], clip) for index, clip in enumerate(expected)), name
            assert float(splits.retrain[0]["clip"].float().mean()) < 128, name


def test_a_source_that_is_gone_is_named(root):
    splits = load(config(root), seed=0)
    shutil.rmtree(root.parent / "cache")
    (root / "test/dark0.mp4").unlink()
    with pytest.raises(DataError, match=r"dark0\.mp4 could be read .* no such file"):
        splits.test[0]


def make_hostile(root: Path) -> dict[str, str]:
    """Unusable rows of every kind; returns path to a word of its reason."""
    (root / "empty.mp4").write_bytes(b"")
    sound = (root / "train/dark0.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(sound[: len(sound) // 2])
    (root / "text.mp4").write_text("path,label,split\n" * 50)
    (root / "playlist.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    (root / "nothing").mkdir()
    (root / "broken").mkdir()
    (root / "broken/1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "link.mp4").symlink_to(root.parent / "outside.mp4")
    (root / "nowhere.mp4").symlink_to(root / "gone.mp4")
    (root / "circle.mp4").symlink_to(root / "circle.mp4")
    write_video(root.parent / "outside.mp4", RISING)
    reasons = {
        "empty.mp4": "empty (0 bytes)",
        "cut.mp4": "not a readable",
        "text.mp4": "not a readable",
        "playlist.mp4": "",
        "nothing": "holds no image",
        "broken": "1.png",
        "missing.mp4": "no such file",
        "nowhere.mp4": "no such file, as the link leads nowhere",
        "test/Light0.MP4": "no such file, but there is light0.mp4",
        "test/dark1": "no such file, but there is dark1.mp4",
        "test\\dark1.mp4": "no such file; write / between folders",
        "https://x.y/z.mp4": "no such file, as addresses are not fetched",
        "../outside.mp4": "leaves the root",
        "link.mp4": "leaves the root",
        "circle.mp4": "",  # how it is told depends on the version of Python
        "nul\0.mp4": "cannot be read",
        "x" * 300 + ".mp4": "",
    }
    add_rows(root, *[(path, "dark", "train") for path in reasons])
    add_rows(root, ("train/light0.mp4", "light", "train"), ("train/../train/light1.mp4", "light", "test"))
    add_rows(root, ("test/dark0.mp4", "dark", "holdout"), ("labels.csv", "", "train"), ("", "dark", "train"))
    return reasons | {
        "train/light0.mp4": "same file as line",
        "train/../train/light1.mp4": "same file as line",
        "test/dark0.mp4": "same file as line",
        "labels.csv": "label is empty",
        "line 39": "path is empty",
    }


def test_every_unusable_row_is_listed_before_anything_is_trained(root):
    reasons = make_hostile(root)
    with pytest.raises(UnusableRowsError) as caught:
        load(config(root), seed=0)
    problems = dict(caught.value.problems)
    assert problems.keys() == reasons.keys()
    for path, words in reasons.items():
        assert words in problems[path], (path, problems[path])
        assert str(root) not in problems[path]
    message = str(caught.value)
    assert f"{len(reasons)} of 38 are not" in message
    assert f"and {len(reasons) - 10} more" in message
    assert message.isprintable()


def test_unusable_rows_can_be_skipped(root):
    reasons = make_hostile(root)
    splits = load(config(root, on_error="skip"), seed=0)
    assert {path for path, _ in splits.skipped} == reasons.keys()
    assert len(splits.retrain) == 8
    assert splits.notes == (f"{len(reasons)} of 38 rows of labels.csv were left out",)


def test_unknown_split_is_a_reason(root):
    write_video(root / "new.mp4", RISING)
    add_rows(root, ("new.mp4", "dark", "holdout"))
    with pytest.raises(UnusableRowsError, match="unknown split 'holdout'; choose from train, val, test"):
        load(config(root), seed=0)


@pytest.mark.parametrize("keep", [0.6, 0.8, 0.95])
def test_a_streamable_video_cut_short_is_refused(tmp_path, keep):
    """The index in front survives the cut, so that the file opens and promises frames that are not there."""
    whole = tmp_path / "whole.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(whole), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(40):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    cut = tmp_path / "cut.mp4"
    content = whole.read_bytes()
    cut.write_bytes(content[: int(keep * len(content))])
    assert read_clip(whole, 8, 32, 32, "crop").shape == (3, 8, 32, 32)
    with pytest.raises(DecodeError, match=r"cut short|not a readable"):
        read_clip(cut, 8, 32, 32, "crop")


def test_val_is_carved_from_train_where_the_csv_has_none(root):
    table = (root / "labels.csv").read_text().replace(",val", ",train")
    (root / "labels.csv").write_text(table)
    splits = load(config(root), seed=5)
    assert (len(splits.retrain), len(splits.val), len(splits.test)) == (8, 4, 4)
    assert sorted(splits.val[index]["label"].item() for index in range(4)) == [0, 0, 1, 1]
    assert "4 of 12 training clips validate (stratified, seed 5)" in splits.notes[0]
    again = load(config(root), seed=5)
    assert all(torch.equal(splits.val[index]["clip"], again.val[index]["clip"]) for index in range(4))


def test_a_carved_val_takes_no_class_its_last_training_clip(tmp_path):
    """40 classes of which 30 have one training clip."""
    rows = []
    for number in range(40):
        for split, count in (("train", 1 if number < 30 else 20), ("test", 1)):
            rows += [(f"{len(rows) + i}.png", f"c{number:02d}", split) for i in range(count)]
    for path, *_ in rows:
        write_image(tmp_path / path, np.zeros((8, 8, 3), np.uint8))
    write_table(tmp_path, rows)
    for seed in range(3):
        splits = load(config(tmp_path, frames=1, size=8, val_share=0.15), seed=seed)
        assert set(labels_of(splits.retrain)) == set(range(40))
        assert set(labels_of(splits.weights)) == set(range(40))
        assert set(labels_of(splits.val)) == set(range(30, 40))
        assert (
            f"{len(splits.val)} of 230 training clips validate (stratified, seed {seed}; 30 classes" in splits.notes[0]
        )
        assert len(splits.val) >= 25
    write_table(tmp_path, [row for row in rows if row[1] < "c30"])
    with pytest.raises(DataError, match="of 30 none can be moved to it without a class losing its last one"):
        load(config(tmp_path, frames=1, size=8), seed=0)


def test_keeping_classes_moves_whole_groups_and_looks_at_all_classes_of_an_item():
    classes = [[0], [0, 2], [1], [1], [0]]
    assert keep_classes([0], [1, 2, 3, 4], classes) == ([0, 1, 2], [3, 4])
    assert keep_classes([0], [1, 2, 3, 4], classes, ["a", "b", "c", "c", "d"]) == ([0, 1, 2, 3], [4])


def test_groups_that_splits_of_the_csv_share_are_named(root):
    header, *rows = (root / "labels.csv").read_text().splitlines()
    groups = {"train": "abcd", "val": "ae", "test": "fg"}
    lines = [f"{row},{groups[row.split(',')[2]][i % 2]}" for i, row in enumerate(rows)]
    (root / "labels.csv").write_text("\n".join([f"{header},subject", *lines]))
    (note,) = load(config(root, group="subject"), seed=0).notes
    assert note.startswith("warning: 1 values of the column subject of labels.csv are in train and in val")
    assert note.endswith(": a")
    spelled = [line.removesuffix(",a") + ",A" if line.endswith(",val,a") else line for line in lines]
    (root / "labels.csv").write_text("\n".join([f"{header},subject", *spelled]))
    doubtful, note = load(config(root, group="subject"), seed=0).notes
    assert doubtful.endswith(" or of their number alone are taken as one group: 'a' and 'A'")
    assert note.endswith(" are in train and in val, so scores may be too good: a as A")
    written = [("07", "7.0"), ("-0", "0"), ("9007199254740993", "9007199254740992")]
    first, second, third = (
        groups_of([SimpleNamespace(split="train", group=name) for name in pair], "subject") for pair in written
    )
    assert (first, second, third) == (["07", "07"], ["-0", "-0"], ["9007199254740993", "9007199254740992"])
    (root / "labels.csv").write_text("\n".join([f"{header},subject", *lines[:-1], f"{rows[-1]},"]))
    with pytest.raises(UnusableRowsError, match=r"1 of 16 .*light1\.mp4: its subject is empty, but data\.group names"):
        load(config(root, group="subject"), seed=0)


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["0", "0_mask", "1", "1_mask"], "0.png and 0_mask.png"),
        (["left_01", "left_02", "right_01", "right_02"], "left_01.png and right_01.png"),
        (["a1", "b1", "c1"], ""),  # of one number each: shots that are counted by letters
        (["s1_f0", "s1_f1", "s2_f0"], ""),
    ],
)
def test_a_folder_of_frames_holds_one_image_of_each(tmp_path, names, refused):
    for level, name in enumerate(names):
        write_image(tmp_path / f"{name}.png", np.full((8, 8, 3), 50 * level, dtype=np.uint8))
    if refused:
        with pytest.raises(DecodeError, match=f"each frame must be one image, but the folder holds {refused} with"):
            read_clip(tmp_path, len(names), 8, 8, "crop")
    else:
        assert read_clip(tmp_path, len(names), 8, 8, "crop")[0, :, 0, 0].tolist() == [50 * n for n in range(len(names))]


def test_one_clip_under_two_names_in_two_splits_is_named(root):
    header, *rows = (root / "labels.csv").read_text().splitlines()
    train = next(row.split(",") for row in rows if row.endswith(",train"))
    copy = f"copy-{Path(train[0]).name}"
    shutil.copy(root / train[0], root / copy)
    (root / "labels.csv").write_text("\n".join([header, *rows, f"{copy},{train[1]},test"]))
    (note,) = load(config(root), seed=0).notes
    assert note.startswith("warning: 1 files of labels.csv in test have the content of files in train, so scores may")
    assert note.endswith(f": {copy} is {train[0]}")


@pytest.mark.parametrize("group", [None, "take"])
def test_copies_of_a_clip_are_on_one_side_of_each_split(tmp_path, group):
    """Each clip is there three times; with a group, a copy joins the groups of the others."""
    rows = []
    for number in range(24):
        for copy in range(3):
            write_image(tmp_path / f"{copy}-{number}.png", np.full((8, 8, 3), 10 * number, np.uint8))
            rows.append(
                (f"{copy}-{number}.png", "ab"[number % 2], "train", f"take{number if copy else 'x' + str(number)}")
            )
    rows.append(("test.png", "a", "test", "y"))
    write_image(tmp_path / "test.png", np.full((8, 8, 3), 255, np.uint8))
    write_table(tmp_path, rows, "path,label,split,take")
    for seed in range(3):
        splits = load(config(tmp_path, frames=1, size=8, group=group), seed=seed)
        parts = [
            {int(part[i]["clip"][0, 0, 0, 0]) for i in range(len(part))}
            for part in (splits.weights, splits.gates, splits.val)
        ]
        assert [len(part) for part in (splits.weights, splits.gates, splits.val)] == [3 * len(part) for part in parts]
        assert [len(part) for part in parts] == [8, 8, 8]
        assert len(set.union(*parts)) == 24


def test_copies_of_a_clip_with_another_label_are_named(root):
    header, *rows = (root / "labels.csv").read_text().splitlines()
    shutil.copy(root / "train/dark0.mp4", root / "copy.mp4")
    (root / "labels.csv").write_text("\n".join([header, *rows, "copy.mp4,light,train"]))
    (note,) = load(config(root), seed=0).notes
    assert note == (
        "warning: 1 files of labels.csv have the content of another with another label: train/dark0.mp4 is 'dark' and "
        "copy.mp4 'light'; mend or remove one of both"
    )


def test_labels_that_may_be_meant_as_one_are_named():
    def sentences(*names: str) -> list[str]:
        return notes_on_names([names], "clips") + doubtful_labels(names, Path("labels.csv"))

    assert sentences("run", "runs", "0", "1", "10") == []
    assert sentences("0.5", "run") == sentences("1.0", "2.") == []
    assert "are numbers with fractions" in sentences("0.5", "2")[0]
    names = ("run", "Run", "a  b", "a b", "\u00e9", "e\u0301", "1", "01", "1.0", "2", "ab", "a\u200cb")
    (sentence,) = notes_on_names([names, names[:2]], "clips")
    pairs = sentence.partition("own: ")[2].partition(";")[0]
    assert (
        pairs == r"'run' and 'Run', 'a  b' and 'a b', '\xe9' and 'e\u0301', '1' and '01' and '1.0', 'ab' and 'a\u200cb'"
    )
    assert sentences("nan", "run")[0].startswith("warning: 'nan' is a class of labels.csv, but may stand for a missing")


def test_rows_of_one_group_stay_on_one_side(root):
    """Also where tables wrote its number in several ways."""
    lines = (root / "labels.csv").read_text().replace(",val", ",train").split()
    takes = [f"{number % 6}{'.0' * (number % 4 > 1)}" for number in range(len(lines))]
    grouped = [f"{lines[0]},take", *(f"{line},{take}" for line, take in zip(lines[1:], takes, strict=False))]
    (root / "labels.csv").write_text("\n".join(grouped))
    splits = load(config(root, group="take"), seed=0)
    parts = (splits.weights, splits.gates, Subset(splits.val, range(len(splits.val))))
    takes = [{float(part.base.rows[index].group) for index in part.indices} for part in parts]
    assert all(takes)
    assert sum(map(len, takes)) == len(set.union(*takes))
    with pytest.raises(DataError, match="must have the columns path,label,split,performer, but it lacks performer"):
        load(config(root, group="performer"), seed=0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("path,label\na.mp4,x\n", "lacks split"),
        ("", "its first line reads nothing"),
        ("path,label,split\n", "no row below its header"),
        ("path,label,split\ntrain/dark0.mp4,a,train\ntrain/dark1.mp4,b,train\n", "the split 'test' must hold"),
        ("path,label,split\ntrain/dark0.mp4,a,train\ntest/dark0.mp4,A,test\n", "train has 'a': write .* test only"),
        ("path,label,split\ntrain/dark0.mp4,a,train\ntest/dark0.mp4,a,test\n", "(?s)."),
    ],
)
def test_a_table_that_cannot_serve_is_one_sentence(root, table, words):
    (root / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=words) as caught:
        load(config(root), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"size": (8, -1)}, {"frames": 0}, {"val_share": 1.0}, {"on_error": "warn"}]
)
def test_config_refuses(root, change):
    with pytest.raises(ValidationError):
        config(root, **change)


def test_a_parquet_file_lists_clips_as_a_csv_file_does(root):
    expected = load(config(root), seed=0)
    table = pandas.read_csv(root / "labels.csv")
    table["take"] = range(len(table))
    table.to_parquet(root / "clips.parquet")
    splits = load(config(root, labels="clips.parquet", group="take"), seed=0)
    assert splits.info == expected.info
    assert [(row.path, row.label) for row in splits.test.rows] == [(row.path, row.label) for row in expected.test.rows]
    assert [row.group for row in splits.test.rows] == ["6", "7", "14", "15"]
    table.loc[3, "label"] = None
    table.to_parquet(root / "clips.parquet")
    with pytest.raises(UnusableRowsError, match=r"1 of 16 are not .*: the label is empty"):
        load(config(root, labels="clips.parquet"), seed=0)
    table.drop(columns="split").to_parquet(root / "clips.parquet")
    with pytest.raises(DataError, match="must have the columns path,label,split, but it lacks split"):
        load(config(root, labels="clips.parquet"), seed=0)
    table["label"] = [[label] for label in expected.info.class_names * 8]
    table.to_parquet(root / "clips.parquet")
    with pytest.raises(DataError, match=r"must be text or numbers, but one is a list, \['dark'\]; write its value as"):
        load(config(root, labels="clips.parquet"), seed=0)
    (root / "clips.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"labels must be a readable csv or Parquet file, but .* gave: [^\n]*$"):
        load(config(root, labels="clips.parquet"), seed=0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("path;label;split\na, b;b;train", "it lacks path, label, split .*; separate columns by commas, not by ';'"),
        ("Path,Label,split\na,b,train", "it lacks path, label .*; write their names in lower case"),
        ("path,label,split,split\na,b,train,test", "a name of its own, but 'split' is there twice"),
        ("path,label,split\na, b.mp4,b,train", "line 2 of .* has 4 cells, but its header has 3; put a value that"),
        (
            "path, label ,split\nval/dark0.mp4,a\x07b,train",
            r"the label 'a\\x07b' holds a line break or another invisible",
        ),
        ("path,label,split\nval/dark0.mp4,a,train\nval/dark1.mp4,a,train\ntest/dark0.mp4,a,test", "all in .* are 'a'"),
    ],
)
def test_what_is_wrong_with_a_table_as_a_whole_is_told_with_the_way_out(root, table, words):
    (root / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=words):
        load(config(root), seed=0)


def test_text_files_are_read_as_their_byte_order_mark_says(root):
    table = (root / "labels.csv").read_text().replace(",dark,", ",жест,")
    for encoding in ("utf-16", "utf-8-sig"):
        (root / "labels.csv").write_text(table, encoding=encoding)
        (root / "names.txt").write_text("light\nжест\n", encoding=encoding)
        splits = load(config(root, classes="names.txt"), seed=0)
        assert splits.info.class_names == ("light", "жест")
        assert labels_of(splits.val) == [1, 1, 0, 0]


def test_a_missing_or_binary_table_is_named(root):
    table = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(table, encoding="utf-16-le")
    with pytest.raises(DataError, match="; it looks like UTF-16, save it as CSV UTF-8"):
        load(config(root), seed=0)
    (root / "labels.csv").write_bytes(codecs.BOM_UTF16_LE + table.encode("utf-16-le")[:-1])
    with pytest.raises(DataError, match=r"readable csv file in UTF-8, but .* gave: 'utf-16"):
        load(config(root), seed=0)
    (root / "labels.csv").write_bytes(b"path,\xe4")
    with pytest.raises(DataError, match=r"readable csv file in UTF-8, but .* gave: 'utf-8' .*; save it as CSV UTF-8"):
        load(config(root), seed=0)
    (root / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"labels\.csv gave"):
        load(config(root), seed=0)


def test_a_set_larger_than_the_cache_is_refused_with_the_numbers(root):
    with pytest.raises(DataError, match=r"allows 1e-05 GB and the set takes 5e-05 GB"):
        load(config(root, cache_limit_gb=1e-5), seed=0)
    assert cached(root) == []


def entry(number: int, size: int = 1000) -> Entry:
    return Entry(f"{number:02d}" * 32, (size,), lambda: np.full(size, number, np.uint8))


def unreadable() -> np.ndarray:
    pytest.fail("decoded again")


@pytest.fixture
def cache(tmp_path):
    """Six shards of one clip each, the oldest first."""
    cache = ClipCache(tmp_path, limit_bytes=10**9)
    for number in range(6):
        cache.store(entry(number).key, entry(number).decode())
    for age, shard in enumerate(cache.shards):
        os.utime(shard.path, (age, age))
    return cache


def test_eviction_takes_the_oldest_and_never_the_campaigns_own(cache):
    size, keys = cache.shards[0].num_bytes, [entry(number).key for number in range(6)]
    cache.fill([entry(1)], 1)  # it is there, and counts as used
    cache.limit_bytes = 5 * size
    assert cache.evict(keep={keys[0]}, room_bytes=size) == 2
    assert [cache.has(key, (1000,)) for key in keys] == [True, True, False, False, True, True]
    assert cache.evict(keep=set(keys), room_bytes=10**9) == 0
    assert len(cache.shards) == 4


def test_what_is_kept_moves_out_of_a_shard_of_which_the_rest_must_go(cache):
    for shard in cache.shards:
        shard.path.unlink()
    cache.fill([entry(number) for number in range(10)], 1)
    cache.limit_bytes = 5000
    assert cache.evict(keep={entry(4).key, entry(7).key}) == 8
    (shard,) = cache.shards
    assert len(shard) == 2
    assert cache.read(entry(7).key, (1000,), unreadable)[0] == 7


def test_many_small_shards_are_written_together(cache):
    entries = [entry(number) for number in range(40)]
    for one in entries:
        cache.read(one.key, one.shape, one.decode)
    assert len(cache.shards) == 40
    other = ClipCache(cache.folder, 10**9)
    assert other.fill(entries, 1) == {}  # nothing is decoded: a worker that starts moves nothing
    assert len(other.shards) == 40
    entries.append(entry(40))
    assert other.fill(entries, 1) == {}
    assert len(other.shards) == 1
    for one in (cache, other):  # the first knows the old files, and finds the new one
        assert [int(one.read(e.key, e.shape, unreadable)[0]) for e in entries] == list(range(41))


def test_shards_are_bounded_and_an_interruption_keeps_what_was_decoded(tmp_path, monkeypatch):
    cache = ClipCache(tmp_path, limit_bytes=10**9)
    monkeypatch.setattr("nas_kd.data.shards.SHARD_BYTES", 2500)
    cache.fill([entry(number) for number in range(7)], 2)
    assert [len(shard) for shard in cache.shards] == [3, 3, 1]
    monkeypatch.setattr("nas_kd.data.shards.SHARD_BYTES", SHARD_BYTES)

    def stop() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill([entry(10), entry(11), Entry("ab" * 32, (1000,), stop), entry(12)], 1)
    assert [len(shard) for shard in cache.shards] == [3, 3, 1, 2]
    assert [cache.has(entry(number).key, (1000,)) for number in (10, 11, 12)] == [True, True, False]
    assert list(tmp_path.glob("*.tmp")) == []


def test_decoding_runs_ahead_of_writing_by_a_bounded_number(tmp_path, monkeypatch):
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    seen = map_ahead(make, range(1000), threads=2, most=4)
    assert [next(seen) for _ in range(10)] == list(range(10))
    time.sleep(0.02)
    assert max(made) <= 13
    seen.close()


def test_unfinished_files_of_dead_processes_are_swept(cache):
    old, new, text = (cache.folder / name for name in ("old.tmp", "new.tmp", "text.clips"))
    for path in (old, new, text):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    with pytest.raises(DamagedShardError):
        Shard(text)
    cache.evict(keep=())
    assert [path.exists() for path in (old, new, text)] == [False, True, False]


def test_readers_and_writers_at_once_see_whole_entries(tmp_path):
    cache = ClipCache(tmp_path, limit_bytes=10**9)
    failures: list[str] = []

    def work(number: int) -> None:
        for turn in range(30):
            key = f"{turn % 3:02d}" * 32
            clip = cache.read(key, (5000,), lambda turn=turn: np.full(5000, turn % 3, np.uint8))
            if not (np.asarray(clip) == turn % 3).all():
                failures.append(f"{number} {turn}")
            if turn % 7 == number:
                for shard in cache.shards:
                    shard.path.unlink(missing_ok=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize("kind", ["entries", "maps"])
def test_arrays_are_read_by_several_threads_while_garbage_is_collected(tmp_path, kind):
    """A collection inside of numpy's reading of a header lets another thread in, which CPython 3.11.7 stumbles over."""
    cache = ClipCache(tmp_path / "cache", limit_bytes=10**9)
    key = "ab" * 32
    cache.store(key, np.full((2, 3), 7, np.uint8))
    np.save(tmp_path / "map.npy", np.full((2, 3), 7 / 255))

    def read(_: int) -> bool:
        if kind == "entries":
            return bool((cache.read(key, (2, 3), lambda: pytest.fail("decoded again")) == 7).all())
        return bool((read_map(tmp_path / "map.npy", (2, 3), 2, 3, "crop") == 7).all())  # 7 · 257 = 0x0707

    def let_others_in(phase: str, _: dict[str, int]) -> None:
        time.sleep(1e-5)

    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what is there already need not be looked at again and again
    gc.callbacks.append(let_others_in)
    gc.set_threshold(17)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(300)))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(let_others_in)
        gc.unfreeze()


def test_a_cache_that_cannot_be_written_is_one_sentence(root):
    blocked = root.parent / "blocked"
    blocked.write_text("a file, not a folder")
    with pytest.raises(DataError, match="cache_dir must be a folder"):
        load(config(root, cache_dir=blocked), seed=0)


def test_a_disk_without_room_is_told_before_anything_is_decoded(tmp_path, monkeypatch):
    cache = ClipCache(tmp_path / "deep" / "cache", limit_bytes=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2500 if path == tmp_path else 0))
    cache.fill([entry(0), entry(1)], 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2500))
    entries = [entry(0), *(Entry(entry(k).key, (1000,), unreadable) for k in range(2, 5))]
    with pytest.raises(DataError, match=r"3\.\d+ kB, but the disk of .*cache has 2\.5 kB left; free some space"):
        cache.fill(entries, 1)


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_no_damaged_entry(tmp_path):
    cache, entries = ClipCache(tmp_path, limit_bytes=10**9), [entry(k, 50_000) for k in range(6)]
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, usual[1]))  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(DataError, match=r"cache_dir must be a folder with room .* free some space or set another"):
            cache.fill(entries, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert list(tmp_path.iterdir()) == []
    cache.fill(entries, 1)
    assert [int(cache.read(e.key, e.shape, unreadable)[-1]) for e in entries] == list(range(6))


@pytest.mark.parametrize(
    ("available", "wanted", "positions"),
    [(8, 8, list(range(8))), (16, 4, [2, 6, 10, 14]), (7, 3, [1, 3, 5]), (2, 4, [0, 0, 1, 1]), (1, 3, [0, 0, 0])],
)
def test_sampling_takes_the_middle_of_equal_parts(available, wanted, positions):
    assert sample_positions(available, wanted).tolist() == positions


def test_frames_come_in_order_and_at_the_sampled_places(tmp_path):
    write_video(tmp_path / "a.mp4", RISING)
    clip = read_clip(tmp_path / "a.mp4", 3, 16, 16, "stretch")
    assert clip.shape == (3, 3, 16, 16)
    assert np.abs(clip.mean(axis=(0, 2, 3)) - [60, 140, 220]).max() < 6


def test_images_and_folders_of_images_are_clips(tmp_path):
    for number, level in ((10, 90), (2, 50), (1, 10)):
        write_image(tmp_path / f"clip/f{number}.png", np.full((20, 30, 3), level, np.uint8))
    write_image(tmp_path / "odd%03d.png", np.full((20, 30, 3), (10, 100, 200), np.uint8))
    (tmp_path / "clip/notes.txt").write_text("not an image")
    (tmp_path / "clip/._f1.png").write_bytes(b"left by a file manager")
    assert [path.name for path in frame_files(tmp_path / "clip")] == ["f1.png", "f2.png", "f10.png"]
    for name in ("01.png", "1.png", "²1.png", "1.jpg"):
        write_image(tmp_path / "mixed" / name, np.zeros((8, 8, 3), np.uint8))
    assert [path.name for path in frame_files(tmp_path / "mixed")] == ["1.jpg", "01.png", "1.png", "²1.png"]
    with pytest.raises(DecodeError, match=r"one image, but the folder holds 1\.jpg and 1\.png"):
        read_clip(tmp_path / "mixed", 2, 8, 8, "crop")
    clip = read_clip(tmp_path / "clip", 3, 16, 16, "crop")
    assert np.abs(clip.mean(axis=(0, 2, 3)) - [10, 50, 90]).max() < 2
    still = read_clip(tmp_path / "odd%03d.png", 4, 16, 16, "crop")
    assert np.abs(still.mean(axis=(2, 3)) - np.array([[10], [100], [200]])).max() < 2


def test_crop_keeps_the_aspect_ratio_and_stretch_does_not(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :10] = pixels[:, 30:] = 250
    write_image(tmp_path / "a.png", pixels)
    assert read_clip(tmp_path / "a.png", 1, 10, 10, "crop")[..., 2:8].max() < 30
    stretched = read_clip(tmp_path / "a.png", 1, 10, 10, "stretch")
    assert stretched[..., :2].min() > 200
    assert stretched[..., 4:6].max() < 30


def test_keys_follow_the_file_and_the_settings(tmp_path):
    write_image(tmp_path / "clip/1.png", np.zeros((8, 8, 3), np.uint8))
    key = cache_key(tmp_path / "clip", "a")
    assert key == cache_key(tmp_path / "clip/../clip", "a")
    assert key != cache_key(tmp_path / "clip", "b")
    stat = (tmp_path / "clip/1.png").stat()
    shutil.copytree(tmp_path / "clip", tmp_path / "moved")
    os.utime(tmp_path / "moved/1.png", (1, 1))
    assert key == cache_key(tmp_path / "moved", "a")
    content = bytearray((tmp_path / "clip/1.png").read_bytes())
    content[-1] ^= 1
    (tmp_path / "clip/1.png").write_bytes(content)
    os.utime(tmp_path / "clip/1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert key != cache_key(tmp_path / "clip", "a")


def test_large_files_are_told_apart_by_pieces_and_by_the_time_of_change(tmp_path, monkeypatch):
    path = tmp_path / "large.bin"
    content = bytearray(WHOLE_BYTES + 1000)
    path.write_bytes(content)
    os.utime(path, (1, 1))
    first, key = content_of(path), cache_key(path, "a")
    monkeypatch.setattr("nas_kd.data.cache.POLICY", -1)
    assert cache_key(path, "a") != key
    monkeypatch.undo()
    os.utime(path, (2, 2))
    assert content_of(path) == first
    assert cache_key(path, "a") != key
    for place in (0, len(content) // 7 * 3, len(content) - 1):
        changed = bytearray(content)
        changed[place] = 1
        path.write_bytes(changed)
        os.utime(path, (1, 1))
        assert content_of(path) != first
        assert cache_key(path, "a") != key


def test_files_that_are_known_are_not_read_again_unless_anything_of_them_changed(tmp_path, monkeypatch):
    root = tmp_path / "set"
    read: list[str] = []
    real = content_of
    monkeypatch.setattr("nas_kd.data.file_identity.content_of", lambda path: (read.append(path.name), real(path))[1])
    monkeypatch.setattr("nas_kd.data.file_identity._SETTLED_NS", -(10**12))  # as if all had lain there for long
    rows = [(f"{number}.png", str(number % 2), split) for number, split in enumerate(("train",) * 4 + ("test",) * 2)]
    for number, (path, *_) in enumerate(rows):
        write_image(root / path, np.full((8, 8, 3), number, np.uint8))
    write_table(root, rows)
    first = load(config(root, val_share=0.5), seed=0).test
    identity = first.identity
    assert sorted(read) == [path for path, *_ in rows]  # once each, for the keys and for the identity
    read.clear()
    again = load(config(root, size=8, val_share=0.5), seed=0).test
    assert again.identity == identity
    assert read == []
    stat = (root / "4.png").stat()
    write_image(root / "4.png", np.full((8, 8, 3), 77, np.uint8))
    os.utime(root / "4.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (root / "5.png").rename(root / "other.png")
    shutil.copyfile(root / "other.png", root / "5.png")
    changed = load(config(root, val_share=0.5), seed=0).test
    assert read == ["4.png", "5.png"]
    assert [one.key == other.key for one, other in zip(first.rows, changed.rows, strict=True)] == [False, True]
    assert changed.identity != identity
    for damaged in ("", "[1]", '{"a": 1}'):
        read.clear()
        next((tmp_path / "cache").glob("files-*.json")).write_text(damaged)
        assert load(config(root, val_share=0.5), seed=0).test.identity == changed.identity
        assert len(read) == 6


def test_a_file_that_has_just_changed_is_read_again(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    known = KnownFiles(tmp_path, tmp_path)
    before = known.content_of(path)
    os.utime(path, (1, 1))
    assert known.content_of(path) == before
    known.save()
    assert list(tmp_path.glob("files-*")) == []


def test_weizmann4_reads(tmp_path):
    root = Path(__file__).parents[2].parent / "shared" / "data" / "weizmann4"
    if not root.is_dir():
        pytest.skip("needs ../shared/data/weizmann4 beside the checkout")
    splits = load(FolderConfig(root=root, frames=4, size=32, group="performer", cache_dir=tmp_path / "cache"), seed=0)
    assert (len(splits.retrain), len(splits.val), len(splits.test)) == (155, 24, 97)
    assert splits.info.class_names == ("bend", "jack", "wave1", "wave2")
    assert splits.skipped == ()
    check_sample(splits.test[0], splits.info, "test[0]")
