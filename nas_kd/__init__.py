"""nas_kd: find the best cheap students of a heavy video model.

    supernet = Supernet(space)
    loss = objective.total(objective(student, teacher, batch)) + budget.penalty(supernet.expected_flops())
    student = supernet.derive(max_flops=50e6)

Campaigns: `load_config`, `search`, `report`, `export`; the same on the command line as `nas-kd`.
"""

from __future__ import annotations

from nas_kd.shadowing import check_packages

check_packages()

from nas_kd.campaign import Campaign, CampaignResult, export, load_run, pick, report, search  # noqa: E402
from nas_kd.config import CampaignConfig, ConfigError, load_config  # noqa: E402
from nas_kd.deploy.bundle import BundleInfo, load_bundle, save_bundle  # noqa: E402
from nas_kd.deploy.export import ExportError, ExportRecord, export_student  # noqa: E402
from nas_kd.objectives import Objective, ObjectiveConfig  # noqa: E402
from nas_kd.taps import ModelOutput, Taps  # noqa: E402
from nas_kd.tasks import TASKS, Task  # noqa: E402
from nas_kd.teachers import Teacher, TeacherConfig  # noqa: E402
from nas_kd.training.budget import BudgetController  # noqa: E402
from nas_kd.training.fit import FitConfig, fit  # noqa: E402
from nas_kd.training.gate_search import GateConfig, search_gates  # noqa: E402
from search_spaces import Edge, ModuleSpace, SearchSpace, Supernet, count_flops  # noqa: E402

__all__ = [
    "TASKS",
    "BudgetController",
    "BundleInfo",
    "Campaign",
    "CampaignConfig",
    "CampaignResult",
    "ConfigError",
    "Edge",
    "ExportError",
    "ExportRecord",
    "FitConfig",
    "GateConfig",
    "ModelOutput",
    "ModuleSpace",
    "Objective",
    "ObjectiveConfig",
    "SearchSpace",
    "Supernet",
    "Taps",
    "Task",
    "Teacher",
    "TeacherConfig",
    "count_flops",
    "export",
    "export_student",
    "fit",
    "load_bundle",
    "load_config",
    "load_run",
    "pick",
    "report",
    "save_bundle",
    "search",
    "search_gates",
]
