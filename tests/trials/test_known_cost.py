from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from scipy.special import ndtri

from nas_kd.analysis.pareto import hypervolume
from nas_kd.trials import KnownCosts, KnownCostSampler, build_sampler, proposal_seed
from nas_kd.trials import known_cost as known_cost_module
from nas_kd.trials.dominance import non_dominated_ranks
from nas_kd.trials.encoding import Encoding
from nas_kd.trials.history import SeenTrials
from nas_kd.trials.improvement import cells, expected_improvement, known_overlap
from nas_kd.trials.samplers import quiet_optuna
from nas_kd.trials.surrogate import Points, ShiftedLog, Surrogate, far_worse

GATES: dict[str, BaseDistribution] = {
    f"arch.{i}": CategoricalDistribution(["small", "large", "skip"]) for i in range(6)
}
SIZES = {"small": 2.0, "large": 5.0, "skip": 0.0}
WORTH = {"small": 1.0, "large": 1.6, "skip": 0.0}


def cost(knobs: Mapping[str, Any]) -> float:
    return 10.0 + sum((i + 1) * SIZES[knobs[name]] for i, name in enumerate(GATES))


def metric(knobs: Mapping[str, Any]) -> float:
    return 1.0 - math.exp(-0.3 * sum((6 - i) ** 0.5 * WORTH[knobs[name]] for i, name in enumerate(GATES)))


def new_study() -> optuna.Study:
    with quiet_optuna():
        return optuna.create_study(directions=["maximize", "minimize"])


def ask(study: optuna.Study, number: int, known: KnownCosts | None, seed: int = 0) -> optuna.Trial:
    study.sampler = KnownCostSampler(proposal_seed(seed, number), GATES, known)
    return study.ask(GATES)


def search(
    count: int, known: KnownCosts | None = None, sampler: str = "known_cost", seed: int = 0
) -> list[dict[str, Any]]:
    """The knobs of a search, in their order."""
    study = new_study()
    for number in range(count):
        study.sampler = build_sampler(sampler, proposal_seed(seed, number), GATES, known)
        trial = study.ask(GATES)
        study.tell(trial, [metric(trial.params), cost(trial.params)])
    return [trial.params for trial in study.trials]


def regret(found: list[dict[str, Any]]) -> float:
    """Hypervolume that the front of all nets has beyond what was found, as a share."""

    def volume(rows: list[dict[str, Any]]) -> float:
        parts = cells(
            np.array([1.0 - metric(row) for row in rows]), np.array([[cost(row)] for row in rows]), (1.0, 200.0)
        )
        widths = parts.right[0] - parts.left[0]
        return float((widths[1:] * (1.0 - parts.level[1:])).sum())  # left of the first is nothing

    names = list(GATES)
    everything = [dict(zip(names, values, strict=True)) for values in itertools.product(SIZES, repeat=6)]
    return 1.0 - volume(found) / volume(everything)


@pytest.mark.parametrize("offset", [-0.2, -50.0])
def test_expected_improvement_of_known_and_unknown_costs_is_the_average_of_draws(offset: float) -> None:
    rng = np.random.default_rng(0)
    losses, costs = rng.uniform(0.2, 0.8, 30), rng.uniform(1.0, 9.0, 30)
    reference = (0.75, 8.0)
    parts = cells(losses, costs[:, None], reference)
    (left,), (right,), each = parts.left, parts.right, np.arange(parts.level.size)
    scale = ShiftedLog(offset)
    mean, std = scale.to_scale(np.array([0.3, 0.5])), np.array([0.4, 0.1]) * (1.0 if offset > -1 else 0.01)
    cost_scale, cost_mean, cost_std = ShiftedLog(0.0), np.log([3.0, 4.0]), np.array([0.3, 0.5])
    shortfall = scale.expected_shortfall(parts.level, mean, std)

    def volume(extra_losses: np.ndarray, extra_costs: np.ndarray) -> np.ndarray:
        """Hypervolume of the points with one more, for each of the extra ones, by counting cells of a fine grid."""
        grid = np.linspace(0.5, reference[1], 1501)
        level = np.min(np.where(costs[:, None] <= grid, losses[:, None], reference[0]), axis=0, initial=reference[0])
        gain = np.maximum(level - extra_losses[:, None], 0.0) * (extra_costs[:, None] <= grid)
        return np.asarray(gain.sum(axis=1) * (grid[1] - grid[0]))

    draws = scale.from_scale(mean[:, None] + std[:, None] * rng.normal(size=(2, 2000)))
    known = expected_improvement(shortfall, each, [known_overlap(np.array([2.5, 6.0]), left, right)])
    for row, at in enumerate([2.5, 6.0]):
        assert known[row] == pytest.approx(volume(draws[row], np.full(2000, at)).mean(), rel=0.05, abs=1e-3)
    below = cost_scale.expected_shortfall(right, cost_mean, cost_std)
    overlap = below - np.hstack([np.zeros((2, 1)), below[:, :-1]])
    unknown = expected_improvement(shortfall, each, [overlap])
    drawn_costs = np.exp(cost_mean[:, None] + cost_std[:, None] * rng.normal(size=(2, 2000)))
    for row in range(2):
        assert unknown[row] == pytest.approx(volume(draws[row], drawn_costs[row]).mean(), rel=0.05, abs=1e-3)


