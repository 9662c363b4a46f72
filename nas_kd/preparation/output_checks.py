"""What a teacher's answers on the validation split say about how it was brought in: the order of its classes, its
normalisation, probabilities in place of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nas_kd.data import Batch
from nas_kd.tasks import Task

_LISTED = 12
_GAIN = 0.25  # of accuracy, by which another order of the classes must be better
_REORDERED = 2000  # classes of which another order is looked for
_SMALL = 0.05  # half of an interval that is too wide to compare students by


def describe_classes(names: Sequence[str], manifest: Path | None = None) -> str:
    """Which output stands for which class, in one line.

    Args:
        names: by the number of the output.
        manifest: the file that lists all of them; without it they are all in the line.
    """
    listed = names if manifest is None else names[:_LISTED]
    shown = ", ".join(f"{index} = {name}" for index, name in enumerate(listed))
    return f"classes: {shown}" + (f", … ({len(names)}, all in {manifest})" if len(names) > len(listed) else "")


def describe_certainty(evaluated: Mapping[str, Any], value: float, *, is_share: bool) -> str:
    """What the teacher's metric on validation rests on, and whether that is enough to tell students apart.

    Args:
        evaluated: the fields of `trials.Evaluated`, of the validation split.
        value: of the metric.
        is_share: whether the metric is a share of 1.

    Returns:
        A sentence.
    """
    low, high = evaluated.get("low"), evaluated.get("high")
    number, groups = evaluated["num_items"], evaluated.get("num_groups")
    if low is None or high is None:
        reason = (
            "all are of one group; give items of other groups"
            if groups == 1
            else "the task has no item_scores, or its metric is not defined on most draws of items"
        )
        return f"validation: {number} items, without an interval of the metric: {reason}"
    of = f"{number} items" + (f" of {groups} groups" if groups else "")
    if evaluated.get("views", 1) > 1:
        of += f" in {evaluated['views']} views each"
    half = (high - low) / 2
    text = f"validation: 95 % interval of the teacher's metric {low:.3f} to {high:.3f} over {of}"
    if evaluated.get("majority") is not None:
        text += f"; always giving the most frequent class has {evaluated['majority']:.3f}"
    if half > (_SMALL if is_share else _SMALL * abs(value)):
        text += (
            f". Students that differ by less than about {half:.2g} cannot be told apart by it; give more validation "
            "items"
        )
    return text


def changed_classes(run_dir: Path, before: Sequence[str], now: Sequence[str]) -> str:
    """The sentence that refuses a run whose classes are numbered in another way than when it began."""
    changed = f"it had {len(before)} and the data have {len(now)}"
    for index, (old, new) in enumerate(zip(before, now, strict=False)):
        if old != new:
            changed = f"class {index} was {old!r} and is {new!r}"
            break
    return (
        f"{run_dir} was begun with classes of other names or another order ({changed}); restore the labels or "
        "data.classes, or give the campaign another name"
    )


class OutputChecks:
    """Collects a teacher's outputs batch by batch and describes what is implausible about them.

    Args:
        task: of the campaign.
    """

    def __init__(self, task: Task) -> None:
        self._kind, self._names = task.outputs, task.class_names
        self._metric, self._gain = task.metric, task.gain
        self._labels = next((name for name in ("label", "labels", "mask") if name in task.keys), None)
        if task.outputs == "other" or len(task.class_names) < 2:
            self._labels = None
        self._answers: list[Answers] = []
        self._num_items = 0
        self._all_probabilities = True

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Add one batch.

        Args:
            outputs: (N, C), or maps (N, T, C, h, w).
            batch: with the labels of the task.
        """
        self._all_probabilities &= bool(((outputs >= 0) & (outputs <= 1)).all())
        if self._labels is not None and outputs.ndim == (5 if self._labels == "mask" else 2):
            self._answers.append(answers_of(outputs, batch[self._labels]))
            self._num_items += len(outputs)

    def doubts(
        self,
        *,
        trained_here: bool,
        evaluated: Mapping[str, Any] | None = None,
        value: float | None = None,
        picked: Sequence[int] | None = None,
    ) -> list[str]:
        """Sentences for the user; none where nothing is odd.

        Args:
            trained_here: whether the campaign trained the teacher, so that classes and normalisation are its own.
            evaluated: the fields of `trials.Evaluated`, of the validation split.
            value: of the task's metric there.
            picked: numbers of the net's outputs that stand for the classes; None where all do, in order.
        """
        found = []
        if self._all_probabilities and self._kind in ("multiclass", "multilabel"):
            found.append(
                "warning: the teacher's outputs look like probabilities (all in [0, 1]), but losses and distillation "
                "need logits; leave out the softmax or sigmoid at its end"
            )
        if self._answers and not trained_here and len(self._names) <= _REORDERED:
            answers = Answers(*(np.concatenate(parts) for parts in zip(*self._answers, strict=True)))
            num_items = None if self._labels == "mask" else self._num_items
            order = order_of_outputs(answers, len(self._names), num_items)
            if order.better >= order.now + _GAIN:
                numbers = [output if picked is None else picked[output] for output in order.outputs]
                listed = f": {numbers}" if len(numbers) <= _LISTED else ", in the order of the data's classes"
                what = {"label": "accuracy", "labels": "share of right first answers", "mask": "mean recall of classes"}
                found.append(
                    f"warning: the teacher's {what[self._labels or 'label']} on validation is {order.now:.3f}, but "
                    f"would be {order.better:.3f} with its classes in another order; name its outputs in "
                    f"teacher.outputs{listed}"
                )
                return found
        if near := self._near(evaluated, value):
            reasons = (
                "train it longer (teacher.fit) or with another learning rate"
                if trained_here
                else "check the order of its classes (teacher.outputs), normalize.mean and normalize.std, that it "
                "gives logits, and the layout and size of its input"
            )
            found.append(f"warning: {near}; {reasons}")
        return found

    def _near(self, evaluated: Mapping[str, Any] | None, value: float | None) -> str:
        """A clause on a metric that is no better than one that needs no teacher; empty where it is."""
        if evaluated is None or value is None:
            return ""
        levels = {
            "always giving the most frequent class": evaluated.get("majority"),
            "guessing": evaluated.get("chance"),
        }
        known = {name: float(level) for name, level in levels.items() if level is not None}
        bounds = [each for each in (evaluated.get("low"), evaluated.get("high"), value) if each is not None]
        if not known:
            return ""
        name = max(known, key=lambda each: self._gain(known[each]))
        gains, level = [self._gain(each) for each in bounds], self._gain(known[name])
        if min(gains) > level:
            return ""
        where = "items, is worse than that of" if max(gains) < level else "items, is near that of"
        return (
            f"the teacher's {self._metric} on validation, {value:.3f} on {evaluated['num_items']} {where} {name}, "
            f"{known[name]:.3f}"
        )


