"""Tasks: what a student is trained for and measured by."""

from __future__ import annotations

from nas_kd.tasks.classification import Classification
from nas_kd.tasks.task import Batch, Task

TASKS: dict[str, type[Task]] = {"classification": Classification}
"""Name -> task."""

__all__ = ["TASKS", "Batch", "Classification", "Task"]
