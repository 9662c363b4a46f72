"""Tasks: what a student is trained for and measured by. `TASKS` has those of the package by name.

Examples:
    >>> sorted(nas_kd.TASKS)
    ['classification', 'detection', 'multilabel', 'saliency', 'segmentation']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from nas_kd.data import DataInfo
from nas_kd.settings.imports import import_class
from nas_kd.settings.mistakes import choose, explain
from nas_kd.tasks.classification import Classification
from nas_kd.tasks.detection import Detection, DetectionConfig, Detections, decode
from nas_kd.tasks.multilabel import Multilabel, MultilabelConfig
from nas_kd.tasks.offsets import frames_by_offset, over_offsets
from nas_kd.tasks.saliency import Saliency, SaliencyConfig
from nas_kd.tasks.segmentation import Segmentation, SegmentationConfig
from nas_kd.tasks.task import Batch, Outputs, Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
    "saliency": Saliency,
    "multilabel": Multilabel,
}
"""Name -> task. A new task is a module of this folder and one entry here."""

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
    "find_task",
    "frames_by_offset",
    "make_task",
    "over_offsets",
    "task_config",
]


def find_task(name: str) -> type[Task]:
    """The task of a name in `TASKS`, or that of the user's own which `module:Class` names.

    Raises:
        ValueError: there is none, or its class attributes are not those of a task.
    """
    if ":" in name:
        found = import_class(name, Task, purpose="task")  # type: ignore[type-abstract]  # a subclass of it
        _check_class(name, found)
        return found
    if name not in TASKS:
        raise ValueError(f"task: {name!r} is unknown; {choose(name, list(TASKS))}, or give your own as module:Class")
    return TASKS[name]


def task_config(name: str, options: Mapping[str, Any]) -> BaseModel:
    """The options of a task, an instance of its `options`.

    Args:
        name: see `find_task`.
        options: by key; what is not given has its default.

    Raises:
        ValueError: unknown or unfit options.
    """
    model = find_task(name).options
    try:
        return model.model_validate(options)
    except ValidationError as error:
        sentences = explain(error, model, options)
        raise ValueError("; ".join(f"task_options: {sentence}" for sentence in sentences)) from error


def make_task(name: str, info: DataInfo, options: Mapping[str, Any]) -> Task:
    """A task by its name.

    Args:
        name: see `find_task`.
        info: what is known of the data.
        options: see `task_config`.

    Raises:
        ValueError: unknown name, unknown or unfit options, or data without the labels that the task needs.
    """
    config = task_config(name, options)
    task = find_task(name)(info, config)
    if task.num_outputs < 1:
        raise ValueError(
            f"task {name!r}: models must have at least one output, but class_names is empty; name one for each value "
            "that they predict"
        )
    return task


def _check_class(name: str, task: type[Task]) -> None:
    if not isinstance(getattr(task, "metric", None), str):
        raise ValueError(f"task {name!r}: the class must define metric, the name of its primary metric")
    if task.outputs not in get_args(Outputs):
        raise ValueError(
            f"task {name!r}: outputs must be one of {', '.join(get_args(Outputs))}, but is {task.outputs!r}"
        )
