"""The `objective` section of a campaign file, and with it the list of the terms that ship with the package.

A new term is a module of this folder and one field of `ObjectiveConfig`. Terms from outside the package are keys of the
form `module:Class`, where the class is a `TermConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from nas_kd.objectives.cross_resolution import CrossResolutionConfig
from nas_kd.objectives.delta import DeltaConfig
from nas_kd.objectives.feature import FeatureConfig
from nas_kd.objectives.fewer_frames import FewerFramesConfig
from nas_kd.objectives.response import ResponseConfig
from nas_kd.objectives.spatiotemporal import SpatiotemporalConfig
from nas_kd.objectives.term import TermConfig
from nas_kd.settings.imports import import_class
from nas_kd.settings.strict import Section


class TaskLossConfig(Section):
    """The task's own loss on the labels.

    Attributes:
        weight: in the sum of all terms.
    """

    weight: float = Field(default=1.0, ge=0)


class ObjectiveConfig(Section):
    """Terms of the loss, each with its weight; a weight of 0 leaves the term out.

    Attributes:
        finetune_share: last share of the training in which the task's loss counts alone (with weight 1 where it has
            none).

    Examples:
        >>> objective = nas_kd.ObjectiveConfig(feature={"weight": 1}, response={"weight": 0.1})
        >>> sorted(objective.active_terms)
        ['feature', 'response']
    """

    model_config = ConfigDict(extra="allow")  # terms of the user's, see `_read_custom_terms`

    task: TaskLossConfig = TaskLossConfig()
    response: ResponseConfig = ResponseConfig()
    feature: FeatureConfig = FeatureConfig()
    cross_resolution: CrossResolutionConfig = CrossResolutionConfig()
    delta: DeltaConfig = DeltaConfig()
    fewer_frames: FewerFramesConfig = FewerFramesConfig()
    spatiotemporal: SpatiotemporalConfig = SpatiotemporalConfig()
    finetune_share: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="wrap")
    @classmethod
    def _read_custom_terms(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Keys of the form `module:Class` are read by the class that they name; all others must be fields."""
        if not isinstance(value, Mapping):
            return handler(value)
        known: dict[str, Any] = {}
        mistakes: list[InitErrorDetails] = []
        for key, content in value.items():
            if key in cls.model_fields:
                known[key] = content
            elif ":" not in str(key):
                mistakes.append({"type": "extra_forbidden", "loc": (str(key),), "input": content})
            else:
                try:
                    known[key] = custom_term(key).model_validate(content)
                except ValidationError as error:
                    mistakes += _details(error, key)
                except ValueError as error:
                    mistakes.append({"type": "value_error", "loc": (key,), "input": content, "ctx": {"error": error}})
        try:
            read = handler(known)
        except ValidationError as error:
            if not mistakes:
                raise
            mistakes = [*_details(error), *mistakes]
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes)
        return read

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        with_weight = {name: term for name, term in self.terms.items() if term.weight > 0}
        with_loss = [name for name, term in with_weight.items() if not term.why_empty]
        if self.task.weight == 0 and not with_loss:
            why = "all are 0"
            for name, term in with_weight.items():
                why = f"{name} has none with {term.why_empty}, and all others are 0"
            raise ValueError(f"at least one term must have a weight above 0, but {why}")
        if self.task.weight == 0 and len(with_loss) == 1:
            with_weight[with_loss[0]].check_alone()
        return self

    @classmethod
    def of(cls, **weights: float) -> Self:
        """The objective with these weights of terms; all else is as by default."""
        return cls.model_validate({name: {"weight": weight} for name, weight in weights.items()})

    @classmethod
    def section_of(cls, key: str) -> Any:
        if ":" not in key:
            return super().section_of(key)
        try:
            return custom_term(key)
        except ValueError:
            return None

    @property
    def terms(self) -> dict[str, TermConfig]:
        """Every term that distils, by its key in the campaign file, those of weight 0 included."""
        names = (*type(self).model_fields, *(self.model_extra or {}))
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if isinstance(value, TermConfig)}

    @property
    def active_terms(self) -> dict[str, TermConfig]:
        """Those with a weight above 0."""
        return {name: term for name, term in self.terms.items() if term.weight > 0}

    @property
    def distils(self) -> bool:
        """Whether any term needs the teacher."""
        return bool(self.active_terms)

    @property
    def co_trains_teacher(self) -> bool:
        """Whether a fresh teacher trains beside the student."""
        return any(term.co_trains_teacher for term in self.active_terms.values())

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether the teacher's BatchNorm takes the statistics of the batch."""
        return any(term.uses_batch_statistics for term in self.active_terms.values())

    @property
    def needs_online_teacher(self) -> bool:
        """Whether the teacher's answers depend on more than the item, so that they cannot be cached."""
        return any(term.needs_online_teacher for term in self.active_terms.values())

    def check_search(self) -> None:
        """Raise `ValueError` where a term cannot be part of a gate search."""
        for term in self.active_terms.values():
            term.check_search()


def custom_term(key: str) -> type[TermConfig]:
    """The config class that a key of the form `module:Class` names.

    Raises:
        ValueError: it cannot be had, or is no config of a term.
    """
    return import_class(key, TermConfig, purpose="term")  # type: ignore[type-abstract]  # a subclass of it


def _details(error: ValidationError, *prefix: str) -> list[InitErrorDetails]:
    """The mistakes of an error, in the form from which another one is made."""
    details: list[InitErrorDetails] = []
    for item in error.errors(include_url=False):
        detail: InitErrorDetails = {"type": item["type"], "loc": (*prefix, *item["loc"]), "input": item["input"]}
        if "ctx" in item:
            detail["ctx"] = item["ctx"]
        details.append(detail)
    return details
