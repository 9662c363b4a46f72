"""Distillation objectives: pure functions, one module each, composed by weight in `Objective`."""

from __future__ import annotations

from nas_kd.objectives.cross_resolution import cross_resolution
from nas_kd.objectives.feature import feature
from nas_kd.objectives.objective import PARTS, ModuleNameError, Objective
from nas_kd.objectives.response import response
from nas_kd.objectives.terms import FeatureTerm, ObjectiveConfig, ResponseTerm

__all__ = [
    "PARTS",
    "FeatureTerm",
    "ModuleNameError",
    "Objective",
    "ObjectiveConfig",
    "ResponseTerm",
    "cross_resolution",
    "feature",
    "response",
]
