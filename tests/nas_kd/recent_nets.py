"""Further kinds of nets that users bring as teachers, with random weights, for clips of 4 frames of 32 pixels."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from own_nets import PATCH, WIDTH, Block, Clips, T, _stages
from torch import Tensor, nn


class TakesBytes(Clips):
    """uint8 (N, 3, T, H, W) -> logits: it normalises by itself."""

    def pooled(self, clip: Tensor) -> Tensor:
        if clip.dtype != torch.uint8:
            raise TypeError(f"bytes are wanted, not {clip.dtype}")
        return super().pooled(clip.float() / 255 - 0.45)


class AuxiliaryHead(Clips):
    """A dict with an answer of an early stage in training, logits in evaluation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.early = nn.Linear(WIDTH, num_classes)

    def forward(self, clip: Tensor) -> Any:
        first = self.stages[0](clip)
        logits = self.head(self.stages[1](first).mean((2, 3, 4)))
        return {"out": logits, "aux": self.early(first.mean((2, 3, 4)))} if self.training else logits


class ConvLstm(nn.Module):
    """(N, T, 3, H, W) -> logits: a recurrent net whose state is a map (Shi et al., NeurIPS 2015)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stages = _stages(2)
        self.gates = nn.Conv2d(4 * WIDTH, 8 * WIDTH, 3, padding=1)
        self.head = nn.Linear(2 * WIDTH, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        maps = self.stages(clip.flatten(0, 1)).unflatten(0, (len(clip), -1))
        hidden = cell = torch.zeros_like(maps[:, 0])
        for step in range(maps.shape[1]):
            i, f, g, o = self.gates(torch.cat([maps[:, step], hidden], 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return self.head(hidden.mean((2, 3)))


class FlowInside(nn.Module):
    """Appearance, and motion from the correlation of neighbouring frames, computed in the net."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.appearance, self.frame = _stages(3), nn.Conv2d(3, 6, 3, 2, 1)
        self.motion = nn.Sequential(nn.Conv2d(9, WIDTH, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(3 * WIDTH, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.frame(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clip), -1))
        h, w = frames.shape[-2:]
        here, later = frames[:, :-1].flatten(0, 1), F.pad(frames[:, 1:].flatten(0, 1), (1, 1, 1, 1))
        shifted = [(here * later[:, :, i : i + h, j : j + w]).sum(1) for i in range(3) for j in range(3)]
        motion = self.motion(torch.stack(shifted, 1)).mean((2, 3)).unflatten(0, (len(clip), -1)).mean(1)
        return self.head(torch.cat([self.appearance(clip).mean((2, 3, 4)), motion], 1))


class DividedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.space = Block(16), Block(16)

    def forward(self, x: Tensor) -> Tensor:
        n, patches = len(x), x.shape[1] // T
        by_patch = x.unflatten(1, (T, patches)).transpose(1, 2).flatten(0, 1)
        x = self.time(by_patch).unflatten(0, (n, patches)).transpose(1, 2)
        return self.space(x.flatten(0, 1)).reshape(n, T * patches, -1)


class DividedAttention(nn.Module):
    """Attention over time and space in turns, tokens in the order of frames, without a class token."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, 16, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.position = nn.Parameter(torch.randn(1, T * 16, 16) / 4)
        self.blocks = nn.ModuleList(DividedBlock() for _ in range(2))
        self.head = nn.Linear(16, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.embed(clip).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class ScanLayer(nn.Module):
    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mix = nn.Conv1d(width, width, 3, padding=2, groups=width)
        self.step, self.both = nn.Linear(width, width), nn.Linear(width, 2 * states)
        self.decay = nn.Parameter(-torch.rand(width, states))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.enter(self.norm(x)).chunk(2, -1)
        value = F.silu(self.mix(value.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, (write, read) = F.softplus(self.step(value)), self.both(value).chunk(2, -1)
        state, found = x.new_zeros(len(x), *self.decay.shape), []
        for t in range(x.shape[1]):
            now = step[:, t, :, None]
            state = torch.exp(now * self.decay) * state + now * write[:, t, None] * value[:, t, :, None]
            found.append(torch.einsum("nds,ns->nd", state, read[:, t]))
        return x + self.leave(torch.stack(found, 1) * F.silu(gate))


class Scan(nn.Module):
    """A selective state space over all tokens (Gu and Dao, Mamba, 2023)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, 16, (2, PATCH, PATCH), (2, PATCH, PATCH))
        self.layers = nn.ModuleList(ScanLayer(16, 4) for _ in range(2))
        self.head = nn.Linear(16, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.embed(clip).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class PooledBlock(nn.Module):
    def __init__(self, width: int, out: int, side: int, stride: int) -> None:
        super().__init__()
        self.grid = (T, side, side)
        self.norm, self.qkv, self.project = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, out)
        self.query = nn.Conv3d(width, width, 3, (1, stride, stride), 1, groups=width)
        self.keys = nn.Conv3d(width, width, 3, (1, 2, 2), 1, groups=width)
        self.pool = nn.MaxPool3d((1, stride, stride))

    def forward(self, x: Tensor) -> Tensor:
        def pooled(tokens: Tensor, by: nn.Module) -> Tensor:
            return by(tokens.transpose(1, 2).unflatten(2, self.grid)).flatten(2).transpose(1, 2)

        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = pooled(q, self.query), pooled(k, self.keys), pooled(v, self.keys)
        return self.project(F.scaled_dot_product_attention(q, k, v) + pooled(x, self.pool))


