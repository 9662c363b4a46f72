"""Parts of `frame_sequence` against slow twins in float64: PyTorch's LSTM, loops, direct probabilities."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from space_checks import scramble_batch_norm
from torch import Tensor, nn

from nas_kd.search_spaces.choices import FixedChoices
from nas_kd.search_spaces.frame_sequence.encoders import HRnnEncoder, NetVladEncoder, NextVladEncoder
from nas_kd.search_spaces.frame_sequence.parts import Lstm, MixtureOfExperts
from nas_kd.search_spaces.slices import Sliced

PLAIN = FixedChoices({})


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode, with random parameters and statistics."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    scramble_batch_norm(module, generator)
    return module


def features(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def torch_twin(lstm: Lstm, inputs: int, hidden: int) -> nn.LSTM:
    """PyTorch's LSTM with the leading weights; its gates are in the order i, f, g, o, and it has two biases."""
    twin, order = nn.LSTM(inputs, hidden, batch_first=True).double(), [0, 1, 3, 2]
    with torch.no_grad():
        twin.weight_ih_l0.copy_(lstm.weight_in[order, :hidden, :inputs].flatten(0, 1))
        twin.weight_hh_l0.copy_(lstm.weight_state[order, :hidden, :hidden].flatten(0, 1))
        twin.bias_ih_l0.copy_(lstm.bias[order, :hidden].flatten())
        twin.bias_hh_l0.zero_()
    return twin


@pytest.mark.parametrize("hidden", [7, 4])
@pytest.mark.parametrize("inputs", [5, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 9, 50, None])
def test_the_lstm_is_that_of_pytorch_on_each_block(hidden: int, inputs: int, length: int | None) -> None:
    sliced, x = Sliced(partial(Lstm, block_length=length), 5, 7).double(), features(3, 9, inputs)
    lstm = cast(Lstm, sliced.full)
    scrambled(lstm)
    twin = torch_twin(lstm, inputs, hidden)
    blocks = x.split(length or 9, dim=1)
    expected = torch.stack([twin(block)[1][0][0] for block in blocks], dim=1)
    output = sliced(x.transpose(1, 2), inputs, hidden).transpose(1, 2)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_the_lstm_has_the_gradients_of_pytorch() -> None:
    lstm = Lstm(4, 6, block_length=3)
    scrambled(lstm)
    twin, x = torch_twin(lstm, 4, 6), features(2, 7, 4)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    lstm(inputs[0].transpose(1, 2)).square().sum().backward()
    torch.stack([twin(b)[1][0][0] for b in inputs[1].split(3, dim=1)]).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-10, atol=1e-12)
    assert lstm.weight_state.grad is not None
    assert twin.weight_hh_l0.grad is not None
    theirs = twin.weight_hh_l0.grad.unflatten(0, (4, 6))[[0, 1, 3, 2]]
    torch.testing.assert_close(lstm.weight_state.grad, theirs, rtol=1e-10, atol=1e-12)


def test_forget_gates_start_open_and_weights_within_their_bound() -> None:
    torch.manual_seed(0)
    lstm = Lstm(5, 16)
    assert lstm.bias[1].tolist() == [1.0] * 16
    assert all(w.abs().max() <= 0.25 for w in (lstm.weight_in, lstm.weight_state, lstm.bias[[0, 2, 3]]))
    assert float(lstm.weight_in.detach().std()) == pytest.approx(0.25 / math.sqrt(3), rel=0.15)


@pytest.mark.parametrize("frames", [1, 4, 6, 7, 8])
def test_h_rnn_reads_the_states_of_its_blocks(frames: int) -> None:
    encoder = HRnnEncoder(PLAIN, 3, lower=5, upper=4, block_length=3)
    scrambled(encoder)
    lower, upper = torch_twin(encoder.lower, 3, 5), torch_twin(encoder.upper, 5, 4)
    x = features(2, frames, 3)
    states = torch.stack([lower(block)[1][0][0] for block in x.split(3, dim=1)], dim=1)
    torch.testing.assert_close(encoder(x), upper(states)[1][0][0], rtol=1e-12, atol=1e-12)


def normed(value: Tensor, norm: nn.BatchNorm1d, channel: int) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    spread = torch.sqrt(norm.running_var[channel] + norm.eps)
    return (value - norm.running_mean[channel]) / spread * norm.weight[channel] + norm.bias[channel]


def unit(vector: Tensor) -> Tensor:
    return vector / max(float(vector.norm()), 1e-6)


@torch.no_grad()
def slow_gated(layer: nn.Sequential, descriptor: Tensor) -> Tensor:
    linear, norm, gating = layer
    assert isinstance(norm, nn.BatchNorm1d)
    x = torch.stack([normed(linear.weight[c] @ descriptor, norm, c) for c in range(len(linear.weight))])
    gates = [torch.sigmoid(normed(gating.linear.weight[c] @ x, gating.norm, c)) for c in range(len(x))]
    return x * torch.stack(gates)


