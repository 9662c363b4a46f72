"""The section `space`: a search space of the package or of the user, with its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import nn

from nas_kd.search_spaces import SPACES, DataShape, SearchSpace
from nas_kd.settings.imports import call_function, import_function
from nas_kd.settings.mistakes import explain

_GIVEN = ("num_classes",)  # by the task


class SpaceConfig(BaseModel):
    """The search space: a name of the registry, or `module:function`; the other keys are its settings.

    Attributes:
        name: a space of the package, or your own as `module:function`, which returns a `SearchSpace`.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "clip_cell"

    @model_validator(mode="after")
    def _fits(self) -> SpaceConfig:
        if self.name not in SPACES and ":" not in self.name:
            raise ValueError(
                f"unknown space {self.name!r}; choose from {', '.join(SPACES)}, or give your own as module:function"
            )
        try:
            if self.name in SPACES:
                SPACES[self.name].check(self.model_extra or {})
        except ValidationError as error:  # as one sentence: pydantic would merge its keys with those of this model
            raise ValueError(
                "; ".join(explain(error, SPACES[self.name].settings, self.model_extra or {}, _GIVEN))
            ) from error
        return self

    @property
    def is_own(self) -> bool:
        """Whether the space is a function of the user's."""
        return self.name not in SPACES

    @property
    def is_derived(self) -> bool:
        """Whether the space is derived from the teacher."""
        return not self.is_own and SPACES[self.name].derived

    @property
    def own_operators(self) -> list[str]:
        """The user's operators that the settings of a space of the package name, as `module:function`."""
        return [] if self.is_own else SPACES[self.name].own_operators(self.model_extra or {})

    def build(self, num_outputs: int, given_by_data: Mapping[str, Any] = MappingProxyType({})) -> SearchSpace:
        """The space for what the data are, where it needs no teacher.

        Args:
            num_outputs: channels that the task needs.
            given_by_data: settings that follow from the data, of `nas_kd.inputs.space_settings`.

        Raises:
            ValueError: the settings do not fit.
        """
        settings = self.model_extra or {}
        if self.name in SPACES:
            entry = SPACES[self.name]
            try:
                given = entry.from_data(DataShape(num_outputs, **given_by_data))
                return entry.make({**given, **settings}, operators=self._operators())
            except ValidationError as error:
                raise ValueError(
                    "; ".join(f"space: {line}" for line in explain(error, entry.settings, settings, _GIVEN))
                ) from error
        given = {"num_classes": num_outputs, **given_by_data}
        given.pop("frames", None)  # spaces of users have defaults of their own
        space = call_function(self.name, {**given, **settings}, purpose="space.name")
        if not isinstance(space, SearchSpace):
            raise ValueError(f"space.name {self.name!r} must return a SearchSpace, but returns {type(space).__name__}")
        return space

    def derive(self, teacher: nn.Module, frame_size: tuple[int, int], identity: Mapping[str, Any]) -> SearchSpace:
        """The space of a teacher's own layers.

        Args:
            teacher: frames -> maps.
            frame_size: (H, W).
            identity: identifies this teacher among others.

        Raises:
            ValueError: no layer of the teacher is eligible, or a pattern matches none.
        """
        settings, operators = self.model_extra or {}, self._operators()
        return SPACES[self.name].make(settings, teacher, frame_size, identity, operators=operators)

    def _operators(self) -> dict[str, Callable[..., Any]]:
        """Functions of the user's operators that the settings name."""
        entry = SPACES[self.name]
        return {name: import_function(name, purpose=f"space.{entry.operators}") for name in self.own_operators}
