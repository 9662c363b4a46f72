"""A campaign from its file to its report: checks, preparation, trials, results. It composes all packages."""

from __future__ import annotations

from nas_kd.campaign.campaign import Campaign, CampaignResult, search, study_knobs
from nas_kd.campaign.exports import export, export_front, export_name, pick
from nas_kd.campaign.results import compare, report, table
from nas_kd.campaign.run import Run, load_run
from nas_kd.campaign.runtimes import bench
from nas_kd.campaign.status import RunStatus, status

__all__ = [
    "Campaign",
    "CampaignResult",
    "Run",
    "RunStatus",
    "bench",
    "compare",
    "export",
    "export_front",
    "export_name",
    "load_run",
    "pick",
    "report",
    "search",
    "status",
    "study_knobs",
    "table",
]
