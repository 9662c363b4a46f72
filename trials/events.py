"""Events that the driver announces while a campaign runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nas_kd.trials.record import KnobValue, TrialRecord

EventKind = Literal[
    "begun",
    "preparing",
    "noted",
    "started",
    "continued",
    "progress",
    "retried",
    "postponed",
    "ended",
    "interrupted",
    "finished",
]


@dataclass(frozen=True)
class Event:
    """An event of a campaign. The end of a trial is durable in the ledger before it is announced.

    `begun`, `preparing` (what the executor needs before trials start), `noted` (a tracker failed, a trial is left out),
    `interrupted` and `finished` are about the campaign; the others about trial `number`. `continued` is a start of a
    trial that an earlier driver left running, that was `postponed` because it ran out of GPU memory, or whose process
    died before it ran there; `ended` carries the `record`. `num_ended` of `num_trials` trials had ended by then.
    """

    kind: EventKind
    num_ended: int
    num_trials: int
    number: int | None = None
    knobs: Mapping[str, KnobValue] = field(default_factory=dict)
    fraction: float | None = None
    message: str = ""
    values: Mapping[str, float] | None = None
    record: TrialRecord | None = None
    work: float | None = None
    """Of a trial that starts: what its time grows with, where that is known."""


OnEvent = Callable[[Event], None]
