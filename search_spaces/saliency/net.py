"""The definition of the space `saliency`: trunks and decoder from choices.

Keys of a trunk's convolutions: "0_0", "0_1" | "1_0" | "2_0", "2_1", … | "3_0", stage and place; the siamese part ends
with "2_0".
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.choices import Choices
from nas_kd.search_spaces.saliency.ops import ResponseNorm, decoder, frame_layer
from nas_kd.search_spaces.saliency.settings import TRUNKS_OF, SaliencySettings, TrunkSettings


def joined_width(width: int, depth: int) -> int:
    """Channels that the last convolution of a siamese trunk reads: with a single one before it the pairs of maps."""
    return 2 * width if depth == 1 else width


def reads_pairs(depth: int) -> bool:
    """Whether the last convolution of a siamese trunk reads the pairs of maps."""
    return depth == 1


class Trunk(nn.Module):
    """Frames -> (N, C, S / 4, S / 4); one with two frames is siamese up to "2_0" and then reads both maps.

    The third stage of a siamese trunk may end before or behind the join. In a supernet the last convolution has weights
    of its own for each of both inputs.

    Args:
        choose: makes the choices.
        name: `spatial`, or `temporal`, which reads two frames.
        settings: what is open.
        response_norm: whether there is a local response normalisation behind "0_1".

    Attributes:
        width: channels of its map.
    """

    def __init__(self, choose: Choices, name: str, settings: TrunkSettings, *, response_norm: bool) -> None:
        super().__init__()
        self.siamese = name == "temporal"
        widths = [choose.number(f"{name}.stages.{s}.width", options) for s, options in enumerate(settings.widths)]
        depth = choose.depth(f"{name}.stages.2.depth", settings.depths)
        self.convs = nn.ModuleDict()

        def add(key: str, c_in: Any, weights_of: Any = None) -> None:
            op = choose.op(f"{name}.convs.{key}", settings.ops)
            self.convs[key] = choose.layer(frame_layer, c_in, widths[int(key[0])], op=op, weights_of=weights_of)

        add("0_0", 3)
        add("0_1", widths[0])
        add("1_0", widths[0])
        add("2_0", widths[1])
        for j in choose.steps(depth):
            if j > 0:
                add(f"2_{j}", 2 * widths[2] if self.siamese and j == 1 else widths[2])
        if self.siamese:
            pairs = choose.derive(reads_pairs, depth, kind="op")
            add("3_0", choose.derive(joined_width, widths[2], depth), pairs)
        else:
            add("3_0", widths[2])
        self.chain = choose.chain(depth)
        self.width = widths[3]
        self.norm = ResponseNorm() if response_norm else nn.Identity()
        self.pool = nn.MaxPool2d(2)

    def forward(self, *frames: Tensor) -> Tensor:
        """(N, 3, S, S), twice where it is siamese: frames t and t + 1."""
        if not self.siamese:
            return self.rest(self.each(frames[0]))
        now, later = frames
        both = self.each(torch.cat([now, later]))
        number = now.shape[0]  # len() would fix the batch size of an exported graph
        return self.rest(join(both[:number], both[number:]))

    def each(self, frame: Tensor) -> Tensor:
        """The part that sees a single frame."""
        x = self.pool(self.norm(self.convs["0_1"](self.convs["0_0"](frame))))
        return cast(Tensor, self.convs["2_0"](self.pool(self.convs["1_0"](x))))

    def rest(self, x: Tensor) -> Tensor:
        """What follows; the trunk of two frames has joined their maps before it."""
        return self.chain(
            x,
            lambda j, maps: cast(Tensor, self.convs[f"2_{j}"](maps)),
            lambda _, maps: cast(Tensor, self.convs["3_0"](maps)),
            first=1,
        )


def join(now: Tensor, later: Tensor) -> Tensor:
    """[f_t, f_t − f_{t+1}], channel by channel: (N, C, H, W) twice -> (N, 2C, H, W).

    In the published net all of the one stand before all of the other, which is the same net with the channels of the
    next convolution permuted; here a narrower trunk is a leading slice of a wider one.
    """
    return torch.stack([now, now - later], dim=2).flatten(1, 2)


class SaliencyNet(nn.Module):
    """Frames t and t + 1 -> the saliency map of frame t, linear: one or both trunks, and `decoder`."""

    spatial: Trunk
    temporal: Trunk

    def __init__(self, choose: Choices, settings: SaliencySettings) -> None:
        super().__init__()
        trunks = []
        for name in TRUNKS_OF[choose.knob("net")]:
            trunk = Trunk(choose, name, settings.trunk(name), response_norm=settings.response_norm)
            self.add_module(name, trunk)
            trunks.append(trunk)
        s = settings.decoder
        widths = [choose.number(f"decoder.layers.{j}.width", options) for j, options in enumerate(s.widths)]
        ops = [choose.op(f"decoder.convs.{j}", s.ops) for j in (1, 2, 3)]
        self.decoder = decoder(choose, sum(trunk.width for trunk in trunks), widths, ops)

    def forward(self, clip: Tensor) -> Tensor:
        """(N, 3, 2, S, S) normalised -> (N, 1, S, S)."""
        now = clip[:, :, 0].contiguous(memory_format=torch.channels_last)
        maps = []
        if "spatial" in self._modules:
            maps.append(self.spatial(now))
        if "temporal" in self._modules:
            maps.append(self.temporal(now, clip[:, :, 1].contiguous(memory_format=torch.channels_last)))
        return self.decode(maps)

    def sequence(self, frames: Tensor) -> Tensor:
        """Maps of all frames of a video but its last: the siamese part sees each frame once, not twice.

        Args:
            frames: (T + 1, 3, S, S) normalised, in order.

        Returns:
            (T, 1, S, S), what `forward` gives for the T pairs of neighbours.
        """
        frames = frames.contiguous(memory_format=torch.channels_last)
        maps = []
        if "spatial" in self._modules:
            maps.append(self.spatial(frames[:-1]))
        if "temporal" in self._modules:
            each = self.temporal.each(frames)
            maps.append(self.temporal.rest(join(each[:-1], each[1:])))
        return self.decode(maps)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The saliency map from the trunks' maps."""
        return cast(Tensor, self.decoder(torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]))
