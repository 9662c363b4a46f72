"""One supernet for all budgets and for the knobs that do not change the net."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nas_kd.search_spaces import Choices, ModuleSpace
from nas_kd.search_spaces.gates import BudgetGate, Condition
from nas_kd.search_spaces.shared import SharedSupernet


def net(choose: Choices) -> nn.Module:
    width = choose.number("width", (2, 4, 8))
    op = choose.op("kernel", (1, 3))
    return nn.Sequential(
        choose.layer(conv, 3, width, op), nn.AdaptiveAvgPool2d(1), nn.Flatten(), choose.layer(nn.Linear, width, 2)
    )


def conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


@pytest.fixture(scope="module")
def space() -> ModuleSpace:
    return ModuleSpace(
        net, lambda knobs: torch.zeros(1, 3, int(knobs["side"]), int(knobs["side"])), knobs={"side": (8, 16)}
    )


def supernet(space: ModuleSpace, knots: list[float]) -> SharedSupernet:
    torch.manual_seed(0)
    return SharedSupernet(space, [{"side": 8}, {"side": 16}], knots)


def test_logits_are_linear_in_log_cost_between_knots_and_constant_beyond() -> None:
    gate = BudgetGate(("a", "b"), [1e6, 4e6, 8e6], num_settings=2)
    with torch.no_grad():
        gate.gate_logits[1, :, 1] = torch.tensor([1.0, 3.0, 4.0])
    wanted = {5e5: 1.0, 1e6: 1.0, 2e6: 2.0, 4e6: 3.0, 4e6 * math.sqrt(2): 3.5, 8e6: 4.0, 1e9: 4.0}
    for budget, logit in wanted.items():
        gate.control.condition = Condition(budget, 1)
        assert gate.logits()[1].item() == pytest.approx(logit, abs=1e-5)
        gate.control.condition = Condition(budget, 0)
        assert gate.logits().tolist() == [0, 0]


def test_a_gate_without_a_budget_and_knots_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(ValueError, match="depends on the budget, so it needs one"):
        BudgetGate(("a", "b"), [1e6]).logits()
    with pytest.raises(ValueError, match="must be above 0 and ascend"):
        BudgetGate(("a", "b"), [2e6, 1e6])


def test_gates_start_where_the_expected_cost_is_the_budget(space: ModuleSpace) -> None:
    low, high = 8_000.0, 40_000.0
    shared = supernet(space, [low, 16_000.0, high])
    shared.start_gates()
    for setting, (cheapest, dearest) in enumerate(shared.cost_ranges):
        for knot in shared.knots:
            shared.condition(setting, knot)
            target = min(max(knot, 1.05 * cheapest), dearest / 1.05)
            assert float(shared.expected_cost().detach()) == pytest.approx(target, rel=0.012)
    shared.condition(1, high)  # no distribution of that expected cost is as even: a check against small changes
    undecided = shared.gate_entropy()
    p = shared.probabilities()
    assert 0.3 < undecided < 1
    assert float(p["width"].detach().min()) > 0.01


def test_settings_share_weights_and_have_logits_and_costs_of_their_own(space: ModuleSpace) -> None:
    shared = supernet(space, [8_000.0, 40_000.0])
    shared.condition_at({"side": 8}, 8_000.0)
    with torch.no_grad():
        shared.gates["width"].gate_logits[0, 0] = torch.tensor([0.0, 9.0, 0.0])
    assert shared.arch().choices["width"] == 4
    assert shared.arch().choices["side"] == 8
    small = float(shared.expected_cost().detach())
    shared.condition_at({"side": 16}, 8_000.0)
    assert shared.arch().choices["width"] == 2
    assert float(shared.expected_cost().detach()) > small
    for side in (8, 16):
        shared.condition_at({"side": side}, 8_000.0)
        arch = space.arch({"side": side, "width": 8, "kernel": 3})
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
        with shared.eval().pinned(arch):
            torch.testing.assert_close(shared.derive(arch=arch)(x), shared(x))
    assert shared.derive(arch=arch)[0].weight.equal(
        shared.derive(arch=space.arch({**arch.choices, "side": 8}))[0].weight
    )


def test_settings_with_different_nets_are_refused() -> None:
    def by_knob(choose: Choices) -> nn.Module:
        head: list[nn.Module] = [nn.ReLU()] if choose.knob("head") == "relu" else []
        return nn.Sequential(choose.layer(nn.Linear, 4, choose.number("width", (2, 4))), *head)

    space = ModuleSpace(by_knob, torch.zeros(1, 4), knobs={"head": ("relu", "none")})
    assert space.structural_knobs == ("head",)
    with pytest.raises(ValueError, match=r"must agree in the knobs that change the net, head"):
        SharedSupernet(space, [{"head": "relu"}, {"head": "none"}], [10.0])
