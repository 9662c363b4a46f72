"""Latency tables: terms of the FLOPs table in nanoseconds, saved as they were measured, budgets that they decide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from delta_teachers import PreActivation, ResNet, trained

import nas_kd.search_spaces.delta_blocks.latency as latency
from nas_kd.search_spaces import CostTable, Supernet
from nas_kd.search_spaces.delta_blocks import DeltaBlocksSettings, DeltaBlocksSpace
from nas_kd.search_spaces.delta_blocks.latency import latency_table
from nas_kd.search_spaces.knapsack import most_expensive_within

CANDIDATES = ("zero", "pointwise8", "split4", "pair8", "full")


def space_of(**settings: Any) -> DeltaBlocksSpace:
    defaults = {"keyframe_interval": (2, 4), "candidates": CANDIDATES}
    return DeltaBlocksSpace(DeltaBlocksSettings(**{**defaults, **settings}), trained(ResNet()), (48, 64))


@pytest.fixture(scope="module")
def space() -> DeltaBlocksSpace:
    return space_of()


@pytest.fixture(scope="module")
def table(space: DeltaBlocksSpace) -> CostTable:
    return latency_table(space, {"keyframe_interval": 4}, repeats=5)


def test_the_table_has_the_terms_of_the_flops_table(space: DeltaBlocksSpace, table: CostTable) -> None:
    flops = space.cost_table({"keyframe_interval": 4})
    assert (table.unit, table.period) == ("nanoseconds", 4)
    assert dict(table.variables) == dict(flops.variables)
    assert table.constant > 0
    for ours, theirs in zip(table.terms, flops.terms, strict=True):
        assert (ours.name, ours.variables, ours.costs.shape) == (theirs.name, theirs.variables, theirs.costs.shape)
        assert ours.costs.dtype == np.int64
        dead = theirs.costs[-1] == 0  # where even the copy costs nothing, nobody reads the layer
        assert not ours.costs[:, dead].any()
        assert (ours.costs[:, ~dead] > 0).all()


def test_layers_of_one_shape_are_timed_once(monkeypatch: pytest.MonkeyPatch, space: DeltaBlocksSpace) -> None:
    """With a clock that counts calls, every number of the table is known."""
    taken: list[int] = []

    def numbered(calls: Sequence[Any], device: torch.device, repeats: int) -> list[int]:
        for call in calls:
            call()
        whole = 2 * (latency.REFERENCES + 2)
        taken.extend([1 << i for i in range(len(calls) - whole)])
        return [*taken, *([10**30] * whole)]

    monkeypatch.setattr(latency, "interleaved", numbered)
    monkeypatch.setattr(latency, "median", lambda values: -1.0)  # a rest that is faster than nothing
    table = latency_table(space, {"keyframe_interval": 2})
    assert table.constant == 0, "never negative"
    terms = {term.name: term.costs for term in table.terms}
    same = np.array_equal(terms["stage1.0.conv2.0"], terms["stage1.1.conv2.0"])
    assert same, "equal layers have equal costs"
    alone = {name: flops.reshape(len(flops), -1).max(1) for name, flops in terms.items()}
    pair = space.variables["smooth"].index("pair8")
    assert alone["smooth"][pair].item().bit_count() == 2, "a pair also runs on key frames"
    assert alone["smooth"][-1].item().bit_count() == 1
    distinct = {value for values in alone.values() for value in values.tolist()}
    assert sum(value.bit_count() for value in distinct) == len(taken)


def test_a_saved_table_is_the_same_table(space: DeltaBlocksSpace, table: CostTable) -> None:
    again = CostTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again.to_json() == table.to_json()
    assert (again.unit, again.period, again.constant) == (table.unit, table.period, table.constant)
    rng = np.random.default_rng(0)
    for _ in range(10):
        choices = space.sample(rng).choices
        assert again.total(choices) == table.total(choices)
    assert CostTable.from_json(space.cost_table({"keyframe_interval": 2}).to_json()).unit == "flops"
    with pytest.raises(ValueError, match=r"a cost table needs period, unit; write it with CostTable\.to_json"):
        CostTable.from_json({k: v for k, v in table.to_json().items() if k not in ("unit", "period")})


def test_a_supernet_obeys_a_latency_budget(space: DeltaBlocksSpace, table: CostTable) -> None:
    supernet = Supernet(space, {"keyframe_interval": 4}, table=table)
    least, most = supernet.cost_range()
    assert (least, most) != Supernet(space, {"keyframe_interval": 4}).cost_range()
    generator = torch.Generator().manual_seed(0)
    for share in (0.05, 0.3, 0.6, 0.9):
        with torch.no_grad():
            for p in supernet.gate_parameters():
                p.normal_(std=2.0, generator=generator)
        budget = least + share * (most - least)
        arch = supernet.arch(budget)
        dearest = most_expensive_within(table, int(budget))  # an outlier of the clock may leave a gap below the budget
        assert 0.95 * min(int(budget), dearest) <= table.cost(arch.choices) <= budget
    supernet.expected_cost().backward()  # type: ignore[no-untyped-call]
    assert all(gate.gate_logits.grad is not None for gate in supernet.gates.values())
    expected = table.expected({name: torch.full((len(v),), 1 / len(v)) for name, v in space.variables.items()})
    assert least <= float(expected) <= most


def test_a_table_of_another_space_is_refused(space: DeltaBlocksSpace, table: CostTable) -> None:
    other = space_of(candidates=("split4", "full"))
    with pytest.raises(ValueError, match=r"a cost table must be of the space's own variables, .* measure again"):
        Supernet(other, table=table)
    assert Supernet(space, table=replace(table, unit="flops")).cost_table.unit == "flops"


@pytest.mark.parametrize("residual", [False, True])
def test_blocks_and_residual_forms_can_be_timed(residual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DeltaBlocksSettings(blocks=("blocks.1",), candidates=("pair8", "split8", "full"))
    space = DeltaBlocksSpace(settings, trained(PreActivation()), (24, 40))
    state = torch.random.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("reseeds the generators of all GPUs"))
    table = latency_table(space, batch_size=2, repeats=1, residual=residual)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert table.total(space.widest({}).choices) > table.constant > 0


def test_mistakes_are_told_in_one_sentence(space: DeltaBlocksSpace) -> None:
    with pytest.raises(ValueError, match="repeats must be at least 1, but it is 0"):
        latency_table(space, repeats=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, but it is 0"):
        latency_table(space, batch_size=0)
