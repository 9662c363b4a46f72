from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas_kd.data import FolderConfig, MemoryDataset
from nas_kd.data.fingerprint import NUM_SAMPLES, changing_item, content_hash, fingerprint, spread


def items(**changes: object) -> MemoryDataset:
    clip = torch.arange(40 * 3 * 2 * 4 * 4, dtype=torch.int64).reshape(40, 3, 2, 4, 4).to(torch.uint8)
    return MemoryDataset({"clip": clip, "label": torch.zeros(40, dtype=torch.int64), **changes})


def test_content_and_order_of_a_set_in_memory_count_and_labels_do_not() -> None:
    base = items()
    clip = base.tensors["clip"]
    same = [items(), items(label=torch.ones(40, dtype=torch.int64))]
    one_byte = clip.clone()
    one_byte[17, 1, 1, 2, 3] ^= 1
    others = [items(clip=one_byte), items(clip=clip.roll(1, 0)), items(clip=clip.mT), items(clip=clip[:, :, :1])]
    assert {fingerprint(dataset, "clip", "") for dataset in same} == {fingerprint(base, "clip", "")}
    assert len({fingerprint(dataset, "clip", "") for dataset in (base, *others)}) == 5


def test_files_of_a_folder_that_is_read_item_by_item_count(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for number in range(24):
        pixels = np.full((4, 4, 3), 10 * number, np.uint8)
        split = ("train", "val", "test")[0 if number < 20 else number % 2 + 1]
        (tmp_path / str(number)).mkdir()
        Image.fromarray(pixels).save(tmp_path / str(number) / "0.png")
        lines.append(f"{number},{number % 2},{split}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    config = FolderConfig(root=tmp_path, frames=1, size=4, cache_dir=tmp_path / "cache")

    def current() -> str:
        return fingerprint(config.load(seed=0).weights.base, "clip", "")

    first = current()
    assert current() == first
    lines[2], lines[3] = lines[3], lines[2]
    table.write_text("\n".join(lines) + "\n")
    swapped = current()
    stat = (tmp_path / "7" / "0.png").stat()
    Image.fromarray(np.full((4, 4, 3), 75, np.uint8)).save(tmp_path / "7" / "0.png")  # of the same size and time
    assert (tmp_path / "7" / "0.png").stat().st_size == stat.st_size
    os.utime(tmp_path / "7" / "0.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len({first, swapped, current()}) == 3


def test_the_identity_of_a_folder_is_the_content_of_all_its_files_wherever_it_lies(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    splits = ["train"] * 40 + ["val", "val", "test", "test"]
    for number in range(len(splits)):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(root / f"{number}.bmp")
    rows = [f"{number}.bmp,{number % 2},{split}" for number, split in enumerate(splits)]
    (root / "labels.csv").write_text("\n".join(["path,label,split", *rows]))

    def current(folder: Path) -> str:
        config = FolderConfig(root=folder, frames=1, size=4, cache_dir=tmp_path / "cache")
        return content_hash(config.load(seed=0).weights.base)[0]

    first = current(root)
    shutil.copytree(root, tmp_path / "moved")
    assert current(tmp_path / "moved") == first
    changed = set()
    for number in range(7, 12):  # of 40 items 16 are read, and these are neighbours
        path = tmp_path / "moved" / f"{number}.bmp"
        stat, content = path.stat(), path.read_bytes()
        path.write_bytes(content[:-3] + b"\xff\xff\xff")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        changed.add(current(tmp_path / "moved"))
        path.write_bytes(content)
    assert len(changed - {first}) == 5


class Own:
    """A set of a user, read item by item."""

    def __init__(self) -> None:
        self.values = list(range(100))
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.asked.append(index)
        return {"clip": torch.tensor(self.values[index]), "label": torch.tensor(0)}


def test_of_a_set_that_says_nothing_of_its_content_every_item_counts_as_far_as_time_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Own()
    first, read = content_hash(own)
    assert read == 100
    assert sorted(own.asked) == list(range(100))
    for index in range(100):
        other = Own()
        other.values[index] += 1
        assert content_hash(other)[0] != first
    monkeypatch.setattr("nas_kd.data.fingerprint.READ_S", 0.0)
    slow = Own()
    partly, read = content_hash(slow)
    assert read == NUM_SAMPLES
    assert sorted(slow.asked) == sorted({*range(0, 100, 8), 4, 20, 36, 52, 68, 84} & {*slow.asked})  # all over the set
    monkeypatch.setattr("nas_kd.data.fingerprint.READ_S", 1e9)
    assert content_hash(Own(), read) == (partly, read)  # a faster start reads as many, so that both can be compared
    assert fingerprint(own, "clip", first) != fingerprint(own, "clip", partly)


class Windows:
    """Items of which one is a random part of its video."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"clip": torch.rand(1) if index == 3 else torch.zeros(1), "label": torch.tensor(0)}


def test_items_that_differ_when_they_are_read_again_are_found() -> None:
    assert changing_item(Windows(), "clip") == 3
    assert changing_item(items(), "clip") is None
    assert spread(5, 16) == [0, 1, 2, 3, 4]
    assert spread(100, 3) == [0, 50, 99]
