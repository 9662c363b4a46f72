"""Settings of the space `frame_sequence`, as in a campaign file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from nas_kd.search_spaces.frame_sequence.encoders import FAMILIES, FamilyOptions, FamilySection, Numbers

SelectorName = Literal["uniform", "random", "first", "middle", "last", "first_middle_last"]
HeadName = Literal["linear", "moe"]

FRAMES = (6, 10, 15)
"""How many frames students see by default."""


def frames_within(frames: int) -> list[int]:
    """The default numbers of frames that items of `frames` frames have; all of them where they have fewer."""
    return [k for k in FRAMES if k <= frames] or [frames]


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"the options must be at least one, without repetition, but are {list(values)}")
    return values


if TYPE_CHECKING:
    Family = str
    FamilyOptionsOf = BaseModel
else:  # with the names and sections of all families
    Family = Literal[tuple(FAMILIES)]
    FamilyOptionsOf = create_model("FamilyOptionsOf", **{n: (f.options | None, None) for n, f in FAMILIES.items()})


class FrameSequenceSettings(FamilyOptionsOf):
    """Settings of the space. Of several options of `family`, `frames` and `selector` an outer search proposes one; the
    others are chosen by gates, and a single option is fixed.

    Attributes:
        num_classes: outputs of the classifier.
        feature_size: numbers that describe a frame.
        family: encoders to choose from, names in `encoders.FAMILIES`. The options of each have a key of its name, which
            is given only where `family` names it.
        frames: numbers of frames to choose from.
        selector: which frames these are: `uniform`, `random`, `first`, `middle`, `last`, `first_middle_last`.
        head: classifiers to choose from: `linear`, or `moe`, a mixture of experts for each class.
        experts: of `moe`, for each class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int = Field(ge=1)
    feature_size: int = Field(ge=1)
    family: Annotated[tuple[Family, ...], AfterValidator(_distinct)] = ("h_rnn",)
    frames: Numbers = FRAMES
    selector: Annotated[tuple[SelectorName, ...], AfterValidator(_distinct)] = ("uniform",)
    head: Annotated[tuple[HeadName, ...], AfterValidator(_distinct)] = ("moe",)
    experts: int = Field(default=2, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Options of the families that are named are written out, so that an architecture keeps them."""
        return with_families(data, data.get("family", ("h_rnn",))) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _valid(self) -> FrameSequenceSettings:
        check_families(self, self.family, self.feature_size)
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


def check_families(settings: BaseModel, families: Iterable[str], feature_size: int) -> None:
    """Raise `ValueError` where a family that is not offered has a section, or a section does not fit the data."""
    offered = list(families)
    for family in FAMILIES:
        section: FamilySection | None = getattr(settings, family)
        if section is None:
            continue
        if family not in offered:
            raise ValueError(
                f"{family} holds options, but family is {', '.join(offered)}; name {family} in family or remove them"
            )
        try:
            section.check(feature_size)
        except ValueError as error:
            raise ValueError(f"{family}: {error}") from error
