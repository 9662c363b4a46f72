"""Analysis of trial records: fronts, statistics, figures, tables of ablations and the report.

Names are imported when they are first used: the front of a running campaign needs no tables and no plotting libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_kd.analysis.advice import Advice, advise
    from nas_kd.analysis.axes import FLOPS, LATENCY, MEASURED, Axis, constraint_text
    from nas_kd.analysis.comparison import Comparison, compare
    from nas_kd.analysis.comparison import Run as ComparedRun
    from nas_kd.analysis.comparison_page import ComparisonPaths, write_comparison
    from nas_kd.analysis.figures import front_figure, write_picture
    from nas_kd.analysis.front import ParetoFront, TeacherPoint, comparable, judged
    from nas_kd.analysis.interactive import failure_chart, front_chart, hypervolume_chart, stage_chart
    from nas_kd.analysis.intervals import Uncertain, uncertainty
    from nas_kd.analysis.offset_figures import offsets_chart, offsets_figure
    from nas_kd.analysis.offsets import drift, has_streaming_students, mean_of_delta_frames, offset_scores
    from nas_kd.analysis.pareto import (
        Direction,
        hypervolume,
        hypervolume_contributions,
        knee,
        non_dominated,
    )
    from nas_kd.analysis.pivot import PivotCell, PivotTable
    from nas_kd.analysis.pivot_text import pivot_frame, pivot_markdown, pivot_rich, write_pivot
    from nas_kd.analysis.report import ReportPaths, write_report
    from nas_kd.analysis.statistics import (
        Estimate,
        RankCorrelation,
        estimate_mean,
        group_by_arch,
        paired_difference,
        rank_correlation,
        seed_estimate,
        stage_correlations,
        welch_difference,
    )
    from nas_kd.analysis.summary import RunProgress, summarise
    from nas_kd.analysis.table import COLUMNS, trial_table, write_csv

__all__ = [
    "COLUMNS",
    "FLOPS",
    "LATENCY",
    "MEASURED",
    "Advice",
    "Axis",
    "ComparedRun",
    "Comparison",
    "ComparisonPaths",
    "Direction",
    "Estimate",
    "ParetoFront",
    "PivotCell",
    "PivotTable",
    "RankCorrelation",
    "ReportPaths",
    "RunProgress",
    "TeacherPoint",
    "Uncertain",
    "advise",
    "comparable",
    "compare",
    "constraint_text",
    "drift",
    "estimate_mean",
    "failure_chart",
    "front_chart",
    "front_figure",
    "group_by_arch",
    "has_streaming_students",
    "hypervolume",
    "hypervolume_chart",
    "hypervolume_contributions",
    "judged",
    "knee",
    "mean_of_delta_frames",
    "non_dominated",
    "offset_scores",
    "offsets_chart",
    "offsets_figure",
    "paired_difference",
    "pivot_frame",
    "pivot_markdown",
    "pivot_rich",
    "rank_correlation",
    "seed_estimate",
    "stage_chart",
    "stage_correlations",
    "summarise",
    "trial_table",
    "uncertainty",
    "welch_difference",
    "write_comparison",
    "write_csv",
    "write_picture",
    "write_pivot",
    "write_report",
]

_NAMES = {
    "advice": "Advice advise",
    "axes": "FLOPS LATENCY MEASURED Axis constraint_text",
    "comparison": "Comparison compare",
    "comparison_page": "ComparisonPaths write_comparison",
    "figures": "front_figure write_picture",
    "front": "ParetoFront TeacherPoint comparable judged",
    "interactive": "failure_chart front_chart hypervolume_chart stage_chart",
    "offset_figures": "offsets_chart offsets_figure",
    "offsets": "drift has_streaming_students mean_of_delta_frames offset_scores",
    "pareto": "Direction hypervolume hypervolume_contributions knee non_dominated",
    "pivot": "PivotCell PivotTable",
    "pivot_text": "pivot_frame pivot_markdown pivot_rich write_pivot",
    "report": "ReportPaths write_report",
    "statistics": (
        "Estimate RankCorrelation estimate_mean group_by_arch "
        "paired_difference rank_correlation seed_estimate stage_correlations welch_difference"
    ),
    "summary": "RunProgress summarise",
    "table": "COLUMNS trial_table write_csv",
    "intervals": "Uncertain uncertainty",
}
_HOME = {name: (module, name) for module, names in _NAMES.items() for name in names.split()}
_HOME["ComparedRun"] = ("comparison", "Run")


def __getattr__(name: str) -> Any:
    """Import a name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, name_there = _HOME[name]
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name_there)
    return value
