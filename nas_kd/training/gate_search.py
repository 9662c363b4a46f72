"""Gate search: weights and gates take turns, each on its own split, under the budget.

First-order alternation (Liu et al., DARTS, ICLR 2019, section 2.3 with ξ = 0): a step of the weights on a batch of the
`weights` split with the gates fixed, then a step of the gates on a batch of the `gates` split with the weights fixed.
Gates stay uniform during the warm-up, so that no candidate is judged before it was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from pydantic import Field
from torch import nn

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.data import Batch, ClipLoader
from nas_kd.objectives import DistillationLoss
from nas_kd.search_spaces import ESTIMATORS, Supernet, TemperatureSchedule
from nas_kd.settings.strict import Section
from nas_kd.training.budget import BudgetController
from nas_kd.training.checkpoint import Checkpoint
from nas_kd.training.fit import (
    Averages,
    FitConfig,
    LaterCheck,
    Log,
    Loss,
    check_finite,
    learning_rate,
    make_optimizer,
    no_log,
    set_learning_rate,
)

LOGIT_RANGE = 8.0  # that the default learning rate can cover in a search: from even odds to certainty


class GateConfig(Section):
    """The gates of a search.

    Attributes:
        estimator: `straight_through` runs one candidate an edge; see `nas_kd.search_spaces.gates` for the others.
        temperature_start: gate temperature at the start of the search.
        temperature_end: gate temperature at its end.
        lr: learning rate of the gates (Adam, β₁ = 0.5 as in DARTS). null sets it so that a logit can move by about
            `LOGIT_RANGE` over the whole search, however long that is: gates then settle when the budget is reached and
            not before.
        warmup: share of the epochs in which only weights train.
        split_share: share of the training clips on which gates train; weights train on the rest.
        knots: budgets at which the gates of a shared search have logits of their own; in between they are interpolated.

    Examples:
        >>> nas_kd.GateConfig(estimator="two_path", split_share=0.25).estimator
        'two_path'
    """

    estimator: str = "straight_through"
    temperature_start: float = Field(default=2.0, gt=0)
    temperature_end: float = Field(default=0.5, gt=0)
    lr: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.25, ge=0, lt=1)
    split_share: float = Field(default=0.5, gt=0, lt=1)
    knots: int = Field(default=5, ge=2)

    def model_post_init(self, _: object) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"unknown gate estimator {self.estimator!r}; choose from {', '.join(ESTIMATORS)}")

    @property
    def schedule(self) -> TemperatureSchedule:
        """Gate temperature over the search."""
        return TemperatureSchedule(self.temperature_start, self.temperature_end)


class LocalConfig(Section):
    """The local start of a search, for students of `delta_blocks`.

    Attributes:
        steps: of training all candidates on their own layers; 0 starts with uniform gates, without this phase.
        probes: batches of the gates' split on which the candidates are judged.
        prior: logits for a candidate that misses the whole change; 0 keeps gates uniform.
    """

    steps: int = Field(default=60, ge=0)
    probes: int = Field(default=16, ge=1)
    prior: float = Field(default=100.0, ge=0)


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


def cycle(loader: ClipLoader, epoch: int = 0) -> Iterator[Batch]:
    """Batches without end; a smaller split is gone through several times an epoch, each time in a new order."""
    passes = 0
    while True:
        yield from loader.epoch(epoch * 1000 + passes)
        passes += 1


def search_gates(
    supernet: Supernet,
    objective: DistillationLoss,
    loss: Loss,
    weights: ClipLoader,
    gates: ClipLoader,
    budget: BudgetController,
    fit: FitConfig,
    config: GateConfig,
    *,
    seed: int,
    checkpoint: Path | str | None = None,
    tag: str = "search",
    progress: OnProgress = no_progress,
    log: Log = no_log,
) -> None:
    """Train weights and gates of `supernet` in place; restarts from its checkpoint at the last whole epoch.

    Args:
        supernet: what is searched.
        objective: weighs the terms; its adapters train with the weights.
        loss: terms of a batch, of either split.
        weights: batches for the weights.
        gates: batches for the gates.
        budget: penalty of the gates.
        fit: schedule of the weights.
        config: gates.
        seed: of gate noise and dropout; each epoch has its own state of the generators.
        checkpoint: file, or None to keep nothing.
        tag: names the search in the checkpoint.
        progress: called after every step.
        log: called with the mean terms after every epoch.

    Examples:
        >>> from nas_kd.data import ClipLoader, load
        >>> config = nas_kd.load_config("demo.yaml")
        >>> splits = load(config.data, seed=0)
        >>> def loader(half):
        ...     return ClipLoader(half, 8, seed=0, shuffle=True, keys=("clip", "label"))
        >>> supernet = nas_kd.Supernet(config.space.build(4))
        >>> task, example = nas_kd.TASKS["classification"](splits.info), torch.zeros(1, 3, 4, 16, 16)
        >>> objective = nas_kd.ObjectiveConfig(feature={"weight": 0})
        >>> objective = nas_kd.DistillationLoss(objective, task, supernet, None, example, example)
        >>> def loss(batch):
        ...     return {"task": task.loss(supernet(batch["clip"] / 255), batch)}
        >>> budget = nas_kd.BudgetController(max_flops=200_000)
        >>> schedule = nas_kd.TrainingConfig(epochs=1)
        >>> halves = loader(splits.weights), loader(splits.gates)
        >>> config = nas_kd.GateConfig()
        >>> nas_kd.search_gates(supernet, objective, loss, *halves, budget, schedule, config, seed=0)
    """
    fast, slow, slow_scale = trained_parameters(supernet, supernet.weight_parameters(), objective)
    weight_parameters = [*fast, *slow]  # what is frozen stays so
    gate_parameters = supernet.gate_parameters()
    optimizer = make_optimizer(fit, fast, slow=slow, slow_scale=slow_scale)
    steps, warm = len(weights) * fit.epochs, round(config.warmup * fit.epochs)
    gate_steps = max(steps - warm * len(weights), 1)
    gate_lr = LOGIT_RANGE / gate_steps if config.lr is None else config.lr
    gate_optimizer = torch.optim.Adam(gate_parameters, lr=gate_lr, betas=(0.5, 0.999))
    parts = {
        "supernet": supernet,
        "objective": objective,
        "optimizer": optimizer,
        "gate_optimizer": gate_optimizer,
        "budget": budget,
    }
    keeper = Checkpoint(checkpoint, tag, parts)
    start, check = keeper.restore(progress), LaterCheck("the weights")
    for epoch in range(start, fit.epochs):
        torch.manual_seed(seed * 100_003 + epoch)
        if supernet.control.generator is not None:
            supernet.control.generator.manual_seed(seed * 100_003 + epoch)
        supernet.train()
        averages, gate_batches = Averages(), cycle(gates, epoch)
        for i, batch in enumerate(weights.epoch(epoch)):
            done = epoch * len(weights) + i
            supernet.gate_temperature = config.schedule.at(done / steps)
            objective.advance(done / steps)
            set_learning_rate(optimizer, learning_rate(fit, done / steps))
            train_only(weight_parameters, gate_parameters)
            terms = loss(batch)
            value = objective.total(terms)
            check.add(value, terms)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weight_parameters, fit.clip_norm)
            optimizer.step()
            averages.add({**terms, "total": value})
            if epoch >= warm:
                train_only(gate_parameters, weight_parameters)
                gate_terms = loss(next(gate_batches))
                expected = supernet.expected_cost()
                budget.advance((done - warm * len(weights)) / gate_steps, expected)
                value = objective.total(gate_terms) + budget.penalty(expected)
                check_finite(value, gate_terms, "the gates")
                gate_optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                gate_optimizer.step()
                budget.update(expected)
            progress((done + 1) / steps, f"search {epoch + 1}/{fit.epochs}")
        check.finish()
        reached = float(supernet.expected_cost().detach())
        log(epoch, {**averages.means(), "expected_flops": reached, "penalty_weight": budget.weight})
        keeper.save(epoch + 1)
    train_only([*weight_parameters, *gate_parameters], [])
    supernet.eval()


def train_only(trained: Iterable[nn.Parameter], frozen: Iterable[nn.Parameter]) -> None:
    """Let some parameters have gradients, and others not."""
    for p in frozen:
        p.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)
