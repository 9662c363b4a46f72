"""The contract of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

Batch = Mapping[str, Tensor]


class Task(ABC):
    """Loss and metrics of a task.

    Attributes:
        metric: name of the primary metric, a key of `compute`.
        maximize: whether more of it is better.
    """

    metric: ClassVar[str]
    maximize: ClassVar[bool] = True

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """A scalar, the mean over the batch."""

    @abstractmethod
    def update(self, logits: Tensor, batch: Batch) -> None:
        """Add one batch to the metrics."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics of what was added since the last call, which also clears them."""
