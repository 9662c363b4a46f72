"""A space of your own: MobileNet-like students for clips, whose widths, depths, kernels and expansions are searched.

A campaign takes it as `space: {name: "own_space:space", frames: 8, side: 32}`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_kd.search_spaces import Choices, ModuleSpace


def conv(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, BatchNorm, ReLU6."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU6())


def block(c_in: int, c_out: int, stride: int, *, kernel: int, expansion: int) -> nn.Module:
    """An inverted residual block without its sum (Sandler et al., MobileNetV2, CVPR 2018)."""
    middle = c_in * expansion
    return nn.Sequential(conv(c_in, middle), conv(middle, middle, kernel, stride, middle), conv(middle, c_out))


class Net(nn.Module):
    """Clips (N, 3, T, H, W) -> logits (N, num_classes), the mean over frames."""

    def __init__(self, choose: Choices, num_classes: int) -> None:
        super().__init__()
        self.stem, self.stages, width = conv(3, 8, 3, 2), nn.Sequential(), 8
        for s, widths in enumerate([(8, 16), (16, 24, 32)]):
            before, width = width, choose.number(f"stages.{s}.width", widths)
            depth = choose.depth(f"stages.{s}.depth", (1, 2, 3))
            for_cells = (choose, f"stages.{s}.", before, width)
            self.stages.append(choose.cells(depth, lambda j, args=for_cells: self.cell(j, *args)))
        self.head = choose.layer(nn.Linear, width, num_classes)

    def cell(self, j: int, choose: Choices, stage: str, before: int, width: int) -> nn.Module:
        kernel = choose.kernel(f"{stage}{j}.kernel", (3, 5))
        expansion = choose.number(f"{stage}{j}.expansion", (1, 2, 4))
        c_in, stride = (width, 1) if j else (before, 2)
        return choose.layer(block, c_in, width, stride, kernel=kernel, expansion=expansion)

    def forward(self, clip: Tensor) -> Tensor:
        maps = self.stages(self.stem(clip.transpose(1, 2).flatten(0, 1)))  # frames are a batch
        return self.head(maps.mean(dim=(2, 3))).unflatten(0, (-1, clip.shape[2])).mean(dim=1)


def space(num_classes: int, frames: int, side: int) -> ModuleSpace:
    """The space, for `space.name` of a campaign file."""
    return ModuleSpace(lambda choose: Net(choose, num_classes), torch.zeros(1, 3, frames, side, side), "mobile")
