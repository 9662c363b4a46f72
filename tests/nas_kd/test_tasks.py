from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics as reference

from nas_kd.data import DataError, DataInfo, MemoryDataset, Sample, Splits, Subset, make_splits
from nas_kd.tasks import TASKS, Classification, Detection, Segmentation, make_task
from nas_kd.tasks.classification import ranking_metrics
from nas_kd.tasks.classification_metrics import area_under_roc, confusion_matrix, f1_of_classes
from nas_kd.tasks.offsets import frames_by_offset, over_offsets

INFO = DataInfo(
    num_classes=2,
    class_names=("up", "down"),
    frames=4,
    height=16,
    width=24,
    name="toy",
    mask_names=("background", "cat", "dog"),
    box_names=("cat", "dog"),
)
BARE = DataInfo(num_classes=2, class_names=("up", "down"), frames=4, height=16, width=24, name="bare")
FEATURES = DataInfo(2, ("up", "down"), 4, 0, 0, "features", feature_size=8, multi_label=True)


def test_tasks_are_made_by_name_with_their_options() -> None:
    assert isinstance(make_task("classification", INFO, {}), Classification)
    segmentation = make_task("segmentation", INFO, {"ohem": True, "ohem_threshold": 0.7})
    assert isinstance(segmentation, Segmentation)
    assert (segmentation.config.ohem_threshold, segmentation.num_outputs) == (0.7, 3)
    detection = make_task("detection", INFO, {"box_weight": 2})
    assert isinstance(detection, Detection)
    assert (detection.config.box_weight, detection.num_outputs) == (2.0, 6)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_is(name: str) -> None:
    info = FEATURES if name == "multilabel" else INFO
    task = make_task(name, info, {})
    assert type(task)(info).num_outputs == task.num_outputs
    assert task.keys
    assert all(key in ("label", "labels", "mask", "boxes") for key in task.keys)
    with pytest.raises(ValueError, match="metrics need at least one"):
        task.compute()


@pytest.mark.parametrize(
    ("name", "info", "options", "sentence"),
    [
        (
            "segment",
            INFO,
            {},
            rf"task: 'segment' is unknown; did you mean 'segmentation'\? choose from {', '.join(TASKS)}",
        ),
        ("classification", INFO, {"ohem": True}, "task_options: ohem: unknown key 'ohem'; choose from label_smoothing"),
        ("segmentation", INFO, {"ohme": True}, "task_options: ohme: unknown key 'ohme'; did you mean 'ohem'"),
        ("segmentation", INFO, {"ohem_threshold": 2}, "task_options: ohem_threshold: .*less than or equal to 1.*got 2"),
        ("detection", INFO, {"max_detections": 0}, "task_options: max_detections: .*, but got 0"),
        ("segmentation", BARE, {}, "no masks to segment: mask_names must name at least 2 classes, but 'bare' names 0"),
        (
            "classification",
            INFO,
            {"class_weights": [1, 2, 3]},
            "class_weights must give a weight for each of the 2 classes, in their order, but gives 3; give 2, or",
        ),
        ("segmentation", INFO, {"class_weights": {"cta": 2}}, "class_weights: 'cta' is no class; did you mean 'cat'"),
        ("classification", INFO, {"class_weights": [1, 0]}, "class_weights: .*finite number above 0, but one is 0"),
        ("classification", INFO, {"class_weights": "even"}, "class_weights: .*or balanced, but got 'even'"),
        ("segmentation", INFO, {"ohem": True, "class_weights": "balanced"}, "leave out ohem or class_weights"),
        ("multilabel", FEATURES, {"label_smoothing": 0.1}, "task_options: label_smoothing: unknown key"),
        ("detection", BARE, {}, "no boxes to detect: box_names must name at least 1 class, but 'bare' names none"),
    ],
)
def test_a_wrong_task_is_one_sentence(name: str, info: DataInfo, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        make_task(name, info, options)
    assert "\n" not in str(caught.value)


def test_labels_are_smoothed_and_classes_weighted() -> None:
    outputs, labels = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1])
    right, wrong = math.log(4 / 3), math.log(4)  # probabilities of the first and the second class: 3/4, 1/4

    def loss(options: dict[str, object]) -> float:
        return float(make_task("classification", INFO, options).loss(outputs, {"label": labels}))

    assert loss({"class_weights": [1, 3]}) == pytest.approx((right + 3 * wrong) / 4)
    assert loss({"class_weights": {"down": 3}}) == pytest.approx((right + 3 * wrong) / 4)
    only_first = {"label": labels[:1]}
    smoothed = make_task("classification", INFO, {"label_smoothing": 0.2}).loss(outputs[:1], only_first)
    assert float(smoothed) == pytest.approx(0.9 * right + 0.1 * wrong)


