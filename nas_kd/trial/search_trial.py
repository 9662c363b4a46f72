"""A trial that searches by itself, for one budget: gate search → derive."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing

import torch
from torch import Tensor

from nas_kd.search_spaces import BUDGET_SHARE, ArchSpec, Supernet
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.knapsack import cost_range, most_expensive_within
from nas_kd.training.budget import BudgetController
from nas_kd.training.log import log_epoch
from nas_kd.trial.trial import Derived, Trial


class SearchTrial(Trial):
    """A trial whose student comes out of a search of its own."""

    @property
    def knobs(self) -> dict[str, Choice]:
        """The space's knobs of this trial: those proposed, or with the next value of the input type's fallback knob
        where no student meets the budget."""
        space, fallback = self.campaign.space, self.campaign.input_type.fallback_knob
        knobs = space.knobs_with({n: v for n, v in self.context.knobs.items() if n in space.knobs})  # type: ignore[misc]
        if fallback is None:
            return knobs
        for value in space.knobs[fallback]:  # ascending
            if int(value) > int(knobs[fallback]) and cost_range(self.campaign.table(knobs))[0] > self.budget:
                knobs[fallback] = value
        return knobs

    @property
    def budget(self) -> int:
        """In the units of the cost table: FLOPs, or nanoseconds."""
        return self.config.budget.cost(float(self.context.knobs[self.config.budget.knob]))

    @property
    def is_open(self) -> bool:
        """Whether there is anything to search; else there is only the one architecture."""
        return self.campaign.input_type.always_searches or self.campaign.space.is_open(self.knobs)

    @property
    def choice_share(self) -> float:
        """Share of the trial's time that the search takes, roughly: a search step trains twice."""
        search = 2 * self.config.search.epochs if self.is_open else 0
        retrain = 2 * self.config.retrain.epochs * self.config.retrain.num_seeds
        return search / (search + retrain)

    def choose(self) -> Derived:
        """Search, then derive the student within the budget."""
        supernet, adapters = self._search()
        arch = self._derive(supernet)
        return Derived(arch, supernet.derive(arch=arch), adapters)

    def _search(self) -> tuple[Supernet, Mapping[str, Tensor]]:
        """The searched supernet, and the adapters that have trained along with it."""
        seed, config = self.context.seed, self.config.search
        torch.manual_seed(seed)
        supernet = Supernet(
            self.campaign.space,
            self.knobs,
            estimator=config.gates.estimator,
            seed=seed,
            table=self.campaign.table(self.knobs),
            figures=self.campaign.figures(self.knobs),
        )
        supernet.to(self.campaign.device)
        if not self.is_open:
            return supernet, {}
        budget = BudgetController(self.budget)
        clock = time.perf_counter()
        with supernet.pinned(self.campaign.space.widest(self.knobs)):  # adapters must fit the widest maps
            learner = self._learner(supernet, config.objective, config, varying_width=True)
        with closing(learner):
            learner.search(
                budget,
                config,
                seed=seed,
                checkpoint=self.context.directory / "checkpoint-search.pt",
                tag=f"search {self.config.digest()} {dict(self.context.knobs)} {seed}",
                progress=self._stage(0.0, self.choice_share),
                log=lambda epoch, means: log_epoch(self.context.directory, "search", epoch, means),
            )
        self.durations_s["search"] = time.perf_counter() - clock
        self.metrics["gated"] = {"val": self._evaluate(supernet, self.campaign.splits.val)}
        self.diagnostics["penalty_weight"] = budget.weight
        self.diagnostics["expected_cost"] = float(supernet.expected_cost().detach())
        self.diagnostics["gate_entropy"] = supernet.gate_entropy()
        return supernet, learner.objective.searched_tensors()

    def _derive(self, supernet: Supernet) -> ArchSpec:
        limits = self.config.budget.limits
        arch = supernet.arch(self.budget, limits=limits)
        fallback = self.campaign.input_type.fallback_knob
        if fallback is not None:
            taken = self.knobs[fallback]
            asked = self.context.knobs.get(fallback, taken)
            if asked != taken:
                self.warnings.append(self.campaign.input_type.fallback_warning(fallback, asked, taken))
        table, text = self.campaign.table(self.knobs), self.config.budget.text
        cost, free = table.cost(arch.choices), table.cost(supernet.arch().choices)
        self.diagnostics["budget_share"] = cost / self.budget
        self.diagnostics["unconstrained_cost"] = float(free)
        if not self.is_open:
            pass  # there was no choice to remark upon
        elif cost < BUDGET_SHARE * self.budget:
            most = most_expensive_within(table, self.budget)
            reason = f"the most expensive student of the space within it costs {text(most)}"
            if limits and most >= BUDGET_SHARE * self.budget:
                reason = f"the limits of {', '.join(limits)} rule out those that cost more"
            self.warnings.append(
                f"the student costs {text(cost)}, {cost / self.budget:.0%} of its budget of {text(self.budget)}: "
                f"{reason}"
            )
        elif abs(math.log(free / self.budget)) > math.log(1.5):
            self.warnings.append(
                f"the most probable choices of the gates cost {text(free)}, the budget is {text(self.budget)}: the "
                "budget decided more of this student than the gates did; raise search.epochs"
            )
        return arch
