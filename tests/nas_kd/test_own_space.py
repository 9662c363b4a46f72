"""The worked example `examples/own_space.py`: costs, students and a tiny campaign of a space of the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from nas_kd import search
from nas_kd.config import CampaignConfig, validate
from nas_kd.preparation.identity import check_identity, identity
from nas_kd.search_spaces import Supernet, count_flops
from nas_kd.trial import build_context

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("own_space")


def test_it_takes_at_most_forty_lines() -> None:
    text = (EXAMPLES / "own_space.py").read_text(encoding="utf-8")
    code = [line for line in text.split('"""')[2].splitlines() if line.strip()]
    assert len(code) <= 40, len(code)


def test_the_page_shows_the_example() -> None:
    text = (EXAMPLES / "own_space.py").read_text(encoding="utf-8")
    page = (EXAMPLES.parent / "docs" / "search.md").read_text(encoding="utf-8")
    assert text[text.index("import torch") :].strip() in page


def test_costs_are_those_of_fvcore_and_students_compute_what_the_supernet_computes(example: ModuleType) -> None:
    space, rng = example.space(num_classes=3, frames=2, side=16), np.random.default_rng(0)
    torch.manual_seed(0)
    supernet = Supernet(space)
    clip = torch.randn(2, 3, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    kernels = set()
    for _ in range(12):
        arch = space.sample(rng)
        with supernet.train().pinned(arch), torch.no_grad():
            supernet(clip)  # statistics of the slices move
        student = supernet.eval().derive(arch=arch)
        assert count_flops(student, space.example_input({})).total == space.cost(arch)
        with supernet.pinned(arch), torch.no_grad():
            torch.testing.assert_close(student(clip), supernet(clip))
        kernels |= {m.kernel_size for m in student.modules() if isinstance(m, nn.Conv2d)}
    assert {(3, 3), (5, 5)} <= kernels
    shallow = space.arch({name: options[0] for name, options in space.variables.items()})
    assert "stages.0.1.kernel" not in shallow.choices
    cells = sum(6**depth for depth in (1, 2, 3))
    assert space.size() == 2 * cells * 3 * cells


@pytest.mark.parametrize("estimator", ["softmax", "two_path"])
def test_all_gates_get_a_gradient(example: ModuleType, estimator: str) -> None:
    supernet = Supernet(example.space(num_classes=3, frames=2, side=16), estimator=estimator).train()
    clip = torch.randn(2, 3, 2, 16, 16, generator=torch.Generator().manual_seed(2))
    supernet(clip).square().sum().backward()  # type: ignore[no-untyped-call]
    reached = [name for name, gate in supernet.gates.items() if gate.gate_logits.grad is not None]
    assert {"stages.0.width", "stages.1.depth", "stages.0.0.kernel", "stages.1.0.expansion"} <= set(reached)


def test_a_campaign_searches_it(example: ModuleType, tiny: Callable[..., CampaignConfig]) -> None:
    settings = {"frames": 4, "side": 16}
    least, most = Supernet(example.space(num_classes=4, **settings)).cost_range()
    logits = {"response": {"weight": 1}, "feature": {"weight": 0}, "cross_resolution": {"weight": 0}}
    config = tiny(
        trials=1,
        budget={"max_flops": [(least + most) // 3]},
        search={"epochs": 2, "objective": logits},
        objective=logits,
    ).model_dump(mode="json")
    result = search(validate({**config, "space": {"name": "own_space:space", **settings}}, source="test"))
    (record,) = result.records
    assert record.state == "complete"
    assert record.arch is not None
    assert record.arch["space"] == "mobile"


def test_a_space_whose_code_changed_is_another_one(
    example: ModuleType, tiny: Callable[..., CampaignConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"name": "own_space:space", "frames": 4, "side": 16}
    config = validate({**tiny().model_dump(mode="json"), "space": settings}, source="test")
    before = identity(build_context(config, "cpu"))
    check_identity(tmp_path, before, identity(build_context(config, "cpu")))
    plain = example.block

    def changed(*arguments: int, kernel: int, expansion: int) -> nn.Module:
        return plain(*arguments, kernel=kernel + 2, expansion=expansion)

    monkeypatch.setattr(example, "block", changed)
    with pytest.raises(ValueError, match=r"begun with another space\.name, of other layers, choices or costs \(your"):
        check_identity(tmp_path, before, identity(build_context(config, "cpu")))
