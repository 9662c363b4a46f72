"""Penalties that lead the expected cost of a supernet to one budget, or hold it at every budget."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nas_kd.search_spaces import BUDGET_SHARE
from nas_kd.search_spaces.gates import Condition, position
from nas_kd.search_spaces.shared import SharedSupernet

RATE, STIFFNESS, MAX_WEIGHT = 0.3, 100.0, 50.0  # of both penalties; see `BudgetController`


class BudgetController:
    """Brings the expected FLOPs of a supernet to the budget while its gates train, and keeps them there.

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

    Examples:
        >>> budget = nas_kd.BudgetController(max_flops=2e6)
        >>> budget.advance(0.5, torch.tensor(4e6))  # half of the steps are done, students are expected to cost 4 M
        >>> bool(budget.penalty(torch.tensor(4e6)) > 0)
        True
    """

    def __init__(
        self,
        max_flops: float,
        *,
        rate: float = RATE,
        stiffness: float = STIFFNESS,
        descent: float = 0.6,
        max_weight: float = MAX_WEIGHT,
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
        return torch.log(expected_cost) - math.log(self.target)

    def penalty(self, expected_cost: Tensor) -> Tensor:
        """The term of the loss, a scalar; differentiable in the gates."""
        gap = self.gap(expected_cost)
        return _augmented_lagrangian(self.weight, self.stiffness, gap)

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


class BudgetPenalty:
    """Holds the expected cost at the budget, for every budget.

    As in `BudgetController` the penalty is λ · g + ρ / 2 · g² with g = log(expected / target), and λ rises by
    `rate` · g after each gate step. λ is a function of the budget: one number a knot and setting, interpolated like the
    logits.

    Args:
        net: whose costs are held.
        rate: step of λ.
        stiffness: ρ.
        max_weight: bound of |λ|, for budgets that a setting cannot reach.
    """

    def __init__(
        self, net: SharedSupernet, *, rate: float = RATE, stiffness: float = STIFFNESS, max_weight: float = MAX_WEIGHT
    ) -> None:
        self._net = net
        self.rate, self.stiffness, self.max_weight = rate, stiffness, max_weight
        self.weights = torch.zeros(len(net.settings), len(net.knots), dtype=torch.float64)
        self._log_knots = tuple(math.log(knot) for knot in net.knots)

    def gap(self, expected: Tensor) -> Tensor:
        """log(expected / target) at the condition of the net, where the target is what a derived student may cost."""
        condition = self._condition
        low, high = self._net.cost_ranges[condition.setting]
        target = min(max(condition.budget * (1 + BUDGET_SHARE) / 2, 1.02 * low), max(0.98 * high, 1.0))
        return expected.log() - math.log(target)

    def weight(self) -> float:
        """λ at the condition of the net."""
        lower, share = position(self._condition.budget, self._log_knots)
        row = self.weights[self._condition.setting]
        return float(row[lower] if share == 0 else torch.lerp(row[lower], row[lower + 1], share))

    def penalty(self, expected: Tensor) -> Tensor:
        """The term of the loss, a scalar; differentiable in the gates."""
        gap = self.gap(expected)
        return _augmented_lagrangian(self.weight(), self.stiffness, gap)

    def update(self, expected: Tensor) -> None:
        """Move λ after a gate step, at the two knots beside the budget."""
        moved = self.rate * float(self.gap(expected.detach()))
        lower, share = position(self._condition.budget, self._log_knots)
        row = self.weights[self._condition.setting]
        row[lower] += (1 - share) * moved
        if share > 0:
            row[lower + 1] += share * moved
        row.clamp_(-self.max_weight, self.max_weight)

    @property
    def _condition(self) -> Condition:
        condition = self._net.control.condition
        assert condition is not None, "a shared supernet stands at a condition"
        return condition

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.weights.copy_(state["weights"])


def _augmented_lagrangian(weight: float, stiffness: float, gap: Tensor) -> Tensor:
    """λ · g + ρ / 2 · g²."""
    return weight * gap + 0.5 * stiffness * gap.square()
