"""What a run is known by: whatever of the user's data, nets and keys changes between two starts is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nas_kd.config import CampaignConfig, validate
from nas_kd.preparation import teacher as preparation
from nas_kd.preparation.identity import check_identity, check_sections, describe_unread, identity
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.trial import build_context

KEYS = {"clips": "clip", "features": "features", "masks": "clip", "boxes": "clip"}
TASKS = {"clips": "classification", "features": "classification", "masks": "segmentation", "boxes": "detection"}
NAMES = {"masks": "mask_names", "boxes": "box_names"}


class Own:
    """Items of every kind that a user may bring; nothing tells their content but reading them."""

    def __init__(self, kind: str, num: int) -> None:
        generator = torch.Generator().manual_seed(num)
        self.kind = kind
        self.clip = torch.randint(0, 256, (num, 3, 4, 16, 16), generator=generator, dtype=torch.uint8)
        self.features = torch.randn(num, 6, 8, generator=generator)
        self.mask = torch.randint(0, 2, (num, 4, 16, 16), generator=generator, dtype=torch.uint8)
        self.boxes = torch.tensor([2.0, 2, 9, 9, 0]).repeat(num, 4, 1, 1)
        self.classes = torch.arange(num) % 2

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        seen = {KEYS[self.kind]: getattr(self, KEYS[self.kind])[index], "label": self.classes[index]}
        if self.kind == "masks":
            seen["mask"] = self.mask[index]
        if self.kind == "boxes":
            seen["boxes"] = self.boxes[index]
        return seen


SETS: dict[str, Any] = {}


def load() -> dict[str, Any]:
    return SETS


def own_campaign(kind: str, folder: Path, **changes: Any) -> CampaignConfig:
    """Of items of a kind, with a teacher of the package; nothing of it is trained here."""
    SETS.clear()
    SETS.update({name: Own(kind, num) for name, num in {"train": 40, "val": 24, "test": 8}.items()})
    SETS.update({NAMES[kind]: ["a", "b"], "num_classes": 0} if kind in NAMES else {"class_names": ["a", "b"]})
    items = "features" if kind == "features" else "clips"
    data = {"source": "own", "function": "test_identity:load", "items": items}
    return validate({"runs": str(folder), "task": TASKS[kind], "data": data, **changes}, source="test")


def row_of_pixels(own: Own) -> None:
    own.clip[17, :, 1, 5] ^= 1


def feature(own: Own) -> None:
    own.features[17, 2, 3] += 1


def label(own: Own) -> None:
    own.classes[17] ^= 1


def pixel_of_a_mask(own: Own) -> None:
    own.mask[17, 1, 2, 3] ^= 1


def box(own: Own) -> None:
    own.boxes[17, 1, 0, 0] += 1


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("kind", "change", "what"),
    [
        ("clips", row_of_pixels, "other content or order"),
        ("clips", label, "other labels"),
        ("features", feature, "other content or order"),
        ("masks", pixel_of_a_mask, "other content or order"),
        ("boxes", box, "other content or order"),
    ],
)
def test_one_item_of_own_data_that_changed_is_noticed(
    tmp_path: Path, kind: str, change: Callable[[Own], None], what: str, split: str
) -> None:
    config = own_campaign(kind, tmp_path)
    before = identity(build_context(config, "cpu"))
    assert describe_unread(before) == []
    check_identity(config.run_dir, before, identity(build_context(config, "cpu"), before))
    change(SETS[split])
    named = {"train": "training", "val": "validation"}[split]
    with pytest.raises(ValueError, match=rf"begun with other {named} data \({what}\)"):
        check_identity(config.run_dir, before, identity(build_context(config, "cpu"), before))


def test_what_could_not_be_read_in_time_is_said_and_as_much_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_campaign("features", tmp_path)
    monkeypatch.setattr("nas_kd.data.fingerprint.READ_S", 0.0)
    before = identity(build_context(config, "cpu"))
    assert {name: before[name].get("read") for name in ("train", "val", "test")} == {
        "train": 16, "val": 16, "test": None,
    }  # fmt: skip
    sentences = describe_unread(before)
    assert len(sentences) == 2
    assert sentences[0].startswith("16 of 40 items of training data were read")
    monkeypatch.setattr("nas_kd.data.fingerprint.READ_S", 1e9)
    check_identity(config.run_dir, before, identity(build_context(config, "cpu"), before))


def test_what_own_data_show_of_an_item_counts(tmp_path: Path) -> None:
    config = own_campaign("features", tmp_path)
    before = identity(build_context(config, "cpu"))
    SETS["frames"] = 5
    with pytest.raises(ValueError, match="begun with data of which nets see another number of frames"):
        check_identity(config.run_dir, before, identity(build_context(config, "cpu"), before))


def test_keys_of_the_campaign_file_are_named(tmp_path: Path) -> None:
    before = own_campaign("clips", tmp_path).teacher_content
    now = own_campaign("clips", tmp_path, normalize={"mean": [0, 0, 0]}, seed=3).teacher_content
    with pytest.raises(ValueError, match=r"another seed \(0 then, 3 now; normalize\.mean changed, too\): its trials"):
        check_sections(tmp_path, before, now)
    check_sections(tmp_path, before, own_campaign("clips", tmp_path).teacher_content)


def test_a_teacher_whose_training_was_interrupted_does_not_go_on_with_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_campaign("features", tmp_path)
    tags: list[str] = []

    def killed(*_: Any, tag: str, **__: Any) -> None:
        tags.append(tag)
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "fit", killed)
    for change in (None, None, feature):
        if change is not None:
            change(SETS["train"])
        with pytest.raises(KeyboardInterrupt):
            prepare_teacher(build_context(config, "cpu"), config.run_dir)
    assert tags[0] == tags[1] != tags[2]
