"""Candidates of a delta layer: cheap students h that predict how the output of a teacher's layer f changes.

Every candidate predicts f(x) − f(x_0) as h(x) − h(x_0). Where h is linear and without bias that is h(x − x_0), the form
of Delta Distillation (Habibian et al., ECCV 2022, arXiv 2203.09594); a non-linear h sees the pair (x_0, x) through the
same net twice. Either way a frame that equals the key frame changes nothing, bit by bit, and a chain of changes adds
up to the change of the whole: there is no drift.

Deviation for non-linear students: the paper leaves their form open. The difference of one net was chosen since its half
for the key frame, h(x_0), is computed once an interval and kept.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_kd.search_spaces.delta_blocks.arithmetic import Minus
from nas_kd.search_spaces.operators import error_sentence


class DeltaOp(nn.Module, ABC):
    """h of a delta layer, as the change between a key frame and another one."""

    @abstractmethod
    def remember(self, key: Tensor) -> tuple[Tensor, ...]:
        """What of the key frame's input the other frames need: tensors with the rows of `key`."""

    @abstractmethod
    def change(self, x: Tensor, *memory: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """h(x) − h(x_0), broadcastable to the layer's output; and what `remember(x)` would give."""

    def forward(self, x: Tensor, key: Tensor) -> Tensor:
        """h(x) − h(x_0).

        Args:
            x: (R · N, ...) inputs of R frames.
            key: (N, ...) inputs of their key frames.
        """
        memory = self.remember(key)
        return self.change(x, *(repeated(tensor, x, key) for tensor in memory))[0]


class LinearDelta(DeltaOp):
    """h(x − x_0) for a linear h without bias."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.minus = body, Minus()

    def remember(self, key: Tensor) -> tuple[Tensor, ...]:
        return (key,)

    def change(self, x: Tensor, *memory: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.body(self.minus(x, memory[0])), (x,)


class PairDelta(DeltaOp):
    """h(x) − h(x_0) for any h. h stays in evaluation mode, so that both halves are the same function."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.minus = body, Minus()
        self.body.eval()

    def train(self, mode: bool = True) -> PairDelta:
        """Statistics and dropout of a copied block belong to the teacher."""
        super().train(mode)
        self.body.eval()
        return self

    def remember(self, key: Tensor) -> tuple[Tensor, ...]:
        return (self.body(key),)

    def change(self, x: Tensor, *memory: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        response = self.body(x)
        return self.minus(response, memory[0]), (response,)


class ZeroDelta(DeltaOp):
    """The key frame's output is kept."""

    def remember(self, key: Tensor) -> tuple[Tensor, ...]:
        return ()

    def change(self, x: Tensor, *memory: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return x.new_zeros(()), ()


def repeated(tensor: Tensor, like: Tensor, key: Tensor) -> Tensor:
    """Rows of key frames repeated for the R frames that refer to them, as (R · N, ...)."""
    if like.shape[0] == key.shape[0]:  # before any int(): an exported graph keeps its batch size open
        return tensor
    times = int(like.shape[0]) // int(key.shape[0])
    return tensor.repeat(times, *(1,) * (tensor.ndim - 1))


@dataclass(frozen=True)
class LayerShape:
    """What a candidate must know of the layer that it stands for.

    Attributes:
        in_channels: C of the input, (N, C, H, W), or the last dimension of tokens (N, L, C).
        out_channels: channels of the output.
        kernel: (height, width).
        stride: (height, width).
        padding: (height, width).
        dilation: (height, width).
        groups: of the teacher's convolution.
        out_size: (H, W) of the output; None for tokens.
        weight: the teacher's kernel (O, I / groups, kh, kw), or (O, I) for tokens; None for a whole block.
        bases: filled with decompositions of the kernel where several candidates are built from one; None keeps none.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    out_size: tuple[int, int] | None
    weight: Tensor | None = field(repr=False)
    bases: dict[str, Tensor] | None = field(default=None, compare=False, repr=False)

    @property
    def tokens(self) -> bool:
        """Whether the layer maps tokens and not pixels."""
        return self.out_size is None

    @property
    def pointwise(self) -> bool:
        """Whether the layer looks at one pixel or token at a time."""
        return self.kernel == (1, 1)

    def rank(self, gamma: int) -> int:
        """min(C_in, C_out) / γ, at least 1."""
        return max(1, min(self.in_channels, self.out_channels) // gamma)

    def poolable(self, factor: int) -> bool:
        """Whether there are pixels to pool by `factor`, and the kernel still fits into what is left."""
        if self.out_size is None or min(self.out_size) < 4:
            return False
        for out, kernel, stride, padding, dilation in zip(
            self.out_size, self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            reach = dilation * (kernel - 1) + 1
            least = (out - 1) * stride + reach - 2 * padding  # the smallest input with that output
            if ceil(least / factor) + 2 * padding < reach:
                return False
        return True


class Resized(nn.Module):
    """A body at a fraction of the resolution: average-pooled before, brought back to `size` after.

    Args:
        body: at the lower resolution.
        factor: 2 is half the resolution.
        size: (H, W) of the result.
        shuffle: the body gives factor² as many channels, which become pixels; otherwise bilinear upsampling.
    """

    def __init__(self, body: nn.Module, factor: int, size: tuple[int, int], *, shuffle: bool = False) -> None:
        super().__init__()
        self.body, self.factor, self.size, self.shuffle = body, factor, size, shuffle

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', *size)."""
        low = self.body(F.avg_pool2d(x, self.factor, ceil_mode=True, count_include_pad=False))
        if self.shuffle:
            return F.pixel_shuffle(low, self.factor)[..., : self.size[0], : self.size[1]]
        return F.interpolate(low, size=self.size, mode="bilinear", align_corners=False)


def _conv(shape: LayerShape, c_in: int, c_out: int, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias at the kernel, stride, padding and dilation of the layer."""
    return nn.Conv2d(
        c_in, c_out, shape.kernel, shape.stride, shape.padding, shape.dilation, groups=groups, bias=False
    )  # fmt: skip


def _dense(shape: LayerShape, c_in: int, c_out: int) -> nn.Module:
    """A map of channels alone."""
    return nn.Linear(c_in, c_out, bias=False) if shape.tokens else nn.Conv2d(c_in, c_out, 1, bias=False)


def _set(module: nn.Module, weight: Tensor) -> None:
    """Give a layer its weight, in the layer's own shape."""
    own = module.weight
    assert isinstance(own, Tensor)
    with torch.no_grad():
        own.copy_(weight.reshape(own.shape))


def _silence(module: nn.Module) -> None:
    """Start at no change at all; the gradient still reaches this layer."""
    own = module.weight
    assert isinstance(own, Tensor)
    nn.init.zeros_(own)


def _basis(shape: LayerShape, unfolding: str, matrix: Tensor) -> Tensor:
    """Left singular vectors of `matrix` by falling singular value, double precision.

    By the eigenvectors of its Gram matrix, several times faster than a singular value decomposition; what that loses
    lies below 1e-8 of the largest singular value, under the precision of the weights.
    """
    if shape.bases is not None and unfolding in shape.bases:
        return shape.bases[unfolding]
    tall = matrix.shape[0] > matrix.shape[1]
    q, square = torch.linalg.qr(matrix) if tall else (None, matrix)
    basis: Tensor = torch.linalg.eigh(square @ square.T)[1].flip(1)
    basis = basis if q is None else q @ basis
    if shape.bases is not None:
        shape.bases[unfolding] = basis
    return basis


def _factors(shape: LayerShape, unfolding: str, matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(a, b) of truncated singular vectors with a @ b ≈ matrix, the roots of the singular values on both sides."""
    if not matrix.any():  # costs are measured without a kernel
        return matrix.new_zeros(matrix.shape[0], rank), matrix.new_zeros(rank, matrix.shape[1])
    matrix = matrix.double().cpu()
    u = _basis(shape, unfolding, matrix)[:, :rank]
    b = u.T @ matrix
    root = b.norm(dim=1).sqrt()
    a, b = u * root, b / root.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    missing = rank - len(root)
    if missing > 0:
        a, b = F.pad(a, (0, missing)), F.pad(b, (0, 0, 0, missing))
    return a.float(), b.float()


def _copy_of(shape: LayerShape, gamma: int) -> nn.Module:
    weight = shape.weight
    assert weight is not None, "a block is copied by its space"
    body = (
        nn.Linear(shape.in_channels, shape.out_channels, bias=False)
        if shape.tokens
        else _conv(shape, shape.in_channels, shape.out_channels, shape.groups)
    )
    _set(body, weight)
    return body


def _split(shape: LayerShape, gamma: int) -> nn.Module:
    """k×1 to `rank` channels, then 1×k (W_b of the released code; the split of Jaderberg et al., BMVC 2014)."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = shape.kernel, shape.stride, shape.padding, shape.dilation
    rank = shape.rank(gamma)
    first = nn.Conv2d(shape.in_channels, rank, (kh, 1), (sh, 1), (ph, 0), (dh, 1), bias=False)
    second = nn.Conv2d(rank, shape.out_channels, (1, kw), (1, sw), (0, pw), (1, dw), bias=False)
    if shape.weight is None:
        _silence(second)
    else:
        o, i = shape.weight.shape[:2]
        a, b = _factors(shape, "rows", shape.weight.permute(0, 3, 1, 2).reshape(o * kw, i * kh), rank)
        _set(first, b)
        _set(second, a.reshape(o, kw, rank).transpose(1, 2))
    return nn.Sequential(first, second)


def _pointwise(shape: LayerShape, gamma: int) -> nn.Module:
    """Two maps of channels through `rank`: the kernel's response to a change that is even over its window."""
    rank = shape.rank(gamma)
    first, second = _dense(shape, shape.in_channels, rank), _dense(shape, rank, shape.out_channels)
    if shape.stride != (1, 1):
        first = nn.Conv2d(shape.in_channels, rank, 1, shape.stride, bias=False)
    if shape.weight is None:
        _silence(second)
    else:
        matrix = shape.weight.flatten(2).sum(2) if shape.weight.ndim == 4 else shape.weight
        a, b = _factors(shape, "sum", matrix, rank)
        _set(first, b)
        _set(second, a)
    return nn.Sequential(first, second)


def _bottleneck(shape: LayerShape, gamma: int) -> nn.Module:
    """1×1 to `rank` channels, the kernel there, 1×1 back; from the truncated higher-order SVD (De Lathauwer, 2000)."""
    rank = shape.rank(gamma)
    reduce = nn.Conv2d(shape.in_channels, rank, 1, bias=False)
    core, expand = _conv(shape, rank, rank), nn.Conv2d(rank, shape.out_channels, 1, bias=False)
    if shape.weight is None or not shape.weight.any():
        _silence(expand)
    else:
        w = shape.weight.double().cpu()
        out_basis = _basis(shape, "out", w.flatten(1))[:, :rank]
        in_basis = _basis(shape, "in", w.transpose(0, 1).flatten(1))[:, :rank]
        _set(reduce, in_basis.T.float())
        _set(core, torch.einsum("oiyx,or,is->rsyx", w, out_basis, in_basis).float())
        _set(expand, out_basis.float())
    return nn.Sequential(reduce, core, expand)


def _grouped(shape: LayerShape, gamma: int) -> nn.Module:
    """γ groups, each with its block of the teacher's kernel."""
    groups = gcd(gcd(shape.in_channels, shape.out_channels), gamma)
    body = _conv(shape, shape.in_channels, shape.out_channels, groups)
    if shape.weight is None:
        _silence(body)
    else:
        rows, columns = shape.out_channels // groups, shape.in_channels // groups
        blocks = [
            shape.weight[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(groups)
        ]  # fmt: skip
        _set(body, torch.cat(blocks))
    return body


def _separable(shape: LayerShape, gamma: int) -> nn.Module:
    """Depthwise, then 1×1: of each input channel the best kernel of rank 1."""
    depthwise = _conv(shape, shape.in_channels, shape.in_channels, shape.in_channels)
    mix = nn.Conv2d(shape.in_channels, shape.out_channels, 1, bias=False)
    if shape.weight is None:
        _silence(mix)
    else:
        w = shape.weight.double().cpu().transpose(0, 1).flatten(2)  # (I, O, kh · kw)
        kernels = torch.linalg.eigh(w.transpose(1, 2) @ w)[1][:, :, -1:]
        _set(depthwise, kernels.float())
        _set(mix, (w @ kernels)[:, :, 0].T.float())
    return nn.Sequential(depthwise, mix)


def _lowres(shape: LayerShape, gamma: int) -> nn.Module:
    """The layer itself at 1 / γ of the resolution, upsampled."""
    assert shape.out_size is not None
    if shape.weight is None:
        body: nn.Module = _conv(shape, shape.in_channels, shape.out_channels)
        _silence(body)
    else:
        body = _copy_of(shape, gamma)
    return Resized(body, gamma, shape.out_size)


def _shuffle(shape: LayerShape, gamma: int) -> nn.Module:
    """At half the resolution: the kernel to `rank` channels, 1×1 to four times the outputs, which become pixels."""
    assert shape.out_size is not None
    rank = shape.rank(gamma)
    first = _conv(shape, shape.in_channels, rank)
    second = nn.Conv2d(rank, 4 * shape.out_channels, 1, bias=False)
    if shape.weight is None:
        _silence(second)
    else:
        a, b = _factors(shape, "out", shape.weight.flatten(1), rank)
        _set(first, b)
        _set(second, a.repeat_interleave(4, dim=0))
    return Resized(nn.Sequential(first, second), 2, shape.out_size, shuffle=True)


def _nonlinear(shape: LayerShape, gamma: int) -> nn.Module:
    """1×1 to `rank` channels, ReLU, the kernel there, ReLU, 1×1 back; it starts at no change."""
    rank = shape.rank(gamma)
    core = _dense(shape, rank, rank) if shape.tokens else _conv(shape, rank, rank)
    expand = _dense(shape, rank, shape.out_channels)
    _silence(expand)
    return nn.Sequential(_dense(shape, shape.in_channels, rank), nn.ReLU(), core, nn.ReLU(), expand)


@dataclass(frozen=True)
class CandidateFamily:
    """One kind of candidate.

    Attributes:
        build: (shape of the layer, γ) -> h.
        takes_gamma: whether the name ends with γ.
        linear: whether h is linear and without bias.
        fits: (shape of a layer, γ) -> whether it can have it.
    """

    build: Callable[[LayerShape, int], nn.Module]
    takes_gamma: bool
    linear: bool
    fits: Callable[[LayerShape, int], bool]


def _spatial(shape: LayerShape, gamma: int) -> bool:
    return not shape.tokens and shape.groups == 1 and not shape.pointwise


CANDIDATE_FAMILIES: dict[str, CandidateFamily] = {
    "full": CandidateFamily(_copy_of, False, True, lambda shape, gamma: shape.weight is not None),
    "split": CandidateFamily(_split, True, True, _spatial),
    "pointwise": CandidateFamily(_pointwise, True, True, lambda shape, gamma: shape.groups == 1),
    "bottleneck": CandidateFamily(_bottleneck, True, True, _spatial),
    "grouped": CandidateFamily(_grouped, True, True, lambda shape, gamma: not shape.tokens and shape.groups == 1),
    "separable": CandidateFamily(_separable, False, True, _spatial),
    "lowres": CandidateFamily(_lowres, True, True, lambda shape, gamma: shape.poolable(gamma)),
    "shuffle": CandidateFamily(_shuffle, True, True, lambda shape, gamma: shape.groups == 1 and shape.poolable(2)),
    "pair": CandidateFamily(_nonlinear, True, False, lambda shape, gamma: shape.groups == 1),
}
"""Family -> how it is built. A name such as `split4` is the family `split` with γ = 4; `zero` is built by the space."""


def parse_candidate(name: str) -> tuple[str, int]:
    """(family, γ) of a candidate's name; γ is 1 for families without.

    Raises:
        ValueError: no such family, or γ is missing, superfluous or below 2.
    """
    fitting = [family for family in CANDIDATE_FAMILIES if re.fullmatch(rf"{re.escape(family)}\d*", name)]
    if not fitting:
        known = ", ".join(f"{n}γ" if f.takes_gamma else n for n, f in CANDIDATE_FAMILIES.items())
        raise ValueError(
            f"unknown candidate {name!r}; choose from zero, {known} with a number for γ, such as split4, or give your "
            "own as module:function"
        )
    family = max(fitting, key=len)
    gamma = name.removeprefix(family)
    takes = CANDIDATE_FAMILIES[family].takes_gamma
    if takes != bool(gamma) or (takes and int(gamma) < 2):
        wanted = f"a number of at least 2 after it, such as {family}4" if takes else "no number"
        raise ValueError(f"candidate {name!r}: {family} takes {wanted}")
    return family, int(gamma or 1)


def own_candidate(name: str, build: Callable[[LayerShape], Any], shape: LayerShape) -> DeltaOp | None:
    """The candidate that a function of the user's builds for a layer.

    Args:
        name: of the function, for the sentence.
        build: shape of a layer -> h, which maps the layer's input to its output's shape; None where the layer cannot
            have it. A `LinearDelta(h)` where h is linear and without bias: it then runs once a frame, on the
            difference. The layer's kernel in the shape is zero where costs are measured.
        shape: of the layer.

    Raises:
        ValueError: the function fails, or returns something else.
    """
    try:
        made = build(shape)
    except Exception as error:
        raise ValueError(
            f"operator {name!r} cannot be built for {shape}: {error_sentence(error)}; return None where a layer cannot "
            "have it"
        ) from error
    if made is None or isinstance(made, LinearDelta | PairDelta):
        return made
    if not isinstance(made, nn.Module) or isinstance(made, DeltaOp):
        raise ValueError(
            f"operator {name!r} must return a torch.nn.Module, a LinearDelta of one, or None, but returns a "
            f"{type(made).__name__}"
        )
    return PairDelta(made)


def build_candidate(name: str, shape: LayerShape) -> DeltaOp | None:
    """The candidate of that name for a layer; None where the layer cannot have it."""
    if name == "zero":
        return ZeroDelta()
    family_name, gamma = parse_candidate(name)
    family = CANDIDATE_FAMILIES[family_name]
    if not family.fits(shape, gamma):
        return None
    body = family.build(shape, gamma)
    return LinearDelta(body) if family.linear else PairDelta(body)
