"""The numbers of classes, and warnings about a teacher that was brought in wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nas_kd.config import CampaignConfig
from nas_kd.data import DataInfo, MemoryDataset
from nas_kd.preparation.normalization_check import right_shares
from nas_kd.preparation.output_checks import Answers, OutputChecks, describe_classes, order_of_outputs
from nas_kd.preparation.teacher import describe_flops, prepare_teacher
from nas_kd.tasks import Classification, Multilabel, Segmentation, Task
from nas_kd.tasks.item_scores import interval_over_items
from nas_kd.trial import build_context

NUM_CLASSES = 12


class Reads(nn.Module):
    """Feature 0 of an item is its class; output k is the highest where that is k, in numeric order."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.arange(num_classes).float())

    def forward(self, features: Tensor) -> Tensor:
        return -((features[:, :, 0].mean(1, keepdim=True) - self.centres) ** 2)


class Hidden(torch.autograd.Function):
    """Work that no counter sees."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x @ torch.eye(x.shape[-1])


class ReadsHidden(Reads):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("one", torch.eye(2))

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(Hidden.apply(features @ self.one))  # type: ignore[no-untyped-call]


def campaign(root: Path, **data: object) -> CampaignConfig:
    """Items of 12 classes, named 0 to 11, and a teacher with weights that is always right."""
    rows = [(i % NUM_CLASSES, ("train", "train", "val", "test")[i // NUM_CLASSES % 4]) for i in range(8 * NUM_CLASSES)]
    np.save(root / "all.npy", np.array([[[label, 1.0]] * 2 for label, _ in rows], dtype=np.float32))
    lines = [f"all.npy#{i},{label},{split}" for i, (label, split) in enumerate(rows)]
    (root / "labels.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    save_file(Reads(NUM_CLASSES).state_dict(), root / "weights.safetensors")
    return CampaignConfig.model_validate(
        {
            "runs": str(root / "runs"),
            "data": {"source": "features", "root": str(root), **data},
            "teacher": {
                "model": f"{__name__}:Reads",
                "weights": str(root / "weights.safetensors"),
                "cache": {"views": 0},
            },
            "space": {"frames": [2], "h_rnn": {"lower": [4], "upper": [4], "block_length": [2]}},
        }
    )


def test_labels_that_are_whole_numbers_meet_the_outputs_of_the_teacher(tmp_path: Path) -> None:
    config = campaign(tmp_path)
    known = prepare_teacher(build_context(config, "cpu"), config.run_dir)
    assert known["val/accuracy"] == 1.0
    assert known["classes"] == [str(number) for number in range(NUM_CLASSES)]
    assert json.loads((config.run_dir / "teacher" / "teacher.json").read_text())["classes"] == known["classes"]
    assert describe_classes(known["classes"], tmp_path).startswith("classes: 0 = 0, 1 = 1, 2 = 2,")
    assert "warnings" not in known


def test_another_order_of_the_classes_is_named_and_a_changed_one_refused(tmp_path: Path) -> None:
    as_text = sorted(map(str, range(NUM_CLASSES)))
    config = campaign(tmp_path, classes=as_text)
    known = prepare_teacher(build_context(config, "cpu"), config.run_dir)
    assert known["val/accuracy"] == pytest.approx(2 / NUM_CLASSES)  # 0 and 1 alone keep their place
    assert "would be 1.000 with its classes in another order" in known["warnings"][0]
    listed = tmp_path / "classes.txt"
    listed.write_text("\n".join(map(str, range(NUM_CLASSES))))
    config = campaign(tmp_path, classes="classes.txt").model_copy(update={"name": "file"})
    prepare_teacher(build_context(config, "cpu"), config.run_dir)
    listed.write_text("\n".join(as_text))
    with pytest.raises(ValueError, match="class 2 was '2' and is '10'"):
        prepare_teacher(build_context(config, "cpu"), config.run_dir)


def test_flops_that_miss_something_are_a_lower_bound_everywhere(tmp_path: Path) -> None:
    config = campaign(tmp_path)
    save_file(ReadsHidden(NUM_CLASSES).state_dict(), tmp_path / "weights.safetensors")
    teacher = config.teacher.model_copy(update={"model": f"{__name__}:ReadsHidden"})
    config = config.model_copy(update={"teacher": teacher})
    known = prepare_teacher(build_context(config, "cpu"), config.run_dir)
    assert (known["flops"], known["flops_uncounted"]) == (2 * 2 * 2 * 2, ["prim::PythonOp.Hidden"])
    assert describe_flops(known, "item") == ", at least 16 FLOPs a item (uncounted: prim::PythonOp.Hidden)"
    assert describe_flops({"flops": 1200}, "clip") == " at 1,200 FLOPs a clip"


def info(multi_label: bool = False) -> DataInfo:
    return DataInfo(3, ("a", "b", "c"), 2, 0, 0, "set", feature_size=2, multi_label=multi_label)


def doubts(
    task: Task,
    outputs: Tensor,
    batch: dict[str, Tensor],
    *,
    trained_here: bool = False,
    picked: list[int] | None = None,
) -> list[str]:
    checks = OutputChecks(task)
    checks.add(outputs, batch)
    task.update(outputs.float(), batch)
    scores = task.item_scores()
    assert scores is not None
    low, high = interval_over_items([scores]) or (None, None)
    evaluated = {"num_items": len(outputs), "low": low, "high": high, "majority": scores.majority}
    evaluated["chance"] = scores.chance
    value = task.compute()[task.metric]
    return checks.doubts(trained_here=trained_here, evaluated=evaluated, value=value, picked=picked)


LEVELS = torch.tensor([20.0, 100.0, 180.0])  # of 255, of the three classes below


def bright_clips() -> dict[str, object]:
    """Clips of one brightness each, which is their class."""
    labels = torch.arange(12) % 3
    clips = LEVELS[labels].to(torch.uint8)[:, None, None, None, None].expand(-1, 3, 2, 8, 8).clone()
    sets = dict.fromkeys(("train", "val", "test"), MemoryDataset({"clip": clips, "label": labels}))
    return {**sets, "class_names": ["dark", "grey", "bright"]}


class Brightness(nn.Module):
    """The class whose level is nearest, of frames from 0 to 255."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.levels = nn.Parameter(LEVELS)

    def forward(self, clip: Tensor) -> Tensor:
        return -((clip.mean((1, 2, 3, 4))[:, None] - self.levels) ** 2)


