"""Search spaces: operators, gates, supernets, architectures and their costs. Imports search_spaces alone."""

from __future__ import annotations

import nas_kd.search_spaces.cpu_convolutions  # noqa: F401  (replaces a faulty gradient of torch, before any net is built)
from nas_kd.search_spaces.arch import ArchSpec
from nas_kd.search_spaces.cells import Edge
from nas_kd.search_spaces.choices import Choices
from nas_kd.search_spaces.clip_cell import ClipCellSettings, ClipCellSpace
from nas_kd.search_spaces.clip_cell.ops import OPS
from nas_kd.search_spaces.cost import CostTable, CostTerm
from nas_kd.search_spaces.delta_blocks import DeltaBlocksSettings, DeltaBlocksSpace, DeltaNet
from nas_kd.search_spaces.flops import CONVENTION, FlopCount, UncountedOpError, count_flops, count_params
from nas_kd.search_spaces.frame_sequence import FrameSequenceSettings, FrameSequenceSpace
from nas_kd.search_spaces.gates import ESTIMATORS, Gate, TemperatureSchedule
from nas_kd.search_spaces.key_frame_net import KeyFrameNet
from nas_kd.search_spaces.knapsack import InfeasibleBudgetError
from nas_kd.search_spaces.layer_flops import LayerFlops, layer_flops
from nas_kd.search_spaces.module_space import ModuleSpace
from nas_kd.search_spaces.registry import SPACES, DataShape, SpaceEntry, derived_spaces
from nas_kd.search_spaces.saliency import SaliencySettings, SaliencySpace
from nas_kd.search_spaces.space import SearchSpace
from nas_kd.search_spaces.supernet import BUDGET_SHARE, Supernet

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
    "KeyFrameNet",
    "LayerFlops",
    "ModuleSpace",
    "SaliencySettings",
    "SaliencySpace",
    "SearchSpace",
    "SpaceEntry",
    "Supernet",
    "TemperatureSchedule",
    "UncountedOpError",
    "count_flops",
    "count_params",
    "derived_spaces",
    "layer_flops",
]
