"""Keys of a campaign file that change nothing, or not what they are set for, with its data and the other keys."""

from __future__ import annotations

from math import floor

from nas_kd.config import CampaignConfig
from nas_kd.training.settings import TrainingConfig

_KEPT = 0.05  # share of the first weights in an average, above which it is remarked upon
_AIM = 0.01


def idle_keys(config: CampaignConfig, num_items: int) -> list[str]:
    """Sentences on such keys, each with the way out.

    Args:
        config: of the campaign.
        num_items: of the training split.
    """
    sentences = []
    if not config.teacher.trains and "fit" in config.teacher.model_fields_set:
        sentences.append(
            "teacher.fit: the teacher is taken as it is, so nothing of this section is used; set teacher.train: true, "
            "or leave it out"
        )
    trainings: dict[str, TrainingConfig] = {"retrain": config.retrain}
    if config.teacher.trains:
        trainings["teacher.fit"] = config.teacher.fit
    for path, training in trainings.items():
        sentences += [f"{path}.{sentence}" for sentence in _of_training(training, num_items)]
    return sentences


def _of_training(training: TrainingConfig, num_items: int) -> list[str]:
    sentences = []
    batches, epochs = num_items // min(training.batch_size, num_items), training.epochs
    if training.accumulate > batches:
        sentences.append(
            f"accumulate: an epoch has {batches} batches, so a step takes no more than these, not "
            f"{training.accumulate}; lower it, or batch_size"
        )
    steps = training.num_steps(batches)
    if training.ema is not None and training.ema**steps > _KEPT:
        most = floor(1e4 * _AIM ** (1 / steps)) / 1e4
        sentences.append(
            f"ema: after {steps} steps the average still has {training.ema**steps:.0%} of the weights that the "
            f"training began with; lower it to at most {most:g}"
        )
    if training.patience is not None and training.patience >= epochs:
        sentences.append(
            f"patience: {training.patience} epochs cannot pass within {epochs}, so it ends nothing; lower it"
        )
    return sentences
