"""What one finished trial says: the only thing that leaves a trial, and the only thing that analysis reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1

KnobValue = bool | int | float | str
State = Literal["complete", "failed", "stopped"]
Stage = Literal["teacher", "gated", "derived", "retrained"]
Split = Literal["val", "test"]


class Cost(BaseModel):
    """Cost of a student. FLOPs: one multiply-accumulate is one FLOP (fvcore's convention), per clip.

    For streams `flops` is the amortised cost of a frame and the four stream fields are set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flops: int = Field(ge=0)
    params: int = Field(ge=0)
    latency_ms: float | None = None
    keyframe_flops: int | None = None
    delta_flops: int | None = None
    keyframe_interval: int | None = None
    state_bytes: int | None = None


class Metric(BaseModel):
    """The primary metric of the task: its name, as in the metrics table, and whether more is better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    maximize: bool = True


class TrialRecord(BaseModel):
    """Everything that is kept of one trial. Immutable; refuses NaN in a completed trial."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    number: int = Field(ge=0)  # the number of the trial in the ledger
    state: State
    seed: int
    config_hash: str
    knobs: Mapping[str, KnobValue]  # what the study proposed; `max_flops` is the budget
    metric: Metric
    arch: Mapping[str, Any] | None = None  # ArchSpec as its canonical JSON object
    arch_id: str | None = None
    cost: Cost | None = None
    metrics: Mapping[Stage, Mapping[Split, Mapping[str, float]]] = Field(default_factory=dict)
    repeats: Mapping[str, tuple[float, ...]] = Field(default_factory=dict)  # "retrained/val/accuracy" -> one a seed
    diagnostics: Mapping[str, float] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    environment: Mapping[str, str] = Field(default_factory=dict)
    durations_s: Mapping[str, float] = Field(default_factory=dict)
    started_at: str = ""  # ISO 8601, UTC
    error: str | None = None  # traceback text of a failed trial

    @model_validator(mode="after")
    def _complete_means_finite(self) -> TrialRecord:
        if self.state != "complete":
            return self
        if self.cost is None:
            raise ValueError(f"trial {self.number}: a complete trial must carry its cost")
        for stage, splits in self.metrics.items():
            for split, values in splits.items():
                for name, value in values.items():
                    if not math.isfinite(value):
                        raise ValueError(f"trial {self.number}: {stage}/{split}/{name} is {value}; it must be finite")
        return self
