"""Candidates of a delta layer: what they start with, which layers can have them, how their names are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_kd.search_spaces.delta_blocks.ops import (
    CANDIDATE_FAMILIES,
    LayerShape,
    LinearDelta,
    PairDelta,
    build_candidate,
    parse_candidate,
)

SIZE = (8, 12)


def shape_of(layer: nn.Conv2d, size: tuple[int, int] = SIZE) -> LayerShape:
    out = layer(torch.zeros(1, layer.in_channels, *size)).shape[-2:]
    return LayerShape(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, tuple(out), layer.weight.detach(),
    )  # fmt: skip


def convolution(*args: int, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(*args, bias=False).requires_grad_(False)


def tokens(c_in: int, c_out: int) -> LayerShape:
    weight = torch.randn(c_out, c_in, generator=torch.Generator().manual_seed(1))
    return LayerShape(c_in, c_out, (1, 1), (1, 1), (0, 0), (1, 1), 1, None, weight)


def body(name: str, shape: LayerShape) -> nn.Module:
    op = build_candidate(name, shape)
    assert isinstance(op, LinearDelta | PairDelta)
    return op.body.requires_grad_(False)


def error(name: str, layer: nn.Conv2d, x: Tensor) -> float:
    return float((body(name, shape_of(layer))(x) - layer(x)).square().mean())


def of_rank(layer: nn.Conv2d, unfold: str, rank: int) -> nn.Conv2d:
    """The layer with a kernel of that rank in one of its unfoldings."""
    o, i, kh, kw = layer.weight.shape
    generator = torch.Generator().manual_seed(3)
    if unfold == "split":  # (o · kw, i · kh)
        left, right = torch.randn(o * kw, rank, generator=generator), torch.randn(rank, i * kh, generator=generator)
        layer.weight.data = (left @ right).reshape(o, kw, i, kh).permute(0, 2, 3, 1).contiguous()
    else:  # in outputs and inputs at once
        left, right = torch.randn(o, rank, generator=generator), torch.randn(i, rank, generator=generator)
        core = torch.randn(rank, rank, kh, kw, generator=generator)
        layer.weight.data = torch.einsum("or,is,rsyx->oiyx", left, right, core)
    return layer


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 1, 2), (3, 1, 0)])
@pytest.mark.parametrize(("family", "unfold"), [("split", "split"), ("bottleneck", "channels")])
def test_a_kernel_of_low_rank_is_reproduced(family: str, unfold: str, kernel: int, stride: int, padding: int) -> None:
    layer = of_rank(convolution(12, 16, kernel, stride, padding), unfold, 3)  # γ = 4: rank 3
    x = torch.randn(2, 12, *SIZE, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(body(f"{family}4", shape_of(layer))(x), layer(x), rtol=1e-4, atol=1e-4)
    assert error(f"{family}6", layer, x) > 1e-2, "a smaller rank does not suffice"


def test_tall_and_wide_kernels_are_decomposed_alike() -> None:
    x = torch.randn(1, 8, *SIZE, generator=torch.Generator().manual_seed(5))
    for c_out in (2, 40):  # rank 2 and, with γ = 2, 4
        layer = of_rank(convolution(8, c_out, 3, 1, 1), "split", 1)
        torch.testing.assert_close(body("split2", shape_of(layer))(x), layer(x), rtol=1e-4, atol=1e-4)


def test_the_initial_factors_are_those_of_the_singular_values() -> None:
    layer = convolution(8, 8, 1)
    first, second = (m.weight.flatten(1) for m in body("pointwise2", shape_of(layer)))  # type: ignore[attr-defined]
    u, s, v = torch.linalg.svd(layer.weight.flatten(1))
    torch.testing.assert_close(second @ first, u[:, :4] * s[:4] @ v[:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.norm(dim=1), s[:4].sqrt(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second.norm(dim=0), s[:4].sqrt(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["split", "bottleneck", "shuffle", "pointwise"])
def test_the_error_falls_with_the_rank(family: str) -> None:
    layer = convolution(16, 16, 3, 1, 1)
    x = torch.randn(4, 16, *SIZE, generator=torch.Generator().manual_seed(6))
    if family in ("shuffle", "pointwise"):  # exact for changes that are even over the map
        x = x.mean((2, 3), keepdim=True).expand_as(x)
    errors = [error(f"{family}{gamma}", layer, x) for gamma in (16, 8, 4, 2)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_pointwise_students_of_low_rank_maps_are_exact() -> None:
    shape = tokens(8, 12)
    low = replace(shape, weight=shape.weight[:, :2] @ shape.weight[:2, :8])  # type: ignore[index]
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(body("pointwise4", low)(x), F.linear(x, low.weight), rtol=1e-4, atol=1e-4)
    layer = of_rank(convolution(12, 16, 1, 2), "split", 3)
    x = torch.randn(2, 12, *SIZE, generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(body("pointwise4", shape_of(layer))(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pointwise2", "lowres2", "lowres4", "shuffle2"])
def test_an_even_change_is_answered_as_the_layer_does_away_from_the_border(name: str) -> None:
    layer = of_rank(convolution(8, 8, 3, 1, 1), "channels", 2)
    x = torch.randn(1, 8, 1, 1, generator=torch.Generator().manual_seed(9)).expand(1, 8, 24, 24)
    ours = body(name, shape_of(layer, (24, 24)))(x)
    torch.testing.assert_close(ours[..., 8:16, 8:16], layer(x)[..., 8:16, 8:16], rtol=1e-4, atol=1e-4)


def test_groups_keep_their_blocks_of_the_kernel_and_separable_is_exact_for_separable_kernels() -> None:
    layer = convolution(8, 8, 3, 1, 1)
    x = torch.randn(1, 8, *SIZE, generator=torch.Generator().manual_seed(10))
    blocks = torch.zeros_like(layer.weight)
    for g in range(4):
        blocks[2 * g : 2 * g + 2, 2 * g : 2 * g + 2] = layer.weight[2 * g : 2 * g + 2, 2 * g : 2 * g + 2]
    torch.testing.assert_close(body("grouped4", shape_of(layer))(x), F.conv2d(x, blocks, padding=1))
    depthwise, mix = convolution(8, 1, 3, seed=1).weight, convolution(8, 8, 1, seed=2).weight
    layer.weight.data = mix * depthwise
    torch.testing.assert_close(body("separable", shape_of(layer))(x), layer(x), rtol=1e-4, atol=1e-5)


def test_students_have_no_bias_and_a_pair_starts_at_no_change() -> None:
    layer = nn.Conv2d(8, 16, 3, 1, 1)
    x, key = torch.randn(2, 1, 8, *SIZE, generator=torch.Generator().manual_seed(11))
    for name, family in CANDIDATE_FAMILIES.items():
        op = build_candidate(f"{name}4" if family.takes_gamma else name, shape_of(layer))
        assert op is not None
        assert not any(n.endswith("bias") for n, _ in op.named_parameters())
        assert bool(op(x, key).any()) == (name != "pair"), name
        assert not bool(op(x, x).any()), "no change for a frame that equals its key frame"


def test_one_decomposition_serves_all_candidates_of_a_layer() -> None:
    layer = convolution(16, 24, 3, 1, 1)
    shared = replace(shape_of(layer), bases={})
    for name in ("split8", "split2", "bottleneck8", "bottleneck2", "shuffle4", "pointwise8", "pointwise2"):
        alone, ours = body(name, shape_of(layer)), body(name, shared)
        for p, q in zip(alone.parameters(), ours.parameters(), strict=True):
            assert torch.equal(p, q), name
    assert shared.bases is not None
    assert len(shared.bases) == 4


def test_a_dead_kernel_has_dead_students() -> None:
    layer = convolution(8, 8, 3, 1, 1)
    layer.weight.zero_()
    x = torch.randn(1, 8, *SIZE)
    for name in ("split4", "bottleneck4", "shuffle4", "pointwise4", "separable", "full"):
        assert not bool(body(name, shape_of(layer))(x).any()), name


def test_frames_refer_to_their_own_key_frames() -> None:
    op = build_candidate("full", shape_of(convolution(4, 4, 3, 1, 1)))
    assert op is not None
    generator = torch.Generator().manual_seed(12)
    keys, frames = torch.randn(2, 4, *SIZE, generator=generator), torch.randn(6, 4, *SIZE, generator=generator)
    with torch.no_grad():
        together = op(frames, keys)
        apart = torch.cat([op(frames[i : i + 1], keys[i % 2 : i % 2 + 1]) for i in range(6)])
    torch.testing.assert_close(together, apart)


def test_layers_cannot_have_what_does_not_fit() -> None:
    point, small = convolution(8, 8, 1), convolution(8, 8, 3, 1, 1)
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
    for name in ("split4", "bottleneck4", "separable"):
        assert build_candidate(name, shape_of(point)) is None
        assert build_candidate(name, shape_of(grouped)) is None
        assert build_candidate(name, tokens(8, 8)) is None
    for name in ("lowres2", "shuffle4"):
        assert build_candidate(name, shape_of(small, (3, 8))) is None, "too few pixels"
        assert build_candidate(name, tokens(8, 8)) is None
    valid = convolution(8, 8, 3)
    assert build_candidate("lowres2", shape_of(valid, (6, 6))) is not None
    assert build_candidate("lowres4", shape_of(valid, (6, 6))) is None, "the kernel would not fit into 2 × 2 pixels"
    assert build_candidate("lowres4", shape_of(grouped)) is not None


def test_names_of_families_may_hold_underscores_and_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("split", "split_1x1"):
        monkeypatch.setitem(CANDIDATE_FAMILIES, name, CANDIDATE_FAMILIES["split"])
    assert parse_candidate("split_1x14") == ("split_1x1", 4)
    assert parse_candidate("split4") == ("split", 4)


def test_names_are_read_or_refused_in_one_sentence() -> None:
    assert parse_candidate("split8") == ("split", 8)
    assert parse_candidate("full") == ("full", 1)
    with pytest.raises(ValueError, match=r"unknown candidate 'svd4'; choose from zero, full, splitγ, .*such as split4"):
        parse_candidate("svd4")
    for wrong in ("split", "split1", "split0"):
        with pytest.raises(ValueError, match=f"candidate '{wrong}': split takes a number of at least 2 after it"):
            parse_candidate(wrong)
    with pytest.raises(ValueError, match="candidate 'separable2': separable takes no number"):
        parse_candidate("separable2")


def test_strided_pointwise_candidates_train_with_few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strided 1×1 convolution of few channels-last channels is where oneDNN's gradient corrupts memory
    (test_cpu_convolutions)."""
    strided = LayerShape(4, 8, (1, 1), (2, 2), (0, 0), (1, 1), 1, (8, 8), torch.randn(8, 4, 1, 1))
    x = torch.randn(8, 4, 16, 16).contiguous(memory_format=torch.channels_last)
    key = torch.randn(8, 4, 16, 16).contiguous(memory_format=torch.channels_last)
    for name in ("full", "pair2", "pointwise2", "grouped2"):
        op = build_candidate(name, strided)
        assert op is not None
        trained = list(op.parameters())
        found = torch.autograd.grad(op(x, key).square().mean(), trained)
        with monkeypatch.context() as without_onednn:
            without_onednn.setattr(torch.backends.mkldnn, "enabled", False)
            expected = torch.autograd.grad(op(x, key).square().mean(), trained)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    copy = build_candidate("full", strided)
    assert copy is not None
    assert strided.weight is not None
    expected = nn.functional.conv2d(x - key, strided.weight, stride=2)
    assert torch.allclose(copy(x, key), expected, atol=1e-5)
