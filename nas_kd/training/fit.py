"""Supervised training of one net: a teacher, or a student with distillation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import ceil, cos, pi
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.data import Augment, Batch, ClipLoader, MixConfig
from nas_kd.settings.strict import Section
from nas_kd.tasks import Task
from nas_kd.tasks.item_scores import ItemScores
from nas_kd.tasks.task import check_finite_outputs, metrics_of
from nas_kd.training.checkpoint import Checkpoint
from nas_kd.training.kept_weights import AveragedWeights, BestEpoch, Validate
from nas_kd.training.precision import Precision

Schedule = Literal["cosine", "linear", "step", "constant", "one_cycle"]
DECAY_AT, DECAY = (0.5, 0.75), 0.1  # of `step`: shares of the steps, and what is left of the learning rate
ONE_CYCLE_START = 1 / 25  # of the peak


class FitConfig(Section):
    """How a net is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: clips a step.
        optimizer: `adamw`, or `sgd` with momentum 0.9.
        lr: peak learning rate, reached after the warm-up.
        schedule: of the learning rate after the warm-up: `cosine` to 0; `linear` to 0; `step`, a tenth of it after one
            half and another tenth after three quarters of the steps; `constant`; or `one_cycle`, which also rises by a
            cosine, from a 25th (Smith and Topin, arXiv:1708.07120, with the cosines of torch's `OneCycleLR`).
        warmup: share of the steps in which the learning rate rises, linearly but for `one_cycle`.
        weight_decay: on weights of two or more dimensions; biases and BatchNorm have none.
        clip_norm: largest norm of the gradient; the norm is cut to it.
        augment: `none`, `flip`, `flip+crop`, or a section (`nas_kd.data.AugmentConfig`), equal for all frames of a
            clip.
        mix: whether and how the clips of a batch are mixed. Teacher and student see the same mixed clip, so the teacher
            runs in every step.
        precision: `float32`, or `bfloat16`, in which nets then run under autocast; weights, optimizer and losses stay
            in float32. Evaluation is always in float32.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=16, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=3e-3, gt=0)
    schedule: Schedule = "cosine"
    warmup: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=5.0, gt=0)
    augment: Augment = "none"
    mix: MixConfig = MixConfig()
    precision: Precision = "float32"


class TrainingConfig(FitConfig):
    """How a net with one set of weights is trained, and which weights the training leaves.

    Attributes:
        accumulate: batches whose mean gradient a step takes; BatchNorm still sees one batch at a time.
        ema: share that the average of the weights keeps at each step, such as 0.999: the training then leaves the
            average (Polyak and Juditsky, SIAM J. Control Optim. 30(4), 1992). null: no average.
        keep: `last`, the weights after the last epoch; or `best`, those of the epoch, the start included, that is best
            on the validation split. Validation values of what was kept so are optimistic.
        patience: with `keep: best`, epochs without a better value after which the training ends. null: it never does.

    Examples:
        >>> nas_kd.TrainingConfig(epochs=5, lr=2e-3, ema=0.99).optimizer
        'adamw'
    """

    accumulate: int = Field(default=1, ge=1)
    ema: float | None = Field(default=None, gt=0, lt=1)
    keep: Literal["last", "best"] = "last"
    patience: int | None = Field(default=None, ge=1)

    def num_steps(self, batches: int) -> int:
        """Steps of the optimizer in the whole training.

        Args:
            batches: of an epoch; the last step of an epoch takes those that are left.
        """
        return ceil(batches / self.accumulate) * self.epochs

    @model_validator(mode="after")
    def _patience_needs_the_best(self) -> TrainingConfig:
        if self.patience is not None and self.keep != "best":
            raise ValueError("patience needs the weights of the best epoch: add `keep: best`, or leave patience out")
        return self


