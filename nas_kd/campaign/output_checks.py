"""What a teacher's answers on the validation split say about how it was brought in: the order of its classes, its
normalisation, probabilities in place of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nas_kd.data import Batch
from nas_kd.tasks import Task

_LISTED = 12
_SURE = 2.0  # standard deviations of a share of right answers
_GAIN = 0.25  # of accuracy, by which another order of the classes must be better
_SMALL = 0.05  # half of an interval that is too wide to compare students by
_SUM = 1e-3  # how far from 1 probabilities of a float16 teacher may add up


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
        A sentence; empty where there is no interval.
    """
    low, high = evaluated.get("low"), evaluated.get("high")
    if low is None or high is None:
        return ""
    number, groups = evaluated["num_items"], evaluated.get("num_groups")
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
        self._kind = task.outputs
        self._one_class = task.outputs == "multiclass" and "label" in task.keys and len(task.class_names) > 1
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._num_classes = 0
        self._all_probabilities = True

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Add one batch.

        Args:
            outputs: (N, C), or maps (N, T, C, h, w).
            batch: with `label` where the task has one class an item.
        """
        self._all_probabilities &= bool(((outputs >= 0) & (outputs <= 1)).all())
        if self._kind == "multiclass":
            sums = outputs.float().sum(1 if outputs.ndim == 2 else 2)
            self._all_probabilities &= bool(((sums - 1).abs() < _SUM).all())
        if self._one_class and outputs.ndim == 2:
            self._num_classes = outputs.shape[1]
            self._pairs.append((outputs.argmax(1).cpu(), batch["label"].cpu()))

    def doubts(self, *, trained_here: bool) -> list[str]:
        """Sentences for the user; none where nothing is odd.

        Args:
            trained_here: whether the campaign trained the teacher, so that classes and normalisation are its own.
        """
        found = []
        if self._all_probabilities and self._kind in ("multiclass", "multilabel"):
            found.append(
                "warning: the teacher's outputs look like probabilities (all in [0, 1]), but losses and distillation "
                "need logits; leave out the softmax or sigmoid at its end"
            )
        if not self._pairs:
            return found
        answers, labels = (torch.cat(parts).numpy() for parts in zip(*self._pairs, strict=True))
        accuracy, count = float((answers == labels).mean()), len(labels)
        majority = float(np.bincount(labels).max() / count)
        chance = max(majority, 1 / self._num_classes)
        reordered = reordered_accuracy(answers, labels, self._num_classes)
        if not trained_here and reordered >= accuracy + _GAIN:
            found.append(
                f"warning: the teacher's accuracy on validation is {accuracy:.3f}, but would be {reordered:.3f} with "
                "its classes in another order; list them as data.classes in the order of its outputs"
            )
        elif accuracy <= chance + _SURE * sqrt(chance * (1 - chance) / count):
            reasons = (
                "train it longer (teacher.fit) or with another learning rate"
                if trained_here
                else "check the order of its classes (data.classes), normalize.mean and normalize.std, that it gives "
                "logits, and the layout and size of its input"
            )
            found.append(
                f"warning: the teacher's accuracy on validation, {accuracy:.3f} on {count} items, is near that of the "
                f"most frequent class, {majority:.3f}; {reasons}"
            )
        return found


def reordered_accuracy(answers: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], num_classes: int) -> float:
    """Accuracy under the order of the classes that fits best.

    The order is chosen on one half of the items and scored on the other, and the reverse, so that few items of many
    classes give no high value by luck.

    Args:
        answers: [N] numbers of the highest outputs.
        labels: [N] classes.
        num_classes: C.
    """
    order = np.argsort(labels, kind="stable")  # so that both halves have items of each class
    halves = order[::2], order[1::2]
    right = 0
    for chosen_on, scored_on in (halves, halves[::-1]):
        table = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(table, (answers[chosen_on], labels[chosen_on]), 1)
        outputs, classes = linear_sum_assignment(table, maximize=True)
        meaning = np.empty(num_classes, dtype=np.int64)
        meaning[outputs] = classes
        right += int((meaning[answers[scored_on]] == labels[scored_on]).sum())
    return right / len(labels)
