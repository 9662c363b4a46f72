"""Space `frame_sequence`: one cost truth, faithful derivation, canonical architectures, exports."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from space_checks import (
    check_costs,
    check_one_hot_mixtures,
    check_size,
    decide,
    drawn,
    drawn_arch,
    exported,
    onnx_of,
    scramble_batch_norm,
)
from torch import nn

from nas_kd.search_spaces import ESTIMATORS, ArchSpec, InfeasibleBudgetError, Supernet, count_flops
from nas_kd.search_spaces.frame_sequence import FrameSequenceSpace
from nas_kd.search_spaces.frame_sequence.net import build_net
from nas_kd.search_spaces.frame_sequence.settings import FrameSequenceSettings

OPTIONS: dict[str, dict[str, object]] = {
    "h_rnn": {"lower": [5, 8, 12], "upper": [6, 8, 16], "block_length": [2, 3, 9]},
    "net_vlad": {"clusters": [3, 4, 8], "hidden": [5, 16, 24]},
    "nextvlad": {"clusters": [3, 4, 8], "hidden": [8, 16, 24], "groups": [2, 4], "expansion": [1, 2]},
}
FAMILIES = list(OPTIONS)
D, CLASSES = 12, 5


def tiny(**changes: object) -> FrameSequenceSpace:
    settings = {
        "num_classes": CLASSES, "feature_size": D, "family": FAMILIES, "frames": [4, 7],
        "selector": ["uniform", "random"], "head": ["linear", "moe"], "experts": 2, **OPTIONS, **changes,
    }  # fmt: skip
    return FrameSequenceSpace(FrameSequenceSettings.model_validate(settings))


def supernet_of(family: str, frames: int = 7, estimator: str = "straight_through") -> Supernet:
    torch.manual_seed(0)
    return Supernet(tiny(), {"family": family, "frames": frames}, estimator=estimator)


@pytest.mark.parametrize("frames", [4, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_expected_table_space_and_fvcore_agree_as_integers(family: str, frames: int) -> None:
    supernet, rng = supernet_of(family, frames), np.random.default_rng(0)
    seen = set()
    for _ in range(12):
        counted = check_costs(supernet, drawn_arch(supernet, rng), rng)
        assert set(counted.uncounted) <= set(supernet.cost_table.uncounted)
        seen.add(counted.total)
    assert len(seen) > 6


def exportable(family: str, head: str) -> tuple[FrameSequenceSpace, ArchSpec, nn.Module]:
    """A student of four frames; the second block of an H-RNN has one."""
    space, rng = tiny(), np.random.default_rng(1)
    knobs = space.knobs_with({"family": family, "frames": 4})
    arch = space.arch({**drawn(space, rng), "h_rnn.block_length": 3, "head": head, **knobs})
    return space, arch, space.student(arch).eval()


EXPORTS = [("h_rnn", "moe"), ("net_vlad", "linear"), ("nextvlad", "moe")]


@pytest.mark.parametrize(("family", "head"), EXPORTS)
def test_the_exported_and_loaded_graph_has_the_same_flops_and_outputs(family: str, head: str, tmp_path: Path) -> None:
    space, arch, student = exportable(family, head)
    graph = exported(student, torch.zeros(2, 4, D), tmp_path)
    assert count_flops(graph, space.example_input(arch.choices)).total == space.cost(arch)
    for items in (1, 3):
        x = torch.randn(items, 4, D, generator=torch.Generator().manual_seed(items))
        torch.testing.assert_close(graph(x), student(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("family", "head"), EXPORTS)
def test_onnx_computes_the_same(family: str, head: str, tmp_path: Path) -> None:
    _, _, student = exportable(family, head)
    runtime = onnx_of(student, torch.zeros(2, 4, D), tmp_path)
    for items in (1, 3):
        x = torch.randn(items, 4, D, generator=torch.Generator().manual_seed(items))
        torch.testing.assert_close(runtime(x), student(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_derived_student_is_exactly_the_hard_supernet(family: str) -> None:
    supernet, rng, generator = supernet_of(family), np.random.default_rng(2), torch.Generator().manual_seed(2)
    scramble_batch_norm(supernet, generator)
    x = torch.randn(3, 7, D, generator=generator)
    outputs = []
    for _ in range(20):
        with torch.no_grad():
            supernet.train()(x)  # a training pass in between must leave nothing behind
            arch = drawn_arch(supernet, rng)
            decide(supernet, arch, rng)
            supernet.eval()
            student = supernet.derive()
            outputs.append(supernet(x))
            assert torch.equal(outputs[-1], student(x))
            encoding = supernet.network.get_submodule("encoder")(x)
            assert torch.equal(encoding, student.get_submodule("encoder")(x))
            supernet.control.draws.clear()
    assert len({round(float(out.sum()), 4) for out in outputs}) > 10


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pinned_training_is_that_of_the_student(family: str, estimator: str) -> None:
    space = tiny(nextvlad={**OPTIONS["nextvlad"], "dropout": 0.0})
    supernet, rng = Supernet(space, {"family": family}, estimator=estimator).train(), np.random.default_rng(3)
    x = torch.randn(4, 7, D, generator=torch.Generator().manual_seed(3))
    for _ in range(4):
        arch = drawn_arch(supernet, rng)
        student = supernet.derive(arch=arch)
        with supernet.pinned(arch):
            torch.testing.assert_close(supernet(x), student(x), rtol=1e-5, atol=1e-5)
        if family != "h_rnn":  # the statistics of the slices moved as those of the student
            with torch.no_grad(), supernet.pinned(arch):
                torch.testing.assert_close(supernet.eval()(x), student.eval()(x), rtol=1e-4, atol=1e-4)
            supernet.train()


def test_a_mixture_of_sizes_is_the_padded_sum_of_their_encodings() -> None:
    space = tiny(h_rnn={"lower": [8], "upper": [6, 16], "block_length": [2, 3]})
    supernet = Supernet(space, {"family": "h_rnn"}, estimator="softmax").train()
    with torch.no_grad():
        supernet.gates["h_rnn.upper"].gate_logits.copy_(torch.tensor([0.3, -0.4]))
        supernet.gates["h_rnn.block_length"].gate_logits.copy_(torch.tensor([-1.0, 0.2]))
    x = torch.randn(3, 7, D, generator=torch.Generator().manual_seed(4))
    p = {name: values.detach() for name, values in supernet.probabilities().items()}
    expected = torch.zeros(3, 16)
    for (i, upper), (j, length) in product(enumerate((6, 16)), enumerate((2, 3))):
        choices = {"h_rnn.lower": 8, "h_rnn.upper": upper, "h_rnn.block_length": length, "head": "moe"}
        student = supernet.derive(arch=space.arch({**supernet.knobs, **choices}))
        share = p["h_rnn.upper"][i] * p["h_rnn.block_length"][j]
        expected[:, :upper] += share * student.get_submodule("encoder")(x).detach()
    supernet(x)
    supernet.control.draws.clear()
    torch.testing.assert_close(supernet.network.get_submodule("encoder")(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_mixtures_of_one_hot_gates_are_the_hard_net(family: str) -> None:
    space, rng = tiny(nextvlad={**OPTIONS["nextvlad"], "dropout": 0.0}), np.random.default_rng(5)
    supernet = Supernet(space, {"family": family}, estimator="softmax").train()
    x = torch.randn(3, 7, D, generator=torch.Generator().manual_seed(5))
    check_one_hot_mixtures(supernet, x, rng, turns=5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gates_of_the_family_get_finite_gradients_and_idle_ones_none(family: str, estimator: str) -> None:
    supernet = supernet_of(family, estimator=estimator).train()
    x = torch.randn(6, 7, D, generator=torch.Generator().manual_seed(6))
    reached: set[str] = set()
    for _ in range(4):
        (supernet(x).square().sum() + supernet.expected_cost() * 1e-4).backward()
    for name, gate in supernet.gates.items():
        if name == "head" or name.startswith(f"{family}."):
            assert gate.gate_logits.grad is not None
            assert bool(gate.gate_logits.grad.isfinite().all())
            assert gate.gate_logits.grad.abs().max() > 0
            reached.add(name)
        else:
            assert gate.gate_logits.grad is None or not gate.gate_logits.grad.any()
    assert reached == supernet.space.active(supernet.knobs)
    assert all(bool(p.grad.isfinite().all()) for p in supernet.weight_parameters() if p.grad is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_within_a_budget_the_most_probable_architecture_is_taken(family: str) -> None:
    """Against an enumeration of the whole family."""
    supernet, generator = supernet_of(family), torch.Generator().manual_seed(7)
    space = supernet.space
    with torch.no_grad():
        for gate in supernet.gates.values():
            gate.gate_logits.normal_(generator=generator)
    active = sorted(space.active(supernet.knobs))
    logs = {name: gate.probabilities().detach().log().tolist() for name, gate in supernet.gates.items()}
    score, cost = {}, {}
    for choices in product(*(space.variables[name] for name in active)):
        arch = space.arch({**supernet.knobs, **dict(zip(active, choices, strict=True))})
        score[arch] = sum(logs[n][space.variables[n].index(arch.choices[n])] for n in active)
        cost[arch] = space.cost(arch)
    least, most = min(cost.values()), max(cost.values())
    assert supernet.cost_range() == (least, most)
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        budget = int(least + share * (most - least))
        within = {arch: flops for arch, flops in cost.items() if flops <= budget}
        near = [arch for arch, flops in within.items() if flops >= 0.95 * budget]
        allowed = near or [arch for arch, flops in within.items() if flops >= 0.95 * max(within.values())]
        assert supernet.arch(budget) == max(allowed, key=lambda arch: score[arch])
        derived = count_flops(supernet.derive(budget), space.example_input(supernet.knobs)).total
        assert derived == cost[supernet.arch(budget)] <= budget
    with pytest.raises(InfeasibleBudgetError):
        supernet.arch(least - 1)


def test_the_cost_table_is_made_once_for_each_family_and_number_of_frames() -> None:
    space = tiny()
    tables = {
        (family, frames): space.cost_table(space.knobs_with({"family": family, "frames": frames}))
        for family, frames in product(FAMILIES, (4, 7))
    }
    assert len({id(table) for table in tables.values()}) == 6
    again = space.cost_table(space.knobs_with({"family": "h_rnn", "frames": 4, "selector": "uniform"}))
    assert again is tables["h_rnn", 4]
    for (family, _), table in tables.items():
        assert table.variables == space.variables
        named = {name for term in table.terms for name in term.variables}
        assert named == space.active({"family": family})


def test_a_full_student_costs_by_hand() -> None:
    space = tiny(
        family=["h_rnn"], frames=[5], selector=["uniform"], head=["moe"], experts=3, net_vlad=None, nextvlad=None,
        h_rnn={"lower": [6], "upper": [7], "block_length": [2]},
    )  # fmt: skip
    lower = 5 * 4 * 6 * 12 + 2 * 4 * 6 * 6  # all frames enter; the second frames of two blocks have a state before them
    upper = 3 * 4 * 7 * 6 + 2 * 4 * 7 * 7  # three blocks, the first without a state
    head = 7 * (5 * 4 + 5 * 3)  # three gates and a dummy, three experts
    assert space.cost(space.sample(np.random.default_rng(0))) == lower + upper + head


def test_an_arch_survives_json_and_builds_its_space_again() -> None:
    space, rng = tiny(), np.random.default_rng(8)
    for _ in range(20):
        arch = space.sample(rng)
        again = ArchSpec.from_json(arch.to_json())
        assert again == arch
        rebuilt = FrameSequenceSpace(FrameSequenceSettings.model_validate(dict(again.settings)))
        assert rebuilt.contains(again)
        assert rebuilt.cost(again) == space.cost(arch)


def test_options_that_are_defaults_are_part_of_the_architecture() -> None:
    space = FrameSequenceSpace(FrameSequenceSettings(num_classes=2, feature_size=4))
    sizes = [64, 128, 256, 512]
    assert space.settings["h_rnn"] == {"lower": sizes, "upper": sizes, "block_length": [5, 10]}
    assert space.settings["net_vlad"] is None
    assert list(space.variables) == ["h_rnn.lower", "h_rnn.block_length", "h_rnn.upper", "head"]
    assert space.knobs == {"family": ("h_rnn",), "frames": (6, 10, 15), "selector": ("uniform",)}


def test_choices_of_other_families_never_change_the_arch_id() -> None:
    space, rng = tiny(), np.random.default_rng(9)
    options = {**space.knobs, **space.variables}
    for _ in range(100):
        arch = space.sample(rng)
        full = {n: arch.choices.get(n, v[int(rng.integers(len(v)))]) for n, v in options.items()}
        assert len(full) > len(arch.choices)
        assert space.arch(full).arch_id == arch.arch_id
        mutant = space.mutate(arch, rng)
        assert space.contains(mutant)
        assert mutant != arch
    with pytest.raises(ValueError, match=r"needs a choice for h_rnn\.upper"):
        space.arch({n: c for n, c in space.widest({"family": "h_rnn"}).choices.items() if n != "h_rnn.upper"})


def test_size_counts_canonical_architectures() -> None:
    space = tiny(
        h_rnn={"lower": [4], "upper": [4, 8], "block_length": [2]},
        net_vlad={"clusters": [2, 3], "hidden": [4]},
        nextvlad={"clusters": [2], "groups": [2, 3], "expansion": [1], "hidden": [8, 16]},
        frames=[4],
    )
    assert check_size(space) == (2 + 2 + 4) * 2 * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_and_students_share_nothing_with_their_supernet(family: str) -> None:
    supernet = supernet_of(family).double().eval()
    student, clone = supernet.derive(), copy.deepcopy(supernet)
    assert {p.dtype for p in student.parameters()} == {torch.float64}
    x = torch.randn(2, 7, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, state = student(x), {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    with torch.no_grad():
        for tensor in supernet.state_dict().values():
            tensor.zero_()
    assert torch.equal(student(x), before)
    assert torch.equal(clone(x), before)
    supernet.load_state_dict(state)
    assert torch.equal(supernet(x), before)


def test_the_student_sees_the_frames_of_its_selector() -> None:
    space = tiny(selector=["first", "uniform", "random"], frames=[4, 8])
    x = torch.arange(8.0)[None, :, None].expand(3, 8, D)
    seen = {
        selector: space.fit_input(x, space.knobs_with({"frames": 4, "selector": selector}))
        for selector in space.knobs["selector"]
    }
    assert seen["first"][0, :, 0].tolist() == [0, 1, 2, 3]
    assert seen["uniform"][2, :, 0].tolist() == [1, 3, 5, 7]
    assert seen["random"].shape == (3, 4, D)
    assert space.fit_input(x, space.knobs_with()) is x
    assert space.example_input(space.knobs_with()).shape == (1, 8, D)
    with pytest.raises(ValueError, match="wants 4 frames, but the sequence has 3"):
        space.fit_input(x[:, :3], space.knobs_with({"frames": 4}))


def test_blocks_longer_than_the_sequence_are_one_block() -> None:
    space = tiny(h_rnn={"lower": [4], "upper": [4], "block_length": [7, 20]}, frames=[7])
    nets = [
        build_net(
            FrameSequenceSettings.model_validate(space.settings),
            {"family": "h_rnn", "head": "linear", "h_rnn.lower": 4, "h_rnn.upper": 4, "h_rnn.block_length": length},
        )
        for length in (7, 20)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(2, 7, D, generator=torch.Generator().manual_seed(1))
    assert torch.equal(nets[0](x), nets[1](x))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": ["lstm"]}, "'h_rnn', 'net_vlad' or 'nextvlad'"),
        ({"family": ["net_vlad", "nextvlad"]}, "h_rnn holds options, but family is net_vlad, nextvlad; name h_rnn in"),
        ({"family": []}, "at least one, without repetition"),
        ({"frames": [7, 4]}, r"positive numbers that ascend, at least one, but are \[7, 4\]"),
        ({"frames": [0]}, "positive numbers that ascend"),
        ({"selector": ["uniform", "uniform"]}, "without repetition"),
        ({"selector": ["best"]}, "'uniform', 'random'"),
        ({"nextvlad": {"groups": [5]}}, r"5 does not divide 2 · 12 = 24; choose another number of groups"),
        ({"nextvlad": {"hidden": [12], "groups": [2]}}, "hidden must be a multiple of reduction, 8, but 12 is not"),
        ({"h_rnn": {"cells": [3]}}, "cells"),
        ({"experts": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_space_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny(**changes)
