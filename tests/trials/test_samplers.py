from __future__ import annotations

import itertools

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState

from nas_kd.trials import SAMPLERS, MutationSampler, build_sampler
from nas_kd.trials.dominance import GrowingFront, front
from nas_kd.trials.encoding import draw, mutate
from nas_kd.trials.samplers import proposal_seed, quiet_optuna

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "choice": CategoricalDistribution(["a", "b", "c"]),
    "one": CategoricalDistribution(["only"]),
    "int": IntDistribution(-3, 9, step=3),
    "log_int": IntDistribution(1, 100, log=True),
    "float": FloatDistribution(-1.0, 2.0),
    "log_float": FloatDistribution(1e-4, 1.0, log=True),
    "step_float": FloatDistribution(0.0, 1.0, step=0.25),
}


def new_study() -> optuna.Study:
    with quiet_optuna():
        return optuna.create_study(directions=["maximize", "minimize"])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_and_mutations_stay_inside_and_reach_all_of_it(name: str) -> None:
    distribution, rng = DISTRIBUTIONS[name], np.random.default_rng(0)
    draws = [draw(distribution, rng) for _ in range(2000)]
    mutants = [mutate(distribution, value, rng) for value in draws]
    for value in draws + mutants:
        assert distribution._contains(distribution.to_internal_repr(value))
    if not distribution.single():
        assert all(mutant != value for mutant, value in zip(mutants, draws, strict=True))
    expected = {
        "choice": {"a", "b", "c"},
        "one": {"only"},
        "int": {-3, 0, 3, 6, 9},
        "step_float": {0.0, 0.25, 0.5, 0.75, 1.0},
    }
    if name in expected:
        assert set(draws) == expected[name]
        counts = [draws.count(value) for value in expected[name]]
        assert min(counts) > 0.8 * 2000 / len(counts)  # uniform, the bounds included
    if name == "log_float":
        assert np.median(draws) == pytest.approx(1e-2, rel=0.5)  # uniform on the log scale
    if name == "log_int":
        assert 5 < np.median(draws) < 20
        assert {1, 100} <= set(draws) | set(mutants)


def test_mutation_covers_a_small_space_without_duplicates_and_then_lets_them_through() -> None:
    space: dict[str, BaseDistribution] = {
        "a": CategoricalDistribution([0, 1, 2]),
        "b": IntDistribution(0, 3),
        "c": CategoricalDistribution([True, False]),
    }
    study = new_study()
    seen = []
    for number in range(24):
        study.sampler = MutationSampler(proposal_seed(0, number), space)
        trial = study.ask(space)
        seen.append(tuple(trial.params.values()))
        study.tell(trial, [trial.params["a"], trial.params["b"]])
    # The last few are far from the front, and the number of tries is bounded: nearly all is what can be asked for.
    assert len(set(seen)) >= 22
    study.sampler = MutationSampler(99, space)
    assert tuple(study.ask(space).params.values()) in itertools.product([0, 1, 2], range(4), [True, False])


def test_mutation_starts_from_the_front() -> None:
    space: dict[str, BaseDistribution] = {name: IntDistribution(0, 1000) for name in "abcd"}
    study = new_study()
    front_member, dominated = {"a": 1, "b": 2, "c": 3, "d": 4}, {"a": 501, "b": 502, "c": 503, "d": 504}
    for i in range(12):
        params = front_member if i == 0 else {**dominated, "a": 501 + i}
        values = [1.0, 0.0] if i == 0 else [0.5, 1.0]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, values=values))
    for seed in range(30):
        study.sampler = MutationSampler(seed, space)
        proposal = study.ask(space).params
        assert sum(proposal[name] != front_member[name] for name in space) == 1


def test_mutation_ignores_trials_without_values() -> None:
    space: dict[str, BaseDistribution] = {"a": IntDistribution(0, 10**6)}
    study = new_study()
    for state in (TrialState.PRUNED, TrialState.FAIL):
        for value in range(20):
            study.add_trial(optuna.trial.create_trial(params={"a": value}, distributions=space, state=state))
    study.sampler = MutationSampler(0, space)
    assert study.ask(space).params["a"] > 100  # random: there is no front to mutate


def test_mutation_without_a_given_space_takes_what_complete_trials_share() -> None:
    space: dict[str, BaseDistribution] = {"a": IntDistribution(0, 9), "b": FloatDistribution(0, 1)}
    study = new_study()
    study.sampler = MutationSampler(0, num_startup=1)
    first = study.ask(space)
    study.tell(first, [1.0, 1.0])
    second = study.ask(space).params
    assert sum(second[name] != first.params[name] for name in space) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_copes_with_failed_stopped_and_running_trials(name: str) -> None:
    study = new_study()
    for number in range(40):
        study.sampler = build_sampler(name, proposal_seed(0, number), DISTRIBUTIONS)
        with quiet_optuna():
            trial = study.ask(DISTRIBUTIONS)
        for key, distribution in DISTRIBUTIONS.items():
            assert distribution._contains(distribution.to_internal_repr(trial.params[key]))
        if number % 10 == 0:
            study.tell(trial, [float(trial.params["float"]), float(trial.params["int"])])
        elif number % 3 == 0:
            study.tell(trial, state=TrialState.PRUNED)
        elif number % 3 == 1:
            study.tell(trial, state=TrialState.FAIL)


def test_unknown_sampler_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'cma'; choose from tpe, nsga2, random, mutation, known_cost"):
        build_sampler("cma", 0, {})


def test_proposal_seeds_are_distinct_and_stable() -> None:
    seeds = {proposal_seed(seed, number) for seed in range(20) for number in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**31 for seed in seeds)
    # Of a fixed hash: a change would break the resume of campaigns that are under way.
    assert [proposal_seed(0, 0), proposal_seed(3, 7)] == [713683445, 1745578396]


def test_knobs_that_are_proposed_together_are_those_that_optuna_finds() -> None:
    study = new_study()
    for state in (TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE):
        for name, include_pruned in (("tpe", True), ("nsga2", False)):
            expected = IntersectionSearchSpace(include_pruned).calculate(study)
            assert build_sampler(name, 0, DISTRIBUTIONS)._search_space.calculate(study) == expected
        trial = study.ask(DISTRIBUTIONS if state != TrialState.FAIL else {})
        study.tell(trial, [1.0, 2.0] if state == TrialState.COMPLETE else None, state=state)
    for name in ("tpe", "nsga2"):
        assert list(build_sampler(name, 0, DISTRIBUTIONS)._search_space.calculate(study)) == sorted(DISTRIBUTIONS)


def test_a_growing_front_is_the_front() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, (150, 3)).astype(float).tolist()  # many of them equal
    growing = GrowingFront((True, False, False))
    for number, each in enumerate(values):
        growing.add(number, each)
        assert sorted(growing.numbers) == front(values[: number + 1], (True, False, False))
    assert len({tuple(values[number]) for number in growing.numbers}) < len(growing.numbers)
