"""One class a clip: cross-entropy, top-1 accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nas_kd.data import DataInfo
from nas_kd.tasks.item_scores import ItemScores, mean_of_items
from nas_kd.tasks.task import Batch, NoOptions, Task, check_finite_outputs


class Classification(Task):
    """Cross-entropy; `accuracy` is the share of clips classified right.

    Raises:
        ValueError: items have no class, or may have several.
    """

    metric: ClassVar[str] = "accuracy"
    percent: ClassVar[tuple[str, ...]] = ("accuracy",)

    def __init__(self, info: DataInfo, config: NoOptions | None = None) -> None:
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
        from torchmetrics.classification import MulticlassAccuracy  # here: exported students do without these seconds

        self._accuracy = MulticlassAccuracy(info.num_classes, average="micro")
        self._loss_sum, self._count = 0.0, 0
        self._right: list[bool] = []
        self._labels: list[int] = []

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs, batch["label"])

    def update(self, outputs: Tensor, batch: Batch, offsets: Sequence[int] | None = None) -> None:
        check_finite_outputs(outputs)
        self._accuracy.update(outputs.cpu(), batch["label"].cpu())
        self._loss_sum += float(F.cross_entropy(outputs, batch["label"], reduction="sum"))
        self._count += len(outputs)
        self._right += (outputs.argmax(1) == batch["label"]).tolist()
        self._labels += batch["label"].tolist()

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
        values = {"accuracy": float(self._accuracy.compute()), "cross_entropy": self._loss_sum / self._count}
        self._accuracy.reset()
        self._loss_sum, self._count = 0.0, 0
        self._right, self._labels = [], []
        return values
