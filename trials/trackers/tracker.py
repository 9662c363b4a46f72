"""What a tracker of experiments is: one run a trial, and one for the campaign."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nas_kd.trials.record import KnobValue, TrialRecord


@dataclass(frozen=True)
class Place:
    """What a tracker shows.

    Attributes:
        name: of the campaign.
        run_dir: its folder.
    """

    name: str
    run_dir: Path

    def id_of(self, number: int | None) -> str:
        """Of a trial, or of the campaign: the same whenever it goes on, and another one in every other folder."""
        what = "campaign" if number is None else f"{number:04d}"
        return f"{hashlib.sha256(str(self.run_dir).encode()).hexdigest()[:12]}-{what}"


class Tracker(Protocol):
    """Shows a campaign. All calls come from one thread, in the order of the campaign; any may raise."""

    def begin(self, number: int, knobs: Mapping[str, KnobValue]) -> None:
        """A trial starts or goes on."""

    def curve(self, number: int, values: Mapping[str, float], step: int) -> None:
        """A trial has these values after epoch `step`; names are such as `retrain-0/task`."""

    def end(self, record: TrialRecord, results: Mapping[str, float]) -> None:
        """A trial ended with these results, by names such as `retrained/val/accuracy` and `cost/flops`."""

    def front(self, values: Mapping[str, float], num_ended: int) -> None:
        """The front of the campaign after so many trials."""

    def close(self) -> None:
        """The campaign ended, or was interrupted."""