class Unread:
    """A data set of the user's without labels, none of whose items may be read."""

    def __init__(self, dataset: MemoryDataset) -> None:
        self._number = len(dataset)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int, /) -> Sample:
        raise AssertionError(f"item {index} was read")


def test_balanced_weights_are_inverse_frequencies_of_the_training_split() -> None:
    mask = torch.full((4, 4, 16, 24), 255, dtype=torch.uint8)
    mask[:, 0, 0, 0] = torch.tensor([0, 0, 0, 1], dtype=torch.uint8)  # a "dog" never occurs
    clips = {"clip": torch.zeros(4, *INFO.input_shape, dtype=torch.uint8), "label": torch.tensor([0, 0, 0, 1])}
    dataset = MemoryDataset({**clips, "mask": mask})
    splits = make_splits(dataset, dataset, dataset, INFO, seed=0)
    logits = torch.tensor([math.log(3), 0.0])  # 3/4 and 1/4; each class has half of the weight
    wanted = (math.log(4 / 3) + math.log(4)) / 2
    task = make_task("classification", INFO, {"class_weights": "balanced"})
    task.prepare(splits)
    assert float(task.loss(logits.repeat(4, 1), clips)) == pytest.approx(wanted)
    unread = Unread(dataset)
    with pytest.raises(DataError, match=r"balanced counts how often classes occur, .*; give the data set labels"):
        task.prepare(Splits(Subset(unread, [0, 1]), Subset(unread, [2, 3]), dataset, dataset, INFO))
    task = make_task("segmentation", INFO, {"class_weights": "balanced"})
    task.prepare(splits)
    maps = torch.cat([logits, torch.tensor([-100.0])])[:, None, None].expand(4, 4, 3, 2, 2)
    assert float(task.loss(maps, {"mask": mask})) == pytest.approx(wanted)
    assert float(task.loss(maps, {"mask": torch.full_like(mask, 255)})) == 0


def test_metrics_of_classification_are_those_of_the_classes_that_occur() -> None:
    info = DataInfo(6, tuple("abcdef"), 4, 16, 24, "six")
    task = Classification(info)
    first, second = [0.9, 0.4, 0.8, 0.3], [0.1, 0.6, 0.7, 0.5]
    outputs = torch.full((4, 6), 0.5)
    outputs[:, 0], outputs[:, 1] = torch.tensor(first), torch.tensor(second)
    outputs[:, 5] = torch.tensor([0.0, 0.0, 0.0, 9.0])
    task.update(outputs[:3], {"label": torch.tensor([0, 1, 1])})
    task.update(outputs[3:], {"label": torch.tensor([0])})  # the lowest of six
    values = task.compute()
    assert (values["accuracy"], values["top5"]) == (0.5, 0.75)
    assert values["f1"] == pytest.approx((0.5 + 2 / 3) / 2)  # precision and recall: 1/2 and 1/2; 1 and 1/2
    assert values["auc"] == pytest.approx((0.5 + 1.0) / 2)  # pairs in the right order: 2 of 4; 4 of 4
    task.update(outputs[:1], {"label": torch.tensor([0])})
    assert "auc" not in task.compute()
    clips = {"clip": torch.zeros(2, *info.input_shape, dtype=torch.uint8)}
    whole, part = (MemoryDataset({**clips, "label": torch.tensor(labels)}) for labels in ([0, 1], [1, 1]))
    two = Classification(INFO)
    assert two.hints(make_splits(whole, whole, part, INFO, seed=0)) == [
        "data: no item of up in test; f1 and auc leave it out"
    ]


def test_metrics_of_classification_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (200,), generator=generator)  # of seven classes; five occur
    logits = torch.randint(0, 9, (200, 7), generator=generator) / 4  # with ties
    logits[range(200), labels] += 1
    predicted = logits.argmax(1)
    confusion = confusion_matrix(predicted, labels, 7)
    assert torch.equal(confusion, torch.from_numpy(reference.confusion_matrix(labels, predicted, labels=range(7))))
    f1 = reference.f1_score(labels, predicted, labels=range(7), average=None, zero_division=0)
    assert f1_of_classes(confusion).tolist() == pytest.approx(f1)
    for c in range(5):
        area = reference.roc_auc_score(labels == c, logits[:, c])
        assert area_under_roc(logits[:, c], labels == c) == pytest.approx(area)
    probabilities = logits.double().softmax(1)
    areas = [reference.roc_auc_score(labels == c, probabilities[:, c]) for c in range(5)]
    values = ranking_metrics(logits, labels)
    assert values["f1"] == pytest.approx(f1[:5].mean())
    assert values["auc"] == pytest.approx(sum(areas) / 5)
    unlabelled = labels.where(labels != 3, 255)
    left = confusion.clone()
    left[3] = 0
    assert torch.equal(confusion_matrix(predicted, unlabelled, 7), left)