def test_net_vlad_is_what_loops_over_frames_and_clusters_give() -> None:
    encoder = NetVladEncoder(PLAIN, 4, clusters=3, hidden=5)
    scrambled(encoder)
    batch = features(2, 6, 4)
    pool = encoder.pool
    with torch.no_grad():
        rows = []
        for sequence in batch:
            sums = torch.zeros(3, 4, dtype=torch.float64)
            for raw in sequence:
                frame = torch.stack([normed(raw[d], encoder.norm, d) for d in range(4)])
                scores = [normed(pool.assign.weight[k] @ frame, pool.norm, k) for k in range(3)]
                share = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
                for k in range(3):
                    sums[k] += share[k] * (frame - pool.centres[k])
            descriptor = unit(torch.cat([unit(v) for v in sums]))
            assert isinstance(encoder.layer, nn.Sequential)
            rows.append(slow_gated(encoder.layer, descriptor))
        torch.testing.assert_close(encoder(batch), torch.stack(rows), rtol=1e-10, atol=1e-12)


def test_nextvlad_is_what_loops_over_frames_groups_and_clusters_give() -> None:
    encoder = NextVladEncoder(PLAIN, 6, clusters=3, groups=4, expansion=2, hidden=16, reduction=8, dropout=0.5)
    scrambled(encoder)
    batch = features(2, 5, 6)
    pool = encoder.pool
    assert isinstance(encoder.layer, nn.Sequential)
    _, linear, norm, gating = encoder.layer
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.no_grad():
        rows = []
        for sequence in batch:
            sums = torch.zeros(3, 3, dtype=torch.float64)
            for raw in sequence:
                frame = encoder.expand.weight @ raw + encoder.expand.bias
                for g in range(4):
                    attention = torch.sigmoid(pool.attend.weight[g] @ frame + pool.attend.bias[g])
                    scores = [normed(pool.assign.weight[k * 4 + g] @ frame, pool.norm, k * 4 + g) for k in range(3)]
                    share = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
                    for k in range(3):
                        sums[k] += attention * share[k] * (frame[3 * g : 3 * g + 3] - pool.centres[k])
            flat = torch.cat([unit(v) for v in sums])
            flat = torch.stack([normed(flat[c], pool.out_norm, c) for c in range(9)])
            x = torch.stack([normed(linear.weight[c] @ flat, norm, c) for c in range(16)])
            inner = [normed(gating.squeeze.weight[c] @ x, gating.norm, c).clamp_min(0) for c in range(2)]
            rows.append(x * torch.sigmoid(gating.excite.weight @ torch.stack(inner) + gating.excite.bias))
        torch.testing.assert_close(encoder(batch), torch.stack(rows), rtol=1e-10, atol=1e-12)


def test_vectors_of_zero_length_stay_zero_and_have_gradients() -> None:
    encoder = NetVladEncoder(PLAIN, 4, clusters=2, hidden=3)
    scrambled(encoder)
    with torch.no_grad():
        encoder.norm.weight.zero_()
        encoder.norm.bias.zero_()
        encoder.pool.centres.zero_()
    x = features(2, 3, 4).requires_grad_()
    pooled = encoder.pool(encoder.norm(x).transpose(1, 2))
    assert pooled.abs().max() == 0
    encoder(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


def probabilities(moe: MixtureOfExperts, x: Tensor, classes: int) -> Tensor:
    gates = moe.gates(x).reshape(len(x), moe.experts + 1, classes).softmax(1)
    experts = moe.scores(x).reshape(len(x), moe.experts, classes).sigmoid()
    return (gates[:, : moe.experts] * experts).sum(1)


@pytest.mark.parametrize("experts", [1, 2, 5])
def test_cross_entropy_of_the_logits_is_that_of_the_mixture(experts: int) -> None:
    moe = MixtureOfExperts(6, 7, experts)
    scrambled(moe)
    x, labels = features(9, 6), (features(9, 7, seed=2) > 0).double()
    p = probabilities(moe, x, 7)
    torch.testing.assert_close(moe(x).sigmoid(), p, rtol=1e-12, atol=1e-14)
    direct = F.binary_cross_entropy(p, labels)
    torch.testing.assert_close(F.binary_cross_entropy_with_logits(moe(x), labels), direct, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [40.0, 300.0])
def test_sure_experts_neither_overflow_nor_round_to_infinity(scale: float) -> None:
    moe = MixtureOfExperts(3, 4, 2)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.mul_(scale)
    logits = moe(x)
    assert bool(logits.isfinite().all())
    wide = MixtureOfExperts(3, 4, 2).double()
    wide.load_state_dict(moe.state_dict())
    torch.testing.assert_close(logits.double(), wide(x.double()), rtol=1e-4, atol=1e-4)
    F.binary_cross_entropy_with_logits(logits, torch.ones(8, 4)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in moe.parameters())
