from __future__ import annotations

import contextlib
import gzip
import os
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_sets import features_of

from nas_kd.data import ClipLoader, DataError, UnusableRowsError, YouTube8MConfig, check_sample, load
from nas_kd.data.tfrecord import WireError, crc32c, parse_sequence_example, records
from nas_kd.data.youtube8m import dequantize

# An encoder of its own: bit by bit, from the descriptions of the formats.


def slow_crc(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = slow_crc(data)
    rotated = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + masked(length) + message + masked(message)


def varint(number: int) -> bytes:
    number %= 2**64
    parts = []
    while number > 127:
        parts.append(number % 128 + 128)
        number //= 128
    return bytes([*parts, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(content)) + content


def strings(*texts: bytes) -> bytes:
    return field(1, b"".join(field(1, text) for text in texts))


def integers(values: Sequence[int], packed: bool) -> bytes:
    if packed:
        return field(3, field(1, b"".join(map(varint, values))))
    return field(3, b"".join(varint(1 * 8 + 0) + varint(value) for value in values))


def pairs(entries: dict[str, bytes]) -> bytes:
    return b"".join(field(1, field(1, key.encode()) + field(2, value)) for key, value in entries.items())


def example(
    labels: Sequence[int],
    lists: dict[str, Sequence[bytes]],
    *,
    packed: bool = True,
    name: bytes = b"",
    key: str = "id",
) -> bytes:
    context = {**({key: strings(name)} if name else {}), "labels": integers(labels, packed)}
    features = {key: b"".join(field(1, strings(frame)) for frame in frames) for key, frames in lists.items()}
    return field(1, pairs(context)) + field(2, pairs(features))


def frames(count: int, size: int, seed: int) -> list[bytes]:
    return [random.Random(1000 * seed + t).randbytes(size) for t in range(count)]


RGB, AUDIO, T = 5, 2, 4


def video(seed: int, labels: Sequence[int], length: int = T, **change: object) -> bytes:
    lists = {"rgb": frames(length, RGB, seed), "audio": frames(length, AUDIO, seed + 500)}
    return example(labels, lists, **{"name": b"v%d" % seed, **change})  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path):
    """Two training files with three videos each, one file with two for val and for test; labels packed and not."""
    root = tmp_path / "records"
    root.mkdir()
    for number in range(2):
        videos = [video(3 * number + i, [(i + number) % 3, 3 + i], packed=i != 1) for i in range(3)]
        (root / f"train{number:02d}.tfrecord").write_bytes(b"".join(map(record, videos)))
    for seed, name in ((100, "validate00"), (200, "test00")):
        (root / f"{name}.tfrecord").write_bytes(record(video(seed, [1, 2])) + record(video(seed + 1, [5])))
    return root


def config(root: Path, **change: object) -> YouTube8MConfig:
    return YouTube8MConfig.model_validate(
        {
            "root": root,
            "num_classes": 6,
            "index_dir": root.parent / "index",
            "cache_dir": root.parent / "cache",
            **change,
        }
    )


def quantised(seed: int, count: int = T) -> np.ndarray:
    parts = [frames(count, RGB, seed), frames(count, AUDIO, seed + 500)]
    return np.concatenate([np.array([list(frame) for frame in part]) for part in parts], axis=1)


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this one and the next from RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc_of_known_data(data, crc):
    assert crc32c(data) == slow_crc(data) == crc


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 1023, 1024, 1025, 1536, 2049, 9000])
def test_crc_in_lanes_is_that_bit_by_bit(size):
    data = random.Random(size).randbytes(size)
    assert crc32c(data) == slow_crc(data)


def test_videos_become_splits(root):
    splits = load(config(root), seed=0)
    assert (splits.info.input_shape, splits.info.multi_label, splits.info.num_classes) == ((T, RGB + AUDIO), True, 6)
    assert [len(part) for part in (splits.retrain, splits.val, splits.test)] == [6, 2, 2]
    for name, seeds in (("retrain", range(6)), ("val", (100, 101)), ("test", (200, 201))):
        wanted = np.stack([quantised(seed) for seed in seeds]) * (4 / 255) + (4 / 512) - 2
        np.testing.assert_allclose(features_of(splits, name).numpy(), wanted, atol=1e-6)
    labels = [splits.retrain[index]["labels"].nonzero().flatten().tolist() for index in range(6)]
    assert labels == [[0, 3], [1, 4], [2, 5], [1, 3], [2, 4], [0, 5]]
    assert [int(splits.retrain[index]["label"]) for index in range(6)] == [0, 1, 2, 1, 2, 0]
    check_sample(splits.val[1], splits.info, "val[1]")
    (batch,) = ClipLoader(splits.val, 8).epoch(0)
    assert batch["labels"].tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]


