"""Settings of the space `frame_sequence`, as a campaign file gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Family = Literal["h_rnn", "net_vlad", "nextvlad"]
SelectorName = Literal["uniform", "random", "first", "middle", "last", "first_middle_last"]
HeadName = Literal["linear", "moe"]

FRAMES = (6, 10, 15)
"""How many frames students see by default."""


def frames_within(frames: int) -> list[int]:
    """The default numbers of frames that items of `frames` frames have; all of them where they have fewer."""
    return [k for k in FRAMES if k <= frames] or [frames]


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if not values or list(values) != sorted(set(values)) or values[0] < 1:
        raise ValueError(f"the options must be positive numbers that ascend, at least one, but are {list(values)}")
    return values


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"the options must be at least one, without repetition, but are {list(values)}")
    return values


Numbers = Annotated[tuple[int, ...], AfterValidator(_ascending)]


class FamilyOptions(BaseModel):
    """What the gates of one family choose from, and what is fixed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class NetVladOptions(FamilyOptions):
    """What the gates of NetVLAD choose from.

    Attributes:
        clusters: numbers of cluster centres.
        hidden: sizes of the layer behind the descriptor, which is the size of the encoding.
    """

    gates = ("clusters", "hidden")

    clusters: Numbers = (32, 64, 128)
    hidden: Numbers = (128, 256, 512)


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

    @model_validator(mode="after")
    def _divisible(self) -> NextVladOptions:
        check_reduction(self.hidden, self.reduction)
        return self


FAMILIES: dict[str, type[FamilyOptions]] = {
    "h_rnn": HRnnOptions,
    "net_vlad": NetVladOptions,
    "nextvlad": NextVladOptions,
}


class FrameSequenceSettings(BaseModel):
    """Settings of the space. Of several options of `family`, `frames` and `selector` an outer search proposes one; the
    others are chosen by gates, and a single option is fixed.

    Attributes:
        num_classes: outputs of the classifier.
        feature_size: numbers that describe a frame.
        family: encoders to choose from: `h_rnn`, `net_vlad`, `nextvlad`.
        frames: numbers of frames to choose from.
        selector: which frames these are: `uniform`, `random`, `first`, `middle`, `last`, `first_middle_last`.
        head: classifiers to choose from: `linear`, or `moe`, a mixture of experts for each class.
        experts: of `moe`, for each class.
        h_rnn: options of that family; given only where `family` names it, as are the next two.
        net_vlad: options of that family.
        nextvlad: options of that family.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int = Field(ge=1)
    feature_size: int = Field(ge=1)
    family: Annotated[tuple[Family, ...], AfterValidator(_distinct)] = ("h_rnn",)
    frames: Numbers = FRAMES
    selector: Annotated[tuple[SelectorName, ...], AfterValidator(_distinct)] = ("uniform",)
    head: Annotated[tuple[HeadName, ...], AfterValidator(_distinct)] = ("moe",)
    experts: int = Field(default=2, ge=1)
    h_rnn: HRnnOptions | None = None
    net_vlad: NetVladOptions | None = None
    nextvlad: NextVladOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Options of the families that are named are written out, so that an architecture keeps them."""
        return with_families(data, data.get("family", ("h_rnn",))) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _valid(self) -> FrameSequenceSettings:
        check_families({"h_rnn": self.h_rnn, "net_vlad": self.net_vlad, "nextvlad": self.nextvlad}, self.family)
        if self.nextvlad is not None:
            check_groups(self.nextvlad.groups, self.nextvlad.expansion, self.feature_size)
        return self

    def of(self, family: str) -> FamilyOptions:
        """The options of a family that is named."""
        options: FamilyOptions | None = getattr(self, family)
        assert options is not None, "settings hold the options of every family that they name"
        return options

    def options(self, family: str) -> dict[str, tuple[int, ...]]:
        """Gate of that family, without its prefix -> its choices."""
        options = self.of(family)
        return {name: getattr(options, name) for name in options.gates}


def with_families(data: Mapping[str, Any], families: Any) -> dict[str, Any]:
    """`data` with an empty object for each family that is named and has no options of its own."""
    known = [f for f in FAMILIES if isinstance(families, list | tuple) and f in families]
    return {**data, **{family: {} for family in known if data.get(family) is None}}


def check_families(given: dict[str, object], families: Iterable[str]) -> None:
    """Raise `ValueError` where options are given for a family that is not offered."""
    offered = list(families)
    for family, options in given.items():
        if options is not None and family not in offered:
            raise ValueError(
                f"{family} holds options, but family is {', '.join(offered)}; name {family} in family or remove them"
            )


def check_groups(groups: Iterable[int], expansion: Iterable[int], feature_size: int) -> None:
    """Raise `ValueError` where an expanded frame cannot be split into equal groups."""
    for count, factor in product(groups, expansion):
        if (factor * feature_size) % count:
            raise ValueError(
                f"groups must divide expansion · feature_size, but {count} does not divide {factor} · {feature_size} = "
                f"{factor * feature_size}; choose another number of groups"
            )


def check_reduction(hidden: Iterable[int], reduction: int) -> None:
    """Raise `ValueError` where the gating's inner layer would have no whole size."""
    for size in hidden:
        if size % reduction:
            raise ValueError(
                f"hidden must be a multiple of reduction, {reduction}, but {size} is not; change one of them"
            )
