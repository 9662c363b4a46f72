"""The budget controller: it finds the weight of the FLOP penalty, so that nobody has to."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor

from nas_kd.search_spaces import BUDGET_SHARE


class BudgetController:
    """Leads the expected FLOPs of a supernet to the budget while its gates train, and holds them there.

    With gap g = log(expected / target) the penalty is λ · g + ρ / 2 · g², an augmented Lagrangian (Bertsekas, 1982,
    chapter 2) for the constraint g = 0, and λ rises by `rate` · g after every gate step. The constraint is an equality:
    λ may fall below 0, so that a search that would stay below its budget is drawn up to it.

    The target moves from where the search starts to the budget, geometrically over the first `descent` of the gate
    steps: a penalty with its full size from the start would decide the gates before the task has said anything. At
    the end it is the middle of what a derived student may cost, [95 %, 100 %] of the budget.

    The defaults come from a toy search over 18 settings (tasks weak and strong, noisy and not, targets low and high):
    median distance to the target 2 %, worst 6 %; with a stiffness of 4 it is 11 % and 57 %.

    Args:
        max_flops: the budget.
        rate: step of λ.
        stiffness: ρ.
        descent: share of the gate steps until the target is the budget.
        max_weight: bound of |λ|, against wind-up where the space cannot reach the budget.

    Raises:
        ValueError: the budget or the descent is out of range.
    """

    def __init__(
        self,
        max_flops: float,
        *,
        rate: float = 0.3,
        stiffness: float = 100.0,
        descent: float = 0.6,
        max_weight: float = 50.0,
    ) -> None:
        if not max_flops > 0:
            raise ValueError(f"max_flops must be above 0, but it is {max_flops}")
        if not 0 <= descent <= 1:
            raise ValueError(f"descent must be from 0 to 1, but it is {descent}")
        self.max_flops = float(max_flops)
        self.rate, self.stiffness, self.descent, self.max_weight = rate, stiffness, descent, max_weight
        self.weight = 0.0
        self._start: float | None = None
        self._progress = 1.0

    @property
    def target(self) -> float:
        """Expected FLOPs that the penalty leads to at present."""
        goal = self.max_flops * (1 + BUDGET_SHARE) / 2
        if self._start is None or self._progress >= self.descent:
            return goal
        share = self._progress / self.descent
        return float(self._start ** (1 - share) * goal**share)

    def advance(self, progress: float, expected_cost: Tensor) -> None:
        """Say how far the gate steps are, from 0 to 1; the first call sets where the target starts."""
        if self._start is None:
            self._start = float(expected_cost.detach())
        self._progress = progress

    def gap(self, expected_cost: Tensor) -> Tensor:
        """log(expected / target): 0 at the target, 0.1 at about 10 % too many."""
        return torch.log(expected_cost) - log(self.target)

    def penalty(self, expected_cost: Tensor) -> Tensor:
        """The term of the loss, a scalar; differentiable in the gates."""
        gap = self.gap(expected_cost)
        return self.weight * gap + 0.5 * self.stiffness * gap.square()

    def update(self, expected_cost: Tensor) -> None:
        """Move λ after a gate step."""
        moved = self.weight + self.rate * float(self.gap(expected_cost.detach()))
        self.weight = min(max(moved, -self.max_weight), self.max_weight)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"weight": self.weight, "start": self._start, "progress": self._progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.weight, self._start, self._progress = float(state["weight"]), state["start"], float(state["progress"])
