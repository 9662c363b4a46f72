"""Tasks: what a student is trained for and measured by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

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
]


def make_task(name: str, info: DataInfo, options: Mapping[str, Any]) -> Task:
    """A task by its name.

    Args:
        name: a key of `TASKS`.
        info: what is known of the data.
        options: keys of the task's `options`; what is not given has its default.

    Raises:
        ValueError: unknown name, unknown or unfit options, or data without the labels that the task needs.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    task = TASKS[name]
    try:
        config = task.options.model_validate(options)
    except ValidationError as error:
        raise ValueError("; ".join(f"task_options: {sentence}" for sentence in explain(error, options))) from error
    return task(info, config)
