"""What can be searched: operators, gates, cells, spaces, architectures and what they cost. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import search_spaces.cpu_convolutions  # noqa: F401  (replaces a faulty gradient of torch, before any net is built)
from search_spaces.arch import ArchSpec
from search_spaces.cells import Edge
from search_spaces.clip_cell import ClipCellSpace
from search_spaces.clip_cell_settings import ClipCellSettings
from search_spaces.cost import CostTable, CostTerm
from search_spaces.delta_blocks import DeltaBlocksSettings, DeltaBlocksSpace
from search_spaces.delta_net import DeltaNet
from search_spaces.flops import CONVENTION, FlopCount, UncountedOpError, count_flops
from search_spaces.frame_sequence import FrameSequenceSettings, FrameSequenceSpace
from search_spaces.gates import ESTIMATORS, Gate, TemperatureSchedule
from search_spaces.knapsack import InfeasibleBudgetError
from search_spaces.ops import OPS
from search_spaces.saliency import SaliencySettings, SaliencySpace
from search_spaces.space import ModuleSpace, SearchSpace
from search_spaces.supernet import BUDGET_SHARE, Supernet

SPACES: dict[str, Callable[[Mapping[str, Any]], SearchSpace]] = {
    "clip_cell": lambda settings: ClipCellSpace(ClipCellSettings.model_validate(dict(settings))),
    "frame_sequence": lambda settings: FrameSequenceSpace(FrameSequenceSettings.model_validate(dict(settings))),
    "saliency": lambda settings: SaliencySpace(SaliencySettings.model_validate(dict(settings))),
}
"""Name -> builder from settings as JSON values. A space that is here can be built again from an `ArchSpec` alone."""

GIVEN_BY_DATA: Mapping[str, Mapping[str, int]] = {
    "clip_cell": {"num_classes": 2},
    "frame_sequence": {"num_classes": 2, "feature_size": 720_720},  # a multiple of every number of groups up to 16
    "saliency": {"num_classes": 1},
}
"""Name -> the settings that follow from the data, each with a value by which the others can be checked without them."""

SPACE_KINDS: Mapping[str, tuple[str, str]] = {
    "clip_cell": ("clips", "logits"),
    "frame_sequence": ("frame features", "logits"),
    "saliency": ("clips", "maps"),
}
"""Name -> what its students read, and what they give."""

DERIVED_SPACES = {"delta_blocks": DeltaBlocksSettings}
"""Name -> settings of a space that is derived from a teacher."""

__all__ = [
    "BUDGET_SHARE",
    "CONVENTION",
    "DERIVED_SPACES",
    "ESTIMATORS",
    "GIVEN_BY_DATA",
    "OPS",
    "SPACES",
    "SPACE_KINDS",
    "ArchSpec",
    "ClipCellSettings",
    "ClipCellSpace",
    "CostTable",
    "CostTerm",
    "DeltaBlocksSettings",
    "DeltaBlocksSpace",
    "DeltaNet",
    "Edge",
    "FlopCount",
    "FrameSequenceSettings",
    "FrameSequenceSpace",
    "Gate",
    "InfeasibleBudgetError",
    "ModuleSpace",
    "SaliencySettings",
    "SaliencySpace",
    "SearchSpace",
    "Supernet",
    "TemperatureSchedule",
    "UncountedOpError",
    "count_flops",
]
