"""`ModuleSpace`: any user's module with edges in it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_kd.search_spaces import ESTIMATORS, Choices, Edge, InfeasibleBudgetError, ModuleSpace, Supernet, count_flops


def conv(channels: int, kernel: int, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    )


def candidates() -> dict[str, nn.Module]:
    return {"k3": conv(6, 3), "k5": conv(6, 5), "depthwise": conv(6, 3, 6), "skip": nn.Identity()}


class Net(nn.Module):
    """Edges at several depths of the module tree; `shared` runs twice, at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.first = Edge(candidates())
        self.body = nn.Sequential(Edge(candidates()), nn.ReLU())
        self.shared = Edge({"k1": conv(6, 1), "k3": conv(6, 3)})
        self.head = Edge(
            {"linear": nn.Linear(6, 4), "deep": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.stem(x)))
        x = self.shared(self.body(x))
        x = self.shared(F.avg_pool2d(x, 2))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def space() -> ModuleSpace:
    return ModuleSpace(Net, torch.zeros(1, 3, 12, 12), name="user")


def test_every_architecture_costs_what_fvcore_counts(space: ModuleSpace) -> None:
    assert list(space.variables) == ["first", "body.0", "shared", "head"]
    assert space.size() == 4 * 4 * 2 * 2
    for combination in product(*space.variables.values()):
        arch = space.arch(dict(zip(space.variables, combination, strict=True)))
        assert space.contains(arch)
        student = space.student(arch)
        assert not any(isinstance(m, Edge) for m in student.modules())
        assert space.cost(arch) == count_flops(student, space.example_input({})).total


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_student_computes_what_the_supernet_computes(space: ModuleSpace, estimator: str) -> None:
    generator = torch.Generator().manual_seed(0)
    supernet = Supernet(space, estimator=estimator)
    x = torch.randn(2, 3, 12, 12, generator=generator)
    for _ in range(10):
        supernet.train()(x).sum().backward()
        with torch.no_grad():
            for p in supernet.gate_parameters():
                p.normal_(generator=generator)
        supernet.eval()
        student = supernet.derive()
        torch.testing.assert_close(student(x), supernet(x))
        assert supernet.expected_cost().item() >= supernet.cost_range()[0]
    addresses = {t.untyped_storage().data_ptr() for t in supernet.state_dict().values()}
    assert addresses.isdisjoint(t.untyped_storage().data_ptr() for t in student.state_dict().values())


def test_budgets_are_kept_and_used(space: ModuleSpace) -> None:
    supernet = Supernet(space)
    least, most = supernet.cost_range()
    costs = sorted(
        space.cost(space.arch(dict(zip(space.variables, c, strict=True)))) for c in product(*space.variables.values())
    )
    assert (least, most) == (costs[0], costs[-1])
    for budget in range(least, most + 5000, (most - least) // 40):
        arch = supernet.arch(budget)
        within = [c for c in costs if c <= budget]
        assert space.cost(arch) <= budget
        assert space.cost(arch) >= 0.95 * min(budget, within[-1])
        assert count_flops(supernet.derive(budget), space.example_input({})).total == space.cost(arch)
    with pytest.raises(InfeasibleBudgetError, match=f"max_cost must be at least {least:,}, the cheapest"):
        supernet.derive(least - 1)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: nn.Linear(2, 2), "needs at least one Edge of search_spaces"),
        (lambda: Edge({"a": nn.Linear(2, 2)}), "cannot itself be an Edge"),
        (lambda: nn.Sequential(*[Edge({"a": nn.Linear(2, 2)})] * 2), "one has 0, 1; call it twice instead"),
        (lambda: nn.Sequential(Edge({"a": nn.Sequential(Edge({"b": nn.Linear(2, 2)}))})), "edges cannot be nested"),
    ],
)
def test_modules_that_cannot_be_searched_are_refused(build: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ModuleSpace(build, torch.zeros(1, 2))  # type: ignore[arg-type]


def test_an_edge_that_never_runs_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = Edge({"a": nn.Linear(2, 2)}), Edge({"a": nn.Linear(2, 2)})

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="edge 'idle' does not run"):
        Supernet(ModuleSpace(Idle, torch.zeros(1, 2)))


def test_an_open_number_outside_of_a_layer_is_one_sentence() -> None:
    def net(choose: Choices) -> nn.Module:
        return nn.Conv2d(3, choose.number("width", (2, 4)), 1)

    with pytest.raises(TypeError, match="width is open in a supernet, so it is no number there; give it to"):
        ModuleSpace(net, torch.zeros(1, 3, 4, 4))
