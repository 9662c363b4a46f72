"""The budget controller: it finds the weight of the FLOP penalty, so that nobody has to."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor

from search_spaces import BUDGET_SHARE


class BudgetController:
    """Holds the expected FLOPs of a supernet at the budget while its gates train.

    With gap g = log(expected / target) the penalty is λ · g + ρ / 2 · g², an augmented Lagrangian (Bertsekas, 1982,
    chapter 2) for the constraint g = 0, and λ rises by `rate` · g after every gate step. The constraint is an equality:
    λ may fall below 0, so that a search that would stay below its budget is drawn up to it. The target is the middle of
    what a derived student may cost, [95 %, 100 %] of the budget.

    Args:
        max_flops: the budget.
        rate: step of λ.
        stiffness: ρ.
        max_weight: bound of |λ|, against wind-up where the space cannot reach the budget.
    """

    def __init__(
        self, max_flops: float, *, rate: float = 0.05, stiffness: float = 1.0, max_weight: float = 50.0
    ) -> None:
        if not max_flops > 0:
            raise ValueError(f"max_flops must be above 0, but it is {max_flops}")
        self.max_flops = float(max_flops)
        self.target = self.max_flops * (1 + BUDGET_SHARE) / 2
        self.rate, self.stiffness, self.max_weight = rate, stiffness, max_weight
        self.weight = 0.0

    def gap(self, expected_flops: Tensor) -> Tensor:
        """log(expected / target): 0 at the target, 0.1 at about 10 % too many."""
        return torch.log(expected_flops) - log(self.target)

    def penalty(self, expected_flops: Tensor) -> Tensor:
        """The term of the loss, a scalar; differentiable in the gates."""
        gap = self.gap(expected_flops)
        return self.weight * gap + 0.5 * self.stiffness * gap.square()

    def update(self, expected_flops: Tensor) -> None:
        """Move λ after a gate step."""
        moved = self.weight + self.rate * float(self.gap(expected_flops.detach()))
        self.weight = min(max(moved, -self.max_weight), self.max_weight)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.weight = float(state["weight"])
