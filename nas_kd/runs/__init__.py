"""The folder of a run, while it runs and afterwards: its state, records, report, exports and latencies."""

from __future__ import annotations

from nas_kd.runs.exports import export, export_front, export_name, pick
from nas_kd.runs.results import compare, report, table
from nas_kd.runs.run import Run, load_run
from nas_kd.runs.runtimes import bench
from nas_kd.runs.status import RunStatus, hypervolume, status

__all__ = [
    "Run",
    "RunStatus",
    "bench",
    "compare",
    "export",
    "export_front",
    "export_name",
    "hypervolume",
    "load_run",
    "pick",
    "report",
    "status",
    "table",
]
