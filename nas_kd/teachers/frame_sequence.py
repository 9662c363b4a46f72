"""A teacher of frame features that sees all frames (Bhardwaj et al., CVPR 2019): one net of the space `frame_sequence`.

The sizes that are set here by default are those of the paper: two LSTMs of 1024 cells, NetVLAD of 256 clusters,
NeXtVLAD of 128 clusters in 8 groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from torch import nn

from nas_kd.data import DataInfo
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.frame_sequence.encoders import FAMILIES
from nas_kd.search_spaces.frame_sequence.net import build_net
from nas_kd.search_spaces.frame_sequence.settings import (
    Family,
    FrameSequenceSettings,
    HeadName,
    check_families,
    with_families,
)

if TYPE_CHECKING:
    SizesOf = BaseModel
else:  # with the sections of all families
    SizesOf = create_model("SizesOf", **{name: (family.sizes | None, None) for name, family in FAMILIES.items()})


class FrameSequenceTeacherSettings(SizesOf):
    """Settings of the net.

    Attributes:
        feature_size: numbers that describe a frame.
        family: a name in `FAMILIES` of the space. Its sizes have a key of its name, which no other family may have.
        head: `linear`, or `moe`, a mixture of experts for each class.
        experts: of `moe`, for each class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature_size: int = Field(ge=1)
    family: Family = "h_rnn"
    head: HeadName = "moe"
    experts: int = Field(default=2, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        return with_families(data, [data.get("family", "h_rnn")]) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _valid(self) -> FrameSequenceTeacherSettings:
        check_families(self, [self.family], self.feature_size)
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
    own, gates = getattr(s, s.family).model_dump(), FAMILIES[s.family].options.gates
    space = FrameSequenceSettings.model_validate(
        {
            "num_classes": num_outputs,
            "feature_size": s.feature_size,
            "family": [s.family],
            "head": [s.head],
            "experts": s.experts,
            s.family: {name: [value] if name in gates else value for name, value in own.items()},
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
