"""Space `saliency`: the published nets, one cost truth, faithful derivation, canonical architectures."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
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

from nas_kd.search_spaces import ESTIMATORS, ArchSpec, Supernet, count_flops
from nas_kd.search_spaces.delta_blocks.fold import fold_batchnorm
from nas_kd.search_spaces.saliency import SaliencyNet, SaliencySettings, SaliencySpace, make_decoder
from nas_kd.search_spaces.saliency.ops import ResponseNorm
from nas_kd.search_spaces.space import gates_of

NETS = ("spatial", "temporal", "fused")
TRUNK = {"widths": ((2, 4), (3, 5), (4, 6), (4, 7)), "depths": (1, 2, 3), "ops": ("conv_k1", "separable_k3", "conv_k5")}
DECODER = {"widths": ((4, 6), (3, 4), (4, 5), (2, 3), (2, 4)), "ops": ("conv_k1", "conv_k3")}
TEMPORAL = {**TRUNK, "widths": ((2, 3), (4,), (3, 5), (3, 6)), "ops": ("separable_k5", "conv_k3")}


def tiny(**changes: object) -> SaliencySpace:
    settings = {
        "net": NETS, "side": (32, 36), "spatial": TRUNK, "temporal": TEMPORAL, "decoder": DECODER, **changes,
    }  # fmt: skip
    return SaliencySpace(SaliencySettings.model_validate(settings))


def clips(number: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 3, 2, side, side, generator=torch.Generator().manual_seed(seed))


def published_parameters(net: str) -> int:
    """Layer by layer: weights, two for each BatchNorm channel, biases of the transposed convolutions."""
    widths = (16, 16, 32, 64, 64, 128)
    norms = 2 * sum(widths)
    spatial = 9 * (3 * 16 + 16 * 16 + 16 * 32 + 32 * 64 + 64 * 64 + 64 * 128) + norms
    temporal = spatial + 9 * 64 * 64  # the fifth reads pairs
    read = {"spatial": 128, "temporal": 128, "fused": 256}[net]
    decoder = read * 32 + 9 * (32 * 32 + 32 * 32 + 32 * 16) + 2 * (32 * 3 + 16) + 16 * (16 * 8 + 8) + 8 + 1
    return {"spatial": spatial, "temporal": temporal, "fused": spatial + temporal}[net] + decoder


def published_flops(net: str, side: int) -> int:
    """One a product, two a BatchNorm element; a transposed convolution multiplies at each pixel of its input."""
    p, q, s = side**2, side**2 // 4, side**2 // 16
    conv = [3 * 16 * 9 * p, 16 * 16 * 9 * p, 16 * 32 * 9 * q, 32 * 64 * 9 * s, 64 * 64 * 9 * s, 64 * 128 * 9 * s]
    norm = [2 * 16 * p, 2 * 16 * p, 2 * 32 * q, 2 * 64 * s, 2 * 64 * s, 2 * 128 * s]
    spatial = sum(conv) + sum(norm)
    temporal = 2 * sum(conv[:4]) + 2 * conv[4] + conv[5] + 2 * sum(norm[:4]) + norm[4] + norm[5]
    read = {"spatial": 128, "temporal": 128, "fused": 256}[net]
    decoder = (read * 32 + 9 * (32 * 32 * 2 + 32 * 16) + 2 * (3 * 32 + 16)) * s + 16 * (16 * 8 * s + 8 * 4 * s)
    return {"spatial": spatial, "temporal": temporal, "fused": spatial + temporal}[net] + decoder


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("net", NETS)
def test_the_widest_student_is_the_published_net(net: str, side: int) -> None:
    space = SaliencySpace(SaliencySettings(net=(net,), side=(side,)))
    arch = space.widest({})
    student = space.student(arch)
    assert sum(p.numel() for p in student.parameters()) == published_parameters(net)
    assert space.cost(arch) == published_flops(net, side)
    assert count_flops(student, space.example_input(arch.choices)).total == published_flops(net, side)
    with torch.no_grad():
        assert student(clips(2, side)).shape == (2, 1, side, side)


def test_the_published_sizes() -> None:
    """SEEDS of the paper's group: 0.17 M and 14 MFLOPs; 0.32 to 0.34 M and, with each frame read once, 29 MFLOPs."""
    assert (published_parameters("spatial"), published_flops("spatial", 32)) == (166_553, 14_268_416)
    assert (published_parameters("fused"), published_flops("fused", 32)) == (344_521, 34_494_464)
    each = published_flops("temporal", 32) - published_flops("spatial", 32) - 64 * 64 * 9 * 64
    assert published_flops("fused", 32) - each == 29_243_392


