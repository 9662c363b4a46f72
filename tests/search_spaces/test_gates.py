"""Estimators: distributions, values and gradients against closed forms; only what is drawn runs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from space_checks import sampled
from torch import Tensor, nn

from nas_kd.search_spaces import ESTIMATORS, Edge, Gate, ModuleSpace, Supernet, TemperatureSchedule
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.gates import Condition, Draw, GateControl, estimator_named

LOGITS = torch.tensor([1.0, 0.0, -1.0, 0.5])
EULER_GAMMA = 0.5772156649


def draws(estimator: str, number: int, temperature: float = 1.0, *, gates_train: bool = True) -> list[Draw]:
    generator, logits = torch.Generator().manual_seed(0), LOGITS.clone().requires_grad_(gates_train)
    return [ESTIMATORS[estimator](logits, temperature, generator) for _ in range(number)]


def chi_square(counts: Counter[int], probabilities: Tensor) -> float:
    total = sum(counts.values())
    return sum((counts[i] - total * p) ** 2 / (total * p) for i, p in enumerate(probabilities.tolist()))


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_straight_through_draws_from_the_softmax_at_every_temperature(temperature: float) -> None:
    counts = Counter(draw.indices[0] for draw in draws("straight_through", 4000, temperature))
    assert chi_square(counts, LOGITS.softmax(0)) < 16.3  # 99.9 % quantile with 3 degrees of freedom


def test_two_path_draws_from_the_softmax_when_weights_train() -> None:
    taken = draws("two_path", 4000, gates_train=False)
    assert all(draw.single is not None and draw.weights.tolist() == [1.0] for draw in taken)
    assert chi_square(Counter(draw.indices[0] for draw in taken), LOGITS.softmax(0)) < 16.3


def test_two_path_draws_pairs_without_replacement_and_one_of_them_by_its_share() -> None:
    p = LOGITS.softmax(0)
    pairs: Counter[int] = Counter()
    hits, expected, variance = 0.0, 0.0, 0.0
    for draw in draws("two_path", 4000):
        first, second = draw.indices
        pairs[first * 4 + second] += 1
        assert sorted(draw.weights.tolist()) == [0.0, 1.0]
        share = float(p[first] / (p[first] + p[second]))
        hits, expected = hits + float(draw.weights.detach()[0]), expected + share
        variance += share * (1 - share)
    chance = torch.zeros(16)
    for i in range(4):
        for j in range(i + 1, 4):
            chance[i * 4 + j] = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
    kept = [i for i in range(16) if chance[i] > 0]
    assert chi_square(Counter({k: pairs[i] for k, i in enumerate(kept)}), chance[kept]) < 20.5  # 5 degrees
    assert abs(hits - expected) < 3.3 * variance**0.5


def test_straight_through_has_weight_exactly_one_and_the_gradient_of_its_sample() -> None:
    for seed in range(200):
        temperature, logits = 0.3 + seed / 50, LOGITS.clone().requires_grad_()
        draw = ESTIMATORS["straight_through"](logits, temperature, torch.Generator().manual_seed(seed))
        assert draw.weights.tolist() == [1.0]
        draw.weights.sum().backward()
        uniform = torch.empty(4, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed))
        sample = ((LOGITS.double() - uniform.log()) / temperature).softmax(0)
        index = int(sample.argmax())
        assert draw.indices == (index,)
        # d p_i / d logit_j = p_i (δ_ij - p_j) / τ
        closed = sample[index] * (torch.eye(4, dtype=torch.float64)[index] - sample) / temperature
        torch.testing.assert_close(logits.grad, closed.float())


def test_two_path_gradient_is_that_of_the_renormalised_pair() -> None:
    for seed in range(50):
        logits = LOGITS.clone().requires_grad_()
        draw = ESTIMATORS["two_path"](logits, 1.0, torch.Generator().manual_seed(seed))
        outputs = torch.tensor([2.0, -3.0])
        (draw.weights * outputs).sum().backward()
        i, j = draw.indices
        share = LOGITS[[i, j]].softmax(0)[0]
        closed = torch.zeros(4)
        closed[i] = share * (1 - share) * (outputs[0] - outputs[1])
        closed[j] = -closed[i]
        torch.testing.assert_close(logits.grad, closed)


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    zero = torch.zeros(3)
    generator = torch.Generator().manual_seed(0)
    weights = torch.stack([ESTIMATORS["gumbel"](zero, 1.0, generator).weights for _ in range(4000)]).double()
    # Differences of log-weights are those of the noise: logistic, with mean 0 and variance π² / 3.
    difference = weights[:, 0].log() - weights[:, 1].log()
    assert abs(float(difference.mean())) < 0.1
    assert float(difference.var()) == pytest.approx(torch.pi**2 / 3, rel=0.1)


def test_softmax_runs_all_candidates_but_those_of_no_weight() -> None:
    draw = ESTIMATORS["softmax"](LOGITS, 0.5, None)
    assert draw.indices == (0, 1, 2, 3)
    torch.testing.assert_close(draw.weights, (LOGITS / 0.5).softmax(0))
    certain = torch.tensor([0.0, 500.0, 500.0], requires_grad=True)
    draw = ESTIMATORS["softmax"](certain, 1.0, None)
    assert draw.indices == (1, 2)
    (draw.weights * torch.tensor([3.0, 5.0])).sum().backward()
    torch.testing.assert_close(certain.grad, torch.tensor([0.0, -0.5, 0.5]))


class Counting(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.runs = nn.Parameter(torch.tensor(scale)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x * self.scale


def counting_edge(estimator: str, *, gates_train: bool) -> Edge:
    edge = Edge({f"by_{s}": Counting(float(s)) for s in range(1, 5)})
    edge.gate.control = GateControl(estimator_named(estimator), generator=torch.Generator().manual_seed(0))
    edge.gate.requires_grad_(gates_train)
    return edge.train()


@pytest.mark.parametrize(
    ("estimator", "gates_train", "num_run"),
    [
        ("straight_through", True, 1),
        ("two_path", False, 1),
        ("two_path", True, 2),
        ("softmax", True, 4),
        ("gumbel", True, 4),
    ],
)
def test_only_drawn_candidates_run(estimator: str, gates_train: bool, num_run: int) -> None:
    edge = counting_edge(estimator, gates_train=gates_train)
    for step in range(1, 20):
        edge(torch.ones(2)).sum().backward()
        runs = [m.runs for m in edge.candidates.values()]  # type: ignore[union-attr]
        assert sum(map(int, runs)) == step * num_run
    edge.eval()
    before = sum(int(m.runs) for m in edge.candidates.values())  # type: ignore[arg-type]
    edge(torch.ones(2))
    assert sum(int(m.runs) for m in edge.candidates.values()) == before + 1  # type: ignore[arg-type]


def test_a_hard_draw_gives_the_candidates_output_and_the_gate_its_gradient() -> None:
    edge = counting_edge("straight_through", gates_train=True)
    x = torch.tensor([1.0, 2.0])
    out = edge(x)
    index = next(i for i, m in enumerate(edge.candidates.values()) if m.runs)
    assert torch.equal(out, x * (index + 1))
    out.sum().backward()
    gradient = edge.gate.gate_logits.grad
    assert gradient is not None
    assert gradient[index] > 0
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("progress", "value"), [(0, 2.0), (0.5, 1.0), (1, 0.5), (-1, 2.0), (7, 0.5)])
def test_temperature_falls_geometrically(progress: float, value: float) -> None:
    assert TemperatureSchedule(2.0, 0.5).at(progress) == pytest.approx(value)


def test_values_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be above 0, but got start=0.0, end=1.0"):
        TemperatureSchedule(0.0, 1.0)
    with pytest.raises(ValueError, match="unknown gate estimator 'gumble'; choose from straight_through, softmax"):
        estimator_named("gumble")
    for choices in ((), ("a", "a")):
        with pytest.raises(ValueError, match="at least one choice and no duplicates"):
            Gate(choices)


class SlopeGate(Gate):
    """A gate whose logits are linear in the budget."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        super().__init__(choices)
        self.slope = nn.Parameter(torch.arange(float(len(choices))))

    def logits(self) -> Tensor:
        condition = self.control.condition
        return self.gate_logits + (self.slope * condition.budget if condition is not None else 0)


