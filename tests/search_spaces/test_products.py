"""Every matrix product against the multiply-accumulates of a plain loop over its dimensions, at random shapes."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nas_kd.search_spaces import UncountedOpError, count_flops
from nas_kd.search_spaces.products import einsum_flops


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def counted(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> int:
    return count_flops(Calls(function), tuple(torch.zeros(shape) for shape in shapes)).total


@pytest.mark.parametrize("seed", range(6))
def test_products_of_any_broadcast(seed: int) -> None:
    rng = random.Random(seed)
    b, c, n, k, m = (rng.randint(2, 40) for _ in range(5))
    cases: list[tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], int]] = [
        (torch.matmul, ((n, k), (b, c, k, m)), b * c * n * k * m),
        (torch.matmul, ((b, c, n, k), (k, m)), b * c * n * k * m),
        (torch.matmul, ((b, 1, n, k), (c, k, m)), b * c * n * k * m),
        (torch.matmul, ((1, c, n, k), (b, 1, k, m)), b * c * n * k * m),
        (torch.matmul, ((k,), (b, k, m)), b * k * m),
        (torch.matmul, ((b, n, k), (k,)), b * n * k),
        (torch.matmul, ((k,), (k,)), k),
        (torch.mm, ((n, k), (k, m)), n * k * m),
        (torch.bmm, ((b, n, k), (b, k, m)), b * n * k * m),
        (torch.mv, ((n, k), (k,)), n * k),
        (torch.inner, ((b, n, k), (m, k)), b * n * m * k),
        (torch.outer, ((n,), (m,)), n * m),
        (torch.addmm, ((m,), (n, k), (k, m)), n * k * m),
        (torch.baddbmm, ((b, 1, m), (b, n, k), (b, k, m)), b * n * k * m),
        (torch.addbmm, ((n, m), (b, n, k), (b, k, m)), b * n * k * m),
        (torch.addmv, ((n,), (n, k), (k,)), n * k),
        (torch.linalg.vecdot, ((b, 1, k), (c, k)), b * c * k),
        (lambda x, w: torch.tensordot(x, w, 2), ((b, n, k), (n, k, m)), b * n * k * m),
        (lambda x, w: torch.tensordot(x, w, ([0, 2], [1, 0])), ((b, n, k), (k, b, m)), b * n * k * m),
        (nn.functional.linear, ((b, c, k), (m, k)), b * c * k * m),
        (nn.functional.linear, ((b, k), (k,)), b * k),
        (nn.functional.bilinear, ((b, n), (b, k), (m, n, k)), b * n * k * m),
        (lambda x, y, z: torch.linalg.multi_dot([x, y, z]), ((n, k), (k, m), (m,)), k * m + n * k),
        (lambda x, y, z: x.clone().addmm_(y, z), ((n, m), (n, k), (k, m)), n * k * m),
        (lambda x, y, z: x.clone().baddbmm_(y, z), ((b, n, m), (b, n, k), (b, k, m)), b * n * k * m),
        (lambda x, y, z: x.clone().addmv_(y, z), ((n,), (n, k), (k,)), n * k),
        (torch.kron, ((n, k), (b, m)), n * k * b * m),
        (lambda x, y: (x.to(torch.cfloat) @ y.to(torch.cfloat)).abs(), ((n, k), (k, m)), 4 * n * k * m),
        (scaled_dot_product_attention, ((1, c, n, k), (b, 1, m, k), (b, c, m, k)), b * c * n * m * 2 * k),
        (lambda x: nn.functional.affine_grid(x, [b, 3, n, m], align_corners=False), ((b, 2, 3),), b * n * m * 6),
    ]
    for function, shapes, flops in cases:
        assert counted(function, *shapes) == flops, shapes


@pytest.mark.parametrize("seed", range(4))
def test_einsum(seed: int) -> None:
    rng = random.Random(seed)
    sizes = {letter: rng.randint(2, 60) for letter in "bhqkdv"}
    for equation, names in [
        ("bhqd,bhkd->bhqk", "bhqkd"),
        ("bhqk,bhkd", "bhqkd"),
        ("qd,bhkd->bhqk", "bhqkd"),
        ("b d h, h d q -> b q", "bdhq"),
        ("bq,bk->bqk", "bqk"),
        ("bhk,kd->bd", "bkd"),  # h is summed before the product
        ("bqk->bkq", ""),
    ]:
        terms = equation.replace(" ", "").split("->")[0].split(",")
        shapes = [tuple(sizes[letter] for letter in term) for term in terms]
        flops = prod(sizes[name] for name in names) if names else 0
        assert counted(lambda *x, e=equation: torch.einsum(e, *x), *shapes) == flops, equation
    b, h, q, k, d, v = sizes.values()
    assert counted(lambda x, y: torch.einsum("...qk,...kd->...qd", x, y), (b, h, q, k), (h, k, d)) == b * h * q * k * d
    assert counted(lambda x, y: torch.einsum("...qk,kd", x, y), (b, q, k), (k, d)) == b * q * k * d
    assert counted(lambda x, y: torch.einsum(x, [0, 1], y, [1, 2], [0, 2]), (q, k), (k, d)) == q * k * d
    assert counted(lambda x, y: torch.einsum("bqk,bkd->bqd", x, y), (1, q, k), (b, k, d)) == b * q * k * d
    chain = "qk,kd,dv->qv"
    shapes = [(q, k), (k, d), (d, v)]
    left, right = q * k * d + q * d * v, k * d * v + q * k * v
    assert einsum_flops(chain, shapes, [0, 1, 0, 1]) == left
    assert einsum_flops(chain, shapes, [1, 2, 0, 1]) == right
    assert counted(lambda *x: torch.einsum(chain, *x), *shapes) in (left, right)


def test_an_einsum_of_a_long_sequence_is_exact() -> None:
    """fvcore reads 5.0e+08 and the like."""
    assert counted(lambda q: torch.einsum("bhqd,bhkd->bhqk", q, q), (1, 8, 1571, 64)) == 8 * 1571 * 1571 * 64


def test_what_torch_calls_pointwise_is_free_in_all_forms() -> None:
    def free(x: Tensor) -> Tensor:
        x = torch.asinh(x).clone().sinh_().fmod(2).index_put((torch.tensor([0]),), x[0]).pow_(2).logcumsumexp(0)
        return torch.view_as_complex(x).real

    count = count_flops(Calls(free), torch.ones(3, 2))
    assert (count.total, count.unknown) == (0, ())


def test_norms_and_samplers_of_other_dimensions() -> None:
    assert counted(nn.LayerNorm(5), (2, 3, 1, 2, 2, 5)) == 5 * 2 * 3 * 4 * 5
    assert counted(nn.LayerNorm(5, elementwise_affine=False), (5,)) == 4 * 5
    grid = torch.zeros(1, 2, 2, 2, 3)
    assert counted(nn.RMSNorm(5), (2, 3, 5)) == 4 * 2 * 3 * 5
    assert counted(lambda x: nn.functional.grid_sample(x, grid, align_corners=False), (1, 4, 3, 3, 3)) == 8 * 4 * 8


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_what_a_scripted_module_decides_when_it_runs_is_named() -> None:
    @torch.jit.script
    def powers(x: Tensor) -> Tensor:
        y = x
        for _ in range(3):
            if bool(x.sum() > 0):
                y = y @ x
        return y

    with pytest.raises(UncountedOpError, match="Calls would miss prim::CallFunction"):
        counted(powers, (4, 4))
    count = count_flops(Calls(powers), torch.zeros(4, 4), strict=False)
    assert count.unknown == ("prim::CallFunction",)
