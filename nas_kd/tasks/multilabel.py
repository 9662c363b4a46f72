"""Any number of classes an item: binary cross-entropies; global and mean average precision.

The task of YouTube-8M and of Bhardwaj et al., Efficient Video Classification Using Fewer Frames, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from nas_kd.data import ClipDataset, DataInfo, MemoryDataset, Sample, Splits
from nas_kd.data.mix import PARTNER, SHARE, blend
from nas_kd.tasks.item_scores import ItemScores
from nas_kd.tasks.multilabel_metrics import (
    constant_global_average_precision,
    global_average_precision,
    mean_average_precision,
    mean_average_precision_of_top,
    resampled_global_average_precision,
)
from nas_kd.tasks.occurring import MOST_ITEMS, counts_of, no_item_of
from nas_kd.tasks.task import Batch, Outputs, Task, check_finite_outputs


class MultilabelConfig(BaseModel):
    """Options of the multi-label task.

    Attributes:
        top_k: predictions of each item that `gap` looks at.
        map_over: what `map` ranks: "all" predictions, or the "top" `top_k` of each item, as YouTube-8M's evaluation
            does. With "top" a split takes memory for `top_k` numbers an item, with "all" for one a class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: int = Field(default=20, ge=1)
    map_over: Literal["all", "top"] = "all"


class Multilabel(Task):
    """Sum of binary cross-entropies; `gap` is the global average precision of YouTube-8M.

    Outputs are logits: a head that mixes probabilities must give the logit of the mixture. Deviation from the released
    losses.py: cross-entropies are those of logits and exact, without the 10⁻⁵ that it adds to probabilities.

    Raises:
        ValueError: items have no `labels`.
    """

    metric: ClassVar[str] = "gap"
    metrics: ClassVar[tuple[str, ...]] = ("gap", "map", "hit1", "binary_cross_entropy")
    percent: ClassVar[tuple[str, ...]] = ("gap", "map", "hit1")
    outputs: ClassVar[Outputs] = "multilabel"
    keys: ClassVar[tuple[str, ...]] = ("labels",)
    needs: ClassVar[str] = "a class"
    options: ClassVar[type[BaseModel]] = MultilabelConfig
    mixes: ClassVar[bool] = True

    def __init__(self, info: DataInfo, config: MultilabelConfig | None = None) -> None:
        super().__init__(info, config)
        if not info.multi_label:
            raise ValueError(
                f"the task multilabel needs data with labels, but each item of {info.name!r} has one class; choose the "
                "task classification, or give labels (of source features: multi_label: true)"
            )
        self.config = config or MultilabelConfig()
        self._clear()

    def is_labelled(self, sample: Sample) -> bool:
        return bool(sample["labels"].any())

    def hints(self, splits: Splits) -> list[str]:
        sentences = []
        for split, dataset in (("val", splits.val), ("test", splits.test)):
            if (classes := _classes_in(dataset)) is not None:
                sentences += no_item_of(classes, self.class_names, split, "map leaves")
        return sentences

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropies, summed over classes, mean over items; labels of mixed items are mixed alike."""
        labels = self._labels(outputs, batch).float()
        if PARTNER in batch:
            labels = blend(labels, batch[PARTNER], batch[SHARE])
        return F.binary_cross_entropy_with_logits(outputs.float(), labels, reduction="sum") / len(outputs)

    @torch.no_grad()
    def update(self, outputs: Tensor, batch: Batch, offsets: Sequence[int] | None = None) -> None:
        check_finite_outputs(outputs)
        labels = self._labels(outputs, batch)
        logits = outputs.float()
        self._loss_sum += float(F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum"))
        self._count += len(logits)
        self._hits_at_1 += int(labels.gather(1, logits.argmax(1, keepdim=True)).sum())
        scores, classes = logits.topk(min(self.config.top_k, self.num_outputs))
        self._top.append((scores.cpu(), classes.cpu(), labels.gather(1, classes).bool().cpu()))
        self._positives += labels.sum(0, dtype=torch.int64).cpu()
        self._of_item.append(labels.sum(1, dtype=torch.int64).cpu())
        if self.config.map_over == "all":
            self._all.append((logits.cpu(), labels.bool().cpu()))

    def item_scores(self) -> ItemScores:
        scores, _, hits = (torch.cat(parts).numpy() for parts in zip(*self._top, strict=True))
        positives = torch.cat(self._of_item).numpy()

        def resample(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return resampled_global_average_precision(scores, hits, positives, weights)

        majority = constant_global_average_precision(self._positives.numpy(), self._count, self.config.top_k)
        return ItemScores(self._count, resample, majority=majority, span=(0, 1))

    def compute(self) -> dict[str, float]:
        """The metrics since the last call.

        `gap`; `map`, the mean over classes with a positive of their average precision; `hit1`, the share of items that
        have the class with the highest output; `binary_cross_entropy`, as `loss`, over the whole split.
        """
        if not bool(self._positives.any()):
            raise ValueError("metrics need at least one item with a class, but the split has none")
        scores, classes, hits = (torch.cat(parts).numpy() for parts in zip(*self._top, strict=True))
        if self.config.map_over == "all":
            logits, labels = (torch.cat(parts).numpy() for parts in zip(*self._all, strict=True))
            mean = mean_average_precision(logits, labels)
        else:
            mean = mean_average_precision_of_top(scores, classes, hits, self._positives.numpy().astype(np.int64))
        values = {
            "gap": global_average_precision(scores, hits, int(self._positives.sum())),
            "map": mean,
            "hit1": self._hits_at_1 / self._count,
            "binary_cross_entropy": self._loss_sum / self._count,
        }
        self._clear()
        return values

    def _clear(self) -> None:
        self._top: list[tuple[Tensor, Tensor, Tensor]] = []
        self._all: list[tuple[Tensor, Tensor]] = []
        self._positives = torch.zeros(self.num_outputs, dtype=torch.int64)
        self._of_item: list[Tensor] = []  # number of classes of each
        self._hits_at_1 = self._count = 0
        self._loss_sum = 0.0

    def _labels(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(N, C), on the device of the outputs."""
        labels = batch["labels"]
        if outputs.shape != labels.shape:
            raise ValueError(
                f"the task multilabel needs a logit for each of {self.num_outputs} classes, {tuple(labels.shape)}, but "
                f"the model gives {tuple(outputs.shape)}"
            )
        return labels.to(outputs.device)


def _classes_in(dataset: ClipDataset) -> set[int] | None:
    """Numbers of the classes of all items; None where only reading many items would tell."""
    known: Sequence[Sequence[int]] | None = getattr(dataset, "item_classes", None)
    if known is not None:
        return {number for classes in known for number in classes}
    if not isinstance(dataset, MemoryDataset) and len(dataset) > MOST_ITEMS:
        return None
    return set(counts_of(dataset, "labels", lambda labels: labels.long()).nonzero()[:, 0].tolist())
