"""`KnownCosts`: the exact costs of a trial and a prior of its metric, known before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas_kd.trials.record import KnobValue

Knobs = Mapping[str, KnobValue]


@dataclass(frozen=True)
class KnownCosts:
    """What is known of a trial from its knobs alone, for samplers that can use it.

    The functions are called for some hundreds of candidates a proposal, each with values of all knobs of the space.
    Below 0.1 ms a call they go unnoticed. They must be deterministic, and they stay in the process of the driver.

    Attributes:
        cost: knobs -> the exact value of what the budget limits, in its unit. It must be finite.
        canonical: knobs -> the same knobs with a fixed value wherever a choice has no effect, so that equal nets have
            equal knobs. It is idempotent and does not change the costs.
        prior: knobs of several trials -> for each a guess of the first objective, in its unit, for example the accuracy
            with inherited weights. Only a linear relation to the result is assumed, so its scale and offset may be
            wrong. Called a few times a proposal.
        sample: draws knobs at random, by preference some within the range of costs; without it they are uniform.
        within_limits: knobs -> whether a trial is within the limits of other figures; without it all are.
        objectives: knobs -> the exact values of the study's objectives after the first, in their units; NaN for those
            that are not known before the trial. Without it there is one, and it is `cost`.
        min_cost: cheapest trial that may be proposed.
        max_cost: most expensive trial that may be proposed.

    Raises:
        ValueError: `min_cost <= max_cost` does not hold.
    """

    cost: Callable[[Knobs], float]
    canonical: Callable[[Knobs], Knobs] | None = None
    prior: Callable[[Sequence[Knobs]], Sequence[float]] | None = None
    sample: Callable[[np.random.Generator], Knobs] | None = None
    within_limits: Callable[[Knobs], bool] | None = None
    objectives: Callable[[Knobs], Sequence[float]] | None = None
    min_cost: float = -math.inf
    max_cost: float = math.inf

    def __post_init__(self) -> None:
        if not self.min_cost <= self.max_cost:
            raise ValueError(
                f"`min_cost <= max_cost` must hold, but got min_cost={self.min_cost}, max_cost={self.max_cost}"
            )

    def allows(self, knobs: Knobs) -> bool:
        """Whether a trial with these knobs may be proposed: within the range of costs, and within all limits."""
        if not self.min_cost <= self.cost(knobs) <= self.max_cost:
            return False
        return self.within_limits is None or self.within_limits(knobs)
