"""The gradient of pointwise strided convolutions: right values, and no damage where torch's own gradient does it."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_kd.search_spaces import cpu_convolutions
from nas_kd.search_spaces.cpu_convolutions import FEW_CHANNELS, check_cpu, describe_check, is_affected

ROOT = Path(__file__).parents[2]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

TRAIN = """
import torch
from nas_kd.search_spaces.cpu_convolutions import check_cpu

print(check_cpu())
torch.set_num_threads(1)
torch.manual_seed(0)
for c_in, c_out, side in [(2, 8, 16), (3, 64, 32), (4, 8, 8), (5, 200, 14), (7, 12, 16)]:
    conv = torch.nn.Conv2d(c_in, c_out, 1, stride=2)
    x = torch.randn(16, c_in, side, side).contiguous(memory_format=torch.channels_last)
    for _ in range(10):
        conv.zero_grad()
        conv(x).square().sum().backward()
    again = torch.nn.functional.conv2d(x.double()[..., ::2, ::2], conv.weight.double(), conv.bias.double())
    expected = torch.einsum("nohw,nihw->oi", 2 * again, x.double()[..., ::2, ::2])
    error = (conv.weight.grad[..., 0, 0] - expected).abs().max() / expected.abs().max()
    assert error < 1e-4, (c_in, c_out, side, float(error))
    up = torch.nn.ConvTranspose2d(c_out, c_in, 1, stride=2, output_padding=1)
    low = torch.randn(16, c_out, side, side).contiguous(memory_format=torch.channels_last)
    for _ in range(10):
        up.zero_grad()
        up(low).square().sum().backward()
    inner = torch.einsum("nihw,io->nohw", low.double(), up.weight[..., 0, 0].double()) + up.bias.double()[:, None, None]
    expected = torch.einsum("nohw,nihw->io", 2 * inner, low.double())
    error = (up.weight.grad[..., 0, 0] - expected).abs().max() / expected.abs().max()
    assert error < 1e-4, ("transposed", c_in, c_out, side, float(error))
