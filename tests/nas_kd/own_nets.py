"""Small nets of the kinds that users bring as teachers, with random weights, for clips of 4 frames of 32 pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T, WIDTH, PATCH = 4, 12, 8


def _stages(dims: int, *, width: int = WIDTH) -> nn.Sequential:
    """Two convolutional stages with a stride of 2 in space."""
    if dims == 2:
        conv, norm = nn.Conv2d, nn.BatchNorm2d
        return nn.Sequential(
            nn.Sequential(conv(3, width, 3, 4, 1), norm(width), nn.ReLU()),
            nn.Sequential(conv(width, 2 * width, 3, 2, 1), norm(2 * width), nn.ReLU()),
        )
    return nn.Sequential(
        nn.Sequential(nn.Conv3d(3, width, 3, (1, 4, 4), 1), nn.BatchNorm3d(width), nn.ReLU()),
        nn.Sequential(nn.Conv3d(width, 2 * width, 3, (1, 2, 2), 1), nn.BatchNorm3d(2 * width), nn.ReLU()),
    )


class Clips(nn.Module):
    """(N, 3, T, H, W) -> logits, by 3-D convolutions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stages = _stages(3)
        self.head = nn.Linear(2 * WIDTH, num_classes)

    def pooled(self, clip: Tensor) -> Tensor:
        return self.stages(clip).mean((2, 3, 4))

    def forward(self, clip: Tensor) -> Any:
        return self.head(self.pooled(clip))


class R2Plus1D(nn.Module):
    """Spatial and temporal convolutions in turns, with a stride of time."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(
            nn.Conv3d(3, 8, (1, 5, 5), (1, 4, 4), (0, 2, 2)), nn.Conv3d(8, 12, (3, 1, 1), padding=(1, 0, 0)), nn.ReLU()
        )
        self.layer2 = nn.Sequential(
            nn.Conv3d(12, 32, (1, 3, 3), (1, 2, 2), (0, 1, 1)),  # more channels between the two than after them
            nn.Conv3d(32, 24, (3, 1, 1), (2, 1, 1), (1, 0, 0)),
            nn.ReLU(),
        )
        self.fc = nn.Linear(24, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(clip)).mean((2, 3, 4)))


class Images(nn.Module):
    """(N · T, 3, H, W) -> logits of each frame: a net of images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stages = _stages(2)
        self.head = nn.Linear(2 * WIDTH, num_classes)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.stages(frames).mean((2, 3)))


class FoldsFrames(Images):
    """(N, T, 3, H, W) -> logits: frames are folded into the batch inside."""

    def forward(self, clip: Tensor) -> Tensor:
        maps = self.stages(clip.flatten(0, 1))
        return self.head(maps.mean((2, 3)).unflatten(0, (len(clip), -1)).mean(1))


class Tsm(Images):
    """(N · T, 3, H, W), or any shape of that memory -> logits: channels shift between frames (Lin et al., 2019)."""

    def forward(self, frames: Tensor) -> Tensor:
        frames = frames.reshape(-1, 3, *frames.shape[-2:])
        x = self.stages[0](frames).unflatten(0, (-1, T))
        x = torch.cat([x[:, :, :2].roll(1, 1), x[:, :, 2:4].roll(-1, 1), x[:, :, 4:]], 2).flatten(0, 1)
        logits = self.head(self.stages[1](x).mean((2, 3)))
        return logits.unflatten(0, (-1, T)).mean(1)


