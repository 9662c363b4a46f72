"""Small nets with the structure of published ones, where it asks for more than those of own_nets: connections between
pathways, heads of convolutions, answers for each frame, matrices of attention, channels last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, int, int]


def _conv(inputs: int, outputs: int, kernel: Size, stride: Size) -> nn.Sequential:
    sizes = (kernel,) * 3 if isinstance(kernel, int) else kernel
    conv = nn.Conv3d(inputs, outputs, sizes, stride, [size // 2 for size in sizes], bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))


class SlowFast(nn.Module):
    """[slow clip, fast clip] -> logits; narrow connections lead from the fast pathway into the slow one (Feichtenhofer
    et al., ICCV 2019)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.slow1, self.fast1 = _conv(3, 16, (1, 5, 5), (1, 4, 4)), _conv(3, 4, 5, (1, 4, 4))
        self.lateral = nn.Conv3d(4, 8, (5, 1, 1), (4, 1, 1), (2, 0, 0))
        self.slow2, self.fast2 = _conv(24, 32, (1, 3, 3), (1, 2, 2)), _conv(4, 8, 3, (1, 2, 2))
        self.head = nn.Linear(40, num_classes)

    def forward(self, pathways: list[Tensor]) -> Tensor:
        slow, fast = self.slow1(pathways[0]), self.fast1(pathways[1])
        slow, fast = self.slow2(torch.cat([slow, self.lateral(fast)], 1)), self.fast2(fast)
        return self.head(torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1))


class X3D(nn.Module):
    """(N, 3, T, H, W) -> logits by a layer on (N, 1, 1, 1, C), whose output is no map (Feichtenhofer, CVPR 2020)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, (1, 3, 3), (1, 4, 4), (0, 1, 1))
        self.depthwise = nn.Conv3d(8, 8, 3, (1, 2, 2), 1, groups=8)
        self.squeeze, self.excite = nn.Conv3d(8, 4, 1), nn.Conv3d(4, 8, 1)
        self.projection = nn.Linear(8, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.depthwise(F.silu(self.stem(clip)))
        x = x * self.excite(self.squeeze(F.adaptive_avg_pool3d(x, 1)).relu()).sigmoid()
        return self.projection(F.avg_pool3d(x, x.shape[2:]).permute(0, 2, 3, 4, 1)).flatten(1)


class I3D(nn.Module):
    """(N, 3, T, H, W) -> logits (N, C, t), as the released code gives them (Carreira and Zisserman, CVPR 2017)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(3, 8, 5, (1, 4, 4)), _conv(8, 16, 3, 2)
        self.logits = nn.Conv3d(16, num_classes, 1)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.conv2(self.conv1(clip))
        return self.logits(F.avg_pool3d(x, (1, *x.shape[3:]))).squeeze(4).squeeze(3)


class S3D(nn.Module):
    """(N, 3, T, H, W) -> logits, the mean over frames of those of a convolution; features are gated by their own means
    (S3D-G of Xie et al., ECCV 2018). With as many classes as frames, logits look like a map of few pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.spatial, self.temporal = _conv(3, 8, (1, 5, 5), (1, 4, 4)), _conv(8, 8, (3, 1, 1), 1)
        self.gate, self.conv = nn.Linear(8, 8), _conv(8, 16, 3, 2)
        self.logits = nn.Conv3d(16, num_classes, 1)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.temporal(self.spatial(clip))
        x = self.conv(x * self.gate(x.mean((2, 3, 4))).sigmoid()[..., None, None, None])
        return self.logits(F.avg_pool3d(x, (1, *x.shape[3:]))).mean((2, 3, 4))


class ImagesVit(nn.Module):
    """(N · T, 3, H, W) -> logits of each frame; the dropout of its attention gives matrices (N · T, heads, L, L)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList(VitBlock() for _ in range(2))
        self.head = nn.Linear(16, num_classes)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.patch_embed(frames).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class VitBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.attn_drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        attention = self.attn_drop((q @ k.transpose(-2, -1)).softmax(-1))
        return x + self.proj((attention @ v).transpose(1, 2).flatten(2))


class ChannelsLast(nn.Module):
    """(N, T, H, W, 3) -> logits, as nets are called that come from other frameworks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(3, 8, 3, (1, 4, 4)), _conv(8, 16, 3, (1, 2, 2))
        self.head = nn.Linear(16, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.conv2(self.conv1(clip.permute(0, 4, 1, 2, 3))).mean((2, 3, 4)))


class DropsAlways(ChannelsLast):
    """Its dropout stays on in evaluation mode."""

    def forward(self, clip: Tensor) -> Tensor:
        return F.dropout(super().forward(clip))