def test_records_are_read_from_the_cache_where_it_has_room(root):
    kept, read = load(config(root, frames=3), seed=0), load(config(root, frames=3, cache_limit_gb=1e-8), seed=0)
    assert kept.notes == ()
    assert "more than data.cache_limit_gb allows (1e-08): each is read from its record" in read.notes[0]
    for path in root.glob("*.tfrecord"):
        path.rename(path.with_suffix(".moved"))
    assert torch.equal(features_of(kept, "val")[0], torch.from_numpy(dequantize(quantised(100)[[0, 2, 3]])))
    with pytest.raises(DataError, match="but no longer"):
        features_of(read)
    for path in root.glob("*.moved"):
        path.rename(path.with_suffix(".tfrecord"))
    assert torch.equal(features_of(kept), features_of(read))
    config_ = config(root, frames=3)
    assert config_.decoded_bytes(kept) == 10 * 3 * (RGB + AUDIO)


def test_some_lists_in_some_order(root):
    splits = load(config(root, use=["audio"]), seed=0)
    both = load(config(root, use=["audio", "rgb"]), seed=0)
    plain = features_of(load(config(root), seed=0))
    assert torch.equal(features_of(splits), plain[:, :, RGB:])
    assert torch.equal(features_of(both), torch.cat([plain[:, :, RGB:], plain[:, :, :RGB]], dim=2))


def test_lengths_that_differ_need_frames(root):
    with (root / "train00.tfrecord").open("ab") as file:
        file.write(record(video(50, [0], length=7)))
    with pytest.raises(DataError, match="they have 4 to 7; set for example frames: 4"):
        load(config(root), seed=0)
    splits = load(config(root, frames=2), seed=0)
    assert torch.equal(features_of(splits)[3], torch.from_numpy(dequantize(quantised(50, 7)[[1, 5]])))


def test_classes_are_named_by_a_vocabulary(root):
    (root / "vocabulary.csv").write_text("Index,TrainVideoCount,Name\n0,5,Game\n5,3,Car\n2,1,\n")
    names = ("Game", "class_1", "class_2", "class_3", "class_4", "Car")
    for change in ({"num_classes": None}, {}):
        assert load(config(root, class_names="vocabulary.csv", **change), seed=0).info.class_names == names
    (root / "twice.csv").write_text("Index,Name\n0,Car\n1,class_3\n5,Car\n")
    twice = load(config(root, class_names="twice.csv"), seed=0).info.class_names
    assert twice == ("Car (0)", "class_3 (1)", "class_2", "class_3 (3)", "class_4", "Car (5)")
    with pytest.raises(DataError, match="it is 4 and one is 5"):
        load(config(root, class_names="vocabulary.csv", num_classes=4), seed=0)
    for bad in ("x", "0"):
        (root / "bad.csv").write_text(f"Index,Name\n0,a\n{bad},b\n")
        with pytest.raises(DataError, match=f"line 3 holds '{bad}'"):
            load(config(root, class_names="bad.csv"), seed=0)


def test_val_is_carved_where_it_has_no_files(root):
    splits = load(config(root, val=None, val_share=1 / 3), seed=0)
    assert (len(splits.retrain), len(splits.val)) == (4, 2)
    assert splits.notes == ("2 of 6 training items validate (stratified, seed 0; 2 classes have none there)",)
    found = torch.cat([features_of(splits), features_of(splits, "val")])
    assert {tuple(x.flatten().tolist()) for x in found} == {
        tuple(x.flatten().tolist()) for x in features_of(load(config(root), seed=0))
    }


