"""Trackers of experiments: they show a campaign's trials elsewhere, and nothing depends on them.

The driver's process tells them, from what the campaign announces and from the logs in the trials' folders. A tracker
that fails, or whose server does not answer, is left out for the rest of the run, with a sentence; each has a thread of
its own, so that a slow one holds nothing up.
"""

from __future__ import annotations

from nas_kd.trials.trackers.registry import TRACKERS, TrackerError, find_trackers
from nas_kd.trials.trackers.tracker import Place, Tracker
from nas_kd.trials.trackers.tracking import Tracking

__all__ = ["TRACKERS", "Place", "Tracker", "TrackerError", "Tracking", "find_trackers"]
