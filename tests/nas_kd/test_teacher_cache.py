"""The teacher's outputs on disk: those of the very view that a student sees, and never those of anything else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from nas_kd.callbacks import no_progress
from nas_kd.config import CampaignConfig, validate
from nas_kd.data import AugmentConfig, Batch, DataInfo, MemoryDataset, Splits
from nas_kd.data.splits import make_splits
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.teachers import cache_files
from nas_kd.teachers.cache import CacheKey, Manifest, TeacherCache, read_manifest
from nas_kd.teachers.cache_files import CacheError, check_blocks, fill, new_manifest
from nas_kd.trial import CampaignContext, Learner, build_context, load_context

Make = Callable[..., CampaignConfig]
AUGMENTED: dict[str, Any] = {"search": {"augment": "flip+crop"}, "retrain": {"augment": "flip+crop"}}
HALF = 2.0**-11  # largest relative error of float16


def prepared(config: CampaignConfig) -> tuple[CampaignContext, list[str]]:
    """A context with its caches, as a trial gets it, and what was said on the way."""
    notes: list[str] = []
    prepare_teacher(build_context(config, "cpu"), config.run_dir, note=notes.append)
    return load_context(config.model_dump_json(), config.run_dir, "cpu"), notes


def folder_of(config: CampaignConfig, augment: str = "none") -> Path:
    return config.run_dir / "teacher" / "outputs" / augment


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def learner_of(context: CampaignContext, augment: Any, *, cached: bool = True) -> Learner:
    knobs = context.space.knobs_with()
    torch.manual_seed(0)
    first = {name: values[0] for name, values in context.space.variables.items()}
    student = context.space.student(context.space.arch({**knobs, **first}))
    return Learner(context, student, context.config.objective, knobs, cached=cached, augment=augment)


def test_a_student_sees_the_very_view_whose_outputs_are_cached(tiny: Make) -> None:
    augment = AugmentConfig(flip=True, resized_crop={}, color={"brightness": 0.4, "hue": 0.1})
    section = augment.model_dump(mode="json")
    context, _ = prepared(tiny(search={"augment": section}, retrain={"augment": section}))
    (cache,) = context.caches.values()
    assert context.caches.keys() == {augment}
    assert cache.views.count == 4
    seen: set[tuple[int, int]] = set()
    with closing(learner_of(context, augment)) as learner, closing(learner_of(context, augment, cached=False)) as live:
        assert live.views is None
        loader = context.loader(context.splits.retrain, context.config.retrain, seed=3, train=True, views=learner.views)
        for epoch in range(6):
            for batch in loader.epoch(epoch):
                inputs = context.input_type.read(batch)
                kept, fresh = learner._answers(batch, inputs), live._answers(batch, inputs)
                assert kept is not None
                assert fresh is not None
                assert kept.features.keys() == fresh.features.keys() == {"layers.0", "layers.1"}
                for name, value in {"logits": fresh.logits, **fresh.features}.items():
                    stored = kept.logits if name == "logits" else kept.features[name]
                    assert stored.dtype == torch.float32
                    assert bool(((stored - value).abs() <= 1.01 * HALF * value.abs() + 1e-6).all())
                seen |= set(zip(batch["index"].tolist(), batch["view"].tolist(), strict=True))
    assert {view for _, view in seen} == set(range(cache.views.count))
    assert len(seen) > 0.7 * 48 * 4
    with pytest.raises(ValueError, match="cached outputs are those of whole clips, but the batch is mixed"):
        cache({**batch, "mix_partner": batch["index"]})
    plain = next(context.loader(context.splits.retrain, context.config.retrain, seed=3, train=True).epoch(0))
    with pytest.raises(ValueError, match="the batch has no 'view'; take batches from a loader with the views"):
        cache(plain)


@pytest.mark.parametrize("reference", ["keyframe", "previous"])
def test_pairs_of_frames_have_the_outputs_of_their_frames(tmp_path: Path, reference: str) -> None:
    config = validate(
        {
            "name": "streams", "runs": str(tmp_path), "task": "segmentation",
            "data": {"num_train": 24, "num_val": 8, "num_test": 8, "frames": 5, "size": 24, "digits": [[3], [8]]},
            "teacher": {"fit": {"epochs": 1}, "settings": {"widths": [8], "depths": [1], "head_width": 8},
                        "cache": {"views": 2}},
            "space": {"keyframe_interval": [3], "candidates": ["pointwise2", "full"]},
            "budget": {"max_flops": ["1G"]},
            "objective": {"response": {"weight": 1}, "delta": {"weight": 1, "reference": reference}},
            "search": {"augment": "flip"}, "retrain": {"augment": "flip", "batch_size": 8},
        },
        source="test",
    )  # fmt: skip
    context, notes = prepared(config)
    assert notes == []
    assert set(context.caches) == {"flip"}
    with closing(learner_of(context, "flip")) as learner, closing(learner_of(context, "flip", cached=False)) as live:
        assert learner._teacher is None
        loader = context.loader(context.splits.retrain, config.retrain, seed=1, train=True, views=learner.views)
        for number, batch in enumerate(loader.epoch(0)):
            terms = []
            for one in (learner, live):
                torch.manual_seed(number)
                terms.append({name: float(value.detach()) for name, value in one.loss(batch).items()})
            assert terms[0].keys() == {"task", "response", "delta"}
            assert terms[0] == pytest.approx(terms[1], rel=3e-3, abs=1e-4)
            assert terms[0]["delta"] > 0.01


GREY = """
import torch
from torch import nn

