"""Small transformers of several scales, with random weights, for clips of 4 frames of 32 pixels.

They have the structure that is published, in the forms in which libraries return it: blocks of MViT give tokens beside
the sizes of their grid, stages of Video Swin give channels last or maps, those of Swin give tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int, int]


class PoolingAttention(nn.Module):
    """Attention whose queries are pooled by one stride and whose keys and values by another, behind a class token; with
    relative positions and residual pooling as in MViTv2 (Fan et al., ICCV 2021; Li et al., CVPR 2022)."""

    def __init__(self, width: int, out: int, heads: int, stride: Grid, kv_stride: Grid, grid: Grid) -> None:
        super().__init__()
        self.heads, self.out = heads, out
        self.qkv, self.proj = nn.Linear(width, 3 * out), nn.Linear(out, out)
        head = out // heads
        self.pool_q = nn.Conv3d(head, head, 3, stride, 1, groups=head, bias=False)
        self.pool_k = nn.Conv3d(head, head, 3, kv_stride, 1, groups=head, bias=False)
        self.pool_v = nn.Conv3d(head, head, 3, kv_stride, 1, groups=head, bias=False)
        self.norm_q = nn.LayerNorm(head)
        side = 2 * max(grid[1], grid[2]) - 1
        self.rel_h = nn.Parameter(torch.randn(side, head) / 8)

    def _pool(self, x: Tensor, pool: nn.Module, thw: Grid) -> tuple[Tensor, Grid]:
        """Tokens (N, heads, 1 + L, D) of a grid, and the pooled ones."""
        special, tokens = x[:, :, :1], x[:, :, 1:]
        n, heads, _, width = tokens.shape
        maps = pool(tokens.flatten(0, 1).transpose(1, 2).reshape(n * heads, width, *thw))
        pooled = maps.flatten(2).transpose(1, 2).unflatten(0, (n, heads))
        return torch.cat([special, pooled], 2), (maps.shape[2], maps.shape[3], maps.shape[4])

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, out_thw = self._pool(q, self.pool_q, thw)
        q = self.norm_q(q)
        k, kv_thw = self._pool(k, self.pool_k, thw)
        v, _ = self._pool(v, self.pool_v, thw)
        attention = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5)
        rows = torch.arange(out_thw[1])[:, None] * max(kv_thw[1] // out_thw[1], 1)
        columns = torch.arange(kv_thw[1])[None] * max(out_thw[1] // kv_thw[1], 1)
        table = self.rel_h[rows - columns + (kv_thw[1] - 1) * max(out_thw[1] // kv_thw[1], 1)]  # (h of q, h of k, D)
        grid_q = q[:, :, 1:].unflatten(2, out_thw)
        bias = torch.einsum("nbthwd,hkd->nbthwk", grid_q, table)
        bias = bias[:, :, :, :, :, None, :, None].expand(-1, -1, -1, -1, -1, kv_thw[0], -1, kv_thw[2])
        bias = bias.reshape(*attention.shape[:2], q.shape[2] - 1, k.shape[2] - 1)
        attention = attention + F.pad(bias, (1, 0, 1, 0))
        x = attention.softmax(-1) @ v
        x = torch.cat([x[:, :, :1], x[:, :, 1:] + q[:, :, 1:]], 2)
        return self.proj(x.transpose(1, 2).flatten(2)), out_thw


class MultiscaleBlock(nn.Module):
    def __init__(self, width: int, out: int, heads: int, stride: Grid, kv_stride: Grid, grid: Grid) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(out)
        self.attn = PoolingAttention(width, out, heads, stride, kv_stride, grid)
        self.mlp = nn.Sequential(nn.Linear(out, 2 * out), nn.GELU(), nn.Linear(2 * out, out))
        self.project = nn.Linear(width, out) if width != out else None
        self.pool_skip = nn.MaxPool3d([s + 1 if s > 1 else s for s in stride], stride, [s // 2 for s in stride])

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        normed = self.norm1(x)
        pooled, out_thw = self.attn(normed, thw)
        skip = x if self.project is None else self.project(normed)
        tokens = self.pool_skip(skip[:, 1:].transpose(1, 2).unflatten(2, thw)).flatten(2).transpose(1, 2)
        x = torch.cat([skip[:, :1], tokens], 1) + pooled
        return x + self.mlp(self.norm2(x)), out_thw


class MViT(nn.Module):
    """(N, 3, T, H, W) -> logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv_proj = nn.Conv3d(3, 8, (3, 7, 7), (2, 4, 4), (1, 3, 3))
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        one, two = (1, 1, 1), (1, 2, 2)
        self.blocks = nn.ModuleList(
            [
                MultiscaleBlock(8, 8, 1, one, two, (2, 8, 8)),
                MultiscaleBlock(8, 16, 2, two, one, (2, 8, 8)),
                MultiscaleBlock(16, 16, 2, one, one, (2, 4, 4)),
                MultiscaleBlock(16, 32, 4, two, one, (2, 4, 4)),
            ]
        )
        self.norm = nn.LayerNorm(32)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, num_classes))

    def forward(self, clip: Tensor) -> Tensor:
        x = self.conv_proj(clip)
        thw = (x.shape[2], x.shape[3], x.shape[4])
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            x, thw = block(x, thw)
        return self.head(self.norm(x)[:, 0])