LABELLED = {
    "segmentation": (
        INFO,
        "mask",
        torch.full((3, 4, 16, 24), 255, dtype=torch.uint8),
        (2, 3, 0, slice(2)),
        torch.tensor([0, 1], dtype=torch.uint8),  # one class alone is refused
        "a labelled pixel",
    ),
    "detection": (INFO, "boxes", torch.full((3, 4, 2, 5), -1.0), (2, 3, 1, 4), 0, "a box"),
    "multilabel": (FEATURES, "labels", torch.zeros(3, 2, dtype=torch.uint8), (2, 1), 1, "a class"),
}


@pytest.mark.parametrize("name", LABELLED)
def test_splits_in_which_no_item_has_what_the_task_reads_are_refused(name: str) -> None:
    info, key, empty, place, value, needs = LABELLED[name]
    full = empty.clone()
    full[place] = value  # of one item alone
    inputs = {info.input_key: torch.zeros(3, *info.input_shape), "label": torch.zeros(3, dtype=torch.int64)}
    good, bad = (MemoryDataset({**inputs, key: labels}) for labels in (full, empty))
    task = make_task(name, info, {})
    task.check_splits(make_splits(good, good, good, info, seed=0))
    for split in ("train", "val", "test"):
        sets = {"train": good, "val": good, "test": good, split: bad}
        with pytest.raises(
            DataError, match=f"^data: the split '{split}' must .* {needs}.* none of its 3 items has one"
        ):
            task.check_splits(make_splits(**sets, info=info, seed=0))
    lacking = make_splits(good, good, MemoryDataset(inputs), info, seed=0)
    with pytest.raises(
        DataError, match=f"^data: samples must hold '{key}' .* 'test' hold {info.input_key}, label; give"
    ):
        task.check_splits(lacking)
    make_task("classification", INFO, {}).check_splits(lacking)  # every item has a class


def test_items_are_read_until_one_is_labelled() -> None:
    read: list[int] = []

    class Counted(MemoryDataset):
        def __getitem__(self, index: int, /) -> dict[str, torch.Tensor]:
            read.append(index)
            return super().__getitem__(index)

    labels = torch.zeros(50, 2, dtype=torch.uint8)
    labels[3:] = 1
    dataset = Counted({"features": torch.zeros(50, 4, 8), "label": labels[:, 0].long(), "labels": labels})
    make_task("multilabel", FEATURES, {}).check_splits(make_splits(dataset, dataset, dataset, FEATURES, seed=0))
    assert max(read) == 3


def test_maps_that_do_not_fit_are_refused() -> None:
    batch = {"mask": torch.zeros(1, 4, 16, 24, dtype=torch.uint8), "boxes": torch.full((1, 4, 2, 5), -1.0)}
    for task, wanted in ((Segmentation(INFO), 3), (Detection(INFO), 6)):
        for shape in ((1, 4, wanted + 1, 4, 6), (1, 3, wanted, 4, 6), (4, wanted, 4, 6)):
            with pytest.raises(ValueError, match=rf"needs maps of shape \(1, 4, {wanted}, 'h', 'w'\), a channel for"):
                task.loss(torch.zeros(shape), batch)


def test_offsets_split_the_frames_of_a_clip() -> None:
    assert frames_by_offset(None, 3) == {None: [0, 1, 2]}
    assert frames_by_offset([0, 1, 0, 1, 2], 5) == {0: [0, 2], 1: [1, 3], 2: [4]}
    with pytest.raises(ValueError, match="each of the 3 frames of a clip, but name 2"):
        frames_by_offset([0, 1], 3)
    assert over_offsets("m", {None: 0.5}) == {"m": 0.5}
    assert over_offsets("m", {2: 0.25, 0: 0.75}) == {"m": 0.5, "m@0": 0.75, "m@2": 0.25}
    with pytest.raises(ValueError, match="offsets must come with all batches or none"):
        over_offsets("m", {None: 0.5, 0: 0.5})


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", sorted(TASKS))
def test_metrics_refuse_outputs_that_are_not_finite(name: str, wrong: float) -> None:
    """Arg-max and sorting would make plausible values of them."""
    task = make_task(name, FEATURES if name == "multilabel" else INFO, {})
    outputs = torch.zeros(2, task.num_outputs)
    outputs[1, 0] = wrong
    with pytest.raises(ValueError, match=r"metrics need finite outputs, but 1 of \d+ are NaN or infinite"):
        task.update(outputs, {})
