"""One trial, and what all trials of a campaign share in a process."""

from __future__ import annotations

from nas_kd.trial.context import CampaignContext, build_context, load_context
from nas_kd.trial.function import TrialFunction
from nas_kd.trial.learner import Learner
from nas_kd.trial.search_trial import SearchTrial
from nas_kd.trial.shared import SharedSearch
from nas_kd.trial.trial import Trial

__all__ = [
    "CampaignContext",
    "Learner",
    "SearchTrial",
    "SharedSearch",
    "Trial",
    "TrialFunction",
    "build_context",
    "load_context",
]
