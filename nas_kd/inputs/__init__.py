"""How data reach the nets: one `InputType` a kind, and the choice of one for a campaign.

A new kind is a module with a subclass of `InputType`, an entry in `INPUT_TYPES`, and a line in each function of
`registry` that tells it from the others.
"""

from __future__ import annotations

from nas_kd.inputs.input_type import InputType, Passes, TrainingView
from nas_kd.inputs.registry import (
    INPUT_TYPES,
    check_kind,
    check_space_name,
    choose_input_type,
    input_type_of_bundle,
    input_type_of_file,
    space_settings,
    teacher_input_type,
)

__all__ = [
    "INPUT_TYPES",
    "InputType",
    "Passes",
    "TrainingView",
    "check_kind",
    "check_space_name",
    "choose_input_type",
    "input_type_of_bundle",
    "input_type_of_file",
    "space_settings",
    "teacher_input_type",
]