class PoolingAttention(nn.Module):
    """Attention over pooled tokens as in MViT, without a class token."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, 8, (1, 4, 4), (1, 4, 4))
        self.blocks = nn.ModuleList([PooledBlock(8, 16, 8, 1), PooledBlock(16, 24, 8, 2)])
        self.head = nn.Linear(24, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.embed(clip).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Normed(Clips):
    """Weights in another form: `weight_norm` and `spectral_norm`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        nn.utils.parametrizations.weight_norm(self.stages[0][0])
        nn.utils.parametrizations.spectral_norm(self.stages[1][0])


class UNet(nn.Module):
    """Frames (N, 3, H, W) -> maps of their size, with connections past the small maps (Ronneberger et al., 2015)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()

        def pair(c_in: int, c_out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

        self.down1, self.down2, self.bottom = pair(3, 8), pair(8, 16), pair(16, 24)
        self.grow2, self.grow1 = nn.ConvTranspose2d(24, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.up2, self.up1, self.out = pair(32, 16), pair(16, 8), nn.Conv2d(8, num_classes, 1)

    def forward(self, frame: Tensor) -> Tensor:
        first = self.down1(frame)
        second = self.down2(F.max_pool2d(first, 2))
        up = self.up2(torch.cat([self.grow2(self.bottom(F.max_pool2d(second, 2))), second], 1))
        return self.out(self.up1(torch.cat([self.grow1(up), first], 1)))


class MixesBatch(Clips):
    """Logits from which the mean over the batch is taken."""

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = super().forward(clip)
        return logits - logits.mean(0)


class SortsBatch(Clips):
    """The clips of a batch in another order."""

    def forward(self, clip: Tensor) -> Tensor:
        logits: Tensor = super().forward(clip)
        return logits[logits[:, 0].argsort()]


class StaysInTraining(Clips):
    """BatchNorm takes the statistics of the batch in evaluation, too."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.stages.train(True)
        return self


class ComplexNumbers(Clips):
    def forward(self, clip: Tensor) -> Tensor:
        return super().forward(clip).to(torch.complex64)  # type: ignore[no-any-return]


class Sparse(Clips):
    def forward(self, clip: Tensor) -> Tensor:
        return super().forward(clip).to_sparse()


class WholeNumbers(Clips):
    def forward(self, clip: Tensor) -> Tensor:
        return super().forward(clip).round().long()  # type: ignore[no-any-return]


class UnderInference(Clips):
    def forward(self, clip: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(clip)  # type: ignore[no-any-return]
