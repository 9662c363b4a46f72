"""Early stopping by what ranks the trials: non-dominated rank per rung, after those who keep all constraints.

Successive halving in its asynchronous form (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys
2020, algorithm 2), where the order is the non-dominated rank instead of a single loss, after Salinas et al., "A
multi-objective perspective on jointly tuning hardware and hyperparameters", 2021. Deviation: ranks are never split.
Who is not dominated at a rung goes on, however many they are; a cheap student is not stopped for being less accurate
than an expensive one. Who does not keep the constraints at a rung comes after all who do, in the order of how far it is
beyond them (constrained domination, Deb et al. 2002, section VI).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas_kd.trials.dominance import constrained_ranks, to_losses
from nas_kd.trials.objectives import Ranking


def should_stop(
    values: Sequence[float],
    others: Sequence[Sequence[float]],
    maximize: Sequence[bool],
    *,
    reduction_factor: float,
    excesses: Sequence[float] = (),
) -> bool:
    """Whether a trial that reached a rung with `values` ends there.

    It does where at least a `1 / reduction_factor` part of all who reached the rung, itself included, has a better
    non-dominated rank; and where one of its values is not finite, since a diverged trial is not worth continuing.

    Args:
        values: One value for each objective.
        others: Those of all other trials that reached the rung. Those that are not finite count as the worst.
        maximize: Direction of each objective.
        reduction_factor: Above 1; 3 continues about a third.
        excesses: How far the trial, and then each of the others, is beyond the constraints; none where there are none.
    """
    losses = to_losses([values, *others], maximize)
    finite = np.all(np.isfinite(losses), axis=1)
    if not finite[0]:
        return True
    beyond = np.asarray(excesses, dtype=np.float64) if excesses else np.zeros(len(losses))
    ranks = constrained_ranks(losses[finite], beyond[finite])
    num_better = int((ranks < ranks[0]).sum())
    return num_better >= (1 + len(others)) / reduction_factor


@dataclass(frozen=True)
class RungScheduler:
    """Stops trials at rungs. It holds no state: what happened at a rung is read from the ledger's reports.

    Args:
        rungs: Steps at which to decide, ascending. A trial counts at a rung with its first report at that step or
            later.
        reduction_factor: Above 1; 3 continues about a third at each rung.
    """

    rungs: tuple[int, ...]
    reduction_factor: float = 3.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 1:
            raise ValueError(f"`rungs` must be ascending steps from 1 on, but got {self.rungs}")
        if not self.reduction_factor > 1:
            raise ValueError(f"`reduction_factor` must be above 1, but got {self.reduction_factor}")

    def decide(
        self,
        number: int,
        step: int,
        reports: Mapping[int, Mapping[int, Mapping[str, float]]],
        ranking: Ranking,
    ) -> bool:
        """Whether trial `number` ends with its report at `step`.

        Args:
            number: The trial.
            step: Of its latest report.
            reports: All reports, the latest included: trial number -> step, ascending -> values.
            ranking: What they are compared by.
        """
        rung = max((rung for rung in self.rungs if rung <= step), default=None)
        if rung is None or any(rung <= earlier < step for earlier in reports[number]):
            return False
        reached: dict[int, Mapping[str, float]] = {}
        for trial, steps in reports.items():
            first = next((values for reported, values in steps.items() if reported >= rung), None)
            if first is not None:
                reached[trial] = first
        ordered = [reached.pop(number), *reached.values()]
        names = [objective.name for objective in ranking.objectives]
        own, *others = ([values[name] for name in names] for values in ordered)
        return should_stop(
            own,
            others,
            ranking.maximize,
            reduction_factor=self.reduction_factor,
            excesses=[ranking.total_excess(values) for values in ordered] if ranking.constraints else (),
        )