Loss = Callable[[Batch], Mapping[str, Tensor]]
"""Batch -> unweighted terms."""
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

    Complex parameters, as of filters in the frequency domain, have no fused step.

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
    fused = all(p.is_floating_point() for group in groups for p in group["params"])
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def learning_rate(config: FitConfig, progress: float) -> float:
    """Learning rate at `progress` in [0, 1]; see `FitConfig.schedule`."""
    if progress < config.warmup:
        rising = progress / config.warmup
        if config.schedule == "one_cycle":
            return config.lr * (ONE_CYCLE_START + (1 - ONE_CYCLE_START) * 0.5 * (1 - cos(pi * rising)))
        return config.lr * max(rising, 0.01)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * DECAY ** sum(progress >= place for place in DECAY_AT)
    rest = min((progress - config.warmup) / max(1 - config.warmup, 1e-9), 1.0)
    return config.lr * (1 - rest if config.schedule == "linear" else 0.5 * (1 + cos(pi * rest)))


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


class LaterCheck:
    """`check_finite` without waiting for a GPU: a loss there is looked at one step later, when it is known.

    Args:
        what: is trained, for the message.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._waiting: tuple[Tensor, dict[str, Tensor]] | None = None

    def add(self, total: Tensor, terms: Mapping[str, Tensor], *, at_once: bool | None = None) -> None:
        """Look at the loss of the step before, and on a CPU at that of this step, too.

        Args:
            total: of this step.
            terms: of this step.
            at_once: whether this step's is looked at now; by default on a CPU alone.
        """
        self.finish()
        self._waiting = total.detach(), {name: value.detach() for name, value in terms.items()}
        if total.device.type == "cpu" if at_once is None else at_once:
            self.finish()

    def finish(self) -> None:
        """Look at the loss that waits, before an epoch counts as done."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            check_finite(*waiting, self._what)


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
    later = list(slow)
    optimizer = make_optimizer(config, chosen, slow=later, slow_scale=slow_scale)
    parts = {"module": module, "optimizer": optimizer, **(extra_parts or {})}
    average = parts["average"] = AveragedWeights(module, config.ema) if config.ema is not None else None
    best = parts["best"] = None
    if config.keep == "best":
        if validate is None:
            raise ValueError("keep: best needs a validation split; give `validate`, or take `keep: last`")
        best = parts["best"] = BestEpoch(module, validate, config.patience)
    keeper = Checkpoint(checkpoint, tag, {name: part for name, part in parts.items() if part is not None})
    start = keeper.restore(progress)
    if best is not None and start == 0:
        module.eval()
        best.see(0)
    batches, check = len(loader) * config.epochs, LaterCheck("the training")
    for epoch in range(start, config.epochs):
        if best is not None and best.has_ended:
            break
        torch.manual_seed(seed * 100_003 + epoch)
        module.train()
        averages = Averages()
        for i, batch in enumerate(loader.epoch(epoch)):
            done = epoch * len(loader) + i
            set_learning_rate(optimizer, learning_rate(config, done / batches))
            advance(done / batches)
            terms = loss(batch)
            value = total(terms)
            check.add(value, terms)
            first = i - i % config.accumulate  # batch of those whose gradients a step takes
            if i == first:
                optimizer.zero_grad(set_to_none=True)
            number = min(config.accumulate, len(loader) - first)
            (value / number).backward()  # type: ignore[no-untyped-call]
            if i == first + number - 1:
                torch.nn.utils.clip_grad_norm_([*chosen, *later], config.clip_norm)
                optimizer.step()
                if average is not None:
                    average.step()
            averages.add({**terms, "total": value})
            progress((done + 1) / batches, f"epoch {epoch + 1}/{config.epochs}")
        check.finish()
        means = averages.means()
        if best is not None:
            module.eval()
            with average.applied() if average is not None else nullcontext():
                means["validation"] = best.see(epoch + 1)
        log(epoch, means)
        keeper.save(epoch + 1)
    if best is not None:
        best.apply()
    elif average is not None:
        average.apply()
    module.eval()
    return config.epochs if best is None else best.epoch


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
