from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nas_kd.tasks.saliency_metrics import auc_judd, auc_shuffled, correlation, nss, similarity


def random_case(seed: int, levels: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Map, fixations, fixations of other images, density; with few levels there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(9, 11, generator=generator)
    if levels:
        saliency = (saliency * levels).floor()
    fixations = torch.rand(9, 11, generator=generator) < 0.15
    other = (torch.rand(9, 11, generator=generator) * 4).floor() * (torch.rand(9, 11, generator=generator) < 0.4)
    density = torch.rand(9, 11, generator=generator) * fixations
    return saliency, fixations, other.long(), density


def slow_judd(saliency: Tensor, fixations: Tensor) -> float:
    """The benchmark's loop over thresholds, and trapezoids."""
    pairs = list(zip(saliency.flatten().tolist(), fixations.flatten().tolist(), strict=True))
    inside, outside = [v for v, f in pairs if f], [v for v, f in pairs if not f]
    curve = [(0.0, 0.0)]
    for threshold in sorted(set(inside), reverse=True):
        rates = [sum(v >= threshold for v in values) / len(values) for values in (outside, inside)]
        curve.append((rates[0], rates[1]))
    curve.append((1.0, 1.0))
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(curve))


def slow_shuffled(saliency: Tensor, fixations: Tensor, other: Tensor) -> float:
    won = pairs = 0.0
    for value, fixated in zip(saliency.flatten().tolist(), fixations.flatten().tolist(), strict=True):
        if fixated:
            for rival, times in zip(saliency.flatten().tolist(), other.flatten().tolist(), strict=True):
                won += times * ((value > rival) + (value == rival) / 2)
                pairs += times
    return won / pairs


def slow_nss(saliency: Tensor, fixations: Tensor) -> float:
    values = saliency.flatten().tolist()
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    scores = [(v - mean) / spread for v, f in zip(values, fixations.flatten().tolist(), strict=True) if f]
    return sum(scores) / len(scores)


def slow_similarity(saliency: Tensor, density: Tensor) -> float:
    maps = []
    for values in (saliency.flatten().tolist(), density.flatten().tolist()):
        scaled = [(v - min(values)) / (max(values) - min(values)) for v in values]
        maps.append([v / sum(scaled) for v in scaled])
    return sum(min(pair) for pair in zip(*maps, strict=True))


def slow_correlation(saliency: Tensor, density: Tensor) -> float:
    a, b = saliency.flatten().tolist(), density.flatten().tolist()
    n = len(a)
    covariance = sum(x * y for x, y in zip(a, b, strict=True)) / n - sum(a) / n * sum(b) / n
    spreads = [math.sqrt(sum(x * x for x in values) / n - (sum(values) / n) ** 2) for values in (a, b)]
    return covariance / (spreads[0] * spreads[1])


