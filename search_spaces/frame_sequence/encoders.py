"""Families of encoders of the space `frame_sequence`: of each its options, its sizes as a single net, and its module.

A new family is its three classes and an entry of `FAMILIES`, all in this file. Settings of the space and of the teacher
then have a section of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nas_kd.search_spaces.choices import Choices
from nas_kd.search_spaces.frame_sequence.parts import (
    FrameNorm,
    GroupedVladPool,
    Lstm,
    VladPool,
    gated_layer,
    squeezed_layer,
)


def ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers themselves; raises `ValueError` where they do not ascend."""
    if not values or list(values) != sorted(set(values)) or values[0] < 1:
        raise ValueError(f"the options must be positive numbers that ascend, at least one, but are {list(values)}")
    return values


Numbers = Annotated[tuple[int, ...], AfterValidator(ascending)]


class FamilySection(BaseModel):
    """The section of a family in the settings of the space or of the teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self, feature_size: int) -> None:
        """Raise `ValueError` where the section does not fit frames of so many features."""


class FamilyOptions(FamilySection):
    """What the gates of one family choose from, and what is fixed."""

    gates: ClassVar[tuple[str, ...]]  # the options that gates choose from, in the order of the net
    own_weights: ClassVar[tuple[str, ...]] = ()  # of these, the ones each option of which has weights of its own
    encoding: ClassVar[str] = "hidden"  # of these, the size of the encoding

    def fixed(self) -> dict[str, Any]:
        """The options that no gate chooses."""
        return {name: value for name, value in self if name not in self.gates}


class HRnnOptions(FamilyOptions):
    """What the gates of the hierarchical LSTM choose from.

    Attributes:
        lower: sizes of the LSTM that reads the frames of a block.
        upper: sizes of the LSTM that reads the blocks, which is the size of the encoding.
        block_length: frames of a block; the last block may be shorter, and a length of all frames or more makes one
            block.
    """

    gates = ("lower", "block_length", "upper")
    encoding = "upper"

    lower: Numbers = (64, 128, 256, 512)
    upper: Numbers = (64, 128, 256, 512)
    block_length: Numbers = (5, 10)


class HRnnSizes(FamilySection):
    """Sizes of the hierarchical LSTM.

    Attributes:
        lower: of the LSTM that reads the frames of a block.
        upper: of the LSTM that reads the blocks, which is the size of the encoding.
        block_length: frames of a block; the last block may be shorter.
    """

    lower: int = Field(default=1024, ge=1)
    upper: int = Field(default=1024, ge=1)
    block_length: int = Field(default=20, ge=1)


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


class NetVladOptions(FamilyOptions):
    """What the gates of NetVLAD choose from.

    Attributes:
        clusters: numbers of cluster centres.
        hidden: sizes of the layer behind the descriptor, which is the size of the encoding.
    """

    gates = ("clusters", "hidden")

    clusters: Numbers = (32, 64, 128)
    hidden: Numbers = (128, 256, 512)


class NetVladSizes(FamilySection):
    """Sizes of NetVLAD.

    Attributes:
        clusters: cluster centres.
        hidden: of the layer behind the descriptor, which is the size of the encoding.
    """

    clusters: int = Field(default=256, ge=1)
    hidden: int = Field(default=1024, ge=1)


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


class NextVladOptions(FamilyOptions):
    """What the gates of NeXtVLAD choose from, and what is fixed.

    Attributes:
        clusters: numbers of cluster centres.
        groups: numbers of groups that an expanded frame is split into.
        expansion: factors by which a frame is widened first.
        hidden: sizes of the layer behind the descriptor, which is the size of the encoding.
        reduction: the gating's inner layer is this many times narrower than the encoding.
        dropout: on the descriptor.
    """

    gates = ("expansion", "groups", "clusters", "hidden")
    own_weights = ("expansion", "groups")

    clusters: Numbers = (32, 64, 128)
    groups: Numbers = (8,)
    expansion: Numbers = (2,)
    hidden: Numbers = (128, 256, 512)
    reduction: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    def check(self, feature_size: int) -> None:
        check_nextvlad(self.groups, self.expansion, self.hidden, self.reduction, feature_size)


class NextVladSizes(FamilySection):
    """Sizes of NeXtVLAD.

    Attributes:
        clusters: cluster centres.
        groups: that an expanded frame is split into.
        expansion: factor by which a frame is widened first.
        hidden: of the layer behind the descriptor, which is the size of the encoding.
        reduction: the gating's inner layer is this many times narrower than the encoding.
        dropout: on the descriptor.
    """

    clusters: int = Field(default=128, ge=1)
    groups: int = Field(default=8, ge=1)
    expansion: int = Field(default=2, ge=1)
    hidden: int = Field(default=2048, ge=1)
    reduction: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    def check(self, feature_size: int) -> None:
        check_nextvlad([self.groups], [self.expansion], [self.hidden], self.reduction, feature_size)


def check_nextvlad(
    groups: Iterable[int], expansion: Iterable[int], hidden: Iterable[int], reduction: int, feature_size: int
) -> None:
    """Raise `ValueError` where an expanded frame has no equal groups, or the gating's inner layer no whole size."""
    for count, factor in product(groups, expansion):
        if (factor * feature_size) % count:
            raise ValueError(
                f"groups must divide expansion · feature_size, but {count} does not divide {factor} · {feature_size} = "
                f"{factor * feature_size}; choose another number of groups"
            )
    for size in hidden:
        if size % reduction:
            raise ValueError(
                f"hidden must be a multiple of reduction, {reduction}, but {size} is not; change one of them"
            )


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


@dataclass(frozen=True)
class Family:
    """A family of encoders.

    Attributes:
        options: what its gates choose from, and what is fixed: its section of the space's settings.
        sizes: of a single net, by default those of the paper: its section of the teacher's settings. The same keys.
        encoder: (choices, size of a frame, the options by name) -> module, (N, T, D) -> (N, size of the encoding).
    """

    options: type[FamilyOptions]
    sizes: type[FamilySection]
    encoder: Callable[..., nn.Module]


FAMILIES: Mapping[str, Family] = {
    "h_rnn": Family(HRnnOptions, HRnnSizes, HRnnEncoder),
    "net_vlad": Family(NetVladOptions, NetVladSizes, NetVladEncoder),
    "nextvlad": Family(NextVladOptions, NextVladSizes, NextVladEncoder),
}
"""Name -> family."""
