"""Distillation objectives: one module a term, with config and checks; `DistillationLoss` weighs and sums them."""

from __future__ import annotations

from nas_kd.objectives.config import ObjectiveConfig, TaskLossConfig
from nas_kd.objectives.cross_resolution import cross_resolution
from nas_kd.objectives.feature import feature
from nas_kd.objectives.loss import DistillationLoss, ModuleNameError
from nas_kd.objectives.map_term import pairs_by_scale
from nas_kd.objectives.maps import Adapter, adapter_for, matched_frames, resample
from nas_kd.objectives.response import response
from nas_kd.objectives.term import DistillationTerm, TermConfig, TermContext

__all__ = [
    "Adapter",
    "DistillationLoss",
    "DistillationTerm",
    "ModuleNameError",
    "ObjectiveConfig",
    "TaskLossConfig",
    "TermConfig",
    "TermContext",
    "adapter_for",
    "cross_resolution",
    "feature",
    "matched_frames",
    "pairs_by_scale",
    "resample",
    "response",
]
