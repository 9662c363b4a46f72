"""The base of all sections of a campaign file: frozen, unknown keys and booleans for numbers are rejected."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """Numbers must be finite; `true` is rejected, which as 1 would be taken for a weight or a number of epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = {annotation, *get_args(annotation)}
            if bool not in kinds and kinds & {int, float}:
                raise ValueError(f"must be a number, but got {str(value).lower()}")
        return value

    @classmethod
    def section_of(cls, key: str) -> Any:
        """The type of what stands at a key: an annotation, or None where there is no such key."""
        field = cls.model_fields.get(key)
        return field.annotation if field is not None else None
