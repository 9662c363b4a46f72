"""What can be searched: operators, gates, cells, spaces, architectures and what they cost. Imports nothing of ours."""

from __future__ import annotations

import search_spaces.cpu_convolutions  # noqa: F401  (replaces a faulty gradient of torch, before any net is built)
from search_spaces.arch import ArchSpec
from search_spaces.cells import Edge
from search_spaces.choices import Choices
from search_spaces.clip_cell import ClipCellSettings, ClipCellSpace
from search_spaces.clip_cell.ops import OPS
from search_spaces.cost import CostTable, CostTerm
from search_spaces.delta_blocks import DeltaBlocksSettings, DeltaBlocksSpace, DeltaNet
from search_spaces.flops import CONVENTION, FlopCount, UncountedOpError, count_flops
from search_spaces.frame_sequence import FrameSequenceSettings, FrameSequenceSpace
from search_spaces.gates import ESTIMATORS, Gate, TemperatureSchedule
from search_spaces.knapsack import InfeasibleBudgetError
from search_spaces.module_space import ModuleSpace
from search_spaces.registry import SPACES, DataShape, SpaceEntry, derived_spaces
from search_spaces.saliency import SaliencySettings, SaliencySpace
from search_spaces.space import SearchSpace
from search_spaces.supernet import BUDGET_SHARE, Supernet

__all__ = [
    "BUDGET_SHARE",
    "CONVENTION",
    "ESTIMATORS",
    "OPS",
    "SPACES",
    "ArchSpec",
    "Choices",
    "ClipCellSettings",
    "ClipCellSpace",
    "CostTable",
    "CostTerm",
    "DataShape",
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
    "SpaceEntry",
    "Supernet",
    "TemperatureSchedule",
    "UncountedOpError",
    "count_flops",
    "derived_spaces",
]
