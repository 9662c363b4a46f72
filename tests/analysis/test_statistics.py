"""Intervals, paired differences and rank correlations against hand-computed and independent values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import record

from nas_kd.analysis import (
    Estimate,
    estimate_mean,
    group_by_arch,
    paired_difference,
    rank_correlation,
    seed_estimate,
    stage_correlations,
)
from nas_kd.trials.record import TrialRecord


def test_student_interval_by_hand() -> None:
    # n = 3, mean 2, s = 1, t(0.975, 2) = 4.302653: half width 4.302653 / sqrt(3).
    estimate = estimate_mean([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.std == pytest.approx(1.0)
    assert estimate.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert estimate.num_values == 3


def test_one_value_has_no_interval() -> None:
    estimate = estimate_mean([0.7])
    assert estimate.mean == 0.7
    assert (estimate.std, estimate.low, estimate.high, estimate.interval) == (None, None, None, None)


def test_equal_values_have_an_interval_of_one_point() -> None:
    assert estimate_mean([0.5, 0.5, 0.5]).interval == (0.5, 0.5)
    assert estimate_mean([0.0, 0.0, 0.0]).interval == (0.0, 0.0)


def test_student_interval_covers_as_promised() -> None:
    rng = np.random.default_rng(0)
    intervals = [estimate_mean(rng.normal(size=4).tolist(), confidence=0.8).interval for _ in range(800)]
    covered = np.mean([low <= 0.0 <= high for low, high in filter(None, intervals)])
    assert covered == pytest.approx(0.8, abs=0.045)


def test_paired_difference_cancels_what_the_seeds_share() -> None:
    first, second = [0.90, 0.80, 0.70], [0.89, 0.79, 0.69]
    paired = paired_difference(first, second)
    assert paired.mean == pytest.approx(0.01)
    assert paired.interval == pytest.approx((0.01, 0.01))
    assert estimate_mean(first).overlaps(estimate_mean(second)) is True
    with pytest.raises(ValueError, match="same seeds, but got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


def test_overlap_is_unknown_without_an_interval() -> None:
    assert estimate_mean([1.0]).overlaps(estimate_mean([1.0, 1.1])) is None
    assert estimate_mean([1.0, 1.1]).interval is None  # two values say next to nothing about their spread
    assert estimate_mean([1.0, 1.1, 1.0]).overlaps(estimate_mean([5.0, 5.1, 5.0])) is False
    assert Estimate(1, 2, 1, 0.0, 1.0).overlaps(Estimate(2, 2, 1, 1.0, 3.0)) is True


@pytest.mark.parametrize(
    ("values", "confidence", "match"),
    [([], 0.95, "at least one value"), ([1.0, math.nan], 0.95, "all finite"), ([1.0], 1.0, r"in \(0, 1\)")],
)
def test_wrong_samples_are_refused(values: list[float], confidence: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        estimate_mean(values, confidence=confidence)


def slow_tau_b(x: list[float], y: list[float]) -> float:
    pairs = list(itertools.combinations(range(len(x)), 2))
    sign = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    return float(sum(a * b for a, b in sign) / math.sqrt(sum(a != 0 for a, _ in sign) * sum(b != 0 for _, b in sign)))


def slow_rho(x: list[float], y: list[float]) -> float:
    def ranks(values: list[float]) -> list[float]:
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_rank_correlation_agrees_with_the_definition(pairs: list[tuple[int, int]]) -> None:
    x, y = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    result = rank_correlation([*x, math.nan], [*y, 1.0])
    assert result.num_pairs == len(pairs)
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert (result.kendall, result.spearman) == (None, None)
    else:
        assert result.kendall == pytest.approx(slow_tau_b(x, y))
        assert result.spearman == pytest.approx(slow_rho(x, y))


def test_rankings_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 and 1 values"):
        rank_correlation([1, 2], [1])


def test_stage_correlations_use_complete_trials_measured_at_both() -> None:
    def staged(number: int, gated: float, retrained: float | None, state: str = "complete") -> TrialRecord:
        metrics = {"gated": {"val": {"accuracy": gated}}}
        if retrained is not None:
            metrics["retrained"] = {"val": {"accuracy": retrained}}
        return record(number, 10, metrics=metrics, state=state)

    records = [staged(0, 0.1, 0.9), staged(1, 0.2, 0.8), staged(2, 0.3, 0.7), staged(3, 0.4, None)]
    records.append(staged(4, 0.9, 0.99, "stopped"))
    found = stage_correlations(records)
    assert (found["gated", "retrained"].kendall, found["gated", "retrained"].num_pairs) == (pytest.approx(-1.0), 3)
    assert (found["gated", "derived"].kendall, found["gated", "derived"].num_pairs) == (None, 0)


def test_seed_estimate_reads_the_repeats_of_the_primary_metric() -> None:
    repeats = {"retrained/val/accuracy": (0.5, 0.7), "retrained/val/loss": (9.0,), "gated/val/accuracy": (0.1,)}
    estimate = seed_estimate(record(0, 1, 0.6, repeats=repeats))
    assert estimate is not None
    assert (estimate.mean, estimate.num_values) == (pytest.approx(0.6), 2)
    assert seed_estimate(record(0, 1, 0.6)) is None
    diverged = record(0, 1, 0.6, state="failed", repeats={"retrained/val/accuracy": (math.nan,)})
    assert seed_estimate(diverged) is None


def test_groups_keep_the_order_of_discovery() -> None:
    records = [record(n, 1, 0.5, arch_id=arch_id) for n, arch_id in enumerate(["b", "a", None, "b"])]
    groups = group_by_arch(records)
    assert {arch_id: [r.number for r in group] for arch_id, group in groups.items()} == {"b": [0, 3], "a": [1]}
    assert list(groups) == ["b", "a"]
