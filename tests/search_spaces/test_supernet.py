"""`Supernet`: gates are parameters (promise 5), budgets are met (promise 3), decisions follow the gates."""

from __future__ import annotations

import pytest
import torch
from space_checks import sampled

from nas_kd import search_spaces
from nas_kd.search_spaces import SPACES, Supernet


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
