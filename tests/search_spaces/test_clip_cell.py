"""Space `clip_cell`: one cost truth (promise 1), faithful derivation (promise 2), canonical architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from space_checks import check_costs, check_one_hot_mixtures, check_size, decide, drawn_arch, scramble_batch_norm
from torch import nn

from nas_kd.search_spaces import ESTIMATORS, ArchSpec, ClipCellSettings, ClipCellSpace, Supernet, count_flops

OPS = ("conv2d_k3", "conv2plus1d_k3", "separable3d_k3_e2", "separable_k3_e1", "shift_k3", "identity", "zero")


def tiny(**changes: object) -> ClipCellSpace:
    settings: dict[str, object] = {
        "num_classes": 3,
        "stem_width": 4,
        "widths": ((4, 8), (8, 12)),
        "depths": ((1, 2), (1,)),
        "strides": (1, 2),
        "ops": OPS,
        "resolution": (11, 16),
        "frames": (2, 3),
    }
    return ClipCellSpace(ClipCellSettings.model_validate({**settings, **changes}))


SPACES = {"all candidates": tiny, "convolutions only": lambda: tiny(ops=OPS[:5])}


@pytest.mark.parametrize(("kind", "number"), [("all candidates", 24), ("convolutions only", 8)])
def test_expected_table_space_and_fvcore_agree_as_integers(kind: str, number: int) -> None:
    space, rng = SPACES[kind](), np.random.default_rng(0)
    supernets = [Supernet(space, knobs) for knobs in ({"resolution": 11, "frames": 3}, {"resolution": 16, "frames": 2})]
    seen = set()
    for turn in range(number):
        supernet = supernets[turn % 2]
        seen.add(check_costs(supernet, drawn_arch(supernet, rng), rng).total)
    assert len(seen) > 0.9 * number


def test_expected_flops_of_one_hot_gates_are_the_integers_of_the_table() -> None:
    space, rng = ClipCellSpace(ClipCellSettings(num_classes=10)), np.random.default_rng(5)
    supernet = Supernet(space)
    for _ in range(50):
        arch = space.sample(rng)
        decide(supernet, arch, rng)
        assert supernet.expected_cost().item() == supernet.cost_table.cost(arch.choices) == space.cost(arch)


@pytest.mark.parametrize("kind", SPACES)
def test_the_exported_graph_has_the_same_flops(kind: str) -> None:
    space, rng = SPACES[kind](), np.random.default_rng(1)
    for _ in range(2):  # which have every candidate between them
        arch = space.sample(rng)
        example = space.example_input(arch.choices)
        exported = torch.export.export(space.student(arch).eval(), (example,)).module()
        assert count_flops(exported, example).total == space.cost(arch)


def test_a_full_space_costs_by_hand() -> None:
    """One stage, one cell, one edge, one op: every product written out."""
    space = ClipCellSpace(
        ClipCellSettings(
            num_classes=5, stem_width=4, widths=((6,),), depths=((1,),), strides=(2,),  ops=("conv3d_k3",),
            resolution=(10,), frames=(3,),
        )
    )  # fmt: skip
    stem = 3 * 5 * 5 * (4 * 3 * 9 + 2 * 4)  # convolution and BatchNorm, 2 an element, on 3 frames of 5×5
    shortcut = 3 * 3 * 3 * (6 * 4 + 2 * 6)
    from_input = 3 * 3 * 3 * (6 * 4 * 27 + 2 * 6)
    inner = 3 * 3 * 3 * (6 * 6 * 27 + 2 * 6)
    head = 6 * 5
    total = stem + shortcut + 2 * from_input + inner + head
    assert space.cost(space.sample(np.random.default_rng(0))) == total


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", SPACES)
def test_the_derived_student_computes_what_the_supernet_computes(kind: str, estimator: str) -> None:
    space, rng, generator = SPACES[kind](), np.random.default_rng(2), torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    supernet = Supernet(space, {"resolution": 11, "frames": 3}, estimator=estimator)
    scramble_batch_norm(supernet, generator)
    clip = torch.randn(2, 3, 3, 11, 11, generator=generator)
    outputs = []
    for _ in range(8):
        supernet.train()
        supernet(clip)  # a training pass in between must leave nothing behind
        arch = drawn_arch(supernet, rng)
        decide(supernet, arch, rng)
        supernet.eval()
        student = supernet.derive()
        with torch.no_grad():
            outputs.append(supernet(clip))
            torch.testing.assert_close(student(clip), outputs[-1], rtol=1e-4, atol=1e-4)
            with supernet.train().pinned(arch):
                expected = supernet.derive(arch=arch).train()(clip)
                torch.testing.assert_close(supernet(clip), expected, rtol=1e-4, atol=1e-4)
    assert len({round(float(out.sum()), 3) for out in outputs}) > 4, "moving the gates must change the output"


def test_a_derived_student_shares_nothing_with_its_supernet() -> None:
    space = tiny()
    supernet = Supernet(space).eval()
    student = supernet.derive()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    addresses = {p.untyped_storage().data_ptr() for p in supernet.state_dict().values()}
    assert addresses.isdisjoint(p.untyped_storage().data_ptr() for p in student.state_dict().values())
    with torch.no_grad():
        for p in [*supernet.parameters(), *supernet.buffers()]:
            p.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_derived_student_has_the_precision_and_mode_of_its_supernet(dtype: torch.dtype) -> None:
    supernet = Supernet(tiny()).to(dtype)
    assert supernet.train().derive().training
    student = supernet.eval().derive()
    assert not student.training
    assert {p.dtype for p in student.parameters()} == {dtype}


def test_soft_mixtures_of_one_hot_gates_are_the_hard_net() -> None:
    space, rng, generator = tiny(), np.random.default_rng(3), torch.Generator().manual_seed(3)
    supernet = Supernet(space, {"resolution": 11, "frames": 2}, estimator="softmax")
    clip = torch.randn(2, 3, 2, 11, 11, generator=generator)
    check_one_hot_mixtures(supernet, clip, rng, turns=6)


def test_soft_mixtures_of_ops_and_depths_approach_the_hard_net() -> None:
    """Widths are left out: a mixture of widths is read at the widest, where operators see more channels."""
    space, rng = tiny(widths=((4,), (8,))), np.random.default_rng(4)
    supernet = Supernet(space, {"resolution": 11, "frames": 2}, estimator="softmax")
    clip = torch.randn(2, 3, 2, 11, 11, generator=torch.Generator().manual_seed(4))
    supernet.train()
    for module in supernet.modules():  # in training mode it would blow up the remainders of 1e-7
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    for _ in range(4):
        arch = drawn_arch(supernet, rng)
        decide(supernet, arch, rng, margin=16.0)  # the other candidates weigh 1e-7 but do run
        soft = supernet(clip)
        assert any(len(draw.indices) > 1 for draw in supernet.control.draws.values())
        with supernet.pinned(arch):
            torch.testing.assert_close(soft, supernet(clip), rtol=1e-3, atol=1e-3)


def test_all_gates_get_a_gradient_from_soft_mixtures() -> None:
    supernet = Supernet(tiny(), {"resolution": 11, "frames": 2}, estimator="softmax").train()
    clip = torch.randn(2, 3, 2, 11, 11, generator=torch.Generator().manual_seed(5))
    supernet(clip).square().sum().backward()
    for gate in supernet.gates.values():
        assert gate.gate_logits.grad is not None
        assert len(gate.choices) == 1 or gate.gate_logits.grad.abs().max() > 0


def test_choices_without_effect_never_change_the_arch_id() -> None:
    space, rng = tiny(), np.random.default_rng(6)
    options = {**space.knobs, **space.variables}
    dropped = 0
    for _ in range(200):
        arch = space.sample(rng)
        full = {n: arch.choices.get(n, v[int(rng.integers(len(v)))]) for n, v in options.items()}
        dropped += len(full) - len(arch.choices)
        assert space.arch(full).arch_id == arch.arch_id
        shuffled = dict(sorted(full.items(), key=lambda _: rng.random()))
        assert space.arch(shuffled).arch_id == arch.arch_id
        for name in arch.choices:  # and each choice with an effect does
            other = next(c for c in options[name] if c != full[name]) if len(options[name]) > 1 else None
            assert other is None or space.arch({**full, name: other}).arch_id != arch.arch_id
    assert dropped > 100


@pytest.mark.parametrize(
    "space",
    [
        tiny(ops=("conv2d_k1", "zero"), widths=((4, 8),), depths=((1, 2),), strides=(1,), resolution=(8,)),
        tiny(ops=("conv2d_k1", "identity"), widths=((4,),), depths=((1, 3),), strides=(1,)),
        tiny(ops=("conv2d_k1", "conv2d_k3"), widths=((4, 8), (4,)), depths=((1, 2), (1,))),
    ],
)
def test_size_counts_canonical_architectures(space: ClipCellSpace) -> None:
    check_size(space)


def test_samples_and_mutants_are_in_the_space_and_mutants_differ() -> None:
    space, rng = tiny(), np.random.default_rng(7)
    arch, visited = space.sample(rng), set()
    for _ in range(300):
        assert space.contains(arch)
        mutant = space.mutate(arch, rng)
        assert mutant != arch
        changed = [n for n in arch.choices if n in mutant.choices and arch.choices[n] != mutant.choices[n]]
        assert len(changed) == 1
        visited.add(mutant.arch_id)
        arch = mutant
    assert len(visited) > 200
    assert [space.sample(np.random.default_rng(8)) for _ in range(2)] == [space.sample(np.random.default_rng(8))] * 2


def test_a_spec_of_another_space_is_refused_with_the_reason() -> None:
    space, arch = tiny(), tiny(stem_width=8).sample(np.random.default_rng(0))
    assert not space.contains(arch)
    with pytest.raises(ValueError, match="was made with other settings of space 'clip_cell'"):
        space.student(arch)
    with pytest.raises(ValueError, match="this space is 'clip_cell', but the architecture is of 'other'"):
        space.check(ArchSpec("other", {}, {}))
    with pytest.raises(ValueError, match=r"knob 'frames' must be one of \[2, 3\], but got 4"):
        space.knobs_with({"frames": 4})
    with pytest.raises(ValueError, match="unknown knob 'fps'"):
        space.knobs_with({"fps": 4})
    with pytest.raises(ValueError, match="needs a choice for"):
        space.arch({"resolution": 11, "frames": 2})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ops": ("dwconv5",)}, "unknown op 'dwconv5'; choose from"),
        ({"ops": ("zero", "identity")}, "at least one convolution"),
        ({"ops": ("conv2d_k3", "conv2d_k3")}, "no duplicates"),
        ({"widths": ((8, 4), (8,))}, "widths of stage 0 must be positive numbers that ascend"),
        ({"depths": ((0, 1), (1,))}, "depths of stage 0 must be positive"),
        ({"strides": (1,)}, "must name the same number of stages, but name 2, 2 and 1"),
        ({"frames": (3, 2)}, "frames must ascend"),
        ({"resolution": (0,)}, "resolution must hold at least one number"),
        ({"widht": ((1,),)}, "widht"),
    ],
)
def test_settings_that_make_no_space_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny(**changes)


def test_the_student_sees_uniform_frames_of_the_resampled_clip() -> None:
    space = tiny(resolution=(8,), frames=(4,))
    clip = torch.arange(8.0)[None, None, :, None, None].expand(1, 3, 8, 16, 16)
    fitted = space.fit_input(clip, space.knobs_with())
    assert fitted.shape == (1, 3, 4, 8, 8)
    assert fitted[0, 0, :, 0, 0].tolist() == [1, 3, 5, 7]
    assert space.fit_input(fitted, space.knobs_with()) is fitted
    with pytest.raises(ValueError, match="wants 4 frames, but the clip has 3"):
        space.fit_input(clip[:, :, :3], space.knobs_with())
