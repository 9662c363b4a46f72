"""Parts of the space `frame_sequence`: the LSTM over blocks, pooling by clusters, gatings, the mixture of experts.

Every parameter at a smaller size is a leading block of that at a larger one, so one set of weights serves all sizes.
That is why an LSTM keeps its four gates on an axis of their own, and why a descriptor runs through its clusters first.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-12  # of squared norms, below which a vector is not normalised any further


class Lstm(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber, 1997) that reads each block of a sequence from a zero state.

    i, f, o = σ(W x + U h + b);  g = tanh(W x + U h + b);  c = f · c + i · g;  h = o · tanh(c)

    All blocks run side by side, so it takes as many steps as a block is long. The state before the first step is zero,
    so that step has no product with U, and costs none. As in Jozefowicz et al. (ICML 2015), forget gates start open.

    Args:
        inputs: channels of the input.
        hidden: size of the state.
        block_length: frames of a block, the last of which may be shorter; one block by default.

    Attributes:
        weight_in: (4, hidden, inputs) W of the gates i, f, o, g.
        weight_state: (4, hidden, hidden) U.
        bias: (4, hidden).
    """

    def __init__(self, inputs: int, hidden: int, block_length: int | None = None) -> None:
        super().__init__()
        self.block_length = block_length
        self.weight_in = nn.Parameter(torch.empty(4, hidden, inputs))
        self.weight_state = nn.Parameter(torch.empty(4, hidden, hidden))
        self.bias = nn.Parameter(torch.empty(4, hidden))
        bound = 1 / math.sqrt(hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        with torch.no_grad():
            self.bias[1] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """The last states of the blocks: (N, C, T) -> (N, hidden, ⌈T / block_length⌉)."""
        # Contiguous, since a supernet gives slices, and strides may decide how a product is rounded.
        weight_in, weight_state = (w.flatten(0, 1).contiguous() for w in (self.weight_in, self.weight_state))
        projected = F.linear(x.transpose(1, 2), weight_in, self.bias.flatten())
        return last_states(projected, weight_state, self.block_length or int(x.shape[2])).transpose(1, 2)


def last_states(projected: Tensor, weight_state: Tensor, block_length: int) -> Tensor:
    """The recurrence of `Lstm` over all blocks at once.

    Args:
        projected: (N, T, 4 · hidden) W x + b of the gates i, f, o, g.
        weight_state: (4 · hidden, hidden) U.
        block_length: frames of a block.

    Returns:
        (N, ⌈T / block_length⌉, hidden).
    """
    total = int(projected.shape[1])  # under a tracer it is no integer
    length = min(block_length, total)
    blocks, rest = divmod(total, length)
    whole = projected[:, : blocks * length]
    steps = whole.reshape(-1, blocks, length, whole.shape[-1]).unbind(2)
    short = projected[:, blocks * length :].unbind(1) if rest else ()
    hidden = cell = ended = None
    for t, gates in enumerate(steps):
        if t < rest:
            gates = torch.cat([gates, short[t].unsqueeze(1)], dim=1)
        if hidden is not None and cell is not None:
            if t == rest and rest:  # the short block is over
                ended, hidden, cell = hidden[:, blocks:], hidden[:, :blocks].contiguous(), cell[:, :blocks]
            gates = gates + F.linear(hidden, weight_state)
        size = weight_state.shape[1]
        admit, forget, show = gates[..., : 3 * size].sigmoid().chunk(3, dim=-1)
        fresh = admit * gates[..., 3 * size :].tanh()
        cell = fresh if cell is None else forget * cell + fresh
        hidden = show * cell.tanh()
    assert hidden is not None, "a sequence has at least one frame"
    return hidden if ended is None else torch.cat([hidden, ended], dim=1)


def unit_vectors(x: Tensor) -> Tensor:
    """x / ‖x‖ along the last axis; zero stays zero."""
    return x * x.square().sum(-1, keepdim=True).clamp_min(EPSILON).rsqrt()


class FrameNorm(nn.BatchNorm1d):
    """BatchNorm of features over items and frames alike: (N, T, D) -> (N, T, D)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised features."""
        return super().forward(input.flatten(0, 1)).reshape(-1, *input.shape[1:])


class VladPool(nn.Module):
    """NetVLAD (Arandjelovic et al., CVPR 2016, eq. 4): how the frames lie around learnt centres.

    a = softmax(BN(W x));  V_k = Σ_t a_tk (x_t − c_k), each V_k of unit length, and the whole too

    As in Miech et al. (2017, arXiv 1706.06905), W and the centres are independent, and BatchNorm takes the bias' place.
    """

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        self.assign = nn.Linear(features, clusters, bias=False)
        self.norm = FrameNorm(clusters)
        self.centres = nn.Parameter(torch.empty(clusters, features))
        for weight in (self.assign.weight, self.centres):
            nn.init.normal_(weight, std=1 / math.sqrt(features))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, T) -> (N, K · D)."""
        frames = x.transpose(1, 2)
        share = self.norm(self.assign(frames)).softmax(-1).transpose(1, 2)
        residuals = torch.matmul(share, frames) - share.sum(-1, keepdim=True) * self.centres
        return unit_vectors(unit_vectors(residuals).flatten(1))


class GroupedVladPool(nn.Module):
    """NeXtVLAD (Lin et al., ECCV workshops 2018, eq. 3-6): the same over groups of an expanded frame, with attention.

    α = σ(A e + b);  a = softmax over clusters of BN(W e);  V_k = Σ_t Σ_g α_tg a_tgk (e_tg − c_k)

    where e_tg is the g-th part of the expanded frame e_t. Each V_k has unit length; BatchNorm follows, as in the
    authors' code.
    """

    def __init__(self, features: int, clusters: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        part = features // groups
        self.attend = nn.Linear(features, groups)
        self.assign = nn.Linear(features, clusters * groups, bias=False)
        self.norm = FrameNorm(clusters * groups)
        self.centres = nn.Parameter(torch.empty(clusters, part))
        nn.init.normal_(self.assign.weight, std=1 / math.sqrt(features))
        nn.init.normal_(self.centres, std=1 / math.sqrt(part))
        self.out_norm = nn.BatchNorm1d(clusters * part)

    def forward(self, x: Tensor) -> Tensor:
        """(N, λD, T) expanded frames -> (N, K · λD / G)."""
        frames = x.transpose(1, 2)
        clusters, part = self.centres.shape
        share = self.norm(self.assign(frames)).unflatten(-1, (clusters, self.groups)).softmax(2)
        share = share * self.attend(frames).sigmoid().unsqueeze(2)
        share = share.transpose(1, 2).flatten(2)  # (N, K, T · G)
        parts = frames.reshape(-1, share.shape[2], part)
        residuals = torch.matmul(share, parts) - share.sum(-1, keepdim=True) * self.centres
        normed: Tensor = self.out_norm(unit_vectors(residuals).flatten(1))
        return normed


class ContextGating(nn.Module):
    """x · σ(BN(W x)) (Miech et al., 2017, section 3.2; BatchNorm as in their code)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size, bias=False)
        self.norm = nn.BatchNorm1d(size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        gate: Tensor = self.norm(self.linear(x)).sigmoid()
        return x * gate


class SqueezeGating(nn.Module):
    """x · σ(W₂ relu(BN(W₁ x)) + b): through a layer `reduction` times narrower (Lin et al., 2018, section 3.3)."""

    def __init__(self, size: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(size, size // reduction, bias=False)
        self.norm = nn.BatchNorm1d(size // reduction)
        self.excite = nn.Linear(size // reduction, size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        gate: Tensor = self.excite(self.norm(self.squeeze(x)).relu()).sigmoid()
        return x * gate


def gated_layer(c_in: int, c_out: int) -> nn.Module:
    """The layer behind a NetVLAD descriptor: linear, BatchNorm, context gating."""
    return nn.Sequential(nn.Linear(c_in, c_out, bias=False), nn.BatchNorm1d(c_out), ContextGating(c_out))


def squeezed_layer(c_in: int, c_out: int, *, reduction: int, dropout: float) -> nn.Module:
    """The layer behind a NeXtVLAD descriptor: dropout, linear, BatchNorm, gating through a narrow layer."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(c_in, c_out, bias=False),
        nn.BatchNorm1d(c_out),
        SqueezeGating(c_out, reduction),
    )


class MixtureOfExperts(nn.Module):
    """For each class, experts and a gate among them (Abu-El-Haija et al., YouTube-8M, 2016, section 4).

    p = Σ_e g_e σ(x_e), with g the softmax over all experts and one more, a dummy that says no

    What comes out is the logit log p − log(1 − p), so binary cross-entropy with logits is that of p. With the gates'
    scores a it is lse_e(a_e + log σ(x_e)) − lse(a_0, a_e + log σ(−x_e)): the softmax' denominator cancels, and nothing
    overflows or rounds to log 0.
    """

    def __init__(self, features: int, num_classes: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.gates = nn.Linear(features, (experts + 1) * num_classes, bias=False)
        self.scores = nn.Linear(features, experts * num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> logits (N, num_classes)."""
        gates = self.gates(x).unflatten(-1, (self.experts + 1, -1))
        scores = self.scores(x).unflatten(-1, (self.experts, -1))
        choice, dummy = gates[:, :-1], gates[:, -1:]
        yes = choice - F.softplus(-scores, threshold=40)
        no = torch.cat([choice - F.softplus(scores, threshold=40), dummy], dim=1)
        return _log_sum_exp(yes) - _log_sum_exp(no)


def _log_sum_exp(x: Tensor) -> Tensor:
    """Over axis 1, out of operators that the FLOP counter knows."""
    largest = x.detach().amax(1, keepdim=True)
    return (x - largest).exp().sum(1).log() + largest.squeeze(1)


def classifier(c_in: int, num_classes: int, *, head: str, experts: int) -> nn.Module:
    """The classifier of that name."""
    return nn.Linear(c_in, num_classes) if head == "linear" else MixtureOfExperts(c_in, num_classes, experts)
