"""The arms of the search benchmark: each turns compute into trained students, which it yields as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import optuna
import torch
from search_lab import Lab, Result, count_supernets
from torch import Tensor

from nas_kd.preparation.study import known_costs, study_knobs
from nas_kd.search_spaces import ArchSpec, Supernet
from nas_kd.search_spaces.arch import Choice
from nas_kd.training.budget import BudgetController
from nas_kd.trial.context import all_knobs
from nas_kd.trial.learner import Learner
from nas_kd.trial.shared import CALIBRATION_BATCHES, SharedSearch
from nas_kd.trial.study_values import study_choices, study_values
from nas_kd.trials import build_sampler, proposal_seed
from nas_kd.trials.samplers import quiet_optuna


@dataclass(frozen=True)
class Point:
    """A student that an arm has trained.

    Attributes:
        compute: FLOPs that the arm has used when it is done.
        result: of its training.
    """

    compute: float
    result: Result


Arm = Callable[[Lab, int], Iterator[Point]]


class Spent:
    """The compute of an arm, and whether there is any left."""

    def __init__(self, lab: Lab) -> None:
        self.limit, self.total = lab.compute, 0.0

    def point(self, result: Result) -> Point:
        """Count a training."""
        self.total += result.compute
        return Point(self.total, result)

    @property
    def left(self) -> bool:
        return self.total < self.limit


def random_archs(lab: Lab, seed: int) -> Iterator[Point]:
    """Architectures at random budgets, uniform in the logarithm, each drawn within 5 % below its budget."""
    rng, spent, budget = np.random.default_rng(seed), Spent(lab), lab.config.budget
    while spent.left:
        limit = float(np.exp(rng.uniform(np.log(budget.lowest), np.log(budget.highest))))
        yield spent.point(lab.train(lab.random_arch(rng, 0.95 * limit, limit), seed))


def proposed(
    lab: Lab,
    seed: int,
    *,
    sampler: str,
    spent: Spent | None = None,
    queue: Mapping[str, ArchSpec] | None = None,
    train: Callable[[ArchSpec], Result] | None = None,
) -> Iterator[Point]:
    """What a sampler proposes; beyond the highest budget nothing is trained.

    Args:
        lab: of the arm.
        seed: of the arm.
        sampler: its name.
        spent: the compute so far.
        queue: architectures that come first.
        train: how a student is trained; with fresh weights by default.
    """
    spent = spent or Spent(lab)
    train = train or partial(lab.train, seed=seed)
    known, space = known_costs(lab.context), lab.context.space
    knobs = study_knobs(lab.context)
    distributions = {name: knob.distribution() for name, knob in knobs.items()}
    with quiet_optuna():
        study = optuna.create_study(directions=["maximize" if lab.context.task.maximize else "minimize", "minimize"])
        for arch in (queue or {}).values():
            study.enqueue_trial(study_values(arch, space))
        while spent.left:
            number = len(study.get_trials(deepcopy=False))
            study.sampler = build_sampler(sampler, proposal_seed(seed, number), distributions, known)
            trial = study.ask(distributions)
            arch = space.arch(study_choices(trial.params, space))
            if lab.cost(arch) > lab.config.budget.highest:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            result = train(arch)
            study.tell(trial, [result.val, result.cost])
            yield spent.point(result)


def shared(lab: Lab, seed: int) -> Iterator[Point]:
    """One search for all budgets, the derived students, then what `known_cost` proposes; weights are inherited.

    Args:
        lab: of the arm.
        seed: of the arm.
    """
    spent = Spent(lab)
    context = lab.searching(seed)
    search = SharedSearch(context)
    with count_supernets() as meter:
        search.train()
    spent.total += meter.total
    queue: dict[str, ArchSpec] = {}
    for budget in search.budgets:
        arch, _ = search.compare(budget, context.config.search.candidates)[0]
        spent.total += derivation_compute(lab, search, budget)
        queue[arch.arch_id] = arch

    def train(arch: ArchSpec) -> Result:
        return lab.train(arch, seed, search.student(arch), search.adapters_of(arch), init=f"shared-{seed}")

    yield from proposed(lab, seed, sampler="known_cost", spent=spent, queue=queue, train=train)


def derivation_compute(lab: Lab, search: SharedSearch, budget: float) -> float:
    """FLOPs of comparing the candidates at a budget: BatchNorm statistics, then the gates' split."""
    config, splits = search.context.config.search, search.context.splits
    clips = min(CALIBRATION_BATCHES * config.batch_size, len(splits.weights)) + len(splits.compared)
    return float(sum(clips * lab.cost(arch) for arch in search.candidates(budget, config.candidates)))