class Published(nn.Module):
    """The fused net as the paper's tables give it, with nothing of ours: the channels of the pairs in two blocks."""

    def __init__(self) -> None:
        super().__init__()

        def conv(a: int, b: int, k: int = 3) -> list[nn.Module]:
            return [nn.Conv2d(a, b, k, padding=k // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

        def each() -> nn.Sequential:
            norm, pool = nn.LocalResponseNorm(5), nn.MaxPool2d(2)
            return nn.Sequential(*conv(3, 16), *conv(16, 16), norm, pool, *conv(16, 32), pool, *conv(32, 64))

        self.s_each, self.t_each = each(), each()
        self.s_rest = nn.Sequential(*conv(64, 64), *conv(64, 128))
        self.t_rest = nn.Sequential(*conv(128, 64), *conv(64, 128))
        grow = [nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ConvTranspose2d(8, 1, 4, 2, 1)]
        self.decoder = nn.Sequential(*conv(256, 32, 1), *conv(32, 32), *conv(32, 32), *conv(32, 16), *grow)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        now, later = clip[:, :, 0], clip[:, :, 1]
        f, g = self.t_each(now), self.t_each(later)
        both = [self.s_rest(self.s_each(now)), self.t_rest(torch.cat([f, f - g], 1))]
        out: torch.Tensor = self.decoder(torch.cat(both, 1))
        return out


def test_the_fused_student_is_the_published_net_with_permuted_weights() -> None:
    torch.manual_seed(0)
    space = SaliencySpace(SaliencySettings())
    student, twin = space.student(space.widest({})), Published()
    scramble_batch_norm(twin, torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = twin.t_rest[0].weight
        blocks = first.clone()
        target = [v for k, v in student.state_dict().items()]
        order = ["s_each", "s_rest", "t_each", "t_rest", "decoder"]
        source = [v for name in order for v in twin.get_submodule(name).state_dict().values()]
        for a, b in zip(target, source, strict=True):
            a.copy_(b)
        joined = student.temporal.convs["2_1"][0].weight
        joined[:, 0::2], joined[:, 1::2] = blocks[:, :64], blocks[:, 64:]
        clip = clips(3, 32)
        torch.testing.assert_close(student.eval()(clip), twin.eval()(clip), rtol=1e-4, atol=1e-4)


def test_the_response_norm_is_torchs() -> None:
    x = 30 * torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_()
    ours, theirs = ResponseNorm()(x), nn.LocalResponseNorm(5)(x)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*grads)
    assert (theirs - x).abs().max() > 0.01
    with torch.no_grad():
        for channels in (1, 2):
            torch.testing.assert_close(ResponseNorm()(x[:, :channels]), nn.LocalResponseNorm(5)(x[:, :channels]))


def test_a_net_without_response_norm() -> None:
    torch.manual_seed(0)
    spaces = [tiny(response_norm=flag) for flag in (True, False)]
    students = [space.student(space.widest({})).eval() for space in spaces]
    students[1].load_state_dict(students[0].state_dict())
    with torch.no_grad():
        assert not torch.equal(*(student(clips(1, 36)) for student in students))
    assert spaces[0].cost(spaces[0].widest({})) == spaces[1].cost(spaces[1].widest({}))


@pytest.mark.parametrize("net", NETS)
def test_a_video_read_once_gives_the_maps_of_its_pairs(net: str) -> None:
    space = tiny()
    student = space.student(space.widest({"net": net, "side": 32})).eval()
    assert isinstance(student, SaliencyNet)
    frames = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = student(torch.stack([frames[:-1], frames[1:]], dim=2))
        torch.testing.assert_close(student.sequence(frames), pairs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_expected_table_space_and_fvcore_agree_as_integers(net: str) -> None:
    space, rng = tiny(), np.random.default_rng(0)
    supernets = [Supernet(space, {"net": net, "side": side}) for side in (32, 36)]
    seen = set()
    for turn in range(12):
        supernet = supernets[turn % 2]
        seen.add(check_costs(supernet, drawn_arch(supernet, rng), rng).total)
    assert len(seen) > 10


@pytest.mark.parametrize("net", NETS)
def test_the_knapsack_fills_a_budget(net: str) -> None:
    space = SaliencySpace(SaliencySettings(net=NETS))
    supernet = Supernet(space, {"net": net})
    least, most = supernet.cost_range()
    assert most == published_flops(net, 32)
    for share in (0.2, 0.5, 0.9):
        budget = least + share * (most - least)
        arch = supernet.arch(budget)
        assert 0.95 * budget <= space.cost(arch) <= budget


@pytest.mark.parametrize("net", NETS)
def test_the_exported_graph_has_the_same_flops_and_outputs(net: str, tmp_path: Path) -> None:
    space, rng = tiny(), np.random.default_rng(1)
    knobs = {"net": net, "side": 32}
    arch = space.arch({**drawn(space, rng), **knobs})
    student = space.student(arch).eval()
    scramble_batch_norm(student, torch.Generator().manual_seed(1))
    graph = exported(student, clips(2, 32), tmp_path)
    assert count_flops(graph, space.example_input(knobs)).total == space.cost(arch)
    with torch.no_grad():
        torch.testing.assert_close(graph(clips(5, 32)), student(clips(5, 32)))


def test_onnx_computes_the_same(tmp_path: Path) -> None:
    space = tiny()
    student = space.student(space.widest({"net": "fused", "side": 32})).eval()  # it has all parts of the others
    scramble_batch_norm(student, torch.Generator().manual_seed(3))
    runtime = onnx_of(student, clips(2, 32), tmp_path)
    for number in (1, 3):
        clip = clips(number, 32, seed=number)
        with torch.no_grad():
            expected = student(clip)
        torch.testing.assert_close(runtime(clip), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_derived_student_computes_what_the_supernet_computes(estimator: str, net: str) -> None:
    space, rng, generator = tiny(), np.random.default_rng(2), torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    supernet = Supernet(space, {"net": net, "side": 32}, estimator=estimator)
    scramble_batch_norm(supernet, generator)
    clip = clips(2, 32)
    outputs, depths = [], set()
    for _ in range(8):
        supernet.train()
        supernet(clip)  # a training pass in between must leave nothing behind
        arch = drawn_arch(supernet, rng)
        depths.add(arch.choices.get("temporal.stages.2.depth"))
        decide(supernet, arch, rng)
        supernet.eval()
        with torch.no_grad():
            outputs.append(supernet(clip))
            assert torch.equal(supernet.derive()(clip), outputs[-1])
            with supernet.train().pinned(arch):
                expected = supernet.derive(arch=arch).train()(clip)
                torch.testing.assert_close(supernet(clip), expected, rtol=1e-4, atol=1e-4)
    assert len({round(float(out.sum()), 3) for out in outputs}) > 4, "moving the gates must change the output"
    assert net == "spatial" or len(depths) > 1


@pytest.mark.parametrize("net", NETS)
def test_soft_mixtures_of_one_hot_gates_are_the_hard_net(net: str) -> None:
    space, rng = tiny(), np.random.default_rng(3)
    supernet = Supernet(space, {"net": net, "side": 32}, estimator="softmax")
    check_one_hot_mixtures(supernet, clips(2, 32), rng, turns=4)


@pytest.mark.parametrize("net", NETS)
def test_gates_of_the_net_get_a_gradient_and_others_none(net: str) -> None:
    space = tiny()
    supernet = Supernet(space, {"net": net, "side": 32}, estimator="softmax").train()
    supernet(clips(2, 32)).square().sum().backward()
    for name, gate in supernet.gates.items():
        trunk = name.partition(".")[0]
        if net in (trunk, "fused") or trunk == "decoder":
            assert gate.gate_logits.grad is not None, name
            assert len(gate.choices) == 1 or gate.gate_logits.grad.abs().max() > 0, name
        else:
            assert gate.gate_logits.grad is None, name
    assert gates_of(supernet.network).keys() == space.variables.keys()


def test_a_copy_of_a_supernet_has_gates_of_its_own() -> None:
    space, rng = tiny(), np.random.default_rng(8)
    supernet = Supernet(space, {"net": "fused", "side": 32}).eval()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(supernet.network))).eval()
    before = supernet.arch()
    with torch.no_grad():
        expected = supernet(clips(1, 32))
        for gate in gates_of(twin).values():
            gate.control.draws.clear()
        torch.testing.assert_close(twin(clips(1, 32)), expected)
        other = drawn_arch(supernet, rng)
        for name, gate in gates_of(twin).items():
            gate.gate_logits[gate.choices.index(other.choices.get(name, gate.choices[0]))] = 9.0
            gate.control.draws.clear()
        student = space.student(other).eval()
        space.inherit(twin, student, other.choices)
        torch.testing.assert_close(twin(clips(1, 32)), student(clips(1, 32)))
    assert supernet.arch() == before


def test_a_net_has_only_its_own_trunks() -> None:
    space = tiny()
    for net, parts in (("spatial", {"spatial"}), ("temporal", {"temporal"}), ("fused", {"spatial", "temporal"})):
        supernet = Supernet(space, {"net": net, "side": 32})
        student = supernet.derive()
        assert {name for name, _ in student.named_children()} == {*parts, "decoder"}
        weights = {name.split(".")[0] for name, p in supernet.network.named_parameters() if "gate_logits" not in name}
        assert weights == {*parts, "decoder"}
        assert {n.partition(".")[0] for n in supernet.arch().choices} == {"net", "side", *parts, "decoder"}


def test_trunks_give_maps_at_a_quarter_of_the_side() -> None:
    space, rng = tiny(), np.random.default_rng(5)
    supernet = Supernet(space, {"net": "fused", "side": 36}).eval()
    arch = drawn_arch(supernet, rng)
    shapes: dict[str, tuple[int, ...]] = {}
    with supernet.pinned(arch):
        for name in ("spatial", "temporal"):
            for net in (supernet.network, supernet.derive(arch=arch)):
                part = net.get_submodule(name)
                hook = part.register_forward_hook(lambda _, __, out, name=name: shapes.__setitem__(name, out.shape))
                with torch.no_grad():
                    net(clips(2, 36))
                    supernet.control.draws.clear()
                hook.remove()
                assert shapes[name] == (2, arch.choices[f"{name}.stages.3.width"], 9, 9)


def test_spaces_of_one_net_leave_out_what_it_lacks() -> None:
    assert not [n for n in tiny(net=("spatial",)).variables if n.startswith("temporal")]
    assert not [n for n in tiny(net=("temporal",)).variables if n.startswith("spatial")]
    assert tiny(net=("spatial", "temporal")).variables.keys() == tiny(net=("fused",)).variables.keys()


def test_arches_round_trip_and_size_counts_them() -> None:
    trunk = {"widths": ((2,), (2,), (2, 4), (2,)), "depths": (1, 2), "ops": ("conv_k1",)}
    two = {**trunk, "widths": ((2,),) * 4, "ops": ("conv_k1", "conv_k3"), "depths": (1,)}
    decoder = {"widths": ((2,),) * 5, "ops": ("conv_k1",)}
    space = tiny(spatial=trunk, temporal=two, decoder=decoder, side=(32,))
    assert check_size(space) == 4 + 2**5 + 4 * 2**5
    rng = np.random.default_rng(6)
    arch = tiny().sample(rng)
    for _ in range(60):
        assert ArchSpec.from_json(arch.to_json()) == arch
        assert tiny().contains(arch)
        mutant = tiny().mutate(arch, rng)
        assert mutant != arch
        arch = mutant


def test_a_decoder_reads_narrower_maps_by_its_leading_columns() -> None:
    torch.manual_seed(0)
    wide, narrow = make_decoder(12).eval(), make_decoder(5).eval()
    state = wide.state_dict()
    narrow.load_state_dict({k: v[:, :5] if k == "0.0.weight" else v for k, v in state.items()})
    x = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert narrow(x).shape == (2, 1, 32, 32)
        torch.testing.assert_close(wide(x), narrow(x))
        assert (wide(x) < 0).any()
    with pytest.raises(ValueError, match=r"needs five widths, one a layer but the last, but got \[8, 8\]"):
        make_decoder(4, (8, 8))


def test_the_student_sees_the_first_two_frames_resampled() -> None:
    space = tiny()
    clip = torch.arange(5.0)[None, None, :, None, None].expand(1, 3, 5, 48, 64)
    fitted = space.fit_input(clip, {"net": "fused", "side": 32})
    assert fitted.shape == (1, 3, 2, 32, 32)
    assert fitted[0, 0, :, 0, 0].tolist() == [0, 1]
    assert space.fit_input(fitted, {"net": "fused", "side": 32}) is fitted
    ramp = torch.arange(64.0).expand(1, 3, 2, 64, 64)  # halved: centres lie between two pixels
    torch.testing.assert_close(
        space.fit_input(ramp, {"net": "fused", "side": 32})[0, 0, 0, 0], torch.arange(32.0) * 2 + 0.5
    )
    with pytest.raises(
        ValueError, match="given frames t and t \\+ 1, those of net spatial too, but the clip has 1 frame"
    ):
        space.fit_input(clip[:, :, :1], space.knobs_with())


def test_every_batch_norm_of_a_student_folds() -> None:
    space = SaliencySpace(SaliencySettings())
    student = space.student(space.widest({})).eval()
    scramble_batch_norm(student, torch.Generator().manual_seed(4))
    folded = fold_batchnorm(student, clips(1, 32))
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        torch.testing.assert_close(folded(clips(2, 32)), student(clips(2, 32)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_classes": 3}, "gives one map a frame, so num_classes must be 1, but is 3"),
        ({"net": ("both",)}, "spatial"),
        ({"net": ()}, "net must hold at least one of spatial, temporal, fused"),
        ({"net": ("fused", "fused")}, "each once"),
        ({"side": (64, 32)}, r"side must be positive numbers that ascend, at least one, but are \[64, 32\]"),
        ({"side": (30, 32)}, r"side must hold multiples of 4 from 32 to 256, but holds \[30\]"),
        ({"side": (28, 512)}, r"holds \[28, 512\]"),
        ({"spatial": {"widths": ((4,), (4,))}}, "widths must be given for 4 stages, but are given for 2"),
        ({"spatial": {"widths": ((4,), (4,), (8, 4), (4,))}}, r"widths 2 must be positive .* but are \[8, 4\]"),
        ({"spatial": {"depths": (0, 1)}}, r"depths must be positive numbers .* but are \[0, 1\]"),
        ({"temporal": {"ops": ("conv_k4",)}}, "unknown op 'conv_k4'; choose from conv_k1, conv_k3, conv_k5, separable"),
        ({"temporal": {"ops": ("conv_k3", "conv_k3")}}, "each once"),
        ({"decoder": {"widths": ((4,),) * 4}}, "widths must be given for 5 layers, but are given for 4"),
        ({"decoder": {"width": 3}}, "width"),
    ],
)
def test_settings_that_make_no_space_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        tiny(**changes)
