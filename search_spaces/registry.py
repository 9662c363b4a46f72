"""The built-in spaces: one entry each, with what the rest of the project needs to build a space by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from nas_kd.search_spaces.clip_cell import ClipCellSettings, ClipCellSpace
from nas_kd.search_spaces.delta_blocks import DeltaBlocksSettings, DeltaBlocksSpace
from nas_kd.search_spaces.frame_sequence import FrameSequenceSettings, FrameSequenceSpace
from nas_kd.search_spaces.frame_sequence.settings import frames_within
from nas_kd.search_spaces.operators import NO_OPERATORS, Operators, is_reference
from nas_kd.search_spaces.saliency import SaliencySettings, SaliencySpace
from nas_kd.search_spaces.space import SearchSpace


@dataclass(frozen=True)
class DataShape:
    """What of the data decides settings of a space.

    Attributes:
        num_outputs: channels that the task needs.
        feature_size: of frame features; 0 where the data are clips.
        frames: of an item; 0 where that is not known.
    """

    num_outputs: int
    feature_size: int = 0
    frames: int = 0


@dataclass(frozen=True)
class SpaceEntry:
    """A built-in space.

    Attributes:
        settings: type of its settings.
        build: makes the space from settings; a derived one also from `(teacher, frame_size, identity)`, which it keeps
            in its settings by `derived_settings`.
        reads: what its students read: `clips`, `frame features` or `frames`.
        gives: kind of their outputs, `logits` or `maps`.
        from_data: the settings that follow from the data.
        example_data: data by which the other settings can be checked before the data are known.
        derived: whether it is made of a teacher's own layers.
        operators: the setting that lists operators, among which users may name their own; none without.
    """

    settings: type[BaseModel]
    build: Callable[..., SearchSpace]
    reads: str
    gives: str
    from_data: Callable[[DataShape], dict[str, Any]] = lambda data: {}
    example_data: DataShape = DataShape(2)
    derived: bool = False
    operators: str = ""

    def make(self, settings: Mapping[str, Any], *teacher: Any, operators: Operators = NO_OPERATORS) -> SearchSpace:
        """The space of settings as JSON values; a derived one takes the teacher, frame size and identity too.

        Args:
            settings: of the space.
            teacher: of a derived space.
            operators: functions of the user's operators that the settings name.

        Raises:
            pydantic.ValidationError: the settings make no space.
            ValueError: an operator is not given.
        """
        given = {"operators": operators} if self.operators else {}
        space = self.build(self.settings.model_validate(dict(settings)), *teacher, **given)
        if self.derived and not {"frame_size", "teacher"} <= space.settings.keys():
            raise ValueError(
                f"space {space.name!r} is made of a teacher's layers, so its settings must hold frame_size and teacher "
                f"too, but they hold {', '.join(space.settings)}; make them by derived_settings"
            )
        return space

    def own_operators(self, settings: Mapping[str, Any]) -> list[str]:
        """The operators of users that settings name, as `module:function`."""
        names = settings.get(self.operators, ())
        listed = names if isinstance(names, list | tuple) else ()
        return [name for name in listed if isinstance(name, str) and is_reference(name)]

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise `pydantic.ValidationError` where these settings make no space, whatever the data."""
        self.settings.model_validate({**self.from_data(self.example_data), **settings})


def _classes(data: DataShape) -> dict[str, Any]:
    return {"num_classes": data.num_outputs}


def _sequences(data: DataShape) -> dict[str, Any]:
    settings = _classes(data)
    if data.feature_size:
        settings["feature_size"] = data.feature_size
    if data.feature_size and data.frames:
        settings["frames"] = frames_within(data.frames)
    return settings


SPACES: Mapping[str, SpaceEntry] = {
    "clip_cell": SpaceEntry(
        ClipCellSettings, ClipCellSpace, reads="clips", gives="logits", from_data=_classes, operators="ops"
    ),
    "frame_sequence": SpaceEntry(
        FrameSequenceSettings, FrameSequenceSpace, reads="frame features", gives="logits", from_data=_sequences,
        example_data=DataShape(2, feature_size=720_720),  # a multiple of every number of groups up to 16
    ),
    "saliency": SpaceEntry(
        SaliencySettings, SaliencySpace, reads="clips", gives="maps", from_data=_classes, example_data=DataShape(1)
    ),
    "delta_blocks": SpaceEntry(
        DeltaBlocksSettings, DeltaBlocksSpace, reads="frames", gives="maps", derived=True, operators="candidates"
    ),
}  # fmt: skip
"""Name -> entry. A space that is not derived can be built again from an `ArchSpec` alone."""


def derived_spaces() -> list[str]:
    """Names of the spaces that are made of a teacher's own layers."""
    return [name for name, entry in SPACES.items() if entry.derived]