class CnnLstm(Images):
    """(N, T, 3, H, W) -> logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.lstm = nn.LSTM(2 * WIDTH, 2 * WIDTH, batch_first=True)

    def forward(self, clip: Tensor) -> Tensor:
        pooled = self.stages(clip.flatten(0, 1)).mean((2, 3)).unflatten(0, (len(clip), -1))
        return self.head(self.lstm(pooled)[0][:, -1])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm2(x))


class TimeSformer(nn.Module):
    """(N, 3, T, H, W) -> logits: a class token, tokens in the order of patches, then frames; attention over frames and
    over patches in turns (Bertasius et al., ICML 2021)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, PATCH, PATCH)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.temporal = nn.ModuleList(Block(16) for _ in range(2))
        self.blocks = nn.ModuleList(TimeSformerBlock(time) for time in self.temporal)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        n = len(clip)
        x = self.patch_embed(clip.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)  # (N T, P, C)
        x = x.unflatten(0, (n, -1)).transpose(1, 2).flatten(1, 2)  # (N, P T, C)
        x = torch.cat([self.cls.expand(n, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class TimeSformerBlock(nn.Module):
    def __init__(self, time: nn.Module) -> None:
        super().__init__()
        self.time, self.space = time, Block(16)

    def forward(self, x: Tensor) -> Tensor:
        n, special, tokens = len(x), x[:, :1], x[:, 1:]
        patches = tokens.shape[1] // T
        tokens = self.time(tokens.reshape(n * patches, T, -1)).reshape(n, patches, T, -1)
        frames = torch.cat([special.repeat_interleave(T, 0), tokens.transpose(1, 2).flatten(0, 1)], 1)
        frames = self.space(frames)
        special = frames[:, :1].reshape(n, T, -1).mean(1, keepdim=True)
        tokens = frames[:, 1:].reshape(n, T, patches, -1).transpose(1, 2).flatten(1, 2)
        return torch.cat([special, tokens], 1)


class Tubelets(nn.Module):
    """(N, T, 3, H, W) -> an object with logits, as VideoMAE and ViViT: tubes of 2 frames are tokens."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(3, 16, (2, PATCH, PATCH), (2, PATCH, PATCH))
        self.position = nn.Parameter(torch.randn(1, 2 * 16, 16) / 4)
        self.blocks = nn.ModuleList(Block(16) for _ in range(4))
        self.head = nn.Linear(16, num_classes)

    def forward(self, clip: Tensor) -> Any:
        x = self.patch_embed(clip.transpose(1, 2)).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x.mean(1)), "hidden": x}


class TwoPathways(nn.Module):
    """[slow clip, fast clip] -> logits: few frames with many channels, all frames with few (SlowFast)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.slow, self.fast = _stages(3, width=16), _stages(3, width=2)
        self.head = nn.Linear(36, num_classes)

    def forward(self, pathways: list[Tensor]) -> Tensor:
        slow, fast = pathways
        assert slow.shape[2] < fast.shape[2]
        slow, fast = self.slow(slow), self.fast(fast)
        return self.head(torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self.pwconv2(nn.functional.gelu(self.pwconv1(y))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """(N · T, 3, H, W) -> logits of each frame."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8)),
            nn.Sequential(nn.Conv2d(8, 16, 2, 2), ConvNeXtBlock(16)),
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.stages(frames).mean((2, 3)))


class TupleInTraining(Clips):
    def forward(self, clip: Tensor) -> Any:
        logits = super().forward(clip)
        return (logits, logits) if self.training else logits


class GivesTuple(Clips):
    def forward(self, clip: Tensor) -> Any:
        pooled = self.pooled(clip)
        return pooled, self.head(pooled)


class GivesObject(Clips):
    def forward(self, clip: Tensor) -> Any:
        from transformers.modeling_outputs import ImageClassifierOutput

        pooled = self.pooled(clip)
        return ImageClassifierOutput(loss=None, logits=self.head(pooled), hidden_states=(pooled,))


class Checkpointed(Clips):
    reentrant = True

    def pooled(self, clip: Tensor) -> Tensor:
        x = clip
        for stage in self.stages:
            x = checkpoint(stage, x, use_reentrant=self.reentrant)
        return x.mean((2, 3, 4))


class CheckpointedAnew(Checkpointed):
    reentrant = False


class Tied(Clips):
    """Two layers, one weight, and one module under two names."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.a, self.b = nn.Linear(2 * WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, 2 * WIDTH)
        self.b.weight = self.a.weight
        self.again = self.a

    def pooled(self, clip: Tensor) -> Tensor:
        return self.again(self.b(self.a(super().pooled(clip)).relu()).relu())


class LateBuffer(Clips):
    """Its position codes and its last layer are made in the first pass."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.LazyLinear(num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        if not hasattr(self, "position"):
            self.register_buffer("position", torch.linspace(0, 1, clip.shape[2]).view(1, 1, -1, 1, 1))
        return super().forward(clip + self.position)


class MatrixVector(Clips):
    """Frames are pooled by the softmax of their product with a learnt vector."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.vector = nn.Parameter(torch.randn(2 * WIDTH) / 4)

    def pooled(self, clip: Tensor) -> Tensor:
        frames = self.stages(clip).mean((3, 4)).transpose(1, 2)
        return (torch.softmax(frames @ self.vector, 1)[..., None] * frames).sum(1)


class NoMaps(nn.Module):
    """Nothing in it is a map."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        if clip.ndim != 5 or clip.shape[1] != 3:
            raise ValueError("clips wanted")
        return self.head(clip.mean((2, 3, 4)))


class NotFinite(Clips):
    def forward(self, clip: Tensor) -> Tensor:
        return super().forward(clip) / 0.0


def compiled(num_classes: int) -> Any:
    return torch.compile(Clips(num_classes), backend="eager")


def compiled_inside(num_classes: int) -> nn.Module:
    net = Clips(num_classes)
    net.stages[0] = torch.compile(net.stages[0], backend="eager")
    net.head.compile(backend="eager")
    return net


def parallel(num_classes: int) -> nn.Module:
    return nn.DataParallel(Clips(num_classes))


def half(num_classes: int) -> nn.Module:
    return Clips(num_classes).half()


def scripted(num_classes: int) -> Any:
    return torch.jit.script(R2Plus1D(num_classes))


def videomae(num_classes: int) -> Any:
    import transformers

    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=T, tubelet_size=2, hidden_size=16, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=32, num_labels=num_classes,
    )  # fmt: skip
    return transformers.VideoMAEForVideoClassification(config)


def timesformer(num_classes: int) -> Any:
    import transformers

    config = transformers.TimesformerConfig(
        image_size=32, patch_size=8, num_frames=T, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, num_labels=num_classes,
    )  # fmt: skip
    return transformers.TimesformerForVideoClassification(config)


def vivit(num_classes: int) -> Any:
    import transformers

    config = transformers.VivitConfig(
        image_size=32, num_frames=T, tubelet_size=[2, 8, 8], hidden_size=16, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=32, num_labels=num_classes,
    )  # fmt: skip
    return transformers.VivitForVideoClassification(config)