print("right")
"""


def gradients(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], grads: Tensor) -> tuple[Tensor, ...]:
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    conv = F.conv1d if weight.ndim == 3 else F.conv2d
    conv(x, weight, bias, stride).backward(grads)
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    return x.grad, weight.grad, bias.grad


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("stride", "size"), [((2, 2), (8, 8)), ((1, 2), (5, 6)), ((3, 2), (7, 9)), ((2, 1), (1, 4))])
def test_gradients_are_those_of_the_pixels_that_are_read(
    layout: str, stride: tuple[int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    for c_in, c_out in product((1, 3, 4, 8, 15), (1, 5, 8)):
        x = torch.randn(2, c_in, *size).contiguous(memory_format=FORMATS[layout])
        weight, bias = torch.randn(c_out, c_in, 1, 1), torch.randn(c_out)
        pixels = x.double()[..., :: stride[0], :: stride[1]]
        grads = torch.randn(2, c_out, *pixels.shape[-2:])
        grad_x, grad_weight, grad_bias = gradients(x, weight, bias, stride, grads)
        expected = torch.zeros_like(x, dtype=torch.double)
        expected[..., :: stride[0], :: stride[1]] = torch.einsum(
            "nohw,oi->nihw", grads.double(), weight[..., 0, 0].double()
        )
        torch.testing.assert_close(grad_x.double(), expected, rtol=1e-5, atol=1e-5)
        wanted = torch.einsum("nohw,nihw->oi", grads.double(), pixels)
        torch.testing.assert_close(grad_weight[..., 0, 0].double(), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad_bias.double(), grads.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
        assert grad_x.is_contiguous(memory_format=FORMATS[layout])


def test_rows_of_features_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 12, 4).transpose(1, 2)  # (N, C, T), features last in memory
    weight, bias, grads = torch.randn(6, 4, 1), torch.randn(6), torch.randn(2, 6, 4)
    grad_x, grad_weight, _ = gradients(x, weight, bias, (3,), grads)
    torch.testing.assert_close(
        grad_weight[..., 0], torch.einsum("not,nit->oi", grads, x[..., ::3]), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(grad_x[..., 1::3], torch.zeros(2, 4, 4))
    torch.testing.assert_close(
        grad_x[..., ::3], torch.einsum("not,oi->nit", grads, weight[..., 0]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rest", [(0, 0), (1, 1), (0, 1)])
@pytest.mark.parametrize("layout", FORMATS)
def test_transposed_convolutions_too(layout: str, rest: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for c_in, c_out in product((1, 4, 9), (1, 3, 8, 15)):
        x = torch.randn(2, c_in, 3, 4).contiguous(memory_format=FORMATS[layout]).requires_grad_()
        weight, bias = torch.randn(c_in, c_out, 1, 1, requires_grad=True), torch.randn(c_out, requires_grad=True)
        output = F.conv_transpose2d(x, weight, bias, stride=2, output_padding=rest)
        grads = torch.randn_like(output)
        grad_x, grad_weight, grad_bias = torch.autograd.grad(output, (x, weight, bias), grads)
        pixels, matrix = grads.double()[..., ::2, ::2], weight.detach()[..., 0, 0].double()
        torch.testing.assert_close(grad_x.double(), torch.einsum("nohw,io->nihw", pixels, matrix), rtol=1e-4, atol=1e-5)
        wanted = torch.einsum("nohw,nihw->io", pixels, x.detach().double())
        torch.testing.assert_close(grad_weight[..., 0, 0].double(), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad_bias.double(), grads.double().sum((0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("needed", list(product((True, False), repeat=3)))
def test_only_what_is_asked_for_is_computed(needed: tuple[bool, bool, bool]) -> None:
    x, weight, bias = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 1, 1), torch.randn(5)
    found = torch.ops.aten.convolution_backward(
        torch.ones(2, 5, 2, 2), x, weight, [5], [2, 2], [0, 0], [1, 1], False, [0, 0], 1, needed
    )
    for value, wanted, shape in zip(found, needed, (x.shape, weight.shape, bias.shape), strict=True):
        assert (value is not None) == wanted
        assert value is None or value.shape == shape


def test_second_derivatives_and_per_sample_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 3, 1, 1, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: F.conv2d(x, w, stride=2), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: F.conv2d(x, w, stride=2), (x, weight))
    each = torch.func.vmap(torch.func.grad(lambda w, one: F.conv2d(one[None], w, stride=2).square().sum()), (None, 0))
    expected = [
        torch.autograd.grad(F.conv2d(one[None], weight, stride=2).square().sum(), weight)[0] for one in x.detach()
    ]
    torch.testing.assert_close(each(weight, x.detach()), torch.stack(expected))


@pytest.mark.parametrize(
    ("layer", "affected"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), True),
        (nn.Conv2d(FEW_CHANNELS - 1, 8, 1, stride=(1, 2)), True),
        (nn.Conv1d(4, 8, 1, stride=2), True),
        (nn.Conv2d(FEW_CHANNELS, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 1, stride=2, padding=1), False),
        (nn.Conv2d(4, 8, (1, 3), stride=2), False),
        (nn.Conv2d(4, 8, 1, stride=2, groups=2), False),
        (nn.ConvTranspose2d(8, 4, 1, stride=2, output_padding=1), True),
        (nn.ConvTranspose2d(4, FEW_CHANNELS, 1, stride=2), False),
        (nn.ConvTranspose2d(4, 8, 2, stride=2), False),
        (nn.Conv3d(4, 8, 1, stride=2), False),
    ],
    ids=str,
)
def test_other_convolutions_keep_the_gradient_of_torch(layer: nn.Conv2d, affected: bool) -> None:
    form = (layer.stride, layer.padding, layer.groups)
    assert is_affected(layer.weight, *form) is affected  # type: ignore[arg-type]
    if affected:
        return
    torch.manual_seed(0)
    x = torch.randn(2, layer.in_channels, *(6,) * (layer.weight.ndim - 2), requires_grad=True)
    output = layer(x)
    grads = torch.randn_like(output)
    found = torch.autograd.grad(output, (x, layer.weight, layer.bias), grads)
    rest = (layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups)
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    direct = cpu_convolutions._torch_gradients.call_boxed(
        keys, grads, x.detach(), layer.weight.detach(), [layer.out_channels], *rest, [True] * 3
    )
    assert all(torch.equal(one, other) for one, other in zip(found, direct, strict=True))


@pytest.mark.parametrize("instructions", ["those of this CPU", "AVX2"])
def test_no_net_is_trained_with_the_faulty_gradient(instructions: str) -> None:
    """In a process of its own, under glibc's checking allocator; torch's own gradient aborts it on a faulty machine."""
    limit = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"} if instructions == "AVX2" else {}
    environment = {**os.environ, **limit, "MALLOC_CHECK_": "3", "LD_PRELOAD": "libc_malloc_debug.so.0"}
    command = [sys.executable, "-c", TRAIN]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    verdict, values = result.stdout.split()
    assert values == "right"
    if verdict != "faulty":
        pytest.skip(f"the gradient of torch {torch.__version__} is {verdict} on this CPU, so there was nothing to mend")


@pytest.mark.parametrize("verdict", ["faulty", "right", "unknown"])
def test_the_check_says_what_is_done(monkeypatch: pytest.MonkeyPatch, verdict: str) -> None:
    monkeypatch.setattr(cpu_convolutions, "check_cpu", lambda: verdict)
    text = describe_check()
    assert (text is None) == (verdict != "faulty")
    assert text is None or "nas_kd computes that gradient in another form" in text


def test_the_check_outlives_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(writing: int) -> None:
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)

    def wrong(writing: int) -> None:
        os.write(writing, b"0")
        os._exit(0)

    def hang(writing: int) -> None:
        time.sleep(60)

    if sys.platform != "linux":
        assert check_cpu() == "unknown"
        return
    monkeypatch.setattr(cpu_convolutions, "CHECK_SECONDS", 0.5)
    for child, verdict in ((crash, "faulty"), (wrong, "faulty"), (hang, "unknown")):
        monkeypatch.setattr(cpu_convolutions, "_try_torch_gradients", child)
        assert check_cpu() == verdict
