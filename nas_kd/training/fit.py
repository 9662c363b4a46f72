"""Supervised training of one net: a teacher, or a student with distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.data import Batch, ClipLoader
from nas_kd.training.checkpoint import Checkpoint
from nas_kd.training.kept_weights import KeptWeights, Validate
from nas_kd.training.log import Log, no_log
from nas_kd.training.settings import TrainingConfig
from nas_kd.training.steps import Averages, WeightSteps, seed_epoch

Loss = Callable[[Batch], Mapping[str, Tensor]]
"""Batch -> unweighted terms."""


def fit(
    module: nn.Module,
    loader: ClipLoader,
    loss: Loss,
    total: Callable[[Mapping[str, Tensor]], Tensor],
    config: TrainingConfig,
    *,
    seed: int,
    validate: Validate | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    slow: Iterable[nn.Parameter] = (),
    slow_scale: float = 1.0,
    advance: Callable[[float], None] = lambda progress: None,
    extra_parts: Mapping[str, Any] | None = None,
    checkpoint: Path | str | None = None,
    tag: str = "",
    progress: OnProgress = no_progress,
    log: Log = no_log,
) -> int:
    """Train `module` in place. Restarts from its checkpoint at the last whole epoch, with the same result.

    Args:
        module: what is trained; it is in training mode within steps and in evaluation mode afterwards.
        loader: batches.
        loss: terms of a batch.
        total: the sum that is minimised.
        config: schedule.
        seed: of dropout and other noise; each epoch has its own state of the generator, so nothing of it is stored.
        validate: score of `module` on the validation split, of which more is better; for `keep: best`.
        parameters: what is optimised; those of `module` by default.
        slow: further parameters, optimised at `slow_scale` times the learning rate.
        slow_scale: at most 1.
        advance: called before every batch with the progress of the training, from 0 to 1.
        extra_parts: further modules for the checkpoint, such as the objective with its adapters.
        checkpoint: file, or None to keep nothing.
        tag: names what is trained in the checkpoint.
        progress: called after every batch.
        log: called with the mean terms after every epoch, and with the `validation` score where there is one.

    Returns:
        The number of epochs after which `module` had the weights that it is left with.

    Raises:
        ValueError: `keep: best` without `validate`.

    Examples:
        >>> from nas_kd.data import ClipLoader, load
        >>> train = load(nas_kd.load_config("demo.yaml").data, seed=0).retrain
        >>> loader = ClipLoader(train, 8, seed=0, shuffle=True, keys=("clip", "label"))
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
        >>> def loss(batch):
        ...     return {"task": nn.functional.cross_entropy(net(batch["clip"] / 255), batch["label"])}
        >>> config = nas_kd.TrainingConfig(epochs=1)
        >>> epochs = nas_kd.fit(net, loader, loss, lambda terms: terms["task"], config, seed=0)
    """
    chosen = list(parameters) if parameters is not None else list(module.parameters())
    weights = WeightSteps(config, chosen, list(slow), slow_scale, what="the training")
    kept = KeptWeights(module, config, validate)
    parts = {"module": module, "optimizer": weights.optimizer, **(extra_parts or {}), **kept.parts}
    keeper = Checkpoint(checkpoint, tag, parts)
    start = keeper.restore(progress)
    if start == 0:
        kept.begin()
    batches = len(loader) * config.epochs
    for epoch in range(start, config.epochs):
        if kept.has_ended:
            break
        seed_epoch(seed, epoch)
        module.train()
        averages = Averages()
        for i, batch in enumerate(loader.epoch(epoch)):
            done = epoch * len(loader) + i
            advance(done / batches)
            terms = loss(batch)
            value = total(terms)
            first = i - i % config.accumulate  # batch of those whose gradients a step takes
            number = min(config.accumulate, len(loader) - first)
            weights.add(value, terms, of=number)
            if i == first + number - 1:
                weights.take(done / batches)
                kept.step()
            averages.add({**terms, "total": value})
            progress((done + 1) / batches, f"epoch {epoch + 1}/{config.epochs}")
        weights.end_epoch()
        log(epoch, {**averages.means(), **kept.end_epoch(epoch + 1)})
        keeper.save(epoch + 1)
    epochs = kept.apply()
    module.eval()
    return epochs
