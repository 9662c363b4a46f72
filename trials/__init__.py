"""Running trials, in one process or on Ray, and the ledger that records them.

The work of a trial comes as a callable, so that a campaign runs with a toy function as well as with training. The
bridge to Ray Tune is `nas_kd.trials.searcher`; it is not imported here, since Ray takes seconds to import.

Names are imported when they are first used: a module of this package may be used without Optuna where it needs none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_kd.trials.cluster import NodeView
    from nas_kd.trials.context import OutOfGpuMemoryError, Report, TrialContext, TrialFn, TrialStopped
    from nas_kd.trials.events import Event, OnEvent
    from nas_kd.trials.knobs import ChoiceKnob, FloatKnob, IntKnob, Knob, KnobSpace, parse_knobs
    from nas_kd.trials.known_cost import KnownCostSampler
    from nas_kd.trials.known_costs import KnownCosts
    from nas_kd.trials.ledger import Ledger, is_driven
    from nas_kd.trials.objectives import COSTS, MEASURED_LATENCY, Constraint, CostKind, Objective, Ranking
    from nas_kd.trials.pace import Underway, Work, ended_pace, time_left
    from nas_kd.trials.passwords import has_password, masked
    from nas_kd.trials.progress import Progress
    from nas_kd.trials.proposals import ProposedTrial
    from nas_kd.trials.record import (
        SCHEMA_VERSION,
        Cost,
        Evaluated,
        FinalState,
        KnobValue,
        Metric,
        Split,
        Stage,
        TrialRecord,
    )
    from nas_kd.trials.resources import Executor, Resources
    from nas_kd.trials.runner import Summary, check_cluster, check_run_folder, run_trials, view_nodes
    from nas_kd.trials.samplers import SAMPLERS, MutationSampler, build_sampler, proposal_seed
    from nas_kd.trials.scheduler import RungScheduler, should_stop
    from nas_kd.trials.storage import DamagedJournalError, StorageError, check_database, check_url
    from nas_kd.trials.study import COST_CONVENTION

__all__ = [
    "COSTS",
    "COST_CONVENTION",
    "MEASURED_LATENCY",
    "SAMPLERS",
    "SCHEMA_VERSION",
    "ChoiceKnob",
    "Constraint",
    "Cost",
    "CostKind",
    "DamagedJournalError",
    "Evaluated",
    "Event",
    "Executor",
    "FinalState",
    "FloatKnob",
    "IntKnob",
    "Knob",
    "KnobSpace",
    "KnobValue",
    "KnownCostSampler",
    "KnownCosts",
    "Ledger",
    "Metric",
    "MutationSampler",
    "NodeView",
    "Objective",
    "OnEvent",
    "OutOfGpuMemoryError",
    "Progress",
    "ProposedTrial",
    "Ranking",
    "Report",
    "Resources",
    "RungScheduler",
    "Split",
    "Stage",
    "StorageError",
    "Summary",
    "TrialContext",
    "TrialFn",
    "TrialRecord",
    "TrialStopped",
    "Underway",
    "Work",
    "build_sampler",
    "check_cluster",
    "check_database",
    "check_run_folder",
    "check_url",
    "ended_pace",
    "has_password",
    "is_driven",
    "masked",
    "parse_knobs",
    "proposal_seed",
    "run_trials",
    "should_stop",
    "time_left",
    "view_nodes",
]

_NAMES = {
    "context": "OutOfGpuMemoryError Report TrialContext TrialFn TrialStopped",
    "events": "Event OnEvent",
    "knobs": "ChoiceKnob FloatKnob IntKnob Knob KnobSpace parse_knobs",
    "known_cost": "KnownCostSampler",
    "known_costs": "KnownCosts",
    "ledger": "Ledger is_driven",
    "objectives": "COSTS MEASURED_LATENCY Constraint CostKind Objective Ranking",
    "passwords": "has_password masked",
    "progress": "Progress",
    "proposals": "ProposedTrial",
    "record": "SCHEMA_VERSION Cost Evaluated FinalState KnobValue Metric Split Stage TrialRecord",
    "resources": "Executor Resources",
    "cluster": "NodeView",
    "runner": "Summary check_cluster check_run_folder run_trials view_nodes",
    "samplers": "SAMPLERS MutationSampler build_sampler proposal_seed",
    "scheduler": "RungScheduler should_stop",
    "study": "COST_CONVENTION",
    "storage": "DamagedJournalError StorageError check_database check_url",
    "pace": "Underway Work ended_pace time_left",
}
_HOME = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value
