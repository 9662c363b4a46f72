"""`Supernet`: gates are parameters (promise 5), budgets are met (promise 3), decisions follow the gates."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from space_checks import sampled
from torch import nn

from nas_kd import search_spaces
from nas_kd.search_spaces import SPACES, ArchSpec, Choices, InfeasibleBudgetError, ModuleSpace, Supernet
from nas_kd.search_spaces.arch import Choice


@pytest.fixture
def supernet() -> Supernet:
    torch.manual_seed(0)
    settings = {
        "num_classes": 3,
        "stem_width": 4,
        "widths": [[4, 8], [8, 12]],
        "depths": [[1, 2], [1]],
        "strides": [1, 2],
    }
    return Supernet(SPACES["clip_cell"].make({**settings, "resolution": [12], "frames": [2]}))


def test_all_that_is_exported_exists_and_is_sorted() -> None:
    assert all(hasattr(search_spaces, name) for name in search_spaces.__all__)
    assert len(set(search_spaces.__all__)) == len(search_spaces.__all__)


def test_weights_and_gates_are_disjoint_cover_all_and_gates_are_in_the_state_dict(supernet: Supernet) -> None:
    gates, weights = ({id(p) for p in ps} for ps in (supernet.gate_parameters(), supernet.weight_parameters()))
    assert gates.isdisjoint(weights)
    assert gates | weights == {id(p) for p in supernet.parameters()}
    state = supernet.state_dict()
    assert sum(name.endswith("gate_logits") for name in state) == len(supernet.gates) == len(supernet.space.variables)
    for name in supernet.space.variables:
        assert sum(key.endswith((f"{name}.gate_logits", f"{name}.gate.gate_logits")) for key in state) == 1


def test_state_dicts_carry_decisions_and_weights(supernet: Supernet) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in supernet.gate_parameters():
            p.normal_(generator=generator)
    other = Supernet(supernet.space)
    assert other.arch() != supernet.arch()
    other.load_state_dict(supernet.state_dict())
    assert other.arch() == supernet.arch()
    clip = torch.randn(1, 3, 2, 12, 12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(other.eval()(clip), supernet.eval()(clip))


def test_each_step_moves_only_its_own_parameters(supernet: Supernet) -> None:
    clip = torch.randn(2, 3, 2, 12, 12, generator=torch.Generator().manual_seed(3))
    for frozen, trained in [
        (supernet.gate_parameters(), supernet.weight_parameters()),
        (supernet.weight_parameters(), supernet.gate_parameters()),
    ]:
        supernet.zero_grad(set_to_none=True)
        for p in frozen:
            p.requires_grad_(False)
        for p in trained:
            p.requires_grad_(True)
        supernet.train()(clip).square().sum().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is None for p in frozen)
        assert any(p.grad is not None for p in trained)


def test_the_budget_is_met_at_random_gates(supernet: Supernet) -> None:
    generator = torch.Generator().manual_seed(4)
    least, most = supernet.cost_range()
    assert least < most
    for share in torch.linspace(0.05, 1.04, 24).tolist():
        with torch.no_grad():
            for p in supernet.gate_parameters():
                p.normal_(std=3.0, generator=generator)
        budget = least + share * (most - least)
        cost = supernet.space.cost(supernet.arch(budget))
        assert cost <= budget
        assert cost >= 0.95 * min(budget, most)


def test_a_free_hand_takes_the_most_probable_choices_ties_included(supernet: Supernet) -> None:
    choices = supernet.arch().choices
    assert choices["stages.0.width"] == 4
    assert choices["stages.0.depth"] == 1
    assert supernet.arch(10**12, min_share=0).choices == choices
    with torch.no_grad():
        supernet.gates["stages.0.width"].gate_logits.copy_(torch.tensor([0.0, 300.0]))  # a probability of 0 in float32
    assert supernet.arch().choices["stages.0.width"] == 8
    least = supernet.cost_range()[0]
    assert supernet.space.cost(supernet.arch(least)) == least, "an improbable choice is not a forbidden one"


def deep_net(choose: Choices) -> nn.Module:
    """Up to three cells with a kernel each, all of one width."""

    def cell(j: int) -> nn.Module:
        return choose.layer(conv, 4, 4, choose.kernel(f"{j}.kernel", (1, 3, 5)))

    width = choose.number("width", (2, 4, 8))
    return nn.Sequential(
        choose.layer(conv, 3, 4, 3),
        choose.cells(choose.depth("depth", (1, 2, 3)), cell),
        choose.layer(conv, 4, width, 1),
    )


def conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_k_most_probable_architectures_within_a_budget_and_limits_are_those_of_all(seed: int) -> None:
    space = ModuleSpace(deep_net, torch.zeros(1, 3, 6, 6))
    supernet = Supernet(space)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in supernet.gate_parameters():
            p.normal_(generator=generator)
    archs: dict[str, ArchSpec] = {}
    for values in product(*space.variables.values()):
        choices: dict[str, Choice] = dict(zip(space.variables, values, strict=True))
        arch = space.arch(choices)
        archs[arch.arch_id] = arch
    assert len(archs) == space.size()
    limits = {"params": 560}
    for max_cost, low in ((None, 0.0), (20_000, 0.95 * 20_000), (30_000, 0.0)):  # with these limits none costs 28,500
        high = max_cost or 10**9
        within = [a for a in archs.values() if low <= space.cost(a) <= high and space.figure("params", a) <= 560]
        expected = sorted(within, key=supernet.log_probability, reverse=True)
        assert expected
        found = supernet.archs(12, max_cost, limits=limits)
        assert [a.arch_id for a in found] == [a.arch_id for a in expected[:12]]
        assert supernet.arch(max_cost, limits=limits) == found[0]
    assert {a.arch_id for a in supernet.archs(10**4)} == archs.keys()


def test_limits_that_cannot_be_met_are_refused_with_the_least_value(supernet: Supernet) -> None:
    space = supernet.space
    least = min(space.figure("params", a) for a in supernet.archs(200, supernet.cost_range()[0] * 1.2, min_share=0))
    with pytest.raises(
        InfeasibleBudgetError, match=rf"has params of at most {least - 1:,}; the least is {least:,}; raise"
    ):
        supernet.arch(limits={"params": least - 1})
    with pytest.raises(ValueError, match=r"has no table of bytes, so it cannot be limited; limit flops or params"):
        supernet.arch(limits={"bytes": 5})


def test_one_choice_can_be_asked_for_and_pinned(supernet: Supernet) -> None:
    clip = torch.randn(1, 3, 2, 12, 12, generator=torch.Generator().manual_seed(5))
    arch = supernet.arch(supernet.cost_range()[1])
    supernet.eval()
    free = supernet(clip)
    with supernet.pinned(arch):
        pinned = supernet(clip)
        assert {n: c for n, c in arch.choices.items() if n in supernet.gates} == sampled(supernet)
    torch.testing.assert_close(supernet.derive(arch=arch)(clip), pinned)
    assert torch.equal(supernet(clip), free)
    assert not torch.allclose(free, pinned)


def test_mistakes_are_told_in_one_sentence(supernet: Supernet) -> None:
    with pytest.raises(ValueError, match="derive takes max_cost or arch, but got both"):
        supernet.derive(1e9, arch=supernet.arch())
    with pytest.raises(ValueError, match="gate temperature must be above 0, but got 0"):
        supernet.gate_temperature = 0
    with pytest.raises(ValueError, match="unknown gate estimator"):
        Supernet(supernet.space, estimator="darts")
    with torch.no_grad():
        supernet.gates["stages.1.width"].gate_logits[0] = float("nan")
    with pytest.raises(ValueError, match=r"logits of gate 'stages\.1\.width' must be finite"):
        supernet.arch()


def test_the_expected_cost_has_a_gradient_towards_cheaper_choices(supernet: Supernet) -> None:
    supernet.expected_cost().backward()  # type: ignore[no-untyped-call]
    for name in ("stages.0.width", "stages.1.width", "stages.0.depth"):
        gradient = supernet.gates[name].gate_logits.grad
        assert gradient is not None
        assert gradient[0] < 0 < gradient[1]
