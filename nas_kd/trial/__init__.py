"""One trial, and what all trials of a campaign share in a process."""

from __future__ import annotations

from nas_kd.trial.context import CampaignContext, build_context, load_context
from nas_kd.trial.learner import Learner
from nas_kd.trial.trial import Trial, TrialFunction

__all__ = ["CampaignContext", "Learner", "Trial", "TrialFunction", "build_context", "load_context"]
