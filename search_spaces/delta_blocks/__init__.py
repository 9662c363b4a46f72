"""Space `delta_blocks`: students of a trained teacher's own layers (Delta Distillation)."""

from __future__ import annotations

from nas_kd.search_spaces.delta_blocks.net import DeltaNet, delta_net_of
from nas_kd.search_spaces.delta_blocks.ops import LayerShape, LinearDelta
from nas_kd.search_spaces.delta_blocks.settings import CANDIDATES, DeltaBlocksSettings
from nas_kd.search_spaces.delta_blocks.space import DeltaBlocksSpace

__all__ = [
    "CANDIDATES",
    "DeltaBlocksSettings",
    "DeltaBlocksSpace",
    "DeltaNet",
    "LayerShape",
    "LinearDelta",
    "delta_net_of",
]
