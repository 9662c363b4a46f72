"""Gate search: weights and gates take turns, each on its own split, under the budget.

First-order alternation (Liu et al., DARTS, ICLR 2019, section 2.3 with ξ = 0): a step of the weights on a batch of the
`weights` split with the gates fixed, then a step of the gates on a batch of the `gates` split with the weights fixed.
Gates stay uniform during the warm-up, so that no candidate is judged before it was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.data import Batch, ClipLoader
from nas_kd.objectives import DistillationLoss
from nas_kd.search_spaces import Supernet
from nas_kd.training.budget import BudgetController
from nas_kd.training.checkpoint import Checkpoint
from nas_kd.training.fit import Loss
from nas_kd.training.log import Log, no_log
from nas_kd.training.settings import FitConfig, GateConfig
from nas_kd.training.steps import Averages, WeightSteps, check_finite, seed_epoch, train_only, trained_parameters

LOGIT_RANGE = 8.0  # that the default learning rate can cover in a search: from even odds to certainty


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
    trained = WeightSteps(fit, fast, slow, slow_scale, what="the weights")  # what is frozen stays so
    gate_parameters = supernet.gate_parameters()
    steps, warm = len(weights) * fit.epochs, round(config.warmup * fit.epochs)
    gate_steps = max(steps - warm * len(weights), 1)
    gate_lr = LOGIT_RANGE / gate_steps if config.lr is None else config.lr
    gate_optimizer = torch.optim.Adam(gate_parameters, lr=gate_lr, betas=(0.5, 0.999))
    parts = {
        "supernet": supernet,
        "objective": objective,
        "optimizer": trained.optimizer,
        "gate_optimizer": gate_optimizer,
        "budget": budget,
    }
    keeper = Checkpoint(checkpoint, tag, parts)

    def gate_step(batch: Batch, progress: float) -> None:
        terms, expected = loss(batch), supernet.expected_cost()
        budget.advance(progress, expected)
        value = objective.total(terms) + budget.penalty(expected)
        check_finite(value, terms, "the gates")
        gate_optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        gate_optimizer.step()
        budget.update(expected)

    for epoch in range(keeper.restore(progress), fit.epochs):
        seed_epoch(seed, epoch, supernet.control.generator)
        supernet.train()
        averages, gate_batches = Averages(), cycle(gates, epoch)
        for i, batch in enumerate(weights.epoch(epoch)):
            done = epoch * len(weights) + i
            supernet.gate_temperature = config.schedule.at(done / steps)
            objective.advance(done / steps)
            train_only(trained.parameters, gate_parameters)
            terms = loss(batch)
            value = objective.total(terms)
            trained.add(value, terms)
            trained.take(done / steps)
            averages.add({**terms, "total": value})
            if epoch >= warm:
                train_only(gate_parameters, trained.parameters)
                gate_step(next(gate_batches), (done - warm * len(weights)) / gate_steps)
            progress((done + 1) / steps, f"search {epoch + 1}/{fit.epochs}")
        trained.end_epoch()
        reached = float(supernet.expected_cost().detach())
        log(epoch, {**averages.means(), "expected_flops": reached, "penalty_weight": budget.weight})
        keeper.save(epoch + 1)
    train_only([*trained.parameters, *gate_parameters], [])
    supernet.eval()
