"""nas_kd: search and distil small, accurate students of a large video model.

    supernet = Supernet(space)
    loss = objective.total(objective(student, teacher, batch)) + budget.penalty(supernet.expected_cost())
    student = supernet.derive(max_cost=50e6)

Campaigns: `load_config`, `search`, `report`, `table`, `export`; the same on the command line as `nas-kd`.

Names are imported when they are first used, so that `nas-kd --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_kd.campaign import Campaign, CampaignResult, reproduce, search
    from nas_kd.config import CampaignConfig, ConfigError, load_config
    from nas_kd.deploy.bundle import BundleInfo, load_bundle, save_bundle
    from nas_kd.deploy.export import ExportError, ExportRecord, export_student
    from nas_kd.deploy.predictor import Predictor, load
    from nas_kd.deploy.streaming import StreamingStudent, StreamState
    from nas_kd.evaluation import evaluate
    from nas_kd.objectives import DistillationLoss, ObjectiveConfig
    from nas_kd.runs import Run, export, export_front, load_run, pick, report, table
    from nas_kd.search_spaces import (
        DeltaBlocksSettings,
        DeltaBlocksSpace,
        Edge,
        ModuleSpace,
        SearchSpace,
        Supernet,
        count_flops,
    )
    from nas_kd.taps import ModelOutput, Taps
    from nas_kd.tasks import TASKS, Task
    from nas_kd.teachers import Teacher, TeacherConfig
    from nas_kd.training.budget import BudgetController
    from nas_kd.training.fit import fit
    from nas_kd.training.gate_search import search_gates
    from nas_kd.training.settings import GateConfig, TrainingConfig

__all__ = [
    "TASKS",
    "BudgetController",
    "BundleInfo",
    "Campaign",
    "CampaignConfig",
    "CampaignResult",
    "ConfigError",
    "DeltaBlocksSettings",
    "DeltaBlocksSpace",
    "DistillationLoss",
    "Edge",
    "ExportError",
    "ExportRecord",
    "GateConfig",
    "ModelOutput",
    "ModuleSpace",
    "ObjectiveConfig",
    "Predictor",
    "Run",
    "SearchSpace",
    "StreamState",
    "StreamingStudent",
    "Supernet",
    "Taps",
    "Task",
    "Teacher",
    "TeacherConfig",
    "TrainingConfig",
    "count_flops",
    "evaluate",
    "export",
    "export_front",
    "export_student",
    "fit",
    "load",
    "load_bundle",
    "load_config",
    "load_run",
    "pick",
    "report",
    "reproduce",
    "save_bundle",
    "search",
    "search_gates",
    "table",
]

_NAMES = {
    "nas_kd.campaign": "Campaign CampaignResult reproduce search",
    "nas_kd.runs": "Run export export_front load_run pick report table",
    "nas_kd.config": "CampaignConfig ConfigError load_config",
    "nas_kd.deploy.bundle": "BundleInfo load_bundle save_bundle",
    "nas_kd.deploy.export": "ExportError ExportRecord export_student",
    "nas_kd.deploy.predictor": "Predictor load",
    "nas_kd.deploy.streaming": "StreamState StreamingStudent",
    "nas_kd.evaluation": "evaluate",
    "nas_kd.objectives": "DistillationLoss ObjectiveConfig",
    "nas_kd.taps": "ModelOutput Taps",
    "nas_kd.tasks": "TASKS Task",
    "nas_kd.teachers": "Teacher TeacherConfig",
    "nas_kd.training.budget": "BudgetController",
    "nas_kd.training.fit": "fit",
    "nas_kd.training.gate_search": "search_gates",
    "nas_kd.training.settings": "GateConfig TrainingConfig",
    "nas_kd.search_spaces": "DeltaBlocksSettings DeltaBlocksSpace Edge ModuleSpace SearchSpace Supernet count_flops",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("nas-kd")
    if name not in _HOME:
        raise AttributeError(f"module 'nas_kd' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
