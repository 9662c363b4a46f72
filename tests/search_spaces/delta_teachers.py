"""Small frame teachers of the kinds that `delta_blocks` meets."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def trained(net: nn.Module, seed: int = 0) -> nn.Module:
    """`net` in evaluation mode, with BatchNorm statistics that are not those of a fresh net."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                module.weight.normal_(std=module.weight[0].numel() ** -0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(std=0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.normal_(std=0.3, generator=generator)
                    module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(std=0.3, generator=generator)
    return net.eval()


def conv_norm(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out)
    )  # fmt: skip


class Residual(nn.Module):
    """A basic block whose activations work in place, as those of many published nets do."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_norm(c_in, c_out, 3, stride), conv_norm(c_out, c_out)
        self.down = conv_norm(c_in, c_out, 1, stride) if stride != 1 or c_in != c_out else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu(self.conv1(x)))
        y += self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Residual stages, a lateral connection at the higher resolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = conv_norm(3, 16, 3, 2), nn.ReLU(inplace=True)
        self.stage1 = nn.Sequential(Residual(16, 16), Residual(16, 16))
        self.stage2 = nn.Sequential(Residual(16, 32, 2), Residual(32, 32))
        self.lateral, self.smooth = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, 1, 1)
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stage1(self.relu(self.stem(x)))
        low = self.stage2(high)
        y = self.lateral(high) + F.interpolate(low, size=high.shape[-2:], mode="nearest")
        return self.head(F.relu(self.smooth(y)))


class Exchange(nn.Module):
    """Every branch gets the sum of all branches, brought to its resolution."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        rows = []
        for i, c_out in enumerate(widths):
            row: list[nn.Module] = []
            for j, c_in in enumerate(widths):
                if j == i:
                    row.append(nn.Identity())
                elif j > i:
                    up = nn.Upsample(scale_factor=2 ** (j - i), mode="bilinear", align_corners=False)
                    row.append(nn.Sequential(*conv_norm(c_in, c_out, 1), up))
                else:
                    steps: list[nn.Module] = []
                    for k in range(i - j):
                        last = k == i - j - 1
                        steps += [*conv_norm(c_in, c_out if last else c_in, 3, 2)]
                        steps += [] if last else [nn.ReLU(inplace=True)]
                    row.append(nn.Sequential(*steps))
            rows.append(nn.ModuleList(row))
        self.rows, self.relu = nn.ModuleList(rows), nn.ReLU(inplace=True)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        outputs = []
        for row in self.rows:
            y = row[0](xs[0])  # type: ignore[index]
            for module, x in zip(list(row)[1:], xs[1:], strict=True):  # type: ignore[call-overload]
                y = y + module(x)
            outputs.append(self.relu(y))
        return outputs


class HRNet(nn.Module):
    """Three branches of falling resolution, two exchanges, all branches in the head."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 24)) -> None:
        super().__init__()
        self.stem, self.relu = conv_norm(3, widths[0], 3, 2), nn.ReLU(inplace=True)
        self.starts = nn.ModuleList(conv_norm(a, b, 3, 2) for a, b in pairwise(widths))
        self.branches = nn.ModuleList(nn.ModuleList(Residual(w, w) for w in widths) for _ in range(2))
        self.exchanges = nn.ModuleList(Exchange(list(widths)) for _ in range(2))
        self.fuse, self.head = conv_norm(sum(widths), 16, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        xs = [self.relu(self.stem(x))]
        for start in self.starts:
            xs.append(self.relu(start(xs[-1])))
        for blocks, exchange in zip(self.branches, self.exchanges, strict=True):
            xs = exchange([block(y) for block, y in zip(blocks, xs, strict=True)])  # type: ignore[call-overload]
        size = xs[0].shape[-2:]
        ups = [xs[0], *(F.interpolate(y, size=size, mode="bilinear", align_corners=False) for y in xs[1:])]
        return self.head(F.relu(self.fuse(torch.cat(ups, 1))))


class PreActivation(nn.Module):
    """BatchNorm and ReLU before each convolution: the first BatchNorm of a block has no convolution to go into."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv1(F.relu(self.norm1(x)))
            return x + self.conv2(F.relu(self.norm2(y)))

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.Sequential(*(self.Block(width) for _ in range(3)))
        self.norm, self.head = nn.BatchNorm2d(width), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))))


class UNet(nn.Module):
    """An encoder and a decoder with concatenated skips; a transposed convolution and learned upsampling."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.down1, self.down2 = conv_norm(width, 2 * width), conv_norm(2 * width, 4 * width)
        self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.merge1, self.merge0 = conv_norm(4 * width, 2 * width), conv_norm(3 * width, width)
        self.head = nn.Conv2d(width, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x))
        b = F.relu(self.down1(F.max_pool2d(a, 2)))
        c = F.relu(self.down2(F.max_pool2d(b, 2)))
        b = F.relu(self.merge1(torch.cat([self.up1(c), b], 1)))
        up = F.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(F.relu(self.merge0(torch.cat([up, a], 1))))


class Layers(nn.Module):
    """All kinds of single layers in a chain, the size of whose maps is odd, with an activation between each two."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "first": nn.Conv2d(3, 8, 3, padding=1),
                "plain": nn.Conv2d(8, 8, 3, padding=1),
                "point": nn.Conv2d(8, 16, 1),
                "strided_point": nn.Conv2d(16, 16, 1, 2),
                "large": nn.Conv2d(16, 16, 5, padding=2),
                "dilated": nn.Conv2d(16, 16, 3, padding=2, dilation=2),
                "grouped": nn.Conv2d(16, 16, 3, padding=1, groups=2),
                "strided": nn.Conv2d(16, 24, 3, 2, 1),
                "valid": nn.Conv2d(24, 16, 3),
                "oblong": nn.Conv2d(16, 16, (1, 3), (1, 1), (0, 1)),
                "last": nn.Conv2d(16, 4, 1),
            }
        )
        self.tokens = nn.Linear(16, 24)
        self.back = nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.layers.items():
            if name == "last":
                tokens = x.flatten(2).transpose(1, 2)
                y = self.back(F.gelu(self.tokens(tokens)))
                x = x + y.transpose(1, 2).reshape(x.shape)
            x = layer(x)
            x = x if name == "last" else F.gelu(x)
        return x