def test_a_known_value_falls_short_by_its_difference() -> None:
    scale = ShiftedLog(0.5)
    shortfall = scale.expected_shortfall(np.array([0.4, 1.0, 3.0]), scale.to_scale(np.array([2.0])), np.zeros(1))
    assert shortfall == pytest.approx(np.array([[0.0, 0.0, 1.0]]), abs=1e-9)


def test_surrogate_learns_an_additive_table_once_failed_nets_are_left_out() -> None:
    rng = np.random.default_rng(1)
    choices = rng.integers(0, 3, (80, 6))
    worth = np.array([0.0, 1.0, 1.6])[choices] @ np.sqrt(np.arange(6, 0, -1.0))
    failed = rng.random(80) < 0.05
    observed = np.where(failed, 1.0, np.exp(-0.3 * worth))
    assert 0 < failed[:60].sum() <= far_worse(observed[:60]).sum() <= failed[:60].sum() + 2
    points = Points(choices, np.zeros((80, 0)), np.zeros((80, 0)))
    rows = np.flatnonzero(~far_worse(observed[:60]))
    surrogate = Surrogate(points.take(rows), observed[rows], rng)
    mean, std = surrogate.predict(points.take(np.arange(60, 80)))
    assert np.corrcoef(mean, worth[60:])[0, 1] < -0.95
    inside = np.abs(surrogate.scale.from_scale(mean) - np.exp(-0.3 * worth[60:])) < 0.05
    assert inside.mean() > 0.8
    assert (std > 0).all()


def test_it_beats_chance_by_far_on_an_additive_table() -> None:
    known = KnownCosts(cost)
    assert regret(search(28, known)) < 0.25 * regret(search(28, sampler="random"))


def test_costs_are_learned_where_nobody_knows_them() -> None:
    assert regret(search(28)) < 0.5 * regret(search(28, sampler="random"))


def test_the_same_seed_and_trials_give_the_same_proposals() -> None:
    first, again, other = (search(10, KnownCosts(cost), seed=s) for s in (3, 3, 4))
    assert first == again != other


def test_costs_outside_of_the_range_are_never_proposed() -> None:
    known = KnownCosts(cost, min_cost=40.0, max_cost=60.0)
    assert all(40.0 <= cost(knobs) <= 60.0 for knobs in search(16, known))
    limited = KnownCosts(cost, max_cost=60.0, within_limits=lambda knobs: cost(knobs) <= 50.0)
    assert all(cost(knobs) <= 50.0 for knobs in search(8, limited))
    nothing = KnownCosts(cost, max_cost=5.0)
    with pytest.raises(ValueError, match="a trial must cost between -inf and 5, but none of 2000 random ones does"):
        search(1, nothing)
    with pytest.raises(ValueError, match="`min_cost <= max_cost` must hold"):
        KnownCosts(cost, min_cost=2.0, max_cost=1.0)


@pytest.mark.parametrize("num_told", [3, 12])
def test_neither_running_nor_failed_nor_equal_trials_are_proposed_again(num_told: int) -> None:
    """Gate 5 has no effect where gate 0 is skipped; eight trials run at a time."""

    def canonical(knobs: Mapping[str, Any]) -> dict[str, Any]:
        return {**knobs, "arch.5": "small"} if knobs["arch.0"] == "skip" else dict(knobs)

    known, study = KnownCosts(cost, canonical), new_study()
    for number in range(num_told):
        trial = ask(study, number, known)
        study.tell(trial, [metric(trial.params), cost(trial.params)])
    for number in range(num_told, num_told + 8):
        trial = ask(study, number, known)
        if number % 4 == 0:
            study.tell(trial, state=TrialState.FAIL)
        elif number % 4 == 1:
            study.tell(trial, state=TrialState.PRUNED)
    params = [trial.params for trial in study.trials]
    assert all(canonical(knobs) == knobs for knobs in params)
    assert len({tuple(knobs.values()) for knobs in params}) == num_told + 8


