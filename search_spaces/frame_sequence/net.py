"""Nets of the space `frame_sequence`: features (N, T, D) of any T to logits, with the parts `encoder` and `head`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor, nn

from search_spaces.arch import Choice
from search_spaces.flops import count_flops
from search_spaces.frame_sequence.parts import (
    FrameNorm,
    GroupedVladPool,
    Lstm,
    VladPool,
    classifier,
    gated_layer,
    squeezed_layer,
)
from search_spaces.frame_sequence.settings import FrameSequenceSettings


class HRnnEncoder(nn.Module):
    """An LSTM over the frames of each block, and one over the blocks' last states (Pan et al., CVPR 2016)."""

    def __init__(self, features: int, *, lower: int, upper: int, block_length: int) -> None:
        super().__init__()
        self.block_length = block_length
        self.lower, self.upper = Lstm(features, lower), Lstm(lower, upper)

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> the last state of the upper LSTM, (N, upper)."""
        return cast(Tensor, self.upper(self.lower(features, block_length=self.block_length)).squeeze(1))


class NetVladEncoder(nn.Module):
    """BatchNorm, `VladPool` and a gated layer (Miech et al., 2017, arXiv 1706.06905)."""

    def __init__(self, features: int, *, clusters: int, hidden: int) -> None:
        super().__init__()
        self.norm = FrameNorm(features)
        self.pool = VladPool(features, clusters)
        self.layer = gated_layer(clusters * features, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> (N, hidden)."""
        return cast(Tensor, self.layer(self.pool(self.norm(features).transpose(1, 2))))


class NextVladEncoder(nn.Module):
    """A linear expansion, `GroupedVladPool` and a gated layer (Lin et al., 2018, arXiv 1811.05014)."""

    def __init__(
        self, features: int, *, clusters: int, groups: int, expansion: int, hidden: int, reduction: int, dropout: float
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(features, expansion * features)
        self.pool = GroupedVladPool(expansion * features, clusters, groups)
        descriptor = clusters * expansion * features // groups
        self.layer = squeezed_layer(descriptor, hidden, reduction=reduction, dropout=dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> (N, hidden)."""
        return cast(Tensor, self.layer(self.pool(self.expand(features).transpose(1, 2))))


class FrameSequenceNet(nn.Module):
    """An encoder and a classifier, which objectives and budgets may name apart."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, D) -> logits (N, num_classes)."""
        return cast(Tensor, self.head(self.encoder(features)))

    def part_flops(self, example: Tensor) -> dict[str, int]:
        """FLOPs of the encoder: with many classes the head is most of the net."""
        return {"encoder_flops": count_flops(self.encoder, example).total}


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "h_rnn": HRnnEncoder,
    "net_vlad": NetVladEncoder,
    "nextvlad": NextVladEncoder,
}


def build_net(settings: FrameSequenceSettings, choices: Mapping[str, Choice]) -> FrameSequenceNet:
    """The plain net of canonical choices."""
    family = str(choices["family"])
    options = settings.of(family)
    sizes = {name: int(choices[f"{family}.{name}"]) for name in options.gates}
    encoder = ENCODERS[family](settings.feature_size, **sizes, **options.fixed())
    width, head = sizes[options.encoding], str(choices["head"])
    return FrameSequenceNet(encoder, classifier(width, settings.num_classes, head=head, experts=settings.experts))
