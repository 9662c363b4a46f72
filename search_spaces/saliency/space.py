"""Space `saliency`: small nets that say where people look in a video (Li, Fu, Zhao, Ge, TIP 2020, arXiv 1904.04992).

    (N, 3, 2, S, S), frames t and t + 1 → trunk `spatial`, `temporal`, or both → `decoder` → (N, 1, S, S), of frame t

A trunk has four stages of convolutions, with maxima over 2×2 pixels behind the first two:

    16, 16, (response norm) | 32 | 64, 64 | 128

and the decoder six layers, 1×1 → 32, 32, 32, 16, then two transposed convolutions → 8 → 1 without ReLU. The temporal
trunk runs up to its first 64 on each of both frames, with the same weights, and then reads [f_t, f_t − f_{t+1}].

The published net is the last choice of everything, at the published sides 32, 64, 96, 128 and 256. What is open: each
stage's width, the number of convolutions in the third stage, each convolution's operator, the decoder's widths and
operators. Which net, and the side of its input, are knobs. Deviations: no convolution before a BatchNorm has a bias;
the channels of [f_t, f_t − f_{t+1}] alternate, which is the same net with the next weights permuted; the response
norm's constants, which the paper does not give, are those of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from search_spaces.arch import Choice
from search_spaces.cost import CostTable
from search_spaces.gates import GateFactory
from search_spaces.saliency.cost import saliency_costs
from search_spaces.saliency.net import (
    Layer,
    SaliencySupernet,
    SearchConv,
    SearchDecoder,
    SearchTrunk,
    Trunk,
    convs_of,
    student_net,
    trunk_layers,
)
from search_spaces.saliency.ops import Decoder
from search_spaces.saliency.settings import TRUNKS_OF, SaliencySettings
from search_spaces.space import SearchSpace, resampled


class SaliencySpace(SearchSpace):
    """The space described at the top of this module."""

    name = "saliency"

    def __init__(self, settings: SaliencySettings) -> None:
        self._s = settings
        self.settings = settings.model_dump(mode="json")
        self.knobs = {"net": settings.net, "side": settings.side}
        variables: dict[str, tuple[Choice, ...]] = {}
        for trunk in settings.trunks:
            s = settings.trunk(trunk)
            variables |= {f"{trunk}.stages.{i}.width": widths for i, widths in enumerate(s.widths)}
            variables[f"{trunk}.stages.2.depth"] = s.depths
            variables |= {f"{trunk}.convs.{key}": s.ops for key in convs_of(s.depths[-1])}
        variables |= {f"decoder.layers.{j}.width": widths for j, widths in enumerate(settings.decoder.widths)}
        variables |= {f"decoder.convs.{j}": settings.decoder.ops for j in (1, 2, 3)}
        self.variables = variables
        self._tables: dict[tuple[str, int], CostTable] = {}

    def network(self, knobs: Mapping[str, Choice], make_gate: GateFactory) -> nn.Module:
        return SaliencySupernet(self._s, str(knobs["net"]), self.variables, make_gate)

    def build_student(self, choices: Mapping[str, Choice]) -> nn.Module:
        return student_net(self._s, choices)

    def active(self, choices: Mapping[str, Choice]) -> set[str]:
        active = {name for name in self.variables if name.startswith("decoder.")}
        for trunk in TRUNKS_OF[str(choices["net"])]:
            depth = int(choices.get(f"{trunk}.stages.2.depth", 0))
            active |= {f"{trunk}.stages.{i}.width" for i in range(4)} | {f"{trunk}.stages.2.depth"}
            active |= {f"{trunk}.convs.{key}" for key in convs_of(depth)}
        return active

    def inherit(self, network: nn.Module, student: nn.Module, choices: Mapping[str, Choice]) -> None:
        trunks = TRUNKS_OF[str(choices["net"])]
        for trunk in trunks:
            source = cast(SearchTrunk, network.get_submodule(trunk))
            target = cast(Trunk, student.get_submodule(trunk))
            for key, layer in trunk_layers(trunk, choices).items():
                target.convs[key].load_state_dict(cast(SearchConv, source.convs[key]).narrowed(layer))
        decoder = cast(SearchDecoder, network.get_submodule("decoder"))
        plain = cast(Decoder, student.get_submodule("decoder"))
        widths = [int(choices[f"decoder.layers.{j}.width"]) for j in range(5)]
        read = [int(choices[f"{trunk}.stages.3.width"]) for trunk in trunks]
        plain[0].load_state_dict(decoder.first.narrowed(read, widths[0]))
        for j in (1, 2, 3):
            layer = Layer(str(choices[f"decoder.convs.{j}"]), widths[j - 1], widths[j])
            plain[j].load_state_dict(cast(SearchConv, decoder.convs[j - 1]).narrowed(layer))
        plain[4].load_state_dict(decoder.grow.narrowed(widths[3], widths[4]))
        plain[5].load_state_dict(decoder.last.narrowed(widths[4], 1))

    def cost_table(self, knobs: Mapping[str, Choice]) -> CostTable:
        key = str(knobs["net"]), int(knobs["side"])
        if key not in self._tables:
            self._tables[key] = saliency_costs(self._s, self.variables, *key)
        return self._tables[key]

    def example_input(self, knobs: Mapping[str, Choice]) -> Tensor:
        side = int(knobs["side"])
        return torch.zeros(1, 3, 2, side, side)

    def fit_input(self, clip: Tensor, knobs: Mapping[str, Choice]) -> Tensor:
        """The first two frames, bilinearly resampled.

        Args:
            clip: (N, 3, T, H, W) normalised, T at least 2.

        Returns:
            (N, 3, 2, side, side).

        Raises:
            ValueError: the clip has only one frame.
        """
        if clip.shape[2] < 2:
            raise ValueError(
                f"the students of space saliency are given frames t and t + 1, those of net spatial too, but the clip "
                f"has {clip.shape[2]} frame; give clips of two frames or more (data.frames)"
            )
        return resampled(clip[:, :, :2] if clip.shape[2] > 2 else clip, int(knobs["side"]))

    def size(self) -> int:
        """Number of canonical architectures."""
        decoder = prod(map(len, self._s.decoder.widths)) * len(self._s.decoder.ops) ** 3
        trunk = {}
        for name in self._s.trunks:
            s = self._s.trunk(name)
            trunk[name] = prod(map(len, s.widths)) * sum(len(s.ops) ** len(convs_of(d)) for d in s.depths)
        nets = sum(prod(trunk[name] for name in TRUNKS_OF[net]) for net in self._s.net)
        return int(decoder * nets * len(self._s.side))
