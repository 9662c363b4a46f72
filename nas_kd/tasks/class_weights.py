"""Options of a cross-entropy over classes: smoothed labels, and a weight for each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from nas_kd.settings.mistakes import choose
from nas_kd.settings.names import names_as_text

ClassWeights = Literal["balanced"] | tuple[float, ...] | dict[str, float]


class CrossEntropyConfig(BaseModel):
    """Options of the loss on labels.

    Attributes:
        label_smoothing: share of the target that is spread evenly over all classes (Szegedy et al., CVPR 2016).
        class_weights: weight of the items of each class in the mean: a list in the order of the classes; a mapping of
            class names, where a class that is left out has 1; or `balanced`, inversely proportional to how often a
            class occurs in the training split. null: all count the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: ClassWeights | None = None

    @field_validator("class_weights", mode="before")
    @classmethod
    def _are_weights(cls, value: Any) -> Any:
        if value is None or value == "balanced":
            return value
        if not isinstance(value, (list, tuple, dict)):
            raise ValueError(f"must be a list, a mapping class name: weight, or balanced, but got {value!r}")
        for weight in value.values() if isinstance(value, dict) else value:
            is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not is_number or not 0 < weight < math.inf:
                raise ValueError(f"each weight must be a finite number above 0, but one is {weight!r}")
        return tuple(value) if isinstance(value, list) else names_as_text(value)


def given_weights(weights: ClassWeights | None, names: Sequence[str]) -> Tensor | None:
    """The weights that the options give; None without, and for `balanced` until classes were counted.

    Args:
        weights: of the options.
        names: of the C classes.

    Returns:
        float32 (C,), or None.

    Raises:
        ValueError: not one weight a class, or an unknown class.
    """
    if weights is None or weights == "balanced":
        return None
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                raise ValueError(f"task_options.class_weights: {name!r} is no class; {choose(name, list(names))}")
        return torch.tensor([float(weights.get(name, 1.0)) for name in names])
    if len(weights) != len(names):
        raise ValueError(
            f"task_options.class_weights must give a weight for each of the {len(names)} classes, in their order, but "
            f"gives {len(weights)}; give {len(names)}, or a mapping class name: weight"
        )
    return torch.tensor([float(weight) for weight in weights])


def balanced_weights(counts: Tensor) -> Tensor:
    """Inverse frequencies: all / (classes that occur × count), with mean 1 over what was counted; 1 for absent classes.

    Args:
        counts: (C,) how often each class occurs.

    Returns:
        float32 (C,).
    """
    occurs = counts > 0
    weights = counts.sum() / (occurs.sum() * counts.clamp_min(1))
    return torch.where(occurs, weights, torch.ones_like(weights)).float()
