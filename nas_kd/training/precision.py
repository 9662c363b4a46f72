"""In which numbers nets compute while they train."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nas_kd.taps import ModelOutput

Precision = Literal["float32", "bfloat16"]


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a net runs. Its weights are float32 with either precision, and so are their gradients."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def for_losses(output: ModelOutput) -> ModelOutput:
    """The same in float32, in which losses are computed; whole numbers and what is float32 already stay as they are."""
    return ModelOutput(_float32(output.logits), {name: _float32(value) for name, value in output.features.items()})


def _float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
