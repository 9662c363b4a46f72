"""Modules of the space `saliency`: the plain student, and the supernet whose parts carry the same names.

Keys of a trunk's convolutions: "0_0", "0_1" | "1_0" | "2_0", "2_1", … | "3_0", stage and place; the siamese part ends
with "2_0".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.arch import Choice
from search_spaces.cells import Sliced, mix_widths
from search_spaces.gates import Gate, GateFactory, named_gate
from search_spaces.saliency.ops import Decoder, ResponseNorm, deconv, frame_op
from search_spaces.saliency.settings import TRUNKS_OF, DecoderSettings, SaliencySettings, TrunkSettings
from search_spaces.space import gates_of


class Layer(NamedTuple):
    """One convolution of a trunk, as an architecture chooses it."""

    op: str
    c_in: int
    c_out: int
    joined: bool = False  # whether it reads the pairs of the siamese part


def convs_of(depth: int) -> list[str]:
    """Keys of a trunk's convolutions, in order."""
    return ["0_0", "0_1", "1_0", *(f"2_{j}" for j in range(depth)), "3_0"]


def trunk_layers(trunk: str, choices: Mapping[str, Choice]) -> dict[str, Layer]:
    """Key -> layer of that trunk."""
    widths = [int(choices[f"{trunk}.stages.{s}.width"]) for s in range(4)]
    layers: dict[str, Layer] = {}
    c_in = 3
    for key in convs_of(int(choices[f"{trunk}.stages.2.depth"])):
        c_out = widths[int(key[0])]
        joined = trunk == "temporal" and len(layers) == 4  # the first one behind "2_0"
        layers[key] = Layer(str(choices[f"{trunk}.convs.{key}"]), 2 * c_in if joined else c_in, c_out, joined)
        c_in = c_out
    return layers