def test_where_trials_fail_fewer_are_proposed() -> None:
    study, rng = new_study(), np.random.default_rng(0)
    for _ in range(60):
        knobs = {name: str(rng.choice(list(SIZES))) for name in GATES}
        fails = knobs["arch.0"] == "large"  # which is also the best choice for the metric
        study.add_trial(
            optuna.trial.create_trial(
                params=knobs,
                distributions=GATES,
                state=TrialState.FAIL if fails else TrialState.COMPLETE,
                values=None if fails else [metric(knobs), cost(knobs)],
            )
        )
    proposals = [ask(study, number, KnownCosts(cost)).params for number in range(60, 68)]
    assert sum(knobs["arch.0"] == "large" for knobs in proposals) <= 3


def test_a_small_space_is_exhausted_before_anything_is_repeated() -> None:
    space: dict[str, BaseDistribution] = {"a": CategoricalDistribution([0, 1, 2]), "b": IntDistribution(1, 4)}
    study = new_study()
    for number in range(24):
        study.sampler = KnownCostSampler(proposal_seed(0, number), space)
        trial = study.ask(space)
        study.tell(trial, [trial.params["a"], trial.params["b"]])
    rows = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(rows[:12])) == len(set(rows[12:])) == 12


def test_a_prior_leads_the_first_proposals_and_a_wrong_one_is_given_up() -> None:
    right, wrong = (
        KnownCosts(cost, prior=lambda rows, s=s: [s * metric(knobs) for knobs in rows]) for s in (0.2, -1.0)
    )  # type: ignore[misc]
    assert regret(search(6, right)) < 0.5 * regret(search(6, KnownCosts(cost)))
    assert regret(search(28, wrong)) < 0.5 * regret(search(28, sampler="random"))


def test_queued_values_are_kept_and_the_rest_is_chosen_to_fit_them() -> None:
    study, known = new_study(), KnownCosts(cost, min_cost=70.0)
    for number in range(10):
        trial = ask(study, number, known)
        study.tell(trial, [metric(trial.params), cost(trial.params)])
    study.enqueue_trial({"arch.5": "skip"})
    trial = ask(study, 10, known)
    assert trial.params["arch.5"] == "skip"
    assert cost(trial.params) >= 70.0


def test_numbers_on_all_scales_and_a_metric_to_be_minimized() -> None:
    space: dict[str, BaseDistribution] = {
        "max_flops": FloatDistribution(1e6, 1e8, log=True),
        "frames": IntDistribution(4, 16),
        "objective.response.weight": FloatDistribution(0.1, 10.0, log=True),
        "resolution": CategoricalDistribution([16, 24, 32]),
    }
    with quiet_optuna():
        study = optuna.create_study(directions=["minimize", "minimize"])
    for number in range(20):
        study.sampler = KnownCostSampler(proposal_seed(0, number), space)
        trial = study.ask(space)
        weight, flops = trial.params["objective.response.weight"], trial.params["max_flops"]
        study.tell(trial, [1e6 / flops + math.log(weight / 2.0) ** 2, flops])
    late = [trial.params["objective.response.weight"] for trial in study.trials[12:]]
    assert np.median(np.abs(np.log(np.array(late) / 2.0))) < 0.7  # the best weight is 2; at random it would be 1.2


def size(knobs: Mapping[str, Any]) -> float:
    """A second cost, which other gates decide."""
    return 1.0 + sum((6 - i) * SIZES[knobs[name]] for i, name in enumerate(GATES))


def test_expected_improvement_over_two_costs_is_the_average_of_volumes() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0.1, 0.9, (12, 3))
    reference = (0.85, 0.8, 0.95)
    parts = cells(points[:, 0], points[:, 1:], reference)
    scale, mean, std = ShiftedLog(0.0), np.log([0.2, 0.5]), np.array([0.2, 0.4])
    levels, place = np.unique(parts.level, return_inverse=True)
    known = np.array([[0.3, 0.4], [0.5, 0.2]])
    overlaps = [known_overlap(known[:, d], parts.left[d], parts.right[d]) for d in range(2)]
    shortfall = scale.expected_shortfall(levels, mean, std)
    found = expected_improvement(shortfall, place.reshape(parts.level.shape), overlaps)
    before = hypervolume(points, ["minimize"] * 3, reference)
    for row in range(2):
        losses = np.exp(mean[row] + std[row] * ndtri((np.arange(400) + 0.5) / 400))
        gains = [
            hypervolume(np.vstack([points, [loss, *known[row]]]), ["minimize"] * 3, reference) - before
            for loss in losses
        ]
        assert found[row] == pytest.approx(np.mean(gains), rel=0.01)


