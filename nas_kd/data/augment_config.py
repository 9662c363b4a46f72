"""The `augment` key of a training: a name for the usual cases, or a section with what is varied and how much."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from nas_kd.data.sample import DataError
from nas_kd.settings.strict import Section

Share = Annotated[float, Field(gt=0, le=1)]


class ResizedCropConfig(Section):
    """A window of random size, shape and place, scaled to what nets see (Szegedy et al., arXiv:1409.4842).

    Attributes:
        area: least and largest share of the stored frame.
        ratio: least and largest width over height, relative to that of what nets see; drawn on a logarithmic scale.
            Sides longer than those of the stored frame are cut to them.
    """

    area: tuple[Share, Share] = (0.35, 1.0)
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.75, 4 / 3)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_ordered("area", self.area)
        _check_ordered("ratio", self.ratio)
        return self


class ColorConfig(Section):
    """Random changes of colour, see `nas_kd.data.color`. A factor is drawn between 1 − value and 1 + value.

    Attributes:
        brightness: of the factor of all colours.
        contrast: of the factor of the distance from the clip's mean grey.
        saturation: of the factor of the distance from each pixel's grey.
        hue: largest angle by which hues turn either way, as a share of a whole turn.
    """

    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    saturation: float = Field(default=0.0, ge=0, le=1)
    hue: float = Field(default=0.0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not any((self.brightness, self.contrast, self.saturation, self.hue)):
            raise ValueError("one of brightness, contrast, saturation and hue must be above 0; set it, or leave it out")
        return self


class TemporalConfig(Section):
    """Frames uniform over a window of random length and place: a random crop in time, with a random stride.

    Attributes:
        window: least and largest length, in shares of the stored clip (`data.stored_frames`).
    """

    window: tuple[Share, Share] = (0.5, 1.0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_ordered("window", self.window)
        return self


class AugmentConfig(Section):
    """What is varied at random. One draw a clip, the same for all its frames and all its targets.

    Attributes:
        flip: mirror half of the clips.
        crop: as `flip+crop`: a window with sides of 0.75 to 1.1 of the frame, near its centre.
        resized_crop: a window of random size, shape and place instead.
        color: brightness, contrast, saturation and hue.
        temporal: frames from a window of random length and place.
    """

    flip: bool = False
    crop: bool = False
    resized_crop: ResizedCropConfig | None = None
    color: ColorConfig | None = None
    temporal: TemporalConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.crop and self.resized_crop is not None:
            raise ValueError("crop and resized_crop both take a window; leave one of them out")
        if not self.parts:
            raise ValueError(
                f"a section must vary something; set one of {', '.join(fields_of_augment())}, or write none"
            )
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """Keys that are on."""
        return tuple(name for name in fields_of_augment() if getattr(self, name))


def fields_of_augment() -> tuple[str, ...]:
    """The keys of the section."""
    return tuple(AugmentConfig.model_fields)


AugmentName = Literal["none", "flip", "flip+crop"]
Augment = Annotated[
    Annotated[AugmentName, Tag("name")] | Annotated[AugmentConfig, Tag("section")],
    Discriminator(lambda value: "section" if isinstance(value, dict | AugmentConfig) else "name"),
]
"""A name, or a section."""

_NAMED = {"flip": AugmentConfig(flip=True), "flip+crop": AugmentConfig(flip=True, crop=True)}


def check_augment(how: object) -> None:
    """Refuse an unknown augmentation.

    Raises:
        DataError: With the known ones.
    """
    if how not in get_args(AugmentName) and not isinstance(how, AugmentConfig):
        raise DataError(
            f"unknown augmentation {how!r}; choose from {', '.join(get_args(AugmentName))}, or give a section with "
            f"{', '.join(fields_of_augment())}"
        )


def section_of(how: Augment) -> AugmentConfig | None:
    """What an augmentation varies; None of `none`."""
    return how if isinstance(how, AugmentConfig) else _NAMED.get(how)


def read_augment(value: object) -> Augment:
    """An augmentation from JSON.

    Raises:
        ValueError: It is none.
    """
    adapter: TypeAdapter[Augment] = TypeAdapter(Augment)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"not an augmentation: {value!r}") from error


def _check_ordered(key: str, bounds: tuple[float, float]) -> None:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{key} must be [least, largest], but is [{bounds[0]}, {bounds[1]}]")
