"""Supervised training of one net: a teacher, or a student with distillation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nas_kd.data import Augment, Batch, ClipLoader
from nas_kd.settings.strict import Section
from nas_kd.tasks import Task
from nas_kd.tasks.item_scores import ItemScores
from nas_kd.tasks.task import check_finite_outputs
from nas_kd.training.checkpoint import Checkpoint
from nas_kd.training.precision import Precision


class FitConfig(Section):
    """How a net is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: clips a step.
        optimizer: `adamw`, or `sgd` with momentum 0.9.
        lr: peak learning rate, reached after the warm-up, then cosine to 0.
        warmup: share of the steps in which the learning rate rises linearly.
        weight_decay: on weights of two or more dimensions; biases and BatchNorm have none.
        clip_norm: largest norm of the gradient; the norm is cut to it.
        augment: `none`, `flip` or `flip+crop`, equal for all frames of a clip.
        precision: `float32`, or `bfloat16`, in which nets then run under autocast; weights, optimizer and losses stay
            in float32. Evaluation is always in float32.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=16, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=3e-3, gt=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=5.0, gt=0)
    augment: Augment = "none"
    precision: Precision = "float32"


Loss = Callable[[Batch], Mapping[str, Tensor]]
"""Batch -> unweighted terms."""
OnProgress = Callable[[float, str], None]
"""(share done from 0 to 1, a few words)."""


def no_progress(fraction: float, message: str) -> None:
    """Shows nothing."""


Scored = Callable[[ItemScores], None]
"""What an evaluation rests on."""
Log = Callable[[int, Mapping[str, float]], None]
"""(epoch that ended, mean of every term over its steps)."""


def no_log(epoch: int, means: Mapping[str, float]) -> None:
    """Keeps nothing."""


def log_epoch(folder: Path, stage: str, epoch: int, means: Mapping[str, float]) -> None:
    """Append a line with the mean of every term to `log.jsonl`; what is continued appends after what it had."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"stage": stage, "epoch": epoch + 1, **{name: round(value, 6) for name, value in means.items()}}
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def make_optimizer(
    config: FitConfig,
    parameters: Iterable[nn.Parameter],
    *,
    slow: Iterable[nn.Parameter] = (),
    slow_scale: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW or SGD with decay on matrices and kernels only, fused: one call a step instead of several a parameter.

    Args:
        config: of the training.
        parameters: at the full learning rate.
        slow: at `slow_scale` times the learning rate.
        slow_scale: at most 1.
    """
    groups: list[dict[str, Any]] = []
    for chosen, scale in ((list(parameters), 1.0), (list(slow), slow_scale)):
        for is_matrix, decay in ((True, config.weight_decay), (False, 0.0)):
            if members := [p for p in chosen if (p.ndim > 1) == is_matrix]:
                groups.append({"params": members, "weight_decay": decay, "lr_scale": scale})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(config: FitConfig, progress: float) -> float:
    """Learning rate at `progress` in [0, 1]: linear warm-up, then cosine to 0."""
    if progress < config.warmup:
        return config.lr * max(progress / config.warmup, 0.01)
    rest = (progress - config.warmup) / max(1 - config.warmup, 1e-9)
    return config.lr * 0.5 * (1 + cos(pi * min(rest, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give all groups of the optimizer a learning rate, each in its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@dataclass
class Averages:
    """Means of the terms of one epoch over the steps that have them, kept on the device so that nobody waits for it."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add one step."""
        for name, value in terms.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Term -> mean."""
        return {name: float(value) / self.counts[name] for name, value in self.sums.items()}


class NotFiniteError(FloatingPointError, ValueError):
    """A loss is no number, so nothing can be learned from it."""


def check_finite(total: Tensor, terms: Mapping[str, Tensor], what: str) -> None:
    """Raise `NotFiniteError` where a loss is no number."""
    if not torch.isfinite(total):
        values = ", ".join(f"{name}={float(value.detach()):.4g}" for name, value in terms.items())
        raise NotFiniteError(f"the loss of {what} is not finite ({values}); lower the learning rate or a weight")


def fit(
    module: nn.Module,
    loader: ClipLoader,
    loss: Loss,
    total: Callable[[Mapping[str, Tensor]], Tensor],
    config: FitConfig,
    *,
    seed: int,
    parameters: Iterable[nn.Parameter] | None = None,
    slow: Iterable[nn.Parameter] = (),
    slow_scale: float = 1.0,
    advance: Callable[[float], None] = lambda progress: None,
    extra_parts: Mapping[str, Any] | None = None,
    checkpoint: Path | str | None = None,
    tag: str = "",
    progress: OnProgress = no_progress,
    log: Log = no_log,
) -> None:
    """Train `module` in place. Restarts from its checkpoint at the last whole epoch, with the same result.

    Args:
        module: what is trained; it is in training mode within steps and in evaluation mode afterwards.
        loader: batches.
        loss: terms of a batch.
        total: the sum that is minimised.
        config: schedule.
        seed: of dropout and other noise; each epoch has its own state of the generator, so nothing of it is stored.
        parameters: what is optimised; those of `module` by default.
        slow: further parameters, optimised at `slow_scale` times the learning rate.
        slow_scale: at most 1.
        advance: called before every step with the progress of the training, from 0 to 1.
        extra_parts: further modules for the checkpoint, such as the objective with its adapters.
        checkpoint: file, or None to keep nothing.
        tag: names what is trained in the checkpoint.
        progress: called after every step.
        log: called with the mean terms after every epoch.
    """
    chosen = list(parameters) if parameters is not None else list(module.parameters())
    later = list(slow)
    optimizer = make_optimizer(config, chosen, slow=later, slow_scale=slow_scale)
    keeper = Checkpoint(checkpoint, tag, {"module": module, "optimizer": optimizer, **(extra_parts or {})})
    start = keeper.restore()
    steps = len(loader) * config.epochs
    for epoch in range(start, config.epochs):
        torch.manual_seed(seed * 100_003 + epoch)
        module.train()
        averages = Averages()
        for i, batch in enumerate(loader.epoch(epoch)):
            done = epoch * len(loader) + i
            set_learning_rate(optimizer, learning_rate(config, done / steps))
            advance(done / steps)
            terms = loss(batch)
            value = total(terms)
            check_finite(value, terms, "the training")
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([*chosen, *later], config.clip_norm)
            optimizer.step()
            averages.add({**terms, "total": value})
            progress((done + 1) / steps, f"epoch {epoch + 1}/{config.epochs}")
        log(epoch, averages.means())
        keeper.save(epoch + 1)
    module.eval()


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
    """Metrics of `predict` over a split.

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
    for batch in loader.epoch(0):
        outputs = predict(clip(batch))
        check_finite_outputs(outputs)
        task.update(outputs, batch, offsets)
        if seen is not None:
            seen(outputs, batch)
    scores = None if scored is None else task.item_scores()
    if scored is not None and scores is not None:
        scored(scores)
    metrics = task.compute()
    if task.metric not in metrics:
        raise ValueError(
            f"task {type(task).__name__}: compute must return the primary metric {task.metric!r}, but returns "
            f"{', '.join(metrics) or 'nothing'}"
        )
    return metrics
