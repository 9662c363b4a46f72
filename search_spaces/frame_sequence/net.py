"""The definition of the space `frame_sequence`: features (N, T, D) of any T to logits, from choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.choices import Choices, FixedChoices
from nas_kd.search_spaces.flops import count_flops
from nas_kd.search_spaces.frame_sequence.parts import (
    FrameNorm,
    GroupedVladPool,
    Lstm,
    VladPool,
    classifier,
    gated_layer,
    squeezed_layer,
)
from nas_kd.search_spaces.frame_sequence.settings import FrameSequenceSettings


class HRnnEncoder(nn.Module):
    """An LSTM over the frames of each block, and one over the blocks' last states (Pan et al., CVPR 2016)."""

    def __init__(self, choose: Choices, features: int, *, lower: int, upper: int, block_length: int) -> None:
        super().__init__()
        self.at_length = choose.whole(block_length, after=(lower,))
        self.lower = choose.layer(Lstm, features, lower, block_length)
        self.upper = choose.layer(Lstm, lower, upper)

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> the last state of the upper LSTM, (N, upper)."""
        frames = features.transpose(1, 2)
        return self.at_length(lambda _: cast(Tensor, self.upper(self.lower(frames)))).squeeze(2)


class NetVladEncoder(nn.Module):
    """BatchNorm, `VladPool` and a gated layer (Miech et al., 2017, arXiv 1706.06905)."""

    def __init__(self, choose: Choices, features: int, *, clusters: int, hidden: int) -> None:
        super().__init__()
        self.norm = FrameNorm(features)
        self.pool = choose.layer(VladPool, features, clusters)
        self.layer = choose.layer(gated_layer, clusters * features, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> (N, hidden)."""
        return cast(Tensor, self.layer(self.pool(self.norm(features).transpose(1, 2))))


class NextVladEncoder(nn.Module):
    """A linear expansion, `GroupedVladPool` and a gated layer (Lin et al., 2018, arXiv 1811.05014).

    Expansion and groups decide what the entries of a descriptor mean, so in a supernet each pair of them has weights of
    its own.
    """

    def __init__(
        self,
        choose: Choices,
        features: int,
        *,
        clusters: int,
        groups: int,
        expansion: int,
        hidden: int,
        reduction: int,
        dropout: float,
    ) -> None:
        super().__init__()
        part = expansion * features // groups
        self.expand = choose.layer(nn.Linear, features, expansion * features)
        self.pool = choose.layer(GroupedVladPool, expansion * features, clusters, groups)
        self.layer = choose.layer(squeezed_layer, clusters * part, hidden, reduction=reduction, dropout=dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> (N, hidden)."""
        return cast(Tensor, self.layer(self.pool(self.expand(features).transpose(1, 2))))


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "h_rnn": HRnnEncoder,
    "net_vlad": NetVladEncoder,
    "nextvlad": NextVladEncoder,
}
"""Family -> (choices, size of a frame, the family's options) -> encoder."""


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
            return ENCODERS[family](choose, settings.feature_size, **chosen, **options.fixed())

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
