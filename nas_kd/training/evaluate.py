"""Metrics of a net over a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nas_kd.data import Batch, ClipLoader
from nas_kd.tasks import Task
from nas_kd.tasks.item_scores import ItemScores
from nas_kd.tasks.task import check_finite_outputs, metrics_of

Scored = Callable[[ItemScores], None]
"""What an evaluation rests on."""


def mean_of_views(outputs: Sequence[Tensor]) -> Tensor:
    """The outputs for items, from those for each of their views."""
    return outputs[0] if len(outputs) == 1 else torch.stack(list(outputs)).mean(0)


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    loader: ClipLoader,
    task: Task,
    clip: Callable[[Batch], Tensor],
    offsets: Sequence[int] | None = None,
    seen: Callable[[Tensor, Batch], None] | None = None,
    scored: Scored | None = None,
) -> dict[str, float]:
    """Metrics of `predict` over a split. Of items that the loader shows in several views, outputs are averaged.

    They are averaged before any softmax: logits, not probabilities.

    Args:
        predict: model input -> outputs; the caller puts the model into evaluation mode.
        loader: the split, unshuffled.
        task: metrics.
        clip: batch -> model input.
        offsets: frames after the key frame, for each frame of a clip; None where there are no key frames.
        seen: called with the outputs of each batch and the batch.
        scored: called with the task's `item_scores`, where it has any.

    Raises:
        ValueError: an output is not finite, or the primary metric is missing.
    """
    for views in loader.evaluation():
        batch, each = views[0], [predict(clip(view)) for view in views]
        outputs = mean_of_views(each)
        check_finite_outputs(outputs)
        task.update(outputs, batch, offsets)
        if seen is not None:
            seen(outputs, batch)
    scores = None if scored is None else task.item_scores()
    if scored is not None and scores is not None:
        scored(scores)
    return metrics_of(task)
