"""The contract of a task: its loss, its metrics, and its demands on data and nets.

Shape legend: N clips, T frames, C channels of an output, H and W pixels of a frame, h and w pixels of an output map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nas_kd.data import Batch as Batch  # tasks are written against this module
from nas_kd.data import DataError, DataInfo, Sample, Splits
from nas_kd.tasks.item_scores import ItemScores

Outputs = Literal["multiclass", "multilabel", "other"]


class NoOptions(BaseModel):
    """Of a task that leaves nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(ABC):
    """Loss and metrics of a task.

    A task looks at whole clips, or it is *frame-wise*: then its models map frames (N, 3, H, W) to maps (N, C, h, w),
    and what `loss` and `update` get are the maps of all frames of a clip, (N, T, C, h, w).

    Args:
        info: what is known of the data.
        config: an instance of `options`; without it, their defaults.

    Attributes:
        metric: name of the primary metric, a key of `compute`.
        maximize: whether more of it is better.
        metrics: names of all metrics that `compute` may give, per offset from a key frame left out; `*` stands for any
            letters. Empty where they are known only when something was measured.
        minimized: other metrics of which less is better, by name; `*` stands for any letters. Of all others more is.
        percent: metrics that are shares of 1 and are written in percent, by name; `*` stands for any letters.
        framewise: whether models see single frames.
        hints_read: whether `hints` reads items, which decodes files; `nas-kd check` then leaves them out.
        dense: whether the outputs for a whole clip are maps (N, C, h, w) instead of logits (N, C).
        keys: what a batch must hold besides the clip.
        needs: what one item of each split must have at least, or there is nothing to learn and nothing to score; empty
            where every item has it.
        options: model of what a campaign may choose.
        extra_outputs: channels that a model must give beside one for each class.
        defaults: of a campaign file with this task, where its kind of input has none; what the file says goes before.
        outputs: what they are: `multiclass` logits of classes of which one holds, `multilabel` logits of classes of
            which several may hold, `other` for anything else, such as values to be regressed.
        mixes: whether `loss` weighs the labels of mixed clips, where a batch holds `mix_partner` and `mix_share`
            (`nas_kd.data.mix`).

    Raises:
        ValueError: the data have no labels for this task.

    Examples:
        >>> task = nas_kd.TASKS["classification"](nas_kd.load_config("demo.yaml").data.info)
        >>> task.metric, task.class_names
        ('accuracy', ('3-up', '3-down', '8-up', '8-down'))
    """

    metric: ClassVar[str]
    maximize: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ()
    minimized: ClassVar[tuple[str, ...]] = ()
    percent: ClassVar[tuple[str, ...]] = ()
    framewise: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    hints_read: ClassVar[bool] = False
    keys: ClassVar[tuple[str, ...]] = ("label",)
    needs: ClassVar[str] = ""
    extra_outputs: ClassVar[int] = 0
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    outputs: ClassVar[Outputs] = "multiclass"
    mixes: ClassVar[bool] = False
    options: ClassVar[type[BaseModel]] = NoOptions

    def __init__(self, info: DataInfo, config: BaseModel | None = None) -> None:
        self.info = info

    @property
    def num_outputs(self) -> int:
        """Channels that a model must give."""
        return len(self.class_names) + self.extra_outputs

    @property
    def class_names(self) -> tuple[str, ...]:
        """Meaning of the classes that outputs are about."""
        return self.info.class_names

    def is_labelled(self, sample: Sample) -> bool:
        """Whether an item has what the task `needs`."""
        return True

    def check_splits(self, splits: Splits) -> None:
        """Raise where a split has nothing to learn from or nothing to score.

        Items are read only until one has what the task needs, so all of a split are read only where none has.

        Raises:
            DataError: the split, what its items lack, and the way out.
        """
        for name, dataset in (("train", splits.retrain), ("val", splits.val), ("test", splits.test)):
            sample = dataset[0]
            for key in self.keys:
                if key not in sample:
                    raise DataError(
                        f"data: samples must hold {key!r} for this task, but those of the split {name!r} hold "
                        f"{', '.join(sample)}; give it, or choose another task"
                    )
            if self.needs and not any(self.is_labelled(dataset[index]) for index in range(len(dataset))):
                raise DataError(
                    f"data: the split {name!r} must hold at least one item with {self.needs}, or this task cannot "
                    f"{'be trained' if name == 'train' else 'score students'} on it, but none of its {len(dataset)} "
                    "items has one; mend its labels, or move other items into it"
                )

    @classmethod
    def known_metrics(cls) -> tuple[str, ...]:
        """`metrics`, or nothing where a subclass measures something else and does not say what."""
        says = next(each for each in cls.__mro__ if "metrics" in vars(each))
        measures = next(each for each in cls.__mro__ if "compute" in vars(each))
        return cls.metrics if issubclass(says, measures) else ()

    @classmethod
    def gain(cls, value: float) -> float:
        """A value of the primary metric as one of which more is better: negative where less of the metric is."""
        return value if cls.maximize else -value

    @classmethod
    def maximizes(cls, name: str) -> bool:
        """Whether more of a metric of the task is better; also per offset from a key frame."""
        name = name.partition("@")[0]
        if name == cls.metric:
            return cls.maximize
        return not any(fnmatchcase(name, pattern) for pattern in cls.minimized)

    def prepare(self, splits: Splits) -> None:  # noqa: B027  # a task may leave it out
        """Take from the training split what the loss needs of it, such as how often classes occur; by default nothing.

        It is called once, before the first `loss`, in every process that trains.
        """

    def hints(self, splits: Splits) -> list[str]:
        """Sentences about data that can be used but may not be meant, such as a class that never occurs."""
        return []

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """A scalar, the mean over the batch."""

    @abstractmethod
    def update(self, outputs: Tensor, batch: Batch, offsets: Sequence[int] | None = None) -> None:
        """Add one batch to the metrics.

        Args:
            outputs: of the model.
            batch: with `keys`.
            offsets: for each of the T frames, how many frames it is after its key frame; None where a model has none.
        """

    def item_scores(self) -> ItemScores | None:
        """What the primary metric of what was added since the last call of `compute` is made of, item by item.

        None by default: then an evaluation has no interval over items.
        """
        return None

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics of what was added since the last call, which also clears them.

        Where offsets were given, `metric@k` is the primary metric of the frames k after their key frame, and the
        primary metric itself is the mean of those over k (the protocol of Delta Distillation, ECCV 2022).
        """


def loss_of(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    """The loss of a task, which may be one of the user's.

    Raises:
        ValueError: it is no scalar tensor.
    """
    value: object = task.loss(outputs, batch)
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ValueError(
        f"task {type(task).__name__}: loss must give a scalar tensor, the mean over the batch, but gives {given}; take "
        "its mean"
    )


def metrics_of(task: Task) -> dict[str, float]:
    """The metrics of a task, which may be one of the user's, as numbers.

    Raises:
        ValueError: the primary metric is missing, or a metric is no finite number.
    """
    who, values = f"task {type(task).__name__}: compute", task.compute()
    if not isinstance(values, Mapping) or task.metric not in values:
        given = ", ".join(values) if isinstance(values, Mapping) else f"a {type(values).__name__}"
        raise ValueError(f"{who} must return the primary metric {task.metric!r}, but returns {given or 'nothing'}")
    metrics = {}
    for name, value in values.items():
        try:
            metrics[name] = float(value)
        except (TypeError, ValueError, RuntimeError):  # the last one of a tensor of several values
            metrics[name] = math.nan
        if not math.isfinite(metrics[name]):
            raise ValueError(
                f"{who} must return finite numbers, but {name!r} is {value!r}; leave out what is not defined"
            )
    return metrics


def check_finite_outputs(outputs: Tensor) -> None:
    """Raise where outputs are not finite: arg-max and sorting would make plausible metrics of them.

    Args:
        outputs: of the net, of any shape.

    Raises:
        ValueError: the number of values that are NaN or infinite.
    """
    if not bool(torch.isfinite(outputs).all()):
        wrong = int((~torch.isfinite(outputs)).sum())
        raise ValueError(
            f"metrics need finite outputs, but {wrong} of {outputs.numel()} are NaN or infinite; check the net's "
            "weights and the normalisation of its input, or lower the learning rate"
        )
