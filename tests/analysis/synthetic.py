"""Plausible runs for the tests of the analysis, and a hostile one. Seeded: the same records at every call."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.front import TeacherPoint
from trials.record import Cost, KnobValue, Metric, TrialRecord

ACCURACY = Metric(name="accuracy")
TEACHER = TeacherPoint(name="R3D, width 64", flops=1_910_000_000, value=0.957, test=0.951, params=33_200_000)
OPERATORS = ("conv2d_3x3", "conv2plus1d_3x3", "conv3d_3x3", "shift_3x3", "mbconv_e3", "skip")

OUT_OF_MEMORY = """Traceback (most recent call last):
  File "/app/nas_kd/trial.py", line 81, in run_trial
    supernet.step(batch)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB
"""
DIVERGED = """Traceback (most recent call last):
  File "/app/nas_kd/training/search.py", line 140, in search
    raise FloatingPointError(message)
FloatingPointError: the loss became NaN in epoch 3
"""


def record(
    number: int,
    flops: int | None = None,
    val: float | None = None,
    *,
    metric: Metric = ACCURACY,
    knobs: Mapping[str, KnobValue] | None = None,
    state: str = "complete",
    **fields: Any,
) -> TrialRecord:
    """One record with the least that a front needs; `fields` override or add."""
    values: dict[str, Any] = {
        "number": number,
        "state": state,
        "seed": number,
        "config_hash": "0" * 12,
        "knobs": knobs or {},
        "metric": metric,
        "cost": None if flops is None else Cost(flops=flops, params=flops // 10),
        "metrics": {} if val is None else {"retrained": {"val": {metric.name: val}}},
    }
    return TrialRecord.model_validate(values | fields)


def architecture(rng: np.random.Generator) -> dict[str, Any]:
    cells = {f"cell{cell}.edge{edge}": str(rng.choice(OPERATORS)) for cell in range(3) for edge in range(3)}
    settings = {"width": int(rng.choice([8, 12, 16, 24])), "depth": int(rng.integers(2, 5)), "num_classes": 10}
    return {"schema_version": 1, "space": "clip_cell", "settings": settings, "choices": cells}


def run(num_trials: int = 30, seed: int = 0) -> list[TrialRecord]:
    """A search over budgets of 4 M to 120 M FLOPs: mostly complete, some stopped early, a few failed."""
    rng = np.random.default_rng(seed)
    return [_trial(number, rng) for number in range(num_trials)]


def _trial(number: int, rng: np.random.Generator) -> TrialRecord:
    budget = int(10 ** rng.uniform(math.log10(4e6), math.log10(120e6)))
    flops = int(budget * rng.uniform(0.95, 1.0))
    quality = 0.955 - 0.34 * (flops / 4e6) ** -0.75 - abs(rng.normal(0, 0.045))
    gated = float(np.clip(quality - 0.06 + rng.normal(0, 0.015), 0, 1))
    derived = float(np.clip(gated - abs(rng.normal(0.05, 0.03)), 0, 1))
    arch = architecture(rng)
    fate = rng.random()
    common: dict[str, Any] = {
        "knobs": {
            "max_flops": budget,
            "frames": int(rng.choice([4, 8, 16])),
            "resolution": int(rng.choice([56, 80, 112])),
            "kd_temperature": round(float(rng.uniform(1, 8)), 2),
            "feature_weight": round(float(10 ** rng.uniform(-2, 1)), 4),
            "objective": str(rng.choice(["response", "feature", "delta"])),
        },
        "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "NVIDIA H100", "host": "node-3"},
        "started_at": f"2026-03-01T{number % 24:02d}:00:00Z",
        "durations_s": {"search": 410.0, "retrain": float(rng.uniform(500, 900))},
    }
    if fate < 0.1:
        return record(number, state="failed", error=OUT_OF_MEMORY if fate < 0.06 else DIVERGED, **common)
    arch_id = hashlib.sha256(json.dumps(arch, sort_keys=True).encode()).hexdigest()[:12]
    common |= {"arch": arch, "arch_id": arch_id}
    if fate < 0.22:
        return record(number, flops, state="stopped", metrics={"gated": {"val": {"accuracy": gated}}}, **common)
    repeats = [float(value) for value in np.clip(quality + rng.normal(0, 0.005, 3), 0, 1)]
    value = float(np.mean(repeats))
    skips = sum(choice == "skip" for choice in arch["choices"].values())
    return record(
        number,
        cost=Cost(flops=flops, params=int(flops / rng.uniform(18, 30)), latency_ms=round(0.6 + flops / 2.4e7, 2)),
        metrics={
            "gated": {"val": {"accuracy": gated}},
            "derived": {"val": {"accuracy": derived}},
            "retrained": {
                "val": {"accuracy": value},
                "test": {"accuracy": float(np.clip(value - 0.008 + rng.normal(0, 0.004), 0, 1))},
            },
        },
        repeats={"retrained/val/accuracy": repeats},
        warnings=(f"{skips} of 9 edges chose skip: the cell may have collapsed",) if skips >= 4 else (),
        **common,
    )


HOSTILE = (
    "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"><!-- "
    "<b>%{y}</b> & ' \u2028\u2029 $\\frac{$ \U0001f40d {title} $title ${csp}"
)


def hostile_run() -> list[TrialRecord]:
    """Records in which every free text tries to leave its place, and starts like a formula."""
    text = "=cmd|' /C calc'!A0 " + HOSTILE
    metric = Metric(name="@SUM(1) " + HOSTILE)
    common: dict[str, Any] = {
        "metric": metric,
        "knobs": {"+knob" + HOSTILE: text, "max_flops": "-1" + HOSTILE},
        "config_hash": text,
        "arch": {"space": text, "settings": {text: [text]}, "choices": {text: text}},
        "arch_id": text,
        "warnings": (text,),
        "environment": {text: text},
        "started_at": text,
        "diagnostics": {text: 1.0},
        "durations_s": {text: 1.0},
    }
    stages = ("gated", "derived", "retrained")
    complete = [
        record(
            number,
            10**6 * (number + 1),
            metrics={stage: {"val": {metric.name: 0.5 + 0.1 * number}} for stage in stages},
            repeats={f"retrained/val/{metric.name}": (0.5, 0.6 + 0.1 * number)},
            **common,
        )
        for number in range(3)
    ]
    return [*complete, record(3, state="failed", error=text, **common), record(4, state="stopped", **common)]
