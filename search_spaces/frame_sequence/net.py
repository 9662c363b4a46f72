"""The definition of the space `frame_sequence`: features (N, T, D) of any T to logits, from choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.choices import Choices, FixedChoices
from nas_kd.search_spaces.flops import count_flops
from nas_kd.search_spaces.frame_sequence.encoders import FAMILIES
from nas_kd.search_spaces.frame_sequence.parts import classifier
from nas_kd.search_spaces.frame_sequence.settings import FrameSequenceSettings


class FrameSequenceNet(nn.Module):
    """An encoder and a classifier, which objectives and budgets may name apart."""

    def __init__(self, choose: Choices, settings: FrameSequenceSettings) -> None:
        super().__init__()
        family = str(choose.knob("family"))
        options = settings.of(family)
        sizes: dict[str, Any] = {}
        for name, values in settings.options(family).items():
            declare = choose.op if name in options.own_weights else choose.number
            sizes[name] = declare(f"{family}.{name}", values)

        def encoder(*own: Any) -> nn.Module:
            chosen = {**sizes, **dict(zip(options.own_weights, own, strict=True))}
            return FAMILIES[family].encoder(choose, settings.feature_size, **chosen, **options.fixed())

        own = [sizes[name] for name in options.own_weights]
        self.encoder = choose.variants(own, encoder) if own else encoder()
        head, width = choose.op("head", settings.head), sizes[options.encoding]
        self.head = choose.layer(classifier, width, settings.num_classes, head=head, experts=settings.experts)

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> logits (N, num_classes)."""
        return cast(Tensor, self.head(self.encoder(features)))

    def part_flops(self, example: Tensor) -> dict[str, int]:
        """FLOPs of the encoder: with many classes the head is most of the net."""
        return {"encoder_flops": count_flops(self.encoder, example).total}


def build_net(settings: FrameSequenceSettings, choices: Mapping[str, Choice]) -> FrameSequenceNet:
    """The plain net of complete choices."""
    return FrameSequenceNet(FixedChoices(choices), settings)