def per_budget(lab: Lab, seed: int) -> Iterator[Point]:
    """A search for each budget in turn, as with `shared: false`; weights are inherited."""
    spent, round_ = Spent(lab), 0
    while spent.left:
        for i, limit in enumerate(lab.config.budget.options):  # type: ignore[arg-type]
            knobs = _knobs_in_turn(lab, i + round_)
            number = 1000 * round_ + i
            found = _searched(lab, knobs, float(limit), 100 * seed + number, "straight_through", spent)
            supernet, adapters = found
            arch = supernet.arch(float(limit))
            result = lab.train(arch, seed, supernet.derive(arch=arch), adapters, init=f"search-{seed}-{number}")
            yield spent.point(result)
            if not spent.left:
                return
        round_ += 1


def darts_sweep(lab: Lab, seed: int) -> Iterator[Point]:
    """Full-mixture DARTS with a fixed penalty λ · log(expected FLOPs), λ from weak to strong; students start fresh."""
    spent, round_ = Spent(lab), 0
    while spent.left:
        for i, weight in enumerate(np.geomspace(0.1, 20.0, 8)):
            knobs = _knobs_in_turn(lab, i + round_)
            supernet, _ = _searched(lab, knobs, lab.config.budget.highest, seed, "softmax", spent, FixedPenalty(weight))
            arch = supernet.arch()
            if lab.cost(arch) <= lab.config.budget.highest:
                yield spent.point(lab.train(arch, seed))
            if not spent.left:
                return
        round_ += 1


class FixedPenalty(BudgetController):
    """λ · log(expected cost), whatever the budget."""

    def __init__(self, weight: float) -> None:
        super().__init__(1.0)
        self.weight = weight

    def penalty(self, expected_cost: Tensor) -> Tensor:
        return self.weight * expected_cost.log()

    def update(self, expected_cost: Tensor) -> None:
        """λ is fixed."""


def _searched(
    lab: Lab,
    knobs: Mapping[str, Choice],
    limit: float,
    seed: int,
    estimator: str,
    spent: Spent,
    penalty: BudgetController | None = None,
) -> tuple[Supernet, Mapping[str, Tensor]]:
    """A supernet that was searched for one budget, and the adapters of its objective."""
    context = lab.searching(seed, **lab.setting.search_of_a_trial)
    config = context.config.search
    torch.manual_seed(seed)
    supernet = Supernet(context.space, knobs, estimator=estimator, seed=seed, table=context.table(knobs))
    with supernet.pinned(context.space.widest(knobs)):
        learner = Learner(context, supernet, config.objective, knobs, cached=True, augment=config.augment, varying=True)
    with closing(learner), count_supernets() as meter:
        learner.search(penalty or BudgetController(limit), config, seed=seed)
    spent.total += meter.total
    return supernet, learner.objective.searched_tensors()


def _knobs_in_turn(lab: Lab, number: int) -> dict[str, Choice]:
    """The combinations of knobs, one after the other."""
    options = all_knobs(lab.context.space)
    return options[number % len(options)]


ARMS: Mapping[str, Arm] = {
    "shared": shared,
    "per_budget": per_budget,
    "random": random_archs,
    "known_cost": partial(proposed, sampler="known_cost"),
    "nsga2": partial(proposed, sampler="nsga2"),
    "tpe": partial(proposed, sampler="tpe"),
    "darts_sweep": darts_sweep,
}
