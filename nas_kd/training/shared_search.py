"""The search of a campaign: one set of weights and gates that depend on the budget, trained for all budgets together.

A step draws a budget between the lowest and the highest one, uniform in its logarithm, and a combination of the
space's knobs. Then the weights of some drawn architectures take a step on a batch of the `weights` split, and the gates
one on a batch of the `gates` split (first-order alternation, Liu et al., DARTS, ICLR 2019, section 2.3 with ξ = 0).
Gates start at distributions whose expected cost is the budget, so a penalty has only to hold them there.

In the last epochs the gates are fixed, and the drawn architectures are the candidates among which the students are
chosen. Weights then serve few architectures, so that what the candidates inherit says more about them.

Knobs have no gradient. Their logits, also a function of the budget, follow the difference of the losses that two
drawn combinations have on the same batch: REINFORCE (Williams, 1992) with the other draw as the baseline (Kool et al.,
2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.data import Batch, ClipLoader
from nas_kd.objectives import DistillationLoss
from nas_kd.search_spaces import ArchSpec
from nas_kd.search_spaces.gates import BudgetGate, Condition
from nas_kd.search_spaces.shared import SharedSupernet
from nas_kd.training.budget import BudgetPenalty
from nas_kd.training.checkpoint import Checkpoint
from nas_kd.training.gate_search import LOGIT_RANGE, cycle
from nas_kd.training.log import Log, no_log
from nas_kd.training.settings import FitConfig, GateConfig
from nas_kd.training.steps import Averages, WeightSteps, check_finite, seed_epoch, train_only, trained_parameters

# That the logits of knobs cover in a search: less than those of gates, so that every combination is drawn to the end.
KNOB_RANGE = 3.0


@dataclass(frozen=True)
class SearchedNet:
    """One supernet of the search; a space whose knobs change the net has several.

    Attributes:
        supernet: for all settings that share the net.
        objective: its losses; their adapters train with the weights.
        loss: terms of a batch, as the supernet stands.
    """

    supernet: SharedSupernet
    objective: DistillationLoss
    loss: Callable[[Batch], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Candidate:
    """An architecture that may become a student.

    Attributes:
        net: index of the net that holds it.
        budget: for which it was derived, in the units of the cost table.
        arch: its knobs and choices.
    """

    net: int
    budget: float
    arch: ArchSpec


class KnobPolicy(nn.Module):
    """The probabilities of the combinations of knobs, as a function of the budget.

    Args:
        nets: of the search; all have the same knots.
    """

    def __init__(self, nets: Sequence[SharedSupernet]) -> None:
        super().__init__()
        self._nets = tuple(nets)
        self.settings = tuple((i, j) for i, net in enumerate(self._nets) for j in range(len(net.settings)))
        self.gate = BudgetGate(range(len(self.settings)), self._nets[0].knots)

    def probabilities(self, budget: float) -> Tensor:
        """(number of combinations,) at a budget; 0 for those without an architecture within it."""
        self.gate.control.condition = Condition(budget)
        reachable = torch.tensor([self._nets[i].reachable(j, budget) for i, j in self.settings])
        if not bool(reachable.any()):
            reachable = ~reachable
        logits = self.gate.logits()
        return logits.masked_fill(~reachable.to(logits.device), -math.inf).softmax(0)

    def draw(self, budget: float, number: int, generator: torch.Generator) -> list[int]:
        """Indices in `settings` of that many different combinations, or as many as there are."""
        p = self.probabilities(budget).detach().cpu()
        return torch.multinomial(p, min(number, int((p > 0).sum())), generator=generator).tolist()

    def move_to(self, index: int, budget: float) -> int:
        """Move the net of a combination to it and to a budget; returns the index of the net."""
        net, setting = self.settings[index]
        self._nets[net].condition(setting, budget)
        return net

    def surrogate(self, budget: float, first: int, second: int, difference: float) -> Tensor:
        """A scalar whose gradient lowers the expected loss.

        Args:
            budget: of the draws.
            first: index of a drawn combination.
            second: index of another one.
            difference: loss of the first one less that of the second one, on the same batch.
        """
        log_p = self.probabilities(budget).clamp_min(1e-9).log()
        return 0.5 * difference * (log_p[first] - log_p[second])


def search_shared(
    nets: Sequence[SearchedNet],
    policy: KnobPolicy,
    weights: ClipLoader,
    gates: ClipLoader,
    fit: FitConfig,
    config: GateConfig,
    *,
    paths: int,
    finish: float,
    candidates: Callable[[], Sequence[Candidate]],
    seed: int,
    checkpoint: Path | None = None,
    tag: str = "search",
    progress: OnProgress = no_progress,
    log: Log = no_log,
    start: Callable[[], None] = lambda: None,
) -> None:
    """Train weights and gates in place, for all budgets; restarts from its checkpoint at the last whole epoch.

    Args:
        nets: what is searched.
        policy: of the knobs.
        weights: batches for the weights.
        gates: batches for the gates.
        fit: schedule of the weights.
        config: gates.
        paths: architectures that are drawn in a step of the weights, all on the same batch.
        finish: share of the epochs, the last ones, in which gates are fixed and only the candidates train.
        candidates: called when the gates are fixed.
        seed: of budgets, gate noise and dropout; each epoch has its own state of the generators.
        checkpoint: file, or None to keep nothing.
        tag: names the search in the checkpoint.
        progress: called after every step.
        log: called with the mean terms after every epoch.
        start: called before the first epoch of a search that is not continued.
    """
    loop = _Loop(nets, policy, fit, config, len(weights), paths=paths, finish=finish)
    keeper = Checkpoint(checkpoint, tag, loop.parts)
    first_epoch = keeper.restore(progress)
    if first_epoch == 0:
        start()
    steps = len(weights) * fit.epochs
    for epoch in range(first_epoch, fit.epochs):
        loop.begin_epoch(seed, epoch)
        averages, gate_batches = Averages(), cycle(gates, epoch)
        if epoch >= loop.fixed and not loop.finalists:
            loop.finalists = candidates()
        for i, batch in enumerate(weights.epoch(epoch)):
            done = epoch * len(weights) + i
            loop.weight_step(batch, done / steps, averages)
            if loop.warm <= epoch < loop.fixed:
                loop.gate_step(next(gate_batches), averages)
            progress((done + 1) / steps, f"search {epoch + 1}/{fit.epochs}")
        loop.weights.end_epoch()
        log(epoch, averages.means())
        keeper.save(epoch + 1)
    loop.end()


class _Loop:
    """What the steps of a shared search work on.

    Args:
        nets: what is searched.
        policy: of the knobs.
        fit: schedule of the weights.
        config: gates.
        num_batches: of an epoch.
        paths: architectures that are drawn in a step of the weights.
        finish: share of the epochs in which gates are fixed.
    """

    def __init__(
        self,
        nets: Sequence[SearchedNet],
        policy: KnobPolicy,
        fit: FitConfig,
        config: GateConfig,
        num_batches: int,
        *,
        paths: int,
        finish: float,
    ) -> None:
        self._nets, self._policy, self._config, self._paths = nets, policy, config, paths
        self._knots = nets[0].supernet.knots
        self._penalties = [BudgetPenalty(net.supernet) for net in nets]
        self._generator = torch.Generator()
        self.fixed = fit.epochs - round(finish * fit.epochs)  # the epoch from which gates are fixed
        self.warm = round(config.warmup * self.fixed)  # the epoch from which gates train
        self.finalists: Sequence[Candidate] = ()
        fast: list[nn.Parameter] = []
        slow: list[nn.Parameter] = []
        slow_scale = 1.0
        for net in nets:
            own = trained_parameters(net.supernet, net.supernet.weight_parameters(), net.objective)
            fast, slow, slow_scale = [*fast, *own[0]], [*slow, *own[1]], own[2]
        self.weights = WeightSteps(fit, fast, slow, slow_scale, what="the weights")
        self._gate_parameters = [p for net in nets for p in net.supernet.gate_parameters()]
        gate_steps = max((self.fixed - self.warm) * num_batches, 1)
        # A step moves the logits of one setting at two knots; Adam's second moment makes up for the steps between.
        gate_lr = LOGIT_RANGE / gate_steps * math.sqrt(len(self._knots)) if config.lr is None else config.lr
        groups: list[dict[str, Any]] = [
            {"params": self._gate_parameters},
            {"params": list(policy.parameters()), "lr": KNOB_RANGE / gate_steps},
        ]
        self._gate_optimizer = torch.optim.Adam(groups, lr=gate_lr, betas=(0.5, 0.999))

    @property
    def parts(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        parts: dict[str, Any] = {
            "policy": self._policy,
            "optimizer": self.weights.optimizer,
            "gate_optimizer": self._gate_optimizer,
        }
        for i, (net, penalty) in enumerate(zip(self._nets, self._penalties, strict=True)):
            parts |= {f"supernet-{i}": net.supernet, f"objective-{i}": net.objective, f"penalty-{i}": penalty}
        return parts

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Seed all noise, and put the nets into training mode."""
        seed_epoch(seed, epoch, self._generator, *(net.supernet.control.generator for net in self._nets))
        for net in self._nets:
            net.supernet.train()

    def weight_step(self, batch: Batch, progress: float, averages: Averages) -> None:
        """One step of the weights of some drawn architectures, all on the same batch."""
        for net in self._nets:
            net.supernet.gate_temperature = self._config.schedule.at(progress)
            net.objective.advance(progress)
        train_only(self.weights.parameters, self._gate_parameters)
        for _ in range(self._paths):
            with self._drawn() as net:
                terms = net.loss(batch)
            value = net.objective.total(terms)
            self.weights.add(value, terms, of=self._paths)
            averages.add({**terms, "total": value})
        self.weights.take(progress)

    def gate_step(self, batch: Batch, averages: Averages) -> None:
        """One step of the gates and of the knobs' logits at a drawn budget."""
        train_only(self._gate_parameters, self.weights.parameters)
        budget = self._draw_budget()
        drawn = self._policy.draw(budget, 2, self._generator)
        self._gate_optimizer.zero_grad(set_to_none=True)
        other: float | None = None
        if len(drawn) == 2:  # the loss of another combination, on the same batch
            net = self._nets[self._policy.move_to(drawn[1], budget)]
            with torch.no_grad():
                other = float(net.objective.total(net.loss(batch)))
        index = self._policy.move_to(drawn[0], budget)
        net, penalty = self._nets[index], self._penalties[index]
        terms = net.loss(batch)
        loss, expected = net.objective.total(terms), net.supernet.expected_cost()
        value = loss + penalty.penalty(expected)
        if other is not None:
            value = value + self._policy.surrogate(budget, drawn[0], drawn[1], float(loss.detach()) - other)
        check_finite(value, terms, "the gates")
        value.backward()  # type: ignore[no-untyped-call]
        self._gate_optimizer.step()
        penalty.update(expected)
        averages.add({"gap": penalty.gap(expected.detach()).abs()})

    def end(self) -> None:
        """Leave nothing to train."""
        for net in self._nets:
            net.supernet.requires_grad_(False).eval()
        self._policy.requires_grad_(False)

    @contextmanager
    def _drawn(self) -> Iterator[SearchedNet]:
        """A net at one of the finalists, or without any at a drawn budget and combination of knobs."""
        if not self.finalists:
            budget = self._draw_budget()
            yield self._nets[self._policy.move_to(self._policy.draw(budget, 1, self._generator)[0], budget)]
            return
        chosen = self.finalists[int(torch.randint(len(self.finalists), (), generator=self._generator))]
        net = self._nets[chosen.net]
        net.supernet.condition_at(net.supernet.space.knobs_of(chosen.arch), chosen.budget)
        with net.supernet.pinned(chosen.arch):
            yield net

    def _draw_budget(self) -> float:
        """Between the first and the last knot, uniform in the logarithm."""
        low, high = math.log(self._knots[0]), math.log(self._knots[-1])
        return math.exp(low + (high - low) * float(torch.rand((), generator=self._generator)))
