"""The FLOPs of layers are the parts of those of the net."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_kd.search_spaces import LayerFlops, count_flops, layer_flops
from nas_kd.search_spaces.flops import CountedElementwise


class Minus(CountedElementwise):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU())
        self.minus = Minus()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = self.minus(y, y + 1)  # the addition is free, the subtraction of the module counts
        return self.head(y.mean((2, 3))) @ torch.ones(2, 2)


def test_layers_add_up_to_the_net() -> None:
    net, x = Net(), torch.zeros(1, 3, 5, 6)
    count = count_flops(net, x)
    assert layer_flops(net, count) == (
        LayerFlops("", "Net", 1 * 2 * 2, 0),
        LayerFlops("body.0", "Conv2d 3 → 4, 3×3", 5 * 6 * 4 * 27, 108),
        LayerFlops("minus", "Minus", 5 * 6 * 4, 0),
        LayerFlops("head", "Linear 4 → 2", 8, 10),
    )
    assert sum(layer.flops for layer in layer_flops(net, count)) == count.total
