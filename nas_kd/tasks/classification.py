"""One class a clip: cross-entropy, accuracy, F1 and area under the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor

from nas_kd.data import ClipDataset, DataError, DataInfo, Splits
from nas_kd.data.mix import PARTNER, SHARE
from nas_kd.data.sample import labels_of
from nas_kd.tasks.class_weights import CrossEntropyConfig, balanced_weights, given_weights
from nas_kd.tasks.classification_metrics import area_under_roc, confusion_matrix, f1_of_classes
from nas_kd.tasks.item_scores import ItemScores, mean_of_items
from nas_kd.tasks.occurring import no_item_of
from nas_kd.tasks.task import Batch, Task, check_finite_outputs


class Classification(Task):
    """Cross-entropy; `accuracy` is the share of clips classified right.

    Raises:
        ValueError: items have no class, or may have several; or class weights do not fit the classes.
    """

    metric: ClassVar[str] = "accuracy"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "cross_entropy", "top5", "f1", "auc")
    percent: ClassVar[tuple[str, ...]] = ("accuracy", "top5", "f1")
    options: ClassVar[type[BaseModel]] = CrossEntropyConfig
    mixes: ClassVar[bool] = True

    def __init__(self, info: DataInfo, config: CrossEntropyConfig | None = None) -> None:
        super().__init__(info, config)
        if info.num_classes < 2:
            raise ValueError(
                f"the task classification needs items of one class, but those of {info.name!r} have none; give "
                "class_names and labels, or choose another task"
            )
        if info.multi_label:
            raise ValueError(
                f"the task classification needs items of one class, but those of {info.name!r} may have several; "
                "choose the task multilabel"
            )
        self.config = config or CrossEntropyConfig()
        self._weights = given_weights(self.config.class_weights, self.class_names)
        self._loss_sum, self._count = 0.0, 0
        self._right: list[bool] = []
        self._labels: list[int] = []
        self._outputs: list[Tensor] = []

    def prepare(self, splits: Splits) -> None:
        if self.config.class_weights == "balanced":
            if not _knows_labels(splits.retrain):
                raise DataError(
                    "task_options.class_weights: balanced counts how often classes occur, but the training data have "
                    "no attribute labels, and every process would read every item for them; give the data set labels, "
                    "a list with the class of each item, or list the weights"
                )
            labels = torch.tensor(labels_of(splits.retrain))
            self._weights = balanced_weights(torch.bincount(labels, minlength=self.info.num_classes))

    def hints(self, splits: Splits) -> list[str]:
        sentences = []
        for split, dataset in (("val", splits.val), ("test", splits.test)):
            if not _knows_labels(dataset):
                continue  # it takes reading, and so decoding, every item
            sentences += no_item_of(labels_of(dataset), self.class_names, split, "f1 and auc leave")
        return sentences

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean over items, weighted by class where classes have weights.

        A mixed clip counts as an item of its own class and one of its partner's, weighted by their shares.
        """
        weights = None if self._weights is None else self._weights.to(outputs)
        smoothing, labels = self.config.label_smoothing, batch["label"]
        if PARTNER not in batch:
            return F.cross_entropy(outputs, labels, weights, label_smoothing=smoothing)
        sums, counts = [], []
        for of_part, share in ((labels, batch[SHARE]), (labels[batch[PARTNER]], 1 - batch[SHARE])):
            each = F.cross_entropy(outputs, of_part, weights, reduction="none", label_smoothing=smoothing)
            sums.append((share * each).sum())
            counts.append((share if weights is None else share * weights[of_part]).sum())
        return (sums[0] + sums[1]) / (counts[0] + counts[1])

    def update(self, outputs: Tensor, batch: Batch, offsets: Sequence[int] | None = None) -> None:
        check_finite_outputs(outputs)
        self._loss_sum += float(F.cross_entropy(outputs, batch["label"], reduction="sum"))
        self._count += len(outputs)
        self._right += (outputs.argmax(1) == batch["label"]).tolist()
        self._labels += batch["label"].tolist()
        self._outputs.append(outputs.detach().float().cpu())

    def item_scores(self) -> ItemScores:
        most_frequent = int(torch.bincount(torch.tensor(self._labels)).max())
        return ItemScores(
            self._count,
            mean_of_items(self._right),
            is_share=True,
            majority=most_frequent / self._count,
            chance=1 / self.info.num_classes,
        )

    def compute(self) -> dict[str, float]:
        if self._count == 0:
            raise ValueError("metrics need at least one clip, but the split is empty")
        values = {"accuracy": sum(self._right) / self._count, "cross_entropy": self._loss_sum / self._count}
        values |= ranking_metrics(torch.cat(self._outputs), torch.tensor(self._labels))
        self._loss_sum, self._count = 0.0, 0
        self._right, self._labels, self._outputs = [], [], []
        return values


def _knows_labels(dataset: ClipDataset) -> bool:
    """Whether the classes of all items are known without reading the items."""
    return hasattr(getattr(dataset, "base", dataset), "labels")


def ranking_metrics(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of a split beside accuracy.

    Args:
        outputs: float (N, C), logits.
        labels: int64 (N,).

    Returns:
        `top5`, the share of clips whose class is among the 5 highest outputs, for more than 5 classes; `f1`, its mean
        over the classes that occur in the labels; `auc`, the mean area under the ROC curve of one class against the
        rest, over the same classes, without it where a single class occurs.
    """
    values = {}
    num_classes = outputs.shape[1]
    if num_classes > 5:
        values["top5"] = float((outputs.topk(5).indices == labels[:, None]).any(1).double().mean())
    confusion = confusion_matrix(outputs.argmax(1), labels, num_classes)
    occurring = confusion.sum(1).nonzero().flatten()
    values["f1"] = float(f1_of_classes(confusion)[occurring].mean())
    if len(occurring) > 1:
        shares = outputs.double().softmax(1)
        areas = [area_under_roc(shares[:, c], labels == c) for c in occurring.tolist()]
        values["auc"] = sum(areas) / len(areas)
    return values
