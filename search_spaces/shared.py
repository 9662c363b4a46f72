"""`SharedSupernet`: one supernet for all budgets of a campaign, and for the knobs that do not change the net."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.cost import CostTable
from nas_kd.search_spaces.gates import BudgetGate, Condition
from nas_kd.search_spaces.knapsack import cost_range
from nas_kd.search_spaces.space import SearchSpace
from nas_kd.search_spaces.supernet import Supernet

START_MARGIN = 1.05  # of the cheapest and the most expensive architecture that gates start at
START_RATE = 2.0  # of the tilt of the logits a step, for a gap of one in log cost
START_TOLERANCE = 0.01  # of the log expected cost
MAX_START_STEPS = 60


class SharedSupernet(Supernet):
    """A supernet whose gates depend on the budget and on the knobs, with one set of weights for all of them.

    At any time it stands at one setting, a combination of knobs, and at one budget: costs, draws, `arch` and `derive`
    are those of both. `condition` moves it.

    Args:
        space: what is searched.
        settings: combinations of the space's knobs that have the same net; see `SearchSpace.structural_knobs`.
        knots: costs at which gates have logits of their own, ascending; between them logits are interpolated.
        estimator: as of `Supernet`.
        seed: of the gates' noise.
        tables: what architectures cost at each setting; the space's FLOPs by default.
        figures: as of `Supernet`, at each setting.

    Raises:
        ValueError: as of `Supernet`; the settings have different nets.
    """

    def __init__(
        self,
        space: SearchSpace,
        settings: Sequence[Mapping[str, Choice]],
        knots: Sequence[float],
        *,
        estimator: str = "straight_through",
        seed: int = 0,
        tables: Sequence[CostTable] | None = None,
        figures: Sequence[Mapping[str, tuple[CostTable, ...]]] | None = None,
    ) -> None:
        self.settings = tuple(space.knobs_with(knobs) for knobs in settings)
        if len({space.structure(knobs) for knobs in self.settings}) != 1:
            raise ValueError(
                f"settings of one supernet must agree in the knobs that change the net, "
                f"{', '.join(space.structural_knobs)}; group them by SearchSpace.structure"
            )
        with torch.random.fork_rng(devices=[]):  # measuring builds modules; what is drawn later must not depend on that
            self.tables = tuple(tables or (space.cost_table(knobs) for knobs in self.settings))
        self.figures_of_settings = [dict(own) for own in figures] if figures else [{} for _ in self.settings]
        self.knots = tuple(knots)
        self.cost_ranges = tuple(cost_range(table) for table in self.tables)
        super().__init__(
            space,
            self.settings[0],
            estimator=estimator,
            seed=seed,
            make_gate=partial(BudgetGate, knots=self.knots, num_settings=len(self.settings)),
            table=self.tables[0],
        )
        self.condition(0, self.knots[-1])

    def condition(self, setting: int, budget: float) -> None:
        """Move to a setting and a budget.

        Args:
            setting: its number in `settings`.
            budget: cost, in the units of the table.
        """
        self.knobs, self.cost_table = self.settings[setting], self.tables[setting]
        self.figures = self.figures_of_settings[setting]
        self.control.condition = Condition(budget, setting)

    def condition_at(self, knobs: Mapping[str, Choice], budget: float) -> None:
        """Move to the setting with these knobs, and to a budget."""
        self.condition(self.settings.index(self.space.knobs_with(knobs)), budget)

    def reachable(self, setting: int, budget: float) -> bool:
        """Whether a setting has architectures within a budget."""
        return self.cost_ranges[setting][0] <= budget

    def start_gates(self) -> None:
        """Set the logits so that at each knot the expected cost is the budget, with gates as undecided as that allows.

        The distribution of largest entropy among independent gates of a given expected cost E has the logits −λ ∂E/∂p.
        λ and the derivatives, which depend on the probabilities, are iterated together. Where a setting cannot reach a
        knot, its gates end near its cheapest or most expensive architecture.
        """
        before = self.control.condition
        assert before is not None, "a shared supernet stands at a condition"
        for setting, (low, high) in enumerate(self.cost_ranges):
            tilt = 0.0
            for index in reversed(range(len(self.knots))):  # from the most undecided end on
                self.condition(setting, self.knots[index])
                target = min(max(self.knots[index], START_MARGIN * low), high / START_MARGIN)
                tilt = self._lead_to(target, setting, index, tilt)
        self.condition(before.setting, before.budget)

    def _lead_to(self, target: float, setting: int, knot: int, tilt: float) -> float:
        """Tilt the logits at one knot until the expected cost is within 1 % of the target; returns λ · target."""
        for _ in range(MAX_START_STEPS):
            p = {name: values.detach().requires_grad_() for name, values in self.probabilities().items()}
            expected = self.cost_table.expected(p)
            gap = float(expected.detach().log()) - math.log(target)
            if abs(gap) < START_TOLERANCE:
                break
            tilt += START_RATE * gap
            slopes = torch.autograd.grad(expected, list(p.values()), allow_unused=True)
            with torch.no_grad():
                for name, slope in zip(p, slopes, strict=True):
                    if slope is not None:
                        logits = self.gates[name].gate_logits[setting, knot]
                        wanted = -tilt * (slope - slope.mean()) / target
                        logits.lerp_(wanted.to(logits), 0.5)  # halfway, since slopes follow the probabilities
        return tilt
