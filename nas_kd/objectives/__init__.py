"""Distillation objectives: pure functions, one module each, composed by weight in `Objective`."""

from __future__ import annotations

from nas_kd.objectives.cross_resolution import cross_resolution
from nas_kd.objectives.feature import feature
from nas_kd.objectives.objective import MAP_OBJECTIVES, FeatureTerm, Objective, ObjectiveConfig, ResponseTerm
from nas_kd.objectives.response import response

__all__ = [
    "MAP_OBJECTIVES",
    "FeatureTerm",
    "Objective",
    "ObjectiveConfig",
    "ResponseTerm",
    "cross_resolution",
    "feature",
    "response",
]
