"""Whether a teacher that is taken as it is would be right more often with its input normalised in another way.

Nothing else shows it: a net runs on numbers of any range, and answers to a wrong one are merely worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_kd.data import Batch, Subset
from nas_kd.data.fingerprint import spread
from nas_kd.settings.normalize import NormalizeConfig
from nas_kd.teachers import is_precomputed, teacher_input
from nas_kd.teachers.adapter import AdaptedTeacher
from nas_kd.teachers.input_form import brightness, normalized
from nas_kd.training.evaluate import mean_of_views
from nas_kd.trial import CampaignContext

NUM_ITEMS = 64
"""Items of the validation split that are tried."""
GAIN = 0.1
"""Share of right answers by which another normalisation must be better."""
_DEVIATIONS = 3  # of the mean difference of an item, by which it must be above 0

CONVENTIONS = {
    "numbers from 0 to 1": NormalizeConfig(mean=(0, 0, 0), std=(1, 1, 1)),
    "numbers from -1 to 1": NormalizeConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "numbers from 0 to 255": NormalizeConfig(mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255)),
    "as for ImageNet": NormalizeConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "as for Kinetics": NormalizeConfig(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
}
"""How nets are commonly fed."""


def better_normalization(context: CampaignContext) -> str:
    """A sentence on the common normalisation with which a teacher is right clearly more often; empty without one.

    Args:
        context: with a teacher that has its weights and was not trained by the campaign.
    """
    model, labels = context.teacher_model, _labels_of(context)
    given = NormalizeConfig(mean=context.input_type.mean, std=context.input_type.std)
    own = given
    if isinstance(model, AdaptedTeacher):
        own = model.inputs.normalize or given
    if labels is None or is_precomputed(model) or (isinstance(model, AdaptedTeacher) and model.inputs.as_bytes):
        return ""
    now = _right(context, labels, given, own)
    if now is None or len(now) < 2 or float(now.mean()) > 1 - GAIN:
        return ""
    best, gain = "", GAIN
    for words, tried in CONVENTIONS.items():
        if tried == own:
            continue
        right = _right(context, labels, given, tried)
        if right is None:
            continue
        difference = right - now
        deviation = float(difference.std()) / len(difference) ** 0.5
        if float(difference.mean()) >= max(gain, _DEVIATIONS * deviation):
            gain = float(difference.mean())
            best = (
                f"warning: on {len(now)} validation items the teacher's share of right answers is "
                f"{float(now.mean()):.3f}, but {float(right.mean()):.3f} with its input normalised by mean "
                f"{list(tried.mean)} and std {[round(value, 6) for value in tried.std]} ({words}); if it was trained "
                "so, set teacher.normalize to them"
            )
    return best


def _labels_of(context: CampaignContext) -> str | None:
    """The key of a batch with the classes that answers can be compared with; None of data without pixels or classes."""
    task = context.task
    if context.input_type.key != "clip" or task.outputs == "other" or len(task.class_names) < 2:
        return None
    return next((name for name in ("label", "labels", "mask") if name in task.keys), None)


@torch.no_grad()
def _right(context: CampaignContext, labels: str, given: NormalizeConfig, tried: NormalizeConfig) -> Tensor | None:
    """[N] share of right answers for each item, with the input normalised in a way that is tried.

    Args:
        context: of the campaign.
        labels: key of a batch.
        given: of the campaign, which the input of the teacher has.
        tried: which the net is to see.

    Returns:
        None where the net refuses such an input.
    """
    model, val = context.teacher_model, context.splits.val
    items = Subset(val, spread(len(val), NUM_ITEMS))
    shares: list[Tensor] = []

    def shown(batch: Batch) -> Tensor:
        inputs = teacher_input(model, batch, context.input_type.read(batch))
        return inputs if isinstance(model, AdaptedTeacher) else normalized(brightness(inputs, given), tried)

    predict = context.input_type.on_items(model, context.eval_batch_size)
    with _shown_as(model, tried):
        for views in context.loader(items, context.config.retrain, seed=0, train=False).evaluation():
            batches = [shown(view) for view in views]
            try:
                outputs = mean_of_views([predict(batch) for batch in batches])
            except Exception:  # whatever a net raises for numbers of a range that it does not take
                return None
            right = right_shares(outputs, views[0][labels])
            shares.append(right if bool(outputs.isfinite().all()) else torch.zeros_like(right))
    return torch.cat(shares)


@contextmanager
def _shown_as(model: nn.Module, tried: NormalizeConfig) -> Iterator[None]:
    """An adapted teacher normalises the input of its net so."""
    if not isinstance(model, AdaptedTeacher):
        yield
        return
    before = model.inputs
    model.inputs = replace(before, normalize=tried)
    try:
        yield
    finally:
        model.inputs = before


def right_shares(outputs: Tensor, labels: Tensor) -> Tensor:
    """[N] for each item: whether its highest output is (one of) its class(es), or of which share of its pixels.

    Args:
        outputs: (N, C), or maps (N, T, C, h, w).
        labels: classes (N,), several of them (N, C), or of pixels (N, T, H, W), of which values from C on do not count.
    """
    if outputs.ndim == 2:
        answers = outputs.argmax(1)
        right = answers == labels if labels.ndim == 1 else labels.gather(1, answers[:, None])[:, 0] > 0
        return right.double().cpu()
    channels = outputs.shape[2]
    answers = outputs.argmax(2)
    wanted = F.interpolate(labels.flatten(0, 1)[:, None].float(), size=answers.shape[-2:], mode="nearest-exact")
    wanted = wanted.view_as(answers)
    known = wanted < channels
    right = (answers == wanted) & known
    return (right.flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1)).double().cpu()
