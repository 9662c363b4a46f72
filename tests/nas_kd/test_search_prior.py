"""What a finished search guesses of architectures that it has not compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from nas_kd.config import CampaignConfig
from nas_kd.preparation.prior import GateTable, InheritedPrior, gate_table
from nas_kd.preparation.study import known_costs, searched_knobs
from nas_kd.trial import SharedSearch, build_context
from nas_kd.trial.study_values import study_values


@pytest.fixture
def search(tiny: Callable[..., CampaignConfig]) -> SharedSearch:
    """A search that was not trained, with random logits of gates and knobs."""
    found = SharedSearch(build_context(tiny(search={"shared": True}), "cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in [*found.policy.parameters(), *found.supernets[0].gate_parameters()]:
            p.normal_(generator=generator)
    return found


def test_the_table_of_gates_gives_the_probabilities_of_the_supernet(search: SharedSearch) -> None:
    space, policy = search.context.space, search.policy
    table = GateTable.of(space, json.loads(json.dumps(gate_table(search))))
    rng = np.random.default_rng(0)
    knots = search.supernets[0].knots
    for _ in range(20):
        arch = space.sample(rng)
        knobs = space.knobs_of(arch)
        expected = []
        for knot in knots[:2]:
            with search.at(knobs, knot) as supernet:
                own = policy.probabilities(knot)[supernet.settings.index(space.knobs_with(knobs))]
                expected.append(supernet.log_probability(arch) + math.log(float(own.detach().clamp_min(1e-9))))
            assert table.log_probability(arch.choices, knot) == pytest.approx(expected[-1], abs=2e-3)
        between = math.sqrt(knots[0] * knots[1])
        if space.variables.keys() <= arch.choices.keys():  # a gate without effect takes the best choice at each budget
            assert table.log_probability(arch.choices, between) == pytest.approx(sum(expected) / 2, abs=2e-3)
        assert table.log_probability(arch.choices, 0.1 * knots[0]) == pytest.approx(expected[0], abs=2e-3)


def test_the_sampler_leaves_out_what_is_far_below_the_lowest_budget(search: SharedSearch) -> None:
    budget, space, known = search.context.config.budget, search.context.space, known_costs(search.context)
    rng = np.random.default_rng(0)
    allowed = dict[float, bool]()
    for _ in range(200):
        values = study_values(space.sample(rng), space)
        allowed[known.cost(values)] = known.allows(values)
    assert allowed == {cost: budget.lowest / 2 <= cost <= budget.highest for cost in allowed}
    assert {cost < budget.lowest / 2 for cost in allowed} == {True, False}


@pytest.mark.parametrize("maximize", [True, False])
def test_the_guess_ranks_architectures_that_were_not_compared(search: SharedSearch, maximize: bool) -> None:
    space = search.context.space
    rng = np.random.default_rng(1)
    worth = {(n, c): float(rng.normal()) for n, options in space.variables.items() for c in options}
    sign = 1.0 if maximize else -1.0

    def metric(values: object) -> float:
        return sign * sum(worth.get((name.removeprefix("arch."), c), 0.0) for name, c in dict(values).items())  # type: ignore[call-overload]

    archs = {arch.arch_id: arch for arch in (space.sample(rng) for _ in range(80))}
    rows = [study_values(arch, space) for arch in archs.values()]
    costs, gates = known_costs(search.context), GateTable.of(space, gate_table(search))
    prior = InheritedPrior(
        [(values, metric(values)) for values in rows[:40]],
        searched_knobs(space),
        costs.cost,
        gates,
        gain=lambda value: sign * value,
    )
    others = rows[40:]
    assert kendalltau(prior(others), [metric(values) for values in others]).statistic > 0.5