@pytest.mark.parametrize("size_is_known", [True, False])
def test_three_objectives_are_searched_better_than_at_random(size_is_known: bool) -> None:
    known = KnownCosts(cost, objectives=lambda knobs: (cost(knobs), size(knobs) if size_is_known else math.nan))

    def volume(sampler: str) -> float:
        with quiet_optuna():
            study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
        for number in range(24):
            study.sampler = build_sampler(sampler, proposal_seed(1, number), GATES, known)
            trial = study.ask(GATES)
            study.tell(trial, [metric(trial.params), cost(trial.params), size(trial.params)])
        rows = [trial.values for trial in study.trials]
        return hypervolume(rows, ["maximize", "minimize", "minimize"], (0.0, 115.0, 106.0))

    assert volume("known_cost") > 1.05 * volume("random")


def test_a_constraint_on_a_metric_leads_to_nets_that_keep_it() -> None:
    kept, least = {}, 0.99  # one net in 50 keeps it
    for sampler in ("known_cost", "random"):
        study = new_study()
        for number in range(24):
            study.sampler = build_sampler(sampler, proposal_seed(0, number), GATES, KnownCosts(cost))
            trial = study.ask(GATES)
            trial.set_constraint("accuracy", least - metric(trial.params))
            study.tell(trial, [metric(trial.params), cost(trial.params)])
        kept[sampler] = sum(metric(trial.params) >= least for trial in study.trials[8:])
    assert kept["known_cost"] >= 3 * max(kept["random"], 1)


def test_nets_that_are_cheaper_and_worse_than_all_trials_are_looked_for() -> None:
    # The cheapest nets are on the front, whatever their metric; no trial so far has more than two gates at "skip".
    study = new_study()
    rng = np.random.default_rng(0)
    for number in range(30):
        knobs = {name: ("small", "large")[rng.integers(2)] for name in GATES}
        knobs |= dict.fromkeys(rng.choice(list(GATES), size=number % 3, replace=False).tolist(), "skip")
        study.enqueue_trial(knobs)
        study.tell(ask(study, number, KnownCosts(cost)), [metric(knobs), cost(knobs)])
    worst, cheapest = (min(trial.values[i] for trial in study.trials) for i in range(2))
    num_found = 0
    for seed in range(12):
        again = new_study()
        again.add_trials(study.trials)
        knobs = ask(again, 30, KnownCosts(cost), seed).params
        num_found += metric(knobs) < worst and cost(knobs) < cheapest
    assert num_found >= 8


def test_of_many_trials_the_process_rests_on_the_front_and_a_part_of_the_others() -> None:
    rng = np.random.default_rng(0)
    losses, costs = rng.random(1300), rng.random(1300)
    losses[7], costs[900] = -1.0, -1.0  # both on the front
    rows = known_cost_module._telling_rows(losses, costs, rng)
    assert len(rows) == 500
    assert (np.diff(rows) > 0).all()
    ranks = non_dominated_ranks(np.column_stack([losses, costs]))
    assert {7, 900} <= set(rows.tolist())
    assert set(np.flatnonzero(ranks == 0)) <= set(rows.tolist())
    assert (ranks[rows] > np.median(ranks)).sum() > 100
    assert known_cost_module._telling_rows(losses[:500], costs[:500], rng).tolist() == list(range(500))


def test_what_is_kept_of_trials_is_what_is_read_of_them_anew() -> None:
    known, study = KnownCosts(cost=cost), new_study()
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    seen, encoding = SeenTrials(), Encoding(GATES)
    for number in range(4, 80, 5):  # beyond the first size of the arrays
        _, *others = [study.ask(GATES) for _ in range(5)]  # the first goes on running
        for looks in range(2):
            if looks:  # they end in another order than they began
                for trial, state in zip(reversed(others), ("COMPLETE", "FAIL", "COMPLETE", "PRUNED"), strict=True):
                    values = [float(trial.number), 1.0] if state == "COMPLETE" else None
                    study.tell(trial, values, state=TrialState[state])
            trials = study.get_trials(deepcopy=False)
            kept, anew = (each.history(trials, number, encoding, known, (True, False)) for each in (seen, SeenTrials()))
            assert kept.counts == anew.counts
            assert sum(kept.counts.values()) == number  # all but the one that is proposed
            for name in ("complete", "running", "unsuccessful", "losses", "costs", "known"):
                assert getattr(kept, name).tolist() == getattr(anew, name).tolist()
    assert (len(kept.complete), len(kept.running), len(kept.unsuccessful)) == (31, 16, 32)
    assert kept.losses.tolist()[:2] == [-2.0, -4.0]
    assert kept.known[0].tolist() == [cost(study.trials[2].params)]
