"""A teacher of frame features that sees all frames (Bhardwaj et al., CVPR 2019): one net of the space `frame_sequence`.

The sizes that are set here by default are those of the paper: two LSTMs of 1024 cells, NetVLAD of 256 clusters,
NeXtVLAD of 128 clusters in 8 groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from nas_kd.data import DataInfo
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.frame_sequence.net import build_net
from nas_kd.search_spaces.frame_sequence.settings import (
    FAMILIES,
    Family,
    FrameSequenceSettings,
    HeadName,
    check_families,
    check_groups,
    check_reduction,
    with_families,
)


class HRnnSizes(BaseModel):
    """Sizes of the hierarchical LSTM.

    Attributes:
        lower: of the LSTM that reads the frames of a block.
        upper: of the LSTM that reads the blocks, which is the size of the encoding.
        block_length: frames of a block; the last block may be shorter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lower: int = Field(default=1024, ge=1)
    upper: int = Field(default=1024, ge=1)
    block_length: int = Field(default=20, ge=1)


class NetVladSizes(BaseModel):
    """Sizes of NetVLAD.

    Attributes:
        clusters: cluster centres.
        hidden: of the layer behind the descriptor, which is the size of the encoding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clusters: int = Field(default=256, ge=1)
    hidden: int = Field(default=1024, ge=1)


class NextVladSizes(BaseModel):
    """Sizes of NeXtVLAD.

    Attributes:
        clusters: cluster centres.
        groups: that an expanded frame is split into.
        expansion: factor by which a frame is widened first.
        hidden: of the layer behind the descriptor, which is the size of the encoding.
        reduction: the gating's inner layer is this many times narrower than the encoding.
        dropout: on the descriptor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clusters: int = Field(default=128, ge=1)
    groups: int = Field(default=8, ge=1)
    expansion: int = Field(default=2, ge=1)
    hidden: int = Field(default=2048, ge=1)
    reduction: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)


class FrameSequenceTeacherSettings(BaseModel):
    """Settings of the net.

    Attributes:
        feature_size: numbers that describe a frame.
        family: `h_rnn`, `net_vlad` or `nextvlad`.
        head: `linear`, or `moe`, a mixture of experts for each class.
        experts: of `moe`, for each class.
        h_rnn: sizes of that family; given only where `family` is it, as are the next two.
        net_vlad: sizes of that family.
        nextvlad: sizes of that family.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature_size: int = Field(ge=1)
    family: Family = "h_rnn"
    head: HeadName = "moe"
    experts: int = Field(default=2, ge=1)
    h_rnn: HRnnSizes | None = None
    net_vlad: NetVladSizes | None = None
    nextvlad: NextVladSizes | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        return with_families(data, [data.get("family", "h_rnn")]) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _valid(self) -> FrameSequenceTeacherSettings:
        check_families({"h_rnn": self.h_rnn, "net_vlad": self.net_vlad, "nextvlad": self.nextvlad}, [self.family])
        if self.nextvlad is not None:
            check_groups([self.nextvlad.groups], [self.nextvlad.expansion], self.feature_size)
            check_reduction([self.nextvlad.hidden], self.nextvlad.reduction)
        return self


def build_frame_sequence(num_outputs: int, settings: dict[str, Any]) -> nn.Module:
    """The net: frame features (N, T, D), of any T, to logits (N, num_outputs), with the parts `encoder` and `head`.

    Args:
        num_outputs: classes.
        settings: as of `FrameSequenceTeacherSettings`.

    Raises:
        ValidationError: settings that make no net.
    """
    s = FrameSequenceTeacherSettings.model_validate(settings)
    own = getattr(s, s.family).model_dump()
    space = FrameSequenceSettings.model_validate(
        {
            "num_classes": num_outputs,
            "feature_size": s.feature_size,
            "family": [s.family],
            "head": [s.head],
            "experts": s.experts,
            s.family: {name: [value] if name in FAMILIES[s.family].gates else value for name, value in own.items()},
        }
    )
    sizes: dict[str, Choice] = {f"{s.family}.{name}": options[0] for name, options in space.options(s.family).items()}
    return build_net(space, {"family": s.family, "head": s.head, **sizes})


def with_feature_size(settings: Mapping[str, Any], info: DataInfo | None) -> dict[str, Any]:
    """The settings with the size of the data's features, which is not for the campaign file to change.

    Raises:
        ValueError: they name another size.
    """
    size = info.feature_size if info is not None else 0
    own = settings.get("feature_size")
    if not size:
        return dict(settings)
    if own is not None and own != size:
        raise ValueError(
            f"teacher.settings.feature_size: the data have {size} features a frame, but it is {own!r}; leave it out"
        )
    return {"feature_size": size, **settings}
