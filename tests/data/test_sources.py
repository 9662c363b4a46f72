from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from nas_kd.data import (
    SOURCES,
    ClipLoader,
    DataConfig,
    DataError,
    DataInfo,
    GeneratedConfig,
    MemoryDataset,
    OwnConfig,
    Splits,
    Subset,
    check_sample,
    grouped_split,
    labels_of,
    load,
    make_splits,
    stratified_split,
)
from nas_kd.data.brightness import describe_darkness
from nas_kd.data.checked import CheckedDataset

ADAPTER: TypeAdapter[object] = TypeAdapter(DataConfig)
INFO = DataInfo(
    num_classes=3,
    class_names=("a", "b", "c"),
    frames=2,
    height=4,
    width=6,
    name="toy",
    mask_names=("nothing", "a", "b", "c"),
    box_names=("a", "b", "c"),
)

MODULE = """
import torch
from nas_kd.data import MemoryDataset

def make(count):
    return MemoryDataset({"clip": torch.zeros(count, 3, 2, 4, 6, dtype=torch.uint8), "label": torch.arange(count) % 3})

class Plain:
    def __init__(self, sample): self.sample = sample
    def __len__(self): return 6
    def __getitem__(self, index): return self.sample

def plain(**sample):
    good = {"clip": torch.zeros(3, 2, 4, 6, dtype=torch.uint8), "label": torch.tensor(1)}
    return {"train": make(6), "val": make(3), "test": Plain(good | sample), "num_classes": 3}

def load(train=12): return {"train": make(train), "val": make(3), "test": make(3), "class_names": ["a", "b", "c"]}
def floats(): return plain(clip=torch.zeros(3, 2, 4, 6))
def shape(): return plain(clip=torch.zeros(3, 2, 4, 5, dtype=torch.uint8))
def label(): return plain(label=torch.tensor(3))
def few(): return load() | {"class_names": ["a", "b"]}
def twice(): return load() | {"class_names": ["a", "b", "a"]}
def hot(): return load() | {"train": Hot()}
def lists(): return [1, 2]
def partial(): return {"train": make(3)}
def typo(): return load() | {"tset": 1}
def empty(): return load() | {"val": []}
def unnamed(): return {key: value for key, value in load().items() if key != "class_names"}
def number(): return load() | {"train": 7}
def naked(): return load() | {"train": [1, 2, 3]}
def failing(): return load() | {"test": Failing(None)}
def grouped(*, count): return load()
def dense(): return plain(mask=torch.ones(2, 4, 6, dtype=torch.uint8), boxes=torch.zeros(2, 1, 5)) | {
    "mask_names": ["nothing", "thing"], "box_names": ("thing",)}
def pointed(): return dense() | {"points": True}
def nameless(): return {key: value for key, value in dense().items() if key != "mask_names"}
def letters(): return dense() | {"mask_names": "ab"}
constant = 5

class Failing(Plain):
    def __getitem__(self, index): raise RuntimeError("no disk today")

class Hot(Plain):
    labels = torch.zeros(4, 3)
    def __init__(self): super().__init__(make(1)[0])
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_package_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_own_function_of_the_current_directory(module):
    splits = load(OwnConfig(function=f"{module}:load", arguments={"train": 30}), seed=1, gate_share=0.4)
    assert (len(splits.weights), len(splits.gates)) == (18, 12)
    assert splits.info.class_names == ("a", "b", "c")
    assert (splits.info.frames, splits.info.height, splits.info.width) == (2, 4, 6)


def test_own_data_names_the_values_of_masks_and_boxes(module):
    info = load(OwnConfig(function=f"{module}:dense"), seed=0).info
    assert (info.mask_names, info.box_names, info.points) == (("nothing", "thing"), ("thing",), False)
    assert load(OwnConfig(function=f"{module}:pointed"), seed=0).info.points
    info = load(OwnConfig(function=f"{module}:load"), seed=0).info
    assert (info.mask_names, info.box_names) == ((), ())


def test_names_of_classes_are_looked_at_in_every_source(module):
    splits = load(OwnConfig(function=f"{module}:load"), seed=0)
    assert splits.remarks == []
    alike = replace(splits, info=replace(INFO, class_names=("a", "A ", "c"), box_names=("b", "c", "C")))
    assert "classes of toy that differ" in alike.remarks[0]
    assert "own: 'a' and 'A ', 'c' and 'C'; write" in alike.remarks[0]
    for key, name, words in (
        ("mask_names", "", "one is empty"),
        ("box_names", "a\n", r"one 'a\\n' holds a line break"),
    ):
        with pytest.raises(DataError, match=f"{key} of 'toy' must be names that differ, but {words}"):
            replace(INFO, **{key: (name, "b", "c")})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("twice", "class_names of '.*twice' must be names that differ, but 'a' is listed 2 times; rename it"),
        (
            "floats",
            r"test\[0\]\['clip'\] must be torch.uint8, but it is torch.float32",
        ),
        ("shape", r"must have the shape \(3, 2, 4, 6\), but it has \(3, 2, 4, 5\)"),
        ("label", r"test\[0\]\['label'\] must lie in 0..2, but it is 3"),
        ("few", r"train.labels must give each of 12 items a class in 0..1"),
        (
            "hot",
            r"train.labels must give each item one class, a whole number, but it is a Tensor of the shape \[4, 3\]",
        ),
        ("lists", "returned a list"),
        ("partial", "must return train, val and test"),
        ("typo", "unknown key 'tset'"),
        ("empty", "must hold at least one item"),
        ("unnamed", "returned neither"),
        ("number", "but it is a int"),
        ("naked", "must be a dict with 'clip'.*but it is a int"),
        ("failing", r"test\[0\] could not be read: RuntimeError in .*line.*: no disk today"),
        ("grouped", r"data.arguments must fit .*grouped\(\*, count\), but they are \{\}: missing"),
        ("nameless", r"test\[0\]\['mask'\] must hold indices into mask_names"),
        ("letters", r"\['mask_names'\] must be a list of names, but it is a str"),
        ("constant", "'constant' is no function; choose from .*floats"),
        ("absent", "'absent' is not there"),
    ],
)
def test_own_function_that_breaks_the_contract_is_one_sentence(module, function, words):
    with pytest.raises(DataError, match=words) as caught:
        load(OwnConfig(function=f"{module}:{function}"), seed=0)
    assert "\n" not in str(caught.value)


CLIP = torch.arange(96, dtype=torch.uint8).reshape(3, 2, 4, 4)


class Spoiled:
    """Items of which some are not like the others."""

    def __init__(self, changes, *at):
        self.changes, self.at = changes, at

    def __len__(self):
        return 6

    def __getitem__(self, index):
        sample = {"clip": CLIP, "label": torch.tensor(index % 2), "age": torch.tensor(1.5)}
        return sample | self.changes if index in self.at else sample


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip": CLIP / 255}, r"span 0 to 0.3725, so convert it with \(clip \* 255\).round\(\).to\(torch.uint8\)"),
        ({"clip": CLIP.float()}, r"span 0 to 95, so convert it with .round\(\).to\(torch.uint8\)"),
        ({"clip": CLIP / 255 - 0.5}, "give the bytes as they were before, since `normalize`"),
        ({"clip": CLIP / 0}, "some of its values are not finite"),
        ({"clip": CLIP.int()}, r"convert it with .to\(torch.uint8\)"),
        ({"clip": CLIP.int() * 257}, "span 0 to 2.442e\\+04, which do not fit into it"),
        ({"clip": CLIP[:, :1]}, r"must have the shape \(3, 2, 4, 4\), but it has \(3, 1, 4, 4\)"),
        ({"label": torch.tensor(-1)}, "must lie in 0..1, but it is -1"),
        ({"label": torch.tensor(0.5)}, "span 0.5 to 0.5, which do not fit into it"),
        ({"sequence": torch.tensor(1)}, r"must be as in train\[0\], not there, but it is torch.int64 \(\)"),
    ],
)
def test_every_item_of_own_data_is_held_against_the_contract(changes, words):
    info = DataInfo(2, ("a", "b"), 2, 4, 4, "own")
    dataset = CheckedDataset(Spoiled(changes, 5), info, "train")
    assert dataset[4]["label"] == 0
    with pytest.raises(DataError, match=r"train\[5\].*" + words):
        dataset[5]


def test_what_the_code_of_a_data_set_raises_names_item_and_line():
    dataset = CheckedDataset(Spoiled(None, 3), DataInfo(2, ("a", "b"), 2, 4, 4, "own"), "val")
    with pytest.raises(DataError, match=r"val\[3\] could not be read: TypeError in test_sources.py, line \d+ \(__get"):
        dataset[3]
    dataset.labels = [1] * 6
    with pytest.raises(DataError, match="labels must give the classes of the items, but it gives item 0 1 and"):
        dataset[0]


def test_items_of_several_types_make_no_batch():
    loader = ClipLoader(Spoiled({"age": torch.tensor(1)}, 5), 6)
    with pytest.raises(DataError, match=r"torch.float32 \(\) in item 4, torch.int64 \(\) in item 5"):
        next(loader.epoch(0))


def test_clips_that_are_dark_as_a_whole_are_named():
    info = DataInfo(2, ("a", "b"), 2, 4, 4, "own")
    dark = {"clip": (CLIP / 255).to(torch.uint8)}  # as advised in many places, and wrong
    one_bright, none = (
        make_splits(Spoiled(dark, *items), Spoiled({}), Spoiled({}), info, seed=0) for items in ((0, 1, 2), range(6))
    )
    assert describe_darkness(one_bright) == []
    (sentence,) = describe_darkness(none)
    assert "no pixel of 6 training clips that were looked at is brighter than 0 of 255" in sentence


def test_maps_of_8_bits_in_images_of_16_are_named():
    info = DataInfo(2, ("a", "b"), 2, 4, 4, "own", map_names=("gaze",))
    for highest, low in ((255 / 65535, True), (256 / 65535, False)):
        maps = {"map.gaze": torch.linspace(0, highest, 32).view(2, 4, 4)}
        splits = make_splits(Spoiled(maps, *range(6)), Spoiled({}), Spoiled({}), info, seed=0)
        told = "warning: no value of map.gaze of 6 training clips that were looked at is above 0.0039 of 1, as where"
        assert [text[: len(told)] for text in describe_darkness(splits)] == [told] * low


def test_imports_that_fail_are_explained(module):
    with pytest.raises(DataError, match="there is no module 'nowhere_to_be_found'"):
        load(OwnConfig(function="nowhere_to_be_found:load"), seed=0)
    with pytest.raises(DataError, match="failed to import: No module named 'no_such_package_anywhere'"):
        load(OwnConfig(function=f"{module}_broken:load"), seed=0)


@pytest.mark.parametrize("text", ["os", "os:", ":x", "os:system('x')", "a b:c", "__import__('os'):x"])
def test_own_function_is_two_names_and_never_code(text):
    with pytest.raises(ValidationError, match="module:function"):
        OwnConfig(function=text)


def test_data_config_is_told_apart_by_its_source():
    assert isinstance(ADAPTER.validate_python({"source": "generated", "size": 16}), GeneratedConfig)
    assert isinstance(ADAPTER.validate_python({"source": "own", "function": "a:b"}), OwnConfig)
    with pytest.raises(ValidationError, match="'generated', 'folder', 'sequences', 'features', 'youtube8m', 'own'"):
        ADAPTER.validate_python({"source": "web"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        ADAPTER.validate_python({"source": "folder", "root": ".", "frame": 3})
    assert set(SOURCES) == {"generated", "folder", "sequences", "features", "youtube8m", "own"}


def toy(labels):
    count = len(labels)
    return MemoryDataset({"clip": torch.zeros(count, 3, 2, 4, 6, dtype=torch.uint8), "label": torch.tensor(labels)})


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0.05, 0.95), st.integers(0, 99))
def test_stratified_split_parts_each_class_by_the_share(labels, share, seed):
    first, second = stratified_split(labels, share, seed)
    assert sorted(first + second) == list(range(len(labels)))
    assert len(second) == round(len(labels) * share)
    for label in set(labels):
        taken = sum(labels[index] == label for index in second)
        assert abs(taken - share * labels.count(label)) <= 1
    assert (first, second) == stratified_split(labels, share, seed)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=60), st.integers(0, 99))
def test_grouped_split_keeps_groups_whole(items, seed):
    labels, groups = [label for label, _ in items], [f"g{group}" for _, group in items]
    first, second = grouped_split(labels, groups, 0.5, seed)
    assert sorted(first + second) == list(range(len(items)))
    assert not {groups[index] for index in first} & {groups[index] for index in second}


def test_grouped_split_comes_near_the_share_in_each_class():
    labels = [index % 4 for index in range(160)]
    groups = [str(index // 4) for index in range(160)]
    for seed in range(5):
        _, second = grouped_split(labels, groups, 0.25, seed)
        assert np.bincount([labels[index] for index in second]).tolist() == [10] * 4
    assert grouped_split(labels, groups, 0.25, 0) != grouped_split(labels, groups, 0.25, 1)


def test_splits_are_disjoint_and_retrain_is_their_union():
    train = toy([0, 1, 2] * 4)
    splits = make_splits(train, train, train, INFO, seed=2)
    assert not set(splits.weights.indices) & set(splits.gates.indices)
    assert splits.retrain.indices == tuple(range(12))
    assert np.bincount(splits.gates.labels).tolist() == [2, 2, 2]
    assert make_splits(train, train, train, INFO, seed=3).gates.indices != splits.gates.indices


def test_splits_refuse():
    train, empty = toy([0, 1, 2] * 4), Subset(toy([0]), [])
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(DataError, match="gate_share must lie between"):
            make_splits(train, train, train, INFO, seed=0, gate_share=share)
    with pytest.raises(DataError, match="leaves 12 clips for weights and 0 for gates"):
        make_splits(train, train, train, INFO, seed=0, gate_share=0.01)
    with pytest.raises(DataError, match="at least 2 clips"):
        make_splits(toy([0]), train, train, INFO, seed=0)
    with pytest.raises(DataError, match="split 'test' of 'toy' must not be empty"):
        make_splits(train, train, empty, INFO, seed=0)
    with pytest.raises(DataError, match="must share no item"):
        Splits(Subset(train, [0, 1]), Subset(train, [1]), train, train, INFO)
    with pytest.raises(DataError, match="one training data set"):
        Splits(Subset(train, [0]), Subset(toy([0]), [0]), train, train, INFO)
    with pytest.raises(DataError, match="given twice"):
        Subset(train, [0, 0])
    with pytest.raises(DataError, match=r"lie in 0\.\.11"):
        Subset(train, [12])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip": None}, "must be a tensor"),
        ({"mask": torch.full((2, 4, 6), 4, dtype=torch.uint8)}, "but it holds 4"),
        ({"mask": torch.zeros(2, 4, 6)}, "must be torch.uint8"),
        ({"map.seen": torch.full((2, 4, 6), 1.5)}, r"must lie in \[0, 1\]"),
        ({"map.seen": torch.full((2, 4, 6), float("nan"))}, r"must lie in \[0, 1\]"),
        ({"boxes": torch.zeros(2, 5)}, "max_boxes, 5"),
        ({"boxes": torch.full((2, 1, 5), 3.0)}, "but one is 3"),
    ],
)
def test_check_sample_refuses(change, words):
    good = {
        "clip": torch.zeros(3, 2, 4, 6, dtype=torch.uint8),
        "label": torch.tensor(0),
        "mask": torch.full((2, 4, 6), 255, dtype=torch.uint8),
        "boxes": torch.full((2, 1, 5), -1.0),
    }
    check_sample(good, INFO, "x")
    info = replace(INFO, map_names=("seen",)) if "map.seen" in change else INFO
    with pytest.raises(DataError, match=words):
        check_sample(good | change, info, "x")


def test_items_may_have_no_class():
    info = replace(INFO, num_classes=0, class_names=())
    clip = torch.zeros(3, 2, 4, 6, dtype=torch.uint8)
    check_sample({"clip": clip, "volume": torch.tensor(3.5)}, info, "x")
    assert labels_of([{"clip": clip}] * 3) == [0, 0, 0]
    with pytest.raises(DataError, match="must hold 'label'"):
        check_sample({"clip": clip}, INFO, "x")


def test_memory_dataset_and_info_refuse():
    with pytest.raises(DataError, match="same number of items"):
        MemoryDataset({"clip": torch.zeros(2), "label": torch.zeros(3)})
    with pytest.raises(DataError, match="'clip' or 'features', and 'label'"):
        MemoryDataset({"clip": torch.zeros(2)})
    with pytest.raises(DataError, match="at least 2 classes"):
        DataInfo(1, ("a",), 2, 4, 6, "toy")
    with pytest.raises(DataError, match="names 1"):
        DataInfo(2, ("a",), 2, 4, 6, "toy")


FEATURES = DataInfo(3, ("a", "b", "c"), 4, 0, 0, "toy", feature_size=5, multi_label=True)


def test_infos_say_what_models_read():
    assert (INFO.input_key, INFO.input_shape) == ("clip", (3, INFO.frames, INFO.height, INFO.width))
    assert (FEATURES.input_key, FEATURES.input_shape) == ("features", (4, 5))
    with pytest.raises(DataError, match="8 × 9 pixels"):
        DataInfo(2, ("a", "b"), 4, 8, 9, "toy", feature_size=5)
    with pytest.raises(DataError, match="have no pixels"):
        DataInfo(2, ("a", "b"), 4, 0, 0, "toy", feature_size=5, mask_names=("x", "y"))
    with pytest.raises(DataError, match="is -1"):
        DataInfo(2, ("a", "b"), 4, 0, 0, "toy", feature_size=-1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": torch.zeros(4, 6)}, r"shape \(4, 5\)"),
        ({"features": torch.zeros(4, 5).double()}, "float32 or torch.float16, but it is torch.float64"),
        ({"features": torch.full((4, 5), float("inf"))}, "finite"),
        ({"clip": torch.zeros(3, 4, 0, 0, dtype=torch.uint8)}, "leave 'clip' out"),
        ({"mask": torch.zeros(4, 0, 0, dtype=torch.uint8)}, "leave 'mask' out"),
        ({"labels": torch.tensor([1, 1])}, "must be torch.uint8"),
        ({"labels": torch.tensor([1, 1], dtype=torch.uint8)}, r"shape \(3,\)"),
        ({"labels": torch.tensor([2, 1, 0], dtype=torch.uint8)}, "0 and 1 only, but it holds 2"),
        ({"labels": torch.tensor([1, 0, 1], dtype=torch.uint8)}, r"it is 1 and 'labels' holds \[0, 2\]"),
    ],
)
def test_check_sample_refuses_features(change, words):
    good = {
        "features": torch.zeros(4, 5, dtype=torch.float16),
        "label": torch.tensor(1),
        "labels": torch.tensor([0, 1, 1], dtype=torch.uint8),
    }
    check_sample(good, FEATURES, "x")
    check_sample(good | {"labels": torch.zeros(3, dtype=torch.uint8)}, FEATURES, "x")  # of no class
    with pytest.raises(DataError, match=words):
        check_sample(good | change, FEATURES, "x")
    with pytest.raises(DataError, match="must hold 'labels'"):
        check_sample({key: good[key] for key in ("features", "label")}, FEATURES, "x")
    with pytest.raises(DataError, match="must hold 'clip'"):
        check_sample(good, INFO, "x")
    with pytest.raises(DataError, match="leave 'features' out"):
        check_sample(good | {"clip": torch.zeros(INFO.input_shape, dtype=torch.uint8)}, INFO, "x")


OWN_FEATURES = """
import torch
from nas_kd.data import MemoryDataset