@pytest.mark.parametrize("levels", [None, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_their_slow_twins(seed: int, levels: int | None) -> None:
    saliency, fixations, other, density = random_case(seed, levels)
    assert auc_judd(saliency, fixations) == pytest.approx(slow_judd(saliency, fixations))
    assert auc_shuffled(saliency, fixations, other) == pytest.approx(slow_shuffled(saliency, fixations, other))
    assert nss(saliency, fixations) == pytest.approx(slow_nss(saliency, fixations))
    assert similarity(saliency, density) == pytest.approx(slow_similarity(saliency, density))
    assert correlation(saliency, density) == pytest.approx(slow_correlation(saliency, density))


def test_by_hand() -> None:
    saliency = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
    fixations = torch.tensor([[True, False], [True, False]])
    # Thresholds 4 and 2: (0, 1/2), (1/2, 1), (1, 1).
    assert auc_judd(saliency, fixations) == pytest.approx(0.5 * 0.75 + 0.5)
    # 4 beats all three pixels of others (3 once, 1 twice), 2 beats the two of 1.
    assert auc_shuffled(saliency, fixations, torch.tensor([[0, 1], [0, 2]])) == pytest.approx(5 / 6)
    assert nss(saliency, fixations) == pytest.approx(0.5 / math.sqrt(5 / 3))
    # Distributions (3, 2, 1, 0) / 6 and (1, 0, 1, 0) / 2.
    assert similarity(saliency, fixations.float()) == pytest.approx(1 / 2 + 1 / 6)
    assert correlation(saliency, fixations.float()) == pytest.approx(1 / math.sqrt(5))


def test_perfect_and_inverted_maps() -> None:
    fixations = torch.zeros(6, 8, dtype=torch.bool)
    fixations[2:4, 3:6] = True
    truth = fixations.float()
    others = (~fixations).long()
    share = 6 / 48
    spread = math.sqrt(share * (1 - share) * 48 / 47)
    for values, sign in ((truth, 1), (-truth, -1)):
        assert nss(values, fixations) == pytest.approx(sign * (1 - share) / spread)
        assert correlation(values, truth) == pytest.approx(sign)
        assert auc_shuffled(values, fixations, others) == (sign + 1) / 2
        assert similarity(values, truth) == pytest.approx((sign + 1) / 2)
    assert auc_judd(truth, fixations) == 1.0
    # One threshold, which all pixels reach; with distinct values, the trapezoid to the first threshold remains.
    assert auc_judd(-truth, fixations) == pytest.approx(0.5)
    graded = torch.arange(48.0)
    worst = torch.zeros(48, dtype=torch.bool)
    worst[:6] = True
    assert auc_judd(graded, worst) == pytest.approx(0.5 / 6)
    assert auc_judd(-graded, worst) == 1.0
    assert auc_shuffled(graded, worst, ~worst) == 0.0


def test_a_map_that_knows_nothing_has_the_values_of_chance() -> None:
    _, fixations, other, density = random_case(0)
    upsampled = torch.full((9, 11), 0.3)
    upsampled[::2] += 3e-8
    for saliency in (torch.zeros(9, 11), torch.full((9, 11), -7.0), upsampled):
        assert auc_judd(saliency, fixations) == auc_shuffled(saliency, fixations, other) == 0.5
        assert nss(saliency, fixations) == correlation(saliency, density) == 0.0
    # The uniform distribution in common with one of equal values on k of 99 pixels is k / 99.
    flat = fixations.float()
    assert similarity(torch.ones(9, 11), flat) == pytest.approx(float(flat.sum()) / 99)
    assert similarity(torch.ones(9, 11), torch.zeros(9, 11)) == pytest.approx(1.0)
    assert correlation(density, torch.ones(9, 11)) == 0.0


def test_without_fixations_or_with_nothing_else() -> None:
    saliency, fixations, other, _ = random_case(0)
    nowhere, everywhere = torch.zeros_like(fixations), torch.ones_like(fixations)
    assert auc_judd(saliency, nowhere) == auc_judd(saliency, everywhere) == 0.5
    assert auc_shuffled(saliency, nowhere, other) == auc_shuffled(saliency, fixations, other * 0) == 0.5
    assert nss(saliency, nowhere) == 0.0
    assert nss(saliency, everywhere) == pytest.approx(0.0, abs=1e-9)
    empty = torch.zeros(0)
    assert auc_judd(empty, empty.bool()) == 0.5
    assert similarity(empty, empty) == 0.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_broken_maps_have_no_value(wrong: float) -> None:
    saliency, fixations, other, density = random_case(0)
    saliency[0, 0] = wrong
    values = (auc_judd(saliency, fixations), auc_shuffled(saliency, fixations, other), nss(saliency, fixations))
    assert all(math.isnan(v) for v in (*values, similarity(saliency, density), correlation(saliency, density)))


@pytest.mark.parametrize("change", [lambda m: m**3, lambda m: (5 * m).exp(), lambda m: 3 * m - 40])
def test_areas_do_not_change_under_increasing_functions(change: Callable[[Tensor], Tensor]) -> None:
    saliency, fixations, other, _ = random_case(1, 20)
    assert auc_judd(change(saliency / 20), fixations) == pytest.approx(auc_judd(saliency, fixations))
    assert auc_shuffled(change(saliency / 20), fixations, other) == pytest.approx(
        auc_shuffled(saliency, fixations, other)
    )


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (0.01, 5.0), (300.0, -20.0)])
def test_moments_do_not_change_under_affine_functions(scale: float, shift: float) -> None:
    saliency, fixations, _, density = random_case(2)
    changed = scale * saliency.double() + shift
    assert nss(changed, fixations) == pytest.approx(nss(saliency, fixations), rel=1e-5)
    assert correlation(changed, density) == pytest.approx(correlation(saliency, density), rel=1e-5)
    assert similarity(changed, density) == pytest.approx(similarity(saliency, density), rel=1e-5)
    assert nss(-changed, fixations) == pytest.approx(-nss(saliency, fixations), rel=1e-5)


def test_random_splits_scatter_around_the_shuffled_area() -> None:
    """The benchmark draws as many pixels of others as there are fixations; we give the mean over all draws."""
    saliency, fixations, other, _ = random_case(3)
    pixels = (other > 0).flatten().nonzero().flatten()
    generator = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(400):
        drawn = pixels[torch.randperm(len(pixels), generator=generator)[: int(fixations.sum())]]
        split = torch.zeros(99).index_fill_(0, drawn, 1).view(9, 11)
        areas.append(auc_shuffled(saliency, fixations, split))
    exact = auc_shuffled(saliency, fixations, other > 0)
    spread = float(torch.tensor(areas).std())
    assert sum(areas) / 400 == pytest.approx(exact, abs=4 * spread / 20)


def test_the_two_areas_agree_where_there_are_many_fixations() -> None:
    generator = torch.Generator().manual_seed(0)
    fixations = torch.rand(20000, generator=generator) < 0.3
    saliency = torch.randn(20000, generator=generator) + fixations
    exact = 0.5 * (1 + math.erf(0.5))  # of two normal distributions one standard deviation apart: Φ(1 / √2)
    assert auc_judd(saliency, fixations) == pytest.approx(exact, abs=0.01)
    assert auc_judd(saliency, fixations) == pytest.approx(auc_shuffled(saliency, fixations, ~fixations), abs=1e-4)