class OfShares(Brightness):
    """Of frames from 0 to 1; other numbers are refused."""

    def forward(self, clip: Tensor) -> Tensor:
        assert float(clip.min()) >= 0, "numbers from 0 to 1 are wanted"
        assert float(clip.max()) <= 1, "numbers from 0 to 1 are wanted"
        return super().forward(255 * clip)


@pytest.mark.parametrize(("size", "levels", "accuracy"), [(None, LEVELS, 1.0), (11, LEVELS.roll(1), 0.0)])
def test_a_net_that_refuses_what_is_no_share_of_brightness_sees_only_such(
    tmp_path: Path, size: int | None, levels: Tensor, accuracy: float
) -> None:
    save_file({"levels": levels}, tmp_path / "weights.safetensors")
    teacher = {"model": f"{__name__}:OfShares", "weights": str(tmp_path / "weights.safetensors"), "input_size": size}
    data = {"source": "own", "function": f"{__name__}:bright_clips"}
    content = {"runs": str(tmp_path), "data": data, "space": {"frames": [2], "resolution": [8]}}
    shares = {"normalize": {"mean": [0, 0, 0], "std": [1, 1, 1]}, "cache": {"views": 0}}
    context = build_context(CampaignConfig.model_validate({**content, "teacher": {**teacher, **shares}}), "cpu")
    known = prepare_teacher(context, context.config.run_dir)
    assert known["val/accuracy"] == accuracy
    assert not any("normalised" in text for text in known.get("warnings", ()))  # other numbers are tried, and refused
    black = context.input_type.read({"clip": torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8)})
    assert torch.equal(context.teacher_model(black), -(levels[None] ** 2))
    wrong = {**teacher, "normalize": {"mean": [0.1] * 3, "std": [0.25] * 3}}
    with pytest.raises(ValueError, match=r"cannot read .* numbers from 0 to 1 are wanted"):
        build_context(CampaignConfig.model_validate({**content, "teacher": wrong}), "cpu")


def test_a_normalisation_with_which_a_given_teacher_is_right_is_named(tmp_path: Path) -> None:
    save_file(Brightness(3).state_dict(), tmp_path / "weights.safetensors")
    teacher = {"model": f"{__name__}:Brightness", "weights": str(tmp_path / "weights.safetensors")}
    small = {"cache": {"views": 0}}
    content = {"runs": str(tmp_path), "data": {"source": "own", "function": f"{__name__}:bright_clips"}}
    space = {"space": {"frames": [2], "resolution": [8]}}
    config = CampaignConfig.model_validate({**content, **space, "name": "now", "teacher": {**teacher, **small}})
    known = prepare_teacher(build_context(config, "cpu"), config.run_dir)
    assert known["val/accuracy"] == pytest.approx(1 / 3)  # all are far below the lowest level
    assert f"1.000 with its input normalised by mean [0.0, 0.0, 0.0] and std {[0.003922] * 3}" in known["warnings"][-1]
    told = {**teacher, **small, "normalize": {"mean": [0, 0, 0], "std": [0.003922] * 3}}  # as the warning says
    config = CampaignConfig.model_validate({**content, **space, "name": "then", "teacher": told})
    known = prepare_teacher(build_context(config, "cpu"), config.run_dir)
    assert (known["val/accuracy"], "warnings" in known) == (1.0, False)


