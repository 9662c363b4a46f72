"""Metrics of the teacher on the frames at each distance from a key frame, as those of students with key frames.

The frames at one offset are others than those at the next, and harder or easier for any model. So a student's metric
per offset is compared with the teacher's on the same frames, never with the teacher's over all frames.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from nas_kd.data import Batch
from nas_kd.tasks import make_task
from nas_kd.tasks.task import metrics_of
from nas_kd.trial import CampaignContext

ByInterval = dict[str, dict[str, float]]
"""Interval between key frames, as text -> `split/metric` and `split/metric@offset` -> value; as in `teacher.json`."""


class OffsetMetrics:
    """Collects the teacher's outputs on one split.

    Args:
        context: of the campaign.
        intervals: between key frames, for which metrics are wanted.
    """

    def __init__(self, context: CampaignContext, intervals: Iterable[int]) -> None:
        config, info = context.config, context.splits.info
        offsets = context.input_type.student_offsets(context.space)
        self._offsets = {interval: offsets[interval] for interval in intervals}
        self._tasks = {interval: make_task(config.task, info, config.task_options) for interval in self._offsets}

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Add the outputs (N, T, C, h, w) for a batch of whole clips."""
        for interval, task in self._tasks.items():
            task.update(outputs, batch, self._offsets[interval])

    def compute(self, split: str) -> ByInterval:
        """The metrics of what was added."""
        found: ByInterval = {}
        for interval, task in self._tasks.items():
            found[str(interval)] = {f"{split}/{name}": value for name, value in metrics_of(task).items()}
        return found


def missing_intervals(context: CampaignContext, known: ByInterval) -> list[int]:
    """Intervals of the space's students for which the teacher was not measured yet."""
    return [interval for interval in context.input_type.student_offsets(context.space) if str(interval) not in known]


def merge(known: ByInterval, more: ByInterval) -> ByInterval:
    """Both together."""
    merged = {interval: dict(values) for interval, values in known.items()}
    for interval, values in more.items():
        merged.setdefault(interval, {}).update(values)
    return merged
