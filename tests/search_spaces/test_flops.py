"""The counter against closed forms that are recomputed here; what it does not know it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from nas_kd.search_spaces import UncountedOpError, count_flops
from nas_kd.search_spaces.flops import FREE_OPS
from nas_kd.search_spaces.lower_bound import BY_VALUE, UNUSED, bounded_flops, count_products

N, LENGTH, WIDTH, HIDDEN = 2, 5, 8, 6


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def test_scaled_dot_product_attention() -> None:
    q, k, v = torch.zeros(N, 3, 5, 4), torch.zeros(N, 3, 7, 4), torch.zeros(N, 3, 7, 9)
    assert count_flops(Attention(), (q, k, v)).total == N * 3 * 5 * 7 * (4 + 9)


def attention_flops(width: int, length: int) -> int:
    projections = 4 * length * width * width
    return projections + 2 * length * length * width


@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(need_weights: bool) -> None:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x, need_weights=need_weights)[0]  # type: ignore[no-any-return]

    assert count_flops(SelfAttention(), torch.zeros(N, LENGTH, WIDTH)).total == N * attention_flops(WIDTH, LENGTH)


@pytest.mark.parametrize("training", [False, True])
def test_transformer_encoder_layer(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True).train(training)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    count = count_flops(layer, torch.zeros(N, LENGTH, WIDTH))
    norms = count.by_operator["layer_norm"]
    assert count.total - norms == N * (attention_flops(WIDTH, LENGTH) + 2 * LENGTH * WIDTH * 32)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert layer.training == training


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("kind", "gates"), [(nn.GRU, 3), (nn.LSTM, 4), (nn.RNN, 1)])
def test_recurrent_layers(
    kind: type[nn.RNNBase], gates: int, num_layers: int, directions: int, batch_first: bool
) -> None:
    layer = kind(WIDTH, HIDDEN, num_layers, batch_first=batch_first, bidirectional=directions == 2)  # type: ignore[call-arg, arg-type]
    step = 0
    for index in range(num_layers):
        inputs = WIDTH if index == 0 else HIDDEN * directions
        step += directions * gates * HIDDEN * (inputs + HIDDEN)
    x = torch.zeros(N, LENGTH, WIDTH) if batch_first else torch.zeros(LENGTH, N, WIDTH)
    assert count_flops(layer, x).total == N * LENGTH * step
    assert count_flops(layer, torch.zeros(LENGTH, WIDTH)).total == LENGTH * step


def test_lstm_with_projection_and_packed_sequences() -> None:
    layer = nn.LSTM(WIDTH, HIDDEN, proj_size=3, batch_first=True)
    step = 4 * HIDDEN * (WIDTH + 3) + 3 * HIDDEN
    assert count_flops(layer, torch.zeros(N, LENGTH, WIDTH)).total == N * LENGTH * step

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(WIDTH, HIDDEN, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.tensor([LENGTH, 2])
            return self.gru(pack_padded_sequence(x, lengths, batch_first=True))[1]  # type: ignore[no-any-return]

    assert count_flops(Packed(), torch.zeros(2, LENGTH, WIDTH)).total == (LENGTH + 2) * 3 * HIDDEN * (WIDTH + HIDDEN)


@pytest.mark.parametrize(
    ("module", "shape", "flops"),
    [
        (nn.Conv3d(4, 6, (3, 5, 1), (1, 2, 1), (1, 2, 0)), (1, 4, 3, 8, 7), 6 * 3 * 4 * 7 * 4 * 15),
        (nn.Conv3d(4, 8, 3, padding=1, groups=4), (2, 4, 3, 5, 5), 2 * 8 * 3 * 5 * 5 * 1 * 27),
        (nn.Conv1d(4, 6, 3), (2, 4, 9), 2 * 6 * 7 * 4 * 3),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 4 * 25 * 6 * 9),
        (nn.ConvTranspose3d(4, 6, 2, stride=2), (1, 4, 2, 3, 3), 4 * 18 * 6 * 8),
        (nn.ConvTranspose2d(4, 8, 3, groups=4), (1, 4, 5, 5), 4 * 25 * 2 * 9),
        (nn.Linear(4, 6), (3, 5, 4), 15 * 24),
    ],
)  # fmt: skip
def test_products_of_common_layers(module: nn.Module, shape: tuple[int, ...], flops: int) -> None:
    assert count_flops(module, torch.zeros(shape)).total == flops


@pytest.mark.parametrize(
    ("named", "numeric", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding="same"), nn.Conv2d(4, 6, 3, padding=1), (2, 4, 9, 7)),
        (nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=4),
         nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4), (1, 4, 9, 7)),
        (nn.Conv2d(4, 6, (3, 5), 2, padding="valid"), nn.Conv2d(4, 6, (3, 5), 2), (1, 4, 9, 8)),
        (nn.Conv1d(4, 6, 5, padding="same"), nn.Conv1d(4, 6, 5, padding=2), (1, 4, 9)),
        (nn.Conv3d(4, 6, 3, padding="same"), nn.Conv3d(4, 6, 3, padding=1), (1, 4, 3, 5, 5)),
    ],
)  # fmt: skip
def test_a_padding_by_name_costs_what_its_numbers_cost(
    named: nn.Module, numeric: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.zeros(shape)
    assert count_flops(named, x).total == count_flops(numeric, x).total > 0
    even = nn.Conv2d(4, 6, 2, padding="same")  # more on one side than on the other
    assert count_flops(even, torch.zeros(1, 4, 5, 7)).total == 4 * 6 * 4 * 5 * 7


def test_free_and_unknown_operators_are_named() -> None:
    count = count_flops(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Softmax(-1)), torch.zeros(1, 4))
    assert count.total == 16
    assert dict(count.uncounted) == {"aten::gelu": 1, "aten::softmax": 1}

    class Determinant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.det(x @ x)

    with pytest.raises(UncountedOpError, match=r"would miss aten::linalg_det; in a module .* name to FREE_OPS"):
        count_flops(Determinant(), torch.zeros(1, 4, 4))
    lax = count_flops(Determinant(), torch.zeros(1, 4, 4), strict=False)
    assert lax.total == 64
    assert lax.uncounted["aten::linalg_det"] == 1
    FREE_OPS.add("aten::linalg_det")  # as the sentence says
    try:
        assert count_flops(Determinant(), torch.zeros(1, 4, 4)).total == 64
    finally:
        FREE_OPS.remove("aten::linalg_det")


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x @ x


class CallsOpaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Opaque.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def test_a_custom_function_is_named_for_nobody_can_look_into_it() -> None:
    with pytest.raises(UncountedOpError, match=r"CallsOpaque would miss prim::PythonOp\.Opaque"):
        count_flops(CallsOpaque(), torch.zeros(4, 4))


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4).eval()))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    assert modes == [True, True, True, True, False]
    count_flops(module, torch.randn(2, 3, 8, 8))
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    with pytest.raises(RuntimeError):
        count_flops(module, torch.randn(2, 5, 8, 8))
    assert [m.training for m in module.modules()] == modes


def test_products_of_what_cannot_be_traced() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner = nn.Conv1d(WIDTH, WIDTH, 3), Attention()

        def forward(self, x: Tensor) -> Tensor:
            side = round(x.shape[-1] ** 0.5)  # a tracer has tensors here, which cannot be rounded
            x = self.conv(x)[..., :side]
            return self.inner(x, x, x)  # type: ignore[no-any-return]

    x = torch.zeros(N, WIDTH, 9)
    with pytest.raises(TypeError, match="__round__"):
        count_flops(Square(), x)
    assert count_products(Square().train(), x) == N * (7 * 3 * WIDTH * WIDTH + WIDTH * WIDTH * 6)


@dataclass
class Fields:
    logits: Tensor
    about: dict[str, object]


class Hides(nn.Module):
    """A linear layer, and what a traced graph does not hold."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.seen, self.hidden = what, nn.Linear(4, 4), nn.Linear(4, 40, bias=False)

    def forward(self, x: Tensor) -> Any:
        if self.what == "unused":
            self.last = self.hidden(x)
        elif self.what == "number":
            x = x * float(self.hidden(x).mean())
        elif self.what == "array":
            x = x + torch.from_numpy(self.hidden(x)[:, :4].numpy())
        elif self.what == "branch" and x.abs().sum() > 0:
            x = x + self.hidden(x).mean()
        elif self.what == "routed":
            chosen = (x[:, 0] != 0).nonzero()[:, 0]
            x = x.index_add(0, chosen, self.hidden(x[chosen])[:, :4])
        elif self.what == "fields":
            return Fields(self.seen(x), {"epoch": 3, "name": "net"})
        return self.seen(x)


@pytest.mark.parametrize(
    ("what", "flops", "missing"),
    [
        ("", 32, ()),
        ("fields", 32, ()),
        ("unused", 32 + 320, (UNUSED,)),
        ("number", 32 + 320, (UNUSED,)),
        ("array", 32 + 320, (UNUSED,)),
        ("branch", 32, (BY_VALUE,)),
        ("routed", 32, (BY_VALUE,)),
    ],
)
def test_work_that_a_graph_does_not_hold_is_named(what: str, flops: int, missing: tuple[str, ...]) -> None:
    example = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert bounded_flops(Hides(what), example) == (flops, missing)


def test_attention_of_what_cannot_be_traced_counts() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)[..., : round(x.shape[-1] ** 0.5)]

    flops, (reason,) = bounded_flops(Rounded(), torch.zeros(1, 2, 5, 4))
    assert flops == 2 * 5 * 5 * (4 + 4)
    assert reason.startswith("all but products and convolutions; not traceable, TypeError")