def make(count):
    labels = torch.eye(3, dtype=torch.uint8)[torch.arange(count) % 3]
    return MemoryDataset({"features": torch.ones(count, 4, 5), "label": torch.arange(count) % 3, "labels": labels})

def load(): return {"train": make(12), "val": make(3), "test": make(3), "class_names": ["a", "b", "c"]}
def empty():
    item = [{"features": torch.ones(4, 0), "label": torch.tensor(0)}]
    return {"train": item, "val": item, "test": item, "class_names": ["a", "b"]}
"""


def test_own_features(tmp_path, monkeypatch):
    (tmp_path / "own_features.py").write_text(OWN_FEATURES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"it is clips and samples hold 'features'; set data\.items: features"):
        load(OwnConfig(function="own_features:load"), seed=0)
    splits = load(OwnConfig(function="own_features:load", items="features"), seed=0)
    assert (splits.info.input_shape, splits.info.multi_label) == ((4, 5), True)
    assert (splits.info.height, splits.info.width, len(splits.retrain)) == (0, 0, 12)
    (batch,) = ClipLoader(splits.test, 8).epoch(0)
    assert batch["features"].shape == (3, 4, 5)
    assert batch["labels"].tolist() == torch.eye(3).tolist()
    with pytest.raises(DataError, match="set augment: none"):
        next(ClipLoader(splits.test, 8, augment="flip").epoch(0))
    with pytest.raises(DataError, match=r"features: \[4, 0\]"):
        load(OwnConfig(function="own_features:empty", items="features"), seed=0)