def test_the_index_is_built_once_and_again_for_a_changed_or_damaged_file(root, monkeypatch):
    read: list[str] = []

    def counted(path, damaged):
        read.append(path.name)
        return records(path, damaged)

    monkeypatch.setattr("nas_kd.data.record_index.records", counted)
    before = features_of(load(config(root), seed=0))
    assert len(read) == 4
    assert torch.equal(features_of(load(config(root), seed=0)), before)
    assert len(read) == 4
    (root / "train01.tfrecord").write_bytes(record(video(70, [0, 1])))
    splits = load(config(root), seed=0)
    assert read[4:] == ["train01.tfrecord"]
    assert len(splits.retrain) == 4
    for kept in (root.parent / "index").iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    assert len(load(config(root), seed=0).retrain) == 4
    assert len(read) == 9
    blocked = root.parent / "blocked"
    blocked.write_text("a file")
    with pytest.raises(DataError, match="index_dir must be a folder"):
        load(config(root, index_dir=blocked), seed=0)


def test_every_flipped_bit_is_found(tmp_path):
    whole = record(video(0, [1])) + record(video(1, [2]))
    path = tmp_path / "a.tfrecord"
    second = len(record(video(0, [1])))
    for position in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        offset = 0 if position < second else second
        with pytest.raises(DataError, match=rf"a\.tfrecord is damaged at byte {offset}: "):
            list(records(path))


def test_every_truncation_is_found(tmp_path):
    whole = record(video(0, [1])) + record(video(1, [2]))
    path = tmp_path / "a.tfrecord"
    second = len(record(video(0, [1])))
    for length in {*range(0, len(whole), 3), second}:
        path.write_bytes(whole[:length])
        if length in (0, second):  # whole files, if short ones
            assert len(list(records(path))) == (length > 0)
            continue
        with pytest.raises(DataError, match=f"damaged at byte {0 if length < second else second}: .*(ends|bytes)"):
            list(records(path))


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("zlib", zlib.compress)])
def test_a_compressed_file_is_told_from_a_damaged_one(root, name, pack):
    path = root / "train00.tfrecord"
    path.write_bytes(pack(path.read_bytes()))
    for on_error in ("fail", "skip"):
        with pytest.raises(DataError, match=f"train00.tfrecord must be .* not compressed, but it is by {name}; unpack"):
            load(config(root, on_error=on_error), seed=0)


def test_a_damaged_record_is_named_and_so_is_one_damaged_later(root):
    path = root / "validate00.tfrecord"
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 4]) + whole[41:])
    with pytest.raises(UnusableRowsError) as caught:
        load(config(root), seed=0)
    assert str(caught.value) == (
        f"every record of {root} must be usable, but 1 of 10 are not (fetch or mend the files, or set on_error: skip "
        "to leave them out): validate00.tfrecord at byte 0: the check sum of the record is wrong, so the content of "
        "this record is lost"
    )
    path.write_bytes(whole)
    splits = load(config(root, cache_limit_gb=1e-9), seed=0)
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 4]) + whole[41:])
    with pytest.raises(DataError, match="damaged at byte 0"):
        splits.val[0]
    path.write_bytes(record(video(0, [1], length=1)))
    with pytest.raises(DataError, match="has changed since"):
        splits.val[0]
    path.unlink()
    with pytest.raises(DataError, match="but no longer: No such file"):
        splits.val[0]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            example([1], {"rgb": [], "audio": frames(T, AUDIO, 0)}),
            "no frames of 'rgb', but data.use names them (it has audio)",
        ),
        (example([1], {}), "no frames of 'rgb', but data.use names them (it has none at all)"),
        (b"", "no frames of 'rgb'"),
        (example([1], {"rgb": frames(T, RGB, 0), "audio": frames(3, AUDIO, 0)}), "it has 4 of 'rgb', 3 of 'audio'"),
        (
            example([1], {"rgb": frames(T, 6, 0), "audio": frames(T, AUDIO, 0)}),
            "have 6 features, but those of most records have 5",
        ),
        (example([1], {"rgb": [b"12345", b"123"]}), "frame 1 has 3 and the first 5"),
        (example([1], {"rgb": [b""]}), "frame 0 has 0"),
        (video(9, [6]), "labels must lie in 0..5, but one is 6; raise data.num_classes"),
        (video(9, [-1], packed=False), "but one is -1"),
        (video(9, [-1]), "but one is -1"),
        (field(1, pairs({"labels": strings(b"1")})), "labels must be whole numbers"),
        (field(2, pairs({"rgb": field(1, integers([1], True))})), "must be strings of bytes"),
        (field(2, pairs({"rgb": field(1, strings(b"1", b"2"))})), "must be one string, but it has 2"),
        (b"\x0a\x20abc", "no SequenceExample (a field of 32 bytes ends behind its message)"),
        (b"\x0b", "unknown wire type 3"),
        (b"\x80" * 12, "a number does not end"),
    ],
)
def test_a_record_that_does_not_fit_is_one_sentence_or_left_out(root, message, words):
    before = features_of(load(config(root), seed=0))
    path = root / "train01.tfrecord"
    whole, offset = path.read_bytes(), path.stat().st_size
    path.write_bytes(whole + record(message) + record(video(60, [1])))
    with pytest.raises(UnusableRowsError) as caught:
        load(config(root), seed=0)
    assert words in str(caught.value)
    assert (
        f"1 of 12 are not (fetch or mend the files, or set on_error: skip to leave them out): {path.name} at byte "
        in (str(caught.value))
    )
    assert "\n" not in str(caught.value)
    splits = load(config(root, on_error="skip"), seed=0)
    ((place, reason),) = splits.skipped
    assert place.startswith(f"train01.tfrecord at byte {offset}")
    assert words in reason
    assert splits.notes == ("1 of 12 records were left out",)
    last = torch.from_numpy(dequantize(quantised(60)))
    assert torch.equal(features_of(splits), torch.cat([before, last[None]]))