def test_gates_may_depend_on_the_budget() -> None:
    """The seam for one search that serves all budgets: forward, expected FLOPs, arch and derive follow the budget."""
    space = ModuleSpace(
        lambda: nn.Sequential(Edge({"narrow": nn.Linear(4, 4, bias=False), "wide": _wide()}), nn.Linear(4, 2)),
        torch.zeros(1, 4),
    )
    supernet = Supernet(space, make_gate=SlopeGate, seed=1)
    assert {id(p) for p in supernet.gate_parameters()} == {
        id(p) for name, p in supernet.named_parameters() if name.endswith(("gate_logits", "slope"))
    }
    expected, archs, outputs = [], [], []
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for budget in (-4.0, 0.0, 4.0):
        supernet.control.condition = Condition(budget)
        flops = supernet.expected_cost()
        p = torch.sigmoid(torch.tensor(budget, dtype=torch.float64))
        assert flops.item() == pytest.approx(float(8 + (1 - p) * 16 + p * 48), rel=1e-6)
        (slope,) = torch.autograd.grad(flops, supernet.gates["0"].get_parameter("slope"))
        assert float(slope[1]) == pytest.approx(float(budget * p * (1 - p) * 32), rel=1e-5)
        expected.append(flops.item())
        archs.append(supernet.arch().choices["0"])
        outputs.append(supernet.eval()(x))
        torch.testing.assert_close(supernet.derive()(x), outputs[-1])
        supernet.train()(x).sum().backward()
    assert expected == sorted(expected)
    assert archs == ["narrow", "narrow", "wide"]
    assert not torch.allclose(outputs[0], outputs[2])


def _wide() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False))


def test_a_gate_answers_the_same_within_one_pass_and_anew_in_the_next() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.edge = Edge({name: nn.Linear(4, 4) for name in "abcdefgh"})

        def forward(self, x: Tensor) -> Tensor:
            return self.edge(x) - self.edge(x)

    supernet = Supernet(ModuleSpace(Twice, torch.zeros(1, 4)), seed=0).train()
    drawn = []
    for _ in range(20):
        assert torch.count_nonzero(supernet(torch.ones(1, 4))) == 0
        drawn.append(sampled(supernet)["edge"])
    assert len(set(drawn)) > 3
    again = Supernet(ModuleSpace(Twice, torch.zeros(1, 4)), seed=0).train()
    repeated = []
    for _ in range(20):
        again(torch.ones(1, 4))
        repeated.append(sampled(again)["edge"])
    assert repeated == drawn
    clone = copy.deepcopy(again)
    again(torch.ones(1, 4))
    clone(torch.ones(1, 4))
    assert sampled(clone) == sampled(again)
    assert clone.control is not again.control