class Answers(NamedTuple):
    """Pairs of an answer and a label, of which an item may have several.

    Attributes:
        outputs: int64 [P], numbers of the highest outputs.
        labels: int64 [P], classes.
        weights: float64 [P], how much a pair counts.
    """

    outputs: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]


def answers_of(outputs: Tensor, labels: Tensor) -> Answers:
    """The pairs of one batch.

    Args:
        outputs: (N, C), or maps (N, T, C, h, w).
        labels: classes (N,), several of them (N, C), or of pixels (N, T, H, W), of which each item and class is a pair.
    """
    if outputs.ndim == 2:
        answers = outputs.argmax(1).cpu()
        if labels.ndim == 1:
            item, classes = torch.arange(len(labels)), labels.cpu()
        else:
            item, classes = labels.cpu().nonzero(as_tuple=True)
        return Answers(answers[item].numpy(), classes.numpy().astype(np.int64), np.ones(len(item)))
    num, channels = len(outputs), outputs.shape[2]
    answers = outputs.argmax(2).flatten(0, 1)
    frames = labels.flatten(0, 1).to(outputs.device)[:, None].float()
    wanted = torch.nn.functional.interpolate(frames, size=answers.shape[-2:], mode="nearest-exact")[:, 0].long()
    known = wanted < channels
    item = torch.arange(num, device=outputs.device).repeat_interleave(len(answers) // num)[:, None, None]
    place = ((item * channels + answers) * channels + wanted)[known]
    table = torch.bincount(place, minlength=num * channels**2).view(num, channels, channels).cpu()
    _, output, label = table.nonzero(as_tuple=True)
    return Answers(output.numpy(), label.numpy(), table[table > 0].double().numpy())


class Order(NamedTuple):
    """How well a teacher's outputs fit the classes.

    Attributes:
        now: share of the items that are right, or the mean over classes of the share of their pixels.
        better: the same under the order that fits best.
        outputs: that order: for each class, the number of an output.
    """

    now: float
    better: float
    outputs: list[int]


def order_of_outputs(answers: Answers, num_classes: int, num_items: int | None = None) -> Order:
    """The order of the outputs that fits the labels best.

    Its value is found in an order that is chosen on one half of the pairs and scored on the other, and the reverse, so
    that few items of many classes give no high value by luck.

    Args:
        answers: of all items.
        num_classes: C.
        num_items: of which right ones are counted; None where all classes that occur count alike.
    """
    outputs, labels, weights = answers
    total = float(num_items or len(np.unique(labels)))
    if num_items is None:
        weights = weights / np.bincount(labels, weights, minlength=num_classes)[labels]
    order = np.argsort(labels, kind="stable")  # so that both halves have items of each class
    halves = order[::2], order[1::2]
    right = 0.0
    for chosen_on, scored_on in (halves, halves[::-1]):
        part = Answers(outputs[chosen_on], labels[chosen_on], weights[chosen_on])
        right += _right(_fitting(part, num_classes), outputs[scored_on], labels[scored_on], weights[scored_on])
    now = _right(np.arange(num_classes), outputs, labels, weights)
    fitting = _fitting(Answers(outputs, labels, weights), num_classes)
    return Order(now / total, right / total, [int(output) for output in np.argsort(fitting)])


def _fitting(answers: Answers, num_classes: int) -> npt.NDArray[np.int64]:
    """[C] class that fits each output best, all different."""
    from scipy.optimize import linear_sum_assignment  # here: processes of trials do without its load time

    table = np.zeros((num_classes, num_classes))
    np.add.at(table, (answers.outputs, answers.labels), answers.weights)
    table += 1e-9 * np.eye(num_classes)  # an output of which nothing is known keeps its class
    outputs, classes = linear_sum_assignment(table, maximize=True)
    meaning = np.empty(num_classes, dtype=np.int64)
    meaning[outputs] = classes
    return meaning


def _right(
    meaning: npt.NDArray[np.int64],
    outputs: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
) -> float:
    return float(weights[meaning[outputs] == labels].sum())