class Grey(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv3d(3, 2, 1)
        self.centres = nn.Parameter(torch.arange(num_classes) * 40.0 + 20)

    def forward(self, clip):
        grey = ((clip * 0.225 + 0.45) * 255).mean((1, 2, 3, 4)) + 0 * self.conv(clip).mean()
        return -((grey[:, None] - self.centres) ** 2) / 20

def net(num_classes):
    return Grey(num_classes)
"""


def test_data_that_changed_under_the_same_names_are_never_answered_from_the_old_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, rows = tmp_path / "data", []
    for split, copies in (("train", 4), ("val", 1), ("test", 1)):
        for label in range(6):
            for copy in range(copies):
                name = f"{split}_{label}_{copy}"
                (root / name).mkdir(parents=True)
                Image.fromarray(np.full((8, 8, 3), 20 + 40 * label, np.uint8)).save(root / name / "0.png")
                rows.append(f"{name},{label},{split}")
    (tmp_path / "grey_teacher.py").write_text(GREY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "grey_teacher", raising=False)
    table = root / "labels.csv"
    table.write_text("\n".join(["path,label,split", *rows]) + "\n")
    save_file(__import__("grey_teacher").net(6).state_dict(), tmp_path / "teacher.safetensors")
    data = {
        "source": "folder", "root": str(root), "frames": 1, "size": 8,
        "cache_dir": str(tmp_path / "clips"),
    }  # fmt: skip
    config = validate(
        {
            "name": "grey", "runs": str(tmp_path / "runs"), "data": data,
            "teacher": {"model": "grey_teacher:net", "weights": str(tmp_path / "teacher.safetensors")},
            "space": {"name": "clip_cell", "stem_width": 4, "widths": [[4]], "depths": [[1]], "strides": [1],
                      "ops": ["conv2d_k3"], "resolution": [8], "frames": [1]},
            "objective": {"response": {"weight": 1}, "feature": {"weight": 0}},
            "search": {"objective": {"response": {"weight": 1}, "feature": {"weight": 0}}},
        },
        source="test",
    )  # fmt: skip

    def agreement() -> tuple[float, list[str]]:
        """Share of the training clips whose cached answer is their class, as this teacher always has it."""
        context, notes = prepared(config)
        cache = context.caches["none"]
        loader = context.loader(context.splits.retrain, config.retrain, seed=0, train=True, views=cache.views)
        right = [cache(batch).logits.argmax(1) == batch["label"] for batch in loader.epoch(0)]
        return float(torch.cat(right).float().mean()), notes

    assert agreement() == (1.0, [])
    assert agreement() == (1.0, [])
    order = np.random.default_rng(0).permutation(len(rows))
    table.write_text("\n".join(["path,label,split", *(rows[i] for i in order)]) + "\n")
    with pytest.raises(
        ValueError, match=r"was begun with other training data \(other content or order\), other val.*: its"
    ):
        agreement()
    # Begun again in the same process: neither the cache nor the context of before may answer.
    (config.run_dir / "teacher" / "teacher.json").unlink()
    share, notes = agreement()
    assert share == 1.0
    assert notes == [f"the teacher's outputs in {folder_of(config)} are of other data; they are computed again"]
    assert agreement() == (1.0, [])
    moved = root.rename(tmp_path / "moved")
    moved.rename(root)
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    assert agreement()[0] == 1.0  # as good as new: places and times are no content
    table.write_text(table.read_text().replace("train_0_0,0", "train_0_0,1"))
    with pytest.raises(ValueError, match=r"begun with other training data \(other labels\): its"):
        agreement()
    table.write_text("\n".join(["path,label,split", *(rows[i] for i in order if "train_0_0" not in rows[i])]) + "\n")
    with pytest.raises(ValueError, match=r"begun with other training data \(24 items then, 23 now\): its"):
        agreement()
    table.write_text("\n".join(["path,label,split", *(rows[i] for i in order)]) + "\n")
    save_file(
        {name: value + 1 for name, value in __import__("grey_teacher").net(6).state_dict().items()},
        tmp_path / "teacher.safetensors",
    )
    with pytest.raises(ValueError, match=r"was begun with another file at teacher.weights: its"):
        agreement()


KEY = CacheKey(
    data="d", num_items=20, inputs="clips", positions=2, teacher="t", augment="flip", views=3, seed=0, dtype="float16"
)
SHAPES = {"logits": (5,), "layer": (2, 3, 4)}


class FakeTeacher:
    """Its outputs tell item, view, position and element apart; counts what it is asked."""

    def __init__(self, scale: float = 1.0) -> None:
        self.asked: list[tuple[int, int]] = []
        self.scale = scale

    def value(self, name: str, item: int, view: int) -> Tensor:
        numbers = torch.arange(2 * prod(SHAPES[name])).view(2, *SHAPES[name])
        return self.scale * (numbers / 64 + 10 * item + view + 0.1)

    def __call__(self, batch: Batch, view: int) -> dict[str, Tensor]:
        items = batch["index"].tolist()
        self.asked += [(item, view) for item in items]
        return {name: torch.stack([self.value(name, item, view) for item in items]) for name in SHAPES}


def batches(size: int) -> Callable[[Sequence[int]], Iterator[Batch]]:
    return lambda items: ({"index": torch.tensor(items[i : i + size])} for i in range(0, len(items), size))


def asked_again(folder: Path, manifest: Manifest) -> list[int]:
    """Brings a cache up to date; the items that the teacher was asked for again."""
    teacher = FakeTeacher()
    checked = check_blocks(folder, manifest, no_progress)
    if not checked.is_complete:
        fill(folder, checked, batches(manifest.block), teacher, no_progress)
    return sorted({item for item, _ in teacher.asked})


def test_an_interrupted_cache_goes_on_and_damaged_blocks_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_files, "_SAVE_EVERY_S", 0.0)
    folder, teacher = tmp_path / "flip", FakeTeacher()
    empty = new_manifest(KEY, SHAPES, max_items=3)
    assert len(empty.checksums) == 7

    def stop(share: float, words: str) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(folder, empty, batches(3), teacher, stop)
    with pytest.raises(ValueError, match="no complete teacher cache"):
        TeacherCache(folder)
    partial = read_manifest(folder)
    assert partial is not None
    assert asked_again(folder, partial) == list(range(12, 20))
    manifest, whole = read_manifest(folder), content(folder)
    assert manifest is not None
    assert sum(map(len, whole.values())) - len(whole["cache.json"]) == manifest.total_bytes == 2 * 20 * 3 * 2 * 29

    cache = TeacherCache(folder)
    batch = {"index": torch.tensor([7, 0, 19]), "view": torch.tensor([2, 0, 1]), "position": torch.tensor([[1, 0]] * 3)}
    answer = cache(batch)
    for name, rows in {"logits": answer.logits, "layer": answer.features["layer"]}.items():
        values = [teacher.value(name, item, view) for item, view in ((7, 2), (0, 0), (19, 1))]
        expected = torch.stack([value[position] for position in (1, 0) for value in values])
        assert torch.equal(rows, expected.half().float())
    with pytest.raises(ValueError, match="the batch has no 'position'"):
        cache({"index": batch["index"], "view": batch["view"]})

    assert asked_again(folder, manifest) == []
    flipped = bytearray(whole["1.bin"])
    flipped[len(flipped) // 2] ^= 1
    for damaged, items in ((flipped, [9, 10, 11]), (whole["1.bin"][:-1], [18, 19]), (b"", list(range(20)))):
        (folder / "1.bin").write_bytes(damaged)
        assert asked_again(folder, manifest) == items
        assert content(folder) == whole
    (folder / "0.bin").unlink()
    with pytest.raises(ValueError, match="has not the size of its outputs"):
        TeacherCache(folder)
    assert asked_again(folder, manifest) == list(range(20))
    assert content(folder) == whole
    for text in ("", "{", '{"format": 0}', '{"format": 1}'):
        (folder / "cache.json").write_text(text)
        assert read_manifest(folder) is None


def test_large_values_need_bfloat16(tmp_path: Path) -> None:
    teacher, wide = FakeTeacher(scale=1e4), replace(KEY, dtype="bfloat16")
    with pytest.raises(CacheError, match=r"float16 cannot hold; teacher\.cache\.dtype: bfloat16 has a larger range"):
        fill(tmp_path / "half", new_manifest(KEY, SHAPES, 20), batches(20), teacher, no_progress)
    fill(tmp_path / "wide", new_manifest(wide, SHAPES, 20), batches(20), teacher, no_progress)
    batch = {"index": torch.tensor([19]), "view": torch.tensor([2]), "position": torch.tensor([[1]])}
    kept, value = TeacherCache(tmp_path / "wide")(batch).features["layer"][0], teacher.value("layer", 19, 2)[1]
    assert bool(((kept - value).abs() <= 2.0**-8 * value).all())
    assert not torch.equal(kept, value)


def test_outputs_of_another_teacher_or_other_views_are_computed_again(tiny: Make) -> None:
    config = tiny(**AUGMENTED)
    prepared(config)
    folder = folder_of(config, "flip+crop")

    def said(config: CampaignConfig, change: Callable[[nn.Module], object] = lambda model: None) -> list[str]:
        notes: list[str] = []
        context = build_context(config, "cpu")
        weights = config.run_dir / "teacher" / "teacher.safetensors"
        change(context.teacher_model)
        prepare_teacher(context, config.run_dir, note=notes.append)
        assert weights.is_file()
        return [note.removeprefix(f"the teacher's outputs in {folder} are ").partition(";")[0] for note in notes]

    # The code of the teacher changed: its weights are the same, its answers are not.
    double = said(config, lambda model: model.register_forward_hook(lambda m, args, output: 1.2 * output))
    changed = "the teacher gives other answers to a fixed input than when the run began: its code changed"
    assert double == [changed, "not its present outputs"]
    assert said(config) == [changed, "not its present outputs"]
    assert said(config) == []
    more = tiny(**AUGMENTED, teacher={"cache": {"views": 5}})
    assert more.teacher_digest == config.teacher_digest
    assert said(more) == ["of another number of views"]
    assert TeacherCache(folder).views.count == 5
    logits = {"response": {"weight": 1}, "feature": {"weight": 0}}
    fewer = {**AUGMENTED, "search": {"augment": "flip+crop", "objective": logits}, "objective": logits}
    kept = content(folder)
    assert said(tiny(**fewer, teacher={"cache": {"views": 5}})) == []  # maps that nothing reads do no harm
    assert content(folder) == kept
    assert said(tiny()) == []
    assert {path.name for path in folder.parent.iterdir()} == {"none"}  # of other augmentations they are deleted


def test_what_exceeds_the_limit_is_not_kept_and_said(tiny: Make) -> None:
    context, (sentence,) = prepared(tiny(**AUGMENTED, teacher={"cache": {"views": 3, "max_bytes": "300k"}}))
    assert context.caches == {}
    assert sentence.startswith("augment: flip+crop: the teacher's outputs are not kept, and every step runs the ")
    needed = 48 * 2 * 3 * (4 + 4 * 4 * 8 * 8 + 8 * 4 * 4 * 4)
    assert f"3 views of 48 items take {needed / 1e9:.3g} GB, but teacher.cache.max_bytes leaves 0.0003 GB" in sentence
    assert sentence.endswith(f"set it higher, or lower teacher.cache.views to {3 * 300_000 // needed}")
    with closing(learner_of(context, "flip+crop")) as learner:
        assert learner.views is None
        assert learner._teacher is not None


class RandomWindows:
    labels = [i % 2 for i in range(24)]  # noqa: RUF012

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clip = torch.randint(0, 256, (3, 4, 16, 16), dtype=torch.uint8)
        return {"clip": clip, "label": torch.tensor(self.labels[index])}


def test_items_that_change_are_not_answered_from_a_cache(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    info = DataInfo(2, ("a", "b"), 4, 16, 16, name="windows")
    still = MemoryDataset({key: torch.stack([RandomWindows()[i][key] for i in range(24)]) for key in ("clip", "label")})

    def load(*_: object, **__: object) -> Splits:
        return make_splits(RandomWindows(), still, still, info, seed=0)

    monkeypatch.setattr("nas_kd.trial.context.load", load)
    context, (sentence,) = prepared(tiny())
    assert sentence.startswith("item 0 of the training data differs when it is read again")
    assert context.caches == {}