class WindowAttention(nn.Module):
    """Attention within windows of a map with channels last (N, T, H, W, C), moved by half a window in every second
    block, with a bias by relative position (Liu et al., ICCV 2021, and CVPR 2022 for video)."""

    def __init__(self, width: int, heads: int, window: Grid, shift: Grid) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        number = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.randn(number, heads) / 50)
        places = torch.stack(torch.meshgrid(*(torch.arange(w) for w in window), indexing="ij")).flatten(1)
        distance = (places[:, :, None] - places[:, None]).permute(1, 2, 0)
        distance = distance + torch.tensor([w - 1 for w in window])
        steps = torch.tensor([(2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1])
        self.register_buffer("relative_position_index", (distance * steps).sum(-1))

    def _windows(self, x: Tensor) -> Tensor:
        """(N, T, H, W, C) -> (N · windows, tokens, C)."""
        (wt, wh, ww), (n, t, h, w, c) = self.window, x.shape
        x = x.view(n, t // wt, wt, h // wh, wh, w // ww, ww, c)
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wt * wh * ww, c)

    def forward(self, x: Tensor) -> Tensor:
        n, t, h, w, c = x.shape
        size = (t, h, w)
        pad = [-s % k for s, k in zip(size, self.window, strict=True)]
        x = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        shift = [0 if x.shape[a + 1] <= k else s for a, (k, s) in enumerate(zip(self.window, self.shift, strict=True))]
        if any(shift):
            x = torch.roll(x, [-s for s in shift], (1, 2, 3))
        padded = x.shape
        tokens = self._windows(x)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        attention = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5) + bias
        if any(shift):
            regions = torch.zeros(padded[1:4])
            count = 0
            parts = [
                [slice(0, -k), slice(-k, -s or None), slice(-s, None)] if s else [slice(None)]
                for k, s in zip(self.window, shift, strict=True)
            ]
            for a in parts[0]:
                for b in parts[1]:
                    for d in parts[2]:
                        regions[a, b, d] = count
                        count += 1
            regions = self._windows(regions[None, ..., None])[..., 0]
            mask = (regions[:, None] != regions[:, :, None]).to(x.dtype) * -100.0
            attention = attention.unflatten(0, (n, -1)) + mask[None, :, None]
            attention = attention.flatten(0, 1)
        tokens = self.proj((attention.softmax(-1) @ v).transpose(1, 2).flatten(2))
        (wt, wh, ww), (_, tp, hp, wp, _) = self.window, padded
        x = tokens.view(n, tp // wt, hp // wh, wp // ww, wt, wh, ww, c).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(padded)
        if any(shift):
            x = torch.roll(x, shift, (1, 2, 3))
        return x[:, :t, :h, :w].contiguous()


class SwinBlock(nn.Module):
    def __init__(self, width: int, window: Grid, shift: Grid) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, 2, window, shift)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """(N, T, H, W, C) -> (N, T, H / 2, W / 2, 2 C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)], -1)
        return self.reduction(self.norm(x))


def _swin_blocks(width: int, depth: int, window: Grid = (2, 4, 4)) -> list[nn.Module]:
    half = (window[0] // 2, window[1] // 2, window[2] // 2)
    return [SwinBlock(width, window, half if i % 2 else (0, 0, 0)) for i in range(depth)]


class PatchEmbed3d(nn.Module):
    """(N, 3, T, H, W) -> (N, T / 2, H / 4, W / 4, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv3d(3, width, (2, 4, 4), (2, 4, 4)), nn.LayerNorm(width)

    def forward(self, clip: Tensor) -> Tensor:
        return self.norm(self.proj(clip).permute(0, 2, 3, 4, 1))


class VideoSwin(nn.Module):
    """(N, 3, T, H, W) -> logits; all layers between give channels last, as in torchvision."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed3d(8)
        self.features = nn.Sequential(
            nn.Sequential(*_swin_blocks(8, 2)),
            PatchMerging(8),
            nn.Sequential(*_swin_blocks(16, 2)),
            PatchMerging(16),
            nn.Sequential(*_swin_blocks(32, 2)),
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.norm(self.features(self.patch_embed(clip)))
        return self.head(x.permute(0, 4, 1, 2, 3).mean((2, 3, 4)))


class BasicLayer(nn.Module):
    """A stage of the Video Swin of its authors: (N, C, T, H, W) in and out, merged at its end."""

    def __init__(self, width: int, *, merges: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_swin_blocks(width, 2))
        self.downsample = PatchMerging(width) if merges else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 4, 1)
        for block in self.blocks:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x.permute(0, 4, 1, 2, 3)


class VideoSwinOfMaps(nn.Module):
    """(N, 3, T, H, W) -> logits; its stages give maps."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4))
        stages = [BasicLayer(8, merges=True), BasicLayer(16, merges=True), BasicLayer(32, merges=False)]
        self.layers = nn.ModuleList(stages)
        self.norm, self.cls_head = nn.LayerNorm(32), nn.Linear(32, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.patch_embed(clip)
        for layer in self.layers:
            x = layer(x)
        return self.cls_head(self.norm(x.permute(0, 2, 3, 4, 1)).mean((1, 2, 3)))


class TokenBlock(SwinBlock):
    """A block of Swin on images: (N, H · W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5 + 0.5)
        return super().forward(x.unflatten(1, (1, side, side))).flatten(1, 3)


class TokenStage(nn.Module):
    """A stage of Swin on images: (N, H · W, C), whose patches are merged at its end."""

    def __init__(self, width: int, *, merges: bool) -> None:
        super().__init__()
        window, half = (1, 4, 4), (0, 2, 2)
        self.blocks = nn.ModuleList([TokenBlock(width, window, (0, 0, 0)), TokenBlock(width, window, half)])
        self.downsample = PatchMerging(width) if merges else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.downsample is not None:
            side = int(x.shape[1] ** 0.5 + 0.5)
            x = self.downsample(x.unflatten(1, (1, side, side))).flatten(1, 3)
        return x


class Swin(nn.Module):
    """(N · T, 3, H, W) -> logits of each frame; its stages give tokens, fewer in each."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)
        self.layers = nn.Sequential(TokenStage(8, merges=True), TokenStage(16, merges=False))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, num_classes)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.patch_embed(frames).flatten(2).transpose(1, 2))).mean(1))