def test_right_answers_of_an_item() -> None:
    logits = torch.tensor([[0.0, 2, 1], [3, 0, 1]])
    assert right_shares(logits, torch.tensor([1, 2])).tolist() == [1, 0]
    assert right_shares(logits, torch.tensor([[1, 0, 0], [1, 0, 1]])).tolist() == [0, 1]
    maps = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 2]]), 3).permute(2, 0, 1)[None, None].float()
    wanted = torch.tensor([[0, 1], [1, 255]])[None, None]  # right, right, wrong, unknown
    assert right_shares(maps, wanted.repeat_interleave(2, 2).repeat_interleave(2, 3)).tolist() == pytest.approx([2 / 3])


def test_probabilities_and_answers_at_chance_are_named() -> None:
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    right = 4.0 * torch.nn.functional.one_hot(labels, 3)
    assert doubts(Classification(info()), right, {"label": labels}) == []
    assert "look like probabilities" in doubts(Classification(info()), right.softmax(1).half(), {"label": labels})[0]
    assert len(doubts(Classification(info()), right.sigmoid(), {"label": labels})) == 1  # or some of more outputs
    several = torch.nn.functional.one_hot(labels, 3).to(torch.uint8)
    assert doubts(Multilabel(info(True)), right - 1, {"labels": several}) == []
    assert len(doubts(Multilabel(info(True)), right.sigmoid(), {"labels": several})) == 1
    noise = torch.randn(300, 3)
    (sentence,) = doubts(Classification(info()), noise, {"label": labels})
    assert "is near that of always giving the most frequent class, 0.333; check the order of its classes" in sentence
    wrong = torch.nn.functional.one_hot((labels + 1 + torch.arange(300) // 3 % 2) % 3, 3) + 0.1 * noise
    sentences = doubts(Classification(info()), wrong, {"label": labels}, trained_here=True)
    assert "0.000 on 300 items, is worse than that of always giving the most frequent class, 0.3" in " ".join(sentences)
    assert "train it longer" in doubts(Classification(info()), noise, {"label": labels}, trained_here=True)[0]


def test_the_order_of_outputs_is_looked_at_in_every_task_with_classes() -> None:
    torch.manual_seed(0)
    of_class = torch.tensor([1, 2, 0])  # output of each class
    labels = torch.arange(90) % 3
    clips = 4.0 * torch.nn.functional.one_hot(of_class[labels], 3)
    several = torch.nn.functional.one_hot(labels, 3).to(torch.uint8)
    several[::2, 0] = 1
    pixels = torch.arange(30 * 2 * 8 * 8).view(30, 2, 8, 8).remainder(41).floor_divide(20)  # 2 is rare
    maps = 4.0 * torch.nn.functional.one_hot(of_class[pixels], 3)
    masks = DataInfo(0, (), 2, 8, 8, "set", mask_names=("a", "b", "c"))
    cases: list[tuple[Task, Tensor, dict[str, Tensor]]] = [
        (Classification(info()), clips, {"label": labels}),
        (Multilabel(info(True)), clips, {"labels": several}),
        (Segmentation(masks), maps.movedim(-1, 2).float(), {"mask": pixels.to(torch.uint8)}),
    ]
    for task, given, batch in cases:
        (sentence,) = doubts(task, given, batch)
        assert "in another order; name its outputs in teacher.outputs: [1, 2, 0]" in sentence, task
        assert doubts(task, given, batch, picked=[10, 11, 12])[0].endswith("teacher.outputs: [11, 12, 10]")
        mended = given[:, of_class] if given.ndim == 2 else given[:, :, of_class]
        assert doubts(task, mended, batch) == []  # the advice, followed


def test_few_items_of_many_classes_do_not_fit_by_luck() -> None:
    rng = np.random.default_rng(0)
    labels, ones = np.arange(400) % 100, np.ones(400)
    assert order_of_outputs(Answers(rng.integers(100, size=400), labels, ones), 100, 400).better < 0.1
    order = rng.permutation(100)
    found = order_of_outputs(Answers(order[labels], labels, ones), 100, 400)
    assert found.better == 1.0
    assert found.outputs == order.tolist()
    assert describe_classes([str(i) for i in range(20)], Path("t.json")).endswith("11 = 11, … (20, all in t.json)")
