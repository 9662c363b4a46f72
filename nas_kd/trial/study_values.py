"""Architectures as values of the study, and back."""

from __future__ import annotations

from collections.abc import Mapping

from nas_kd.search_spaces import ArchSpec, SearchSpace
from nas_kd.search_spaces.arch import Choice
from nas_kd.trials import KnobValue

CHOICE_PREFIX = "arch."  # of the study's names for the variables of the space


def study_values(arch: ArchSpec, space: SearchSpace) -> dict[str, KnobValue]:
    """An architecture as values of the study: every variable, those without effect at their first choice."""
    values: dict[str, KnobValue] = {n: arch.choices[n] for n, options in space.knobs.items() if len(options) > 1}
    for name, options in space.variables.items():
        if len(options) > 1:
            values[CHOICE_PREFIX + name] = arch.choices.get(name, options[0])
    return values


def study_choices(values: Mapping[str, KnobValue], space: SearchSpace) -> dict[str, Choice]:
    """A choice for every knob and variable of a space, from values of the study; other values are passed over."""
    choices: dict[str, Choice] = {n: options[0] for n, options in [*space.knobs.items(), *space.variables.items()]}
    for name in space.knobs:
        if name in values:
            choices[name] = values[name]  # type: ignore[assignment]
    for name in space.variables:
        if CHOICE_PREFIX + name in values:
            choices[name] = values[CHOICE_PREFIX + name]  # type: ignore[assignment]
    return choices