class Trunk(nn.Module):
    """Frames -> (N, C, S / 4, S / 4); one with two frames is siamese up to "2_0" and then reads both maps.

    Args:
        convs: key -> module.
        siamese: whether it reads two frames.
        response_norm: whether there is a local response normalisation behind "0_1".
    """

    def __init__(self, convs: Mapping[str, nn.Module], *, siamese: bool, response_norm: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(dict(convs))
        self.norm = ResponseNorm() if response_norm else nn.Identity()
        self.pool = nn.MaxPool2d(2)
        self.siamese = siamese

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
        for key in list(self.convs)[4:]:
            x = self.convs[key](x)
        return x


def join(now: Tensor, later: Tensor) -> Tensor:
    """[f_t, f_t − f_{t+1}], channel by channel: (N, C, H, W) twice -> (N, 2C, H, W).

    In the published net all of the one stand before all of the other, which is the same net with the channels of the
    next convolution permuted; here a narrower trunk is a leading slice of a wider one.
    """
    return torch.stack([now, now - later], dim=2).flatten(1, 2)


class SaliencyNet(nn.Module):
    """Frames t and t + 1 -> the saliency map of frame t, linear.

    Args:
        trunks: `spatial`, of frame t, or `temporal`, of both frames, or both in this order.
        decoder: reads the trunks' maps.
    """

    spatial: Trunk
    temporal: Trunk

    def __init__(self, trunks: Mapping[str, Trunk], decoder: nn.Module) -> None:
        super().__init__()
        for name, trunk in trunks.items():
            self.add_module(name, trunk)
        self.decoder = decoder

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


def student_net(settings: SaliencySettings, choices: Mapping[str, Choice]) -> SaliencyNet:
    """The student of complete choices, with fresh weights."""
    trunks = TRUNKS_OF[str(choices["net"])]
    built = {}
    for trunk in trunks:
        convs = {k: frame_op(x.op)(x.c_in, x.c_out) for k, x in trunk_layers(trunk, choices).items()}
        built[trunk] = Trunk(convs, siamese=trunk == "temporal", response_norm=settings.response_norm)
    c_in = sum(int(choices[f"{trunk}.stages.3.width"]) for trunk in trunks)
    widths = [int(choices[f"decoder.layers.{j}.width"]) for j in range(5)]
    decoder = Decoder(c_in, widths, [str(choices[f"decoder.convs.{j}"]) for j in (1, 2, 3)])
    return SaliencyNet(built, decoder)


class SearchConv(nn.Module):
    """All operators of one convolution, at any width up to the largest.

    Args:
        ops: names of the operators.
        inputs: kind of input -> its largest width; each kind has weights of its own.
        width: gate of the output's width, which others share.
        gate: of the operators.
    """

    def __init__(self, ops: Sequence[str], inputs: Mapping[str, int], width: Gate, gate: Gate) -> None:
        super().__init__()
        self.gate, self._width = gate, (width,)  # in a tuple: the gate belongs to the stage
        self.candidates = nn.ModuleDict(
            {
                kind: nn.ModuleDict({op: Sliced(frame_op(op), c_in, int(width.choices[-1])) for op in ops})
                for kind, c_in in inputs.items()
            }
        )

    def forward(self, x: Tensor, kind: str = "map") -> Tensor:
        """(N, C_in, H, W) -> (N, widest drawn, H, W)."""
        (width,) = self._width
        candidates = list(cast(nn.ModuleDict, self.candidates[kind]).values())
        return mix_widths(width, lambda out: self.gate.draw().combine(lambda k: cast(Tensor, candidates[k](x, out))))

    def narrowed(self, layer: Layer) -> dict[str, Tensor]:
        """State dict of that layer."""
        kind = cast(nn.ModuleDict, self.candidates["joined" if layer.joined else "map"])
        return cast(Sliced, kind[layer.op]).narrowed(layer.c_in, layer.c_out)


class SearchTrunk(Trunk):
    """A trunk with all candidates under width, depth and operator gates.

    The third stage of a siamese trunk may end before or behind the join. The last convolution then reads the joined
    pairs or a map of their mixture: two kinds of input, with weights of their own.
    """

    def __init__(self, name: str, settings: TrunkSettings, make: GateFactory, *, response_norm: bool) -> None:
        siamese = name == "temporal"
        widths = [named_gate(make, w, f"{name}.stages.{s}.width") for s, w in enumerate(settings.widths)]
        convs, c_in = {}, 3
        for key in convs_of(settings.depths[-1]):
            width = widths[int(key[0])]
            kinds = {"map": c_in}
            if siamese and (key == "2_1" or (key == "3_0" and 1 in settings.depths)):
                joined = {"joined": 2 * int(settings.widths[2][-1])}
                kinds = joined if key == "2_1" or settings.depths == (1,) else kinds | joined
            gate = named_gate(make, settings.ops, f"{name}.convs.{key}")
            convs[key] = SearchConv(settings.ops, kinds, width, gate)
            c_in = int(width.choices[-1])
        super().__init__(convs, siamese=siamese, response_norm=response_norm)
        self.widths = nn.ModuleList(widths)
        self.depth = named_gate(make, settings.depths, f"{name}.stages.2.depth")

    def rest(self, x: Tensor) -> Tensor:
        """(N, C, s, s) -> (N, widest drawn of the last stage, s, s)."""
        draw = self.depth.draw()
        depths = [int(self.depth.choices[i]) for i in draw.indices]
        outputs = {1: x}
        for j in range(1, max(depths)):
            outputs[j + 1] = self.convs[f"2_{j}"](outputs[j], self._kind(j))
        return draw.combine(lambda i: self._last(outputs, int(self.depth.choices[i])))

    def _last(self, outputs: Mapping[int, Tensor], depth: int) -> Tensor:
        return cast(Tensor, self.convs["3_0"](outputs[depth], self._kind(depth)))

    def _kind(self, depth: int) -> str:
        return "joined" if self.siamese and depth == 1 else "map"


class SearchPointwise(nn.Module):
    """The decoder's first 1×1 convolution: of each trunk's map it reads the leading channels that are there."""

    def __init__(self, parts: Sequence[int], width: Gate) -> None:
        super().__init__()
        self.parts = list(parts)
        self._width = (width,)
        widest = int(width.choices[-1])
        self.conv = nn.Conv2d(sum(parts), widest, 1, bias=False)
        self.norm = Sliced(_norm_relu, widest, widest)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (N, at most `parts[i]`, s, s) -> (N, widest drawn, s, s)."""
        (width,) = self._width
        x = torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]
        weight = self.weight([m.shape[1] for m in maps])

        return mix_widths(width, lambda out: cast(Tensor, self.norm(F.conv2d(x, weight[:out]), out)))

    def weight(self, widths: Sequence[int]) -> Tensor:
        """(widest, Σ widths, 1, 1): the leading columns of each part."""
        parts = [part[:, :w] for part, w in zip(torch.split(self.conv.weight, self.parts, dim=1), widths, strict=True)]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def narrowed(self, widths: Sequence[int], out: int) -> dict[str, Tensor]:
        """State dict of the plain layer."""
        norm = {f"1.{name.removeprefix('0.')}": value for name, value in self.norm.narrowed(out, out).items()}
        return {"0.weight": self.weight(widths)[:out].detach().clone(), **norm}


def _norm_relu(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(c_out), nn.ReLU())


class SearchDecoder(nn.Module):
    """The decoder with all candidates; it reads the maps of `parts` channels at most."""

    def __init__(self, settings: DecoderSettings, parts: Sequence[int], make: GateFactory) -> None:
        super().__init__()
        widths = [named_gate(make, w, f"decoder.layers.{j}.width") for j, w in enumerate(settings.widths)]
        widest = [w[-1] for w in settings.widths]
        self.widths = nn.ModuleList(widths)
        self.first = SearchPointwise(parts, widths[0])
        self.convs = nn.ModuleList(
            SearchConv(
                settings.ops, {"map": widest[j - 1]}, widths[j], named_gate(make, settings.ops, f"decoder.convs.{j}")
            )
            for j in (1, 2, 3)
        )
        self.grow = Sliced(deconv, widest[3], widest[4])
        self.last = Sliced(deconv, widest[4], 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Trunks' maps (N, C, s, s) -> (N, 1, 4s, 4s)."""
        x = self.first(maps)
        for layer in self.convs:
            x = layer(x)
        width = cast(Gate, self.widths[4])
        grown = mix_widths(width, lambda out: cast(Tensor, self.grow(x, out)))
        return cast(Tensor, self.last(grown, 1))


class SaliencySupernet(SaliencyNet):
    """All students of one net at once; gates of variables without a part in it are there, but do nothing."""

    def __init__(
        self, settings: SaliencySettings, net: str, variables: Mapping[str, Sequence[Choice]], make: GateFactory
    ) -> None:
        trunks = {
            name: SearchTrunk(name, settings.trunk(name), make, response_norm=settings.response_norm)
            for name in TRUNKS_OF[net]
        }
        parts = [settings.trunk(name).widths[3][-1] for name in trunks]
        super().__init__(trunks, SearchDecoder(settings.decoder, parts, make))
        own = gates_of(self)
        self.idle = nn.ModuleList(named_gate(make, c, name) for name, c in variables.items() if name not in own)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The saliency map; a decoder whose width is open reads the maps one by one."""
        return cast(Tensor, self.decoder(maps))
