"""Latencies that a campaign measured after its trials, one net at a time: the file `latency.json` of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nas_kd.analysis.text import count, ms_text
from nas_kd.trials.record import TrialRecord

LATENCY_NAME, TEACHER = "latency.json", "teacher"
BUSY_SHARE = 0.1  # of the time in which the process waited for the processor
WIDE_SPREAD = 0.5  # of the median, from the 10 % to the 90 % quantile


class Latency(BaseModel):
    """Of one net, in milliseconds.

    Attributes:
        ms: median; for a stream amortised a frame.
        low: 10 % quantile.
        high: 90 % quantile.
        keyframe_ms: median of a key frame; None for nets without.
        delta_ms: median of a frame after a key frame.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ms: float
    low: float
    high: float
    keyframe_ms: float | None = None
    delta_ms: float | None = None

    @property
    def text(self) -> str:
        """The range: `3.9 – 4.4`."""
        return f"{ms_text(self.low)} – {ms_text(self.high)}"


def busy_sentence(waited_share: float) -> str:
    """That latencies were measured on a busy machine; empty where it was quiet."""
    if waited_share <= BUSY_SHARE:
        return ""
    return (
        f"The machine was busy with other work ({waited_share:.0%} of the time waited): do not rely on these latencies."
    )


class Latencies(BaseModel):
    """What `latency.json` holds.

    Attributes:
        environment: hardware, versions, threads.
        waited_share: share of the time in which the process did not run, because others did.
        passes: of each net, at most.
        nets: number of a trial, or `teacher` -> its latency.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Mapping[str, str]
    waited_share: float
    passes: int
    nets: Mapping[str, Latency]

    @property
    def note(self) -> str:
        """How they were measured, what the teacher needs, and whether the machine was quiet."""
        place, threads = self.environment.get("device", "this device"), self.environment.get("threads")
        if threads is not None:
            place += f", {count(int(threads), 'thread')}"
        words = (
            f"Latency: after all trials, one net at a time ({place}, batch 1); median, and below it the range of 80 % "
            f"of up to {self.passes} passes."
        )
        teacher = self.nets.get(TEACHER)
        if teacher is not None:
            words += f" The teacher needs {ms_text(teacher.ms)} ms ({teacher.text})."
        if busy := busy_sentence(self.waited_share):
            words += f" {busy}"
        elif any(net.high - net.low > WIDE_SPREAD * net.ms for net in self.nets.values()):
            words += " Some of them spread widely: the machine may not have been quiet."
        return words


def read_latencies(run_dir: Path | str) -> Latencies | None:
    """The latencies of a run; None where none were measured, or the file is damaged."""
    path = Path(run_dir) / LATENCY_NAME
    try:
        return Latencies.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def with_latencies(records: Sequence[TrialRecord], latencies: Latencies | None) -> list[TrialRecord]:
    """The records with these latencies and no others: what a trial measures beside others tells nothing."""
    found = []
    for record in records:
        if record.cost is None:
            found.append(record)
            continue
        known = latencies.nets.get(str(record.number)) if latencies is not None else None
        fields: dict[str, Any] = {"latency_ms": known.ms if known else None}
        if record.cost.is_streaming:
            fields["keyframe_latency_ms"] = known.keyframe_ms if known else None
            fields["delta_latency_ms"] = known.delta_ms if known else None
        found.append(record.model_copy(update={"cost": record.cost.model_copy(update=fields)}))
    return found