class MaskUnitAttention(nn.Module):
    """Attention within units of tokens, whose queries may be pooled by their maximum (Ryali et al., ICML 2023)."""

    def __init__(self, width: int, out: int, pooled: int, unit: int) -> None:
        super().__init__()
        self.pooled, self.unit = pooled, unit
        self.qkv, self.proj = nn.Linear(width, 3 * out), nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        units = x.shape[1] // self.unit
        q, k, v = self.qkv(x).unflatten(1, (self.unit, units)).transpose(1, 2).chunk(3, -1)
        q = q.unflatten(2, (self.pooled, -1)).amax(2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1, 2))


class HieraBlock(nn.Module):
    def __init__(self, width: int, out: int, pooled: int, unit: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(out)
        self.attn = MaskUnitAttention(width, out, pooled, unit)
        self.proj = nn.Linear(width, out) if width != out else None
        self.pooled = pooled
        self.mlp = nn.Sequential(nn.Linear(out, 2 * out), nn.GELU(), nn.Linear(2 * out, out))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.proj is not None:
            x = self.proj(normed).unflatten(1, (self.pooled, -1)).amax(1)
        x = x + self.attn(normed)
        return x + self.mlp(self.norm2(x))


class VideoHiera(nn.Module):
    """(N, 3, T, H, W) -> logits: tokens lie in the order of the windows that are pooled, until all are."""

    def __init__(self, num_classes: int, poolings: int = 2) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4))
        self.position = nn.Parameter(torch.randn(1, 2 * 64, 8) / 4)
        later = [HieraBlock(16, 32, 4, 4), HieraBlock(32, 32, 1, 1)] if poolings == 2 else []
        blocks = [HieraBlock(8, 8, 1, 16), HieraBlock(8, 16, 4, 16), HieraBlock(16, 16, 1, 4), *later]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(32 if later else 16)
        self.head = nn.Linear(32 if later else 16, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.patch_embed(clip).flatten(2).transpose(1, 2) + self.position
        x = x.unflatten(1, (2, 2, 2, 2, 2, 2, 2))  # t, h, h1, h2, w, w1, w2
        x = x.permute(0, 4, 7, 3, 6, 1, 2, 5, 8).flatten(1, 7)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def hiera_pooled_once(num_classes: int) -> nn.Module:
    """Its last tokens too lie in the order of windows."""
    return VideoHiera(num_classes, poolings=1)


def swin(num_classes: int) -> Any:
    import transformers

    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4, num_labels=num_classes
    )
    return transformers.SwinForImageClassification(config)


def hiera(num_classes: int) -> Any:
    import transformers

    config = transformers.HieraConfig(
        image_size=[32, 32], patch_stride=[2, 2], embed_dim=8, depths=[1, 2, 1], num_heads=[1, 2, 2],
        masked_unit_size=[4, 4], masked_unit_attention=[True, True, False], num_query_pool=2, num_labels=num_classes,
    )  # fmt: skip
    return transformers.HieraForImageClassification(config)


def pvt(num_classes: int) -> Any:
    import transformers

    config = transformers.PvtConfig(
        image_size=32, depths=[2, 2], num_encoder_blocks=2, sequence_reduction_ratios=[2, 1], hidden_sizes=[8, 16],
        patch_sizes=[4, 2], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], num_labels=num_classes,
    )  # fmt: skip
    return transformers.PvtForImageClassification(config)
