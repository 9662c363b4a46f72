"""Tasks: what a student is trained for and measured by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from nas_kd.data import DataInfo
from nas_kd.mistakes import explain
from nas_kd.tasks.classification import Classification
from nas_kd.tasks.detection import Detection, DetectionConfig, Detections, decode
from nas_kd.tasks.multilabel import Multilabel, MultilabelConfig
from nas_kd.tasks.saliency import Saliency, SaliencyConfig
from nas_kd.tasks.segmentation import Segmentation, SegmentationConfig
from nas_kd.tasks.task import Batch, Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
    "saliency": Saliency,
    "multilabel": Multilabel,
}
"""Name -> task."""

__all__ = [
    "TASKS",
    "Batch",
    "Classification",
    "Detection",
    "DetectionConfig",
    "Detections",
    "Multilabel",
    "MultilabelConfig",
    "Saliency",
    "SaliencyConfig",
    "Segmentation",
    "SegmentationConfig",
    "Task",
    "decode",
    "make_task",
    "task_config",
]


def task_config(name: str, options: Mapping[str, Any]) -> BaseModel:
    """The options of a task, an instance of its `options`.

    Args:
        name: a key of `TASKS`.
        options: by key; what is not given has its default.

    Raises:
        ValueError: unknown or unfit options.
    """
    try:
        return TASKS[name].options.model_validate(options)
    except ValidationError as error:
        raise ValueError("; ".join(f"task_options: {sentence}" for sentence in explain(error, options))) from error


def make_task(name: str, info: DataInfo, options: Mapping[str, Any]) -> Task:
    """A task by its name.

    Args:
        name: a key of `TASKS`.
        info: what is known of the data.
        options: see `task_config`.

    Raises:
        ValueError: unknown name, unknown or unfit options, or data without the labels that the task needs.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    return TASKS[name](info, task_config(name, options))