def damage(path: Path, position: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[position] ^= 8
    path.write_bytes(whole)


def test_what_is_damaged_is_left_out_and_its_index_not_kept(root):
    path = root / "train00.tfrecord"
    first, second = (len(record(video(i, [i, 3 + i], packed=i != 1))) for i in range(2))
    whole, times = path.read_bytes(), path.stat()
    damage(path, first + 50)  # inside of the second message
    splits = load(config(root, on_error="skip"), seed=0)
    reason = "the check sum of the record is wrong, so the content of this record is lost"
    assert splits.skipped == ((f"train00.tfrecord at byte {first}", reason),)
    assert torch.equal(features_of(splits)[:2], torch.from_numpy(dequantize(np.stack([quantised(0), quantised(2)]))))
    # Where a length is wrong nobody knows where the next record begins.
    damage(path, first + 2)
    splits = load(config(root, on_error="skip"), seed=0)
    ((place, reason),) = splits.skipped
    assert place == f"train00.tfrecord at byte {first}"
    assert "the record's length is wrong, so the content of this record and of all behind it is lost" in reason
    assert len(splits.retrain) == 4
    # A sound copy with the same size and time is read.
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(load(config(root), seed=0).retrain) == 6
    path.write_bytes(whole[:-1])
    splits = load(config(root, on_error="skip"), seed=0)
    assert splits.skipped[0][0] == f"train00.tfrecord at byte {first + second}"
    assert len(splits.retrain) == 5


@pytest.mark.parametrize("key", ["id", "video_id"])
def test_the_same_video_twice_is_once(root, key):
    twin = video(2, [1], key=key, name=b"twin")
    with (root / "train00.tfrecord").open("ab") as file:
        file.write(record(twin) + record(twin))
    with (root / "test00.tfrecord").open("ab") as file:
        file.write(record(video(9, [0], key=key, name=b"twin")))
    splits = load(config(root, on_error="skip"), seed=0)
    start = len(b"".join(record(video(i, [i, 3 + i], packed=i != 1)) for i in range(3)))
    reason = f"it has the id of train00.tfrecord at byte {start}; leave one of them out, or give it an id of its own"
    places = dict(splits.skipped)
    assert list(places.values()) == [reason, reason]
    assert [place.split(" at byte")[0] for place in places] == ["train00.tfrecord", "test00.tfrecord"]
    assert all(place.endswith("(id twin)") for place in places)
    assert [len(part) for part in (splits.retrain, splits.val, splits.test)] == [7, 2, 2]
    with pytest.raises(UnusableRowsError, match=r"2 of 13 are not .*\(id twin\): it has the id of"):
        load(config(root), seed=0)


def test_lists_that_no_record_has_and_the_size_that_most_have(root):
    with pytest.raises(DataError, match=r"^data\.use must .* no record has frames of 'rbg'; choose from audio, rgb$"):
        load(config(root, use=["rbg"]), seed=0)
    # The odd record comes first.
    path = root / "train00.tfrecord"
    odd = example([0], {"rgb": frames(T, RGB + 1, 0), "audio": frames(T, AUDIO, 0)})
    path.write_bytes(record(odd) + path.read_bytes())
    splits = load(config(root, on_error="skip"), seed=0)
    assert (splits.info.feature_size, len(splits.retrain)) == (RGB + AUDIO, 6)
    assert splits.skipped == (
        (
            "train00.tfrecord at byte 0",
            f"its frames of 'rgb' have {RGB + 1} features, but those of most records have {RGB}",
        ),
    )


def test_a_split_needs_a_usable_record(root):
    (root / "test00.tfrecord").write_bytes(record(b""))
    with pytest.raises(DataError, match=r"'test' must .* data\.test, test\*\.tfrecord, gives it none \(1 records are"):
        load(config(root, on_error="skip"), seed=0)


def test_items_without_a_class_are_counted_and_splits_without_any_refused(root):
    (root / "test00.tfrecord").write_bytes(record(video(201, [])) + record(video(202, [3])))
    splits = load(config(root), seed=0)
    assert splits.notes == ("1 of 2 test items have no class",)
    with (root / "train01.tfrecord").open("ab") as file:
        file.write(record(video(60, [])))
    assert load(config(root), seed=0).notes == ("1 of 7 train items have no class", *splits.notes)
    assert (splits.test[0]["labels"].sum(), int(splits.test[0]["label"])) == (0, 0)
    check_sample(splits.test[0], splits.info, "x")
    (root / "test00.tfrecord").write_bytes(record(video(201, [])))
    with pytest.raises(DataError, match="'test' must have labels, but none of its 1 records has one"):
        load(config(root), seed=0)


def test_globs_name_files_each_of_one_split(root):
    with pytest.raises(DataError, match=r"test must name at least one file, but .*none\*"):
        load(config(root, test="none*"), seed=0)
    with pytest.raises(DataError, match=r"validate00\.tfrecord is in val and in test"):
        load(config(root, test="*idate*"), seed=0)
    (root / "train02.tfrecord").write_bytes(b"")
    assert len(load(config(root), seed=0).retrain) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": "/tmp/*"}, "below root"),
        ({"val": "../*"}, "below root"),
        ({"test": ""}, "below root"),
        ({"use": ["rgb", "rgb"]}, "once, but it is rgb, rgb"),
        ({"use": []}, "at least 1 item"),
        ({"num_classes": None}, "num_classes or class_names"),
        ({"num_classes": 1}, "greater than or equal to 2"),
        ({"frames": 0}, "greater than or equal to 1"),
    ],
)
def test_config_refuses(root, change, words):
    with pytest.raises(ValidationError, match=words):
        config(root, **change)


@given(
    st.dictionaries(st.text(max_size=5), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.lists(st.lists(st.binary(max_size=9), max_size=3), max_size=4), max_size=3),
    st.booleans(),
)
def test_messages_read_back(numbers, lists, packed):
    context = {key: integers(values, packed) for key, values in numbers.items()}
    features = {key: b"".join(field(1, strings(*step)) for step in steps) for key, steps in lists.items()}
    unknown = (
        field(7, b"xyz") + varint(9 * 8) + varint(300) + varint(8 * 8 + 5) + bytes(4) + varint(8 * 8 + 1) + bytes(8)
    )
    floats = (
        field(1, pairs({"weights": field(2, field(1, struct.pack("<2f", 1, 2)))})) if "weights" not in context else b""
    )
    found = parse_sequence_example(unknown + field(1, pairs(context)) + floats + field(2, pairs(features)) + unknown)
    assert {key: value for key, value in found.context.items() if key != "weights" or key in numbers} == numbers
    assert found.lists == lists


@given(st.binary(max_size=60))
def test_noise_is_a_message_or_an_error_of_ours(data):
    with contextlib.suppress(WireError):
        parse_sequence_example(data)


def test_files_that_cannot_be_opened_are_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(records(tmp_path / "absent"))
    if os.getuid():
        path = tmp_path / "secret"
        path.write_bytes(b"")
        path.chmod(0)
        with pytest.raises(DataError, match="cannot be read"):
            list(records(path))
