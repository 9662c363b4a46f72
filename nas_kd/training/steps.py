"""Steps of the optimizer: parameters, learning rate, clipping, losses that must be finite, means over an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.objectives import DistillationLoss
from nas_kd.training.settings import FitConfig

DECAY_AT, DECAY = (0.5, 0.75), 0.1  # of `step`: shares of the steps, and what is left of the learning rate
ONE_CYCLE_START = 1 / 25  # of the peak


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


class WeightSteps:
    """The steps of the weights in a training loop: gradients of one or several losses, then a step of the optimizer.

    Args:
        config: optimizer, schedule of the learning rate, clipping.
        parameters: at the full learning rate.
        slow: at `slow_scale` times the learning rate.
        slow_scale: at most 1.
        what: is trained, for the message about a loss that is not finite.
    """

    def __init__(
        self,
        config: FitConfig,
        parameters: Sequence[nn.Parameter],
        slow: Sequence[nn.Parameter] = (),
        slow_scale: float = 1.0,
        *,
        what: str,
    ) -> None:
        self.parameters = [*parameters, *slow]
        self.optimizer = make_optimizer(config, parameters, slow=slow, slow_scale=slow_scale)
        self._config = config
        self._check = LaterCheck(what)
        self._has_gradients = False

    def add(self, value: Tensor, terms: Mapping[str, Tensor], *, of: int = 1) -> None:
        """Add the gradient of a loss to the next step.

        Args:
            value: the loss.
            terms: of which it is made, for the message.
            of: number of losses that the step takes the mean of.
        """
        self._check.add(value, terms)
        if not self._has_gradients:
            self.optimizer.zero_grad(set_to_none=True)
            self._has_gradients = True
        (value / of).backward()  # type: ignore[no-untyped-call]

    def take(self, progress: float) -> None:
        """Take a step along the gradients that were added.

        Args:
            progress: of the training, from 0 to 1.
        """
        set_learning_rate(self.optimizer, learning_rate(self._config, progress))
        torch.nn.utils.clip_grad_norm_(self.parameters, self._config.clip_norm)
        self.optimizer.step()
        self._has_gradients = False

    def end_epoch(self) -> None:
        """Raise where the loss of the last step is not finite, before the epoch counts as done."""
        self._check.finish()


def seed_epoch(seed: int, epoch: int, *generators: torch.Generator | None) -> None:
    """Give each epoch its own state of torch's generator and of others; then no checkpoint has to keep one."""
    own = seed * 100_003 + epoch
    torch.manual_seed(own)
    for generator in generators:
        if generator is not None:
            generator.manual_seed(own)


def trained_parameters(
    net: nn.Module, weights: Iterable[nn.Parameter], objective: DistillationLoss
) -> tuple[list[nn.Parameter], list[nn.Parameter], float]:
    """What trains, and what trains slowly.

    Which parameters are slow a term of the objective decides, none by default. They are made trainable here.

    Args:
        net: a supernet or a student.
        weights: of the net.
        objective: whose own parameters train along.

    Returns:
        Those at the learning rate, those at a share of it, and that share.
    """
    slow, scale = objective.slow_parameters(net)
    for p in slow:
        p.requires_grad_(True)
    taken = {id(p) for p in slow}
    fast = [p for p in (*weights, *objective.parameters()) if p.requires_grad and id(p) not in taken]
    return fast, slow, scale


def train_only(trained: Iterable[nn.Parameter], frozen: Iterable[nn.Parameter]) -> None:
    """Let some parameters have gradients, and others not."""
    for p in frozen:
        p.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)
