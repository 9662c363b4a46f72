"""Plausible runs for the tests of the analysis, and a hostile one. Seeded: the same records at every call."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas_kd.analysis.front import TeacherPoint
from nas_kd.trials.record import Cost, KnobValue, Metric, TrialRecord

ACCURACY = Metric(name="accuracy", percent=("accuracy", "temporal_consistency", "label_stability"))
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


MIOU = Metric(name="miou", percent=("miou", "temporal_consistency", "label_stability"))
STREAM_TEACHER = TeacherPoint(
    name="framewise",
    flops=40_000_000_000,
    value=0.765,
    test=0.755,
    secondary={"val/temporal_consistency": 0.871, "test/temporal_consistency": 0.862, "val/label_stability": 0.9},
    by_interval={  # its own values rise over the offsets: the frames there are easier
        2: {"val/miou": 0.775, "val/miou@0": 0.77, "val/miou@1": 0.78},
        3: {
            **{"val/miou": 0.78, "val/miou@0": 0.77, "val/miou@1": 0.78, "val/miou@2": 0.79},
            **{"test/miou": 0.77, "test/miou@0": 0.76, "test/miou@1": 0.77, "test/miou@2": 0.78},
        },
    },
)


def stream(
    number: int,
    keyframe_flops: int,
    delta_flops: int,
    val: Sequence[Sequence[float]],
    test: Sequence[Sequence[float]] = (),
    *,
    metric: Metric = MIOU,
    secondary: Mapping[str, float] | None = None,
    **fields: Any,
) -> TrialRecord:
    """A streaming student.

    Args:
        number: of the trial.
        keyframe_flops: FLOPs of a key frame.
        delta_flops: FLOPs of the other frames.
        val: one row a seed, the metric at each offset from the key frame; their number is the key-frame interval.
        test: the same on the test split.
        metric: the primary metric.
        secondary: further metrics, the same on both splits.
        fields: override or add.
    """
    interval = len(val[0])
    metrics: dict[str, dict[str, float]] = {}
    repeats: dict[str, list[float]] = {}
    for split, rows in (("val", val), ("test", test)):
        if not rows:
            continue
        seeds = {metric.name: [float(np.mean(row)) for row in rows]}
        seeds |= {f"{metric.name}@{offset}": [row[offset] for row in rows] for offset in range(interval)}
        metrics[split] = {name: float(np.mean(values)) for name, values in seeds.items()} | dict(secondary or {})
        if len(rows) > 1:
            repeats |= {f"retrained/{split}/{name}": values for name, values in seeds.items()}
    cost = Cost(
        flops=round((keyframe_flops + (interval - 1) * delta_flops) / interval),
        params=5_000_000,
        latency_ms=2.0,
        keyframe_flops=keyframe_flops,
        delta_flops=delta_flops,
        keyframe_interval=interval,
        state_bytes=6_300_000,
        keyframe_latency_ms=5.0,
        delta_latency_ms=0.5,
    )
    values: dict[str, Any] = {"metric": metric, "cost": cost, "metrics": {"retrained": metrics}, "repeats": repeats}
    return record(number, **(values | fields))


def stream_run() -> list[TrialRecord]:
    """Three streams on the front, a dominated one, a failed one. Trial 1 has three seeds, K = 3."""
    seeds = [(0.76, 0.75, 0.72), (0.77, 0.75, 0.73), (0.78, 0.75, 0.74)]
    on_test = [[value - 0.01 * seed for value in row] for seed, row in enumerate(seeds)]
    steady = {"temporal_consistency": 0.885, "label_stability": 0.91, "loss": 0.4321}
    return [
        stream(0, 40_000_000_000, 1_000_000_000, [(0.75, 0.62, 0.55)], [(0.74, 0.61, 0.54)], secondary=steady),
        stream(1, 41_000_000_000, 5_000_000_000, seeds, on_test, secondary=steady),
        stream(2, 40_000_000_000, 28_000_000_000, [(0.77, 0.76)], secondary={"temporal_consistency": 0.88}),
        stream(3, 44_000_000_000, 30_000_000_000, [(0.70, 0.60, 0.50)]),
        record(4, state="failed", metric=MIOU, error=DIVERGED),
    ]


def hostile_streams() -> list[TrialRecord]:
    """Streams whose metrics try to leave their place, and offsets that are none."""
    metric = Metric(name="=miou" + HOSTILE)
    wrong = ("-1", "01", "1.5", "٣", "1e3", "9" * 5000, HOSTILE, "")
    named = {"=1+1" + HOSTILE: 0.5, "temporal_consistency": 0.9} | {f"{metric.name}@{end}": 0.123 for end in wrong}
    rows = [(0.7, 0.6), (0.72, 0.63)]
    return [
        stream(
            n, 10**9, (n + 1) * 10**8, [(a + n / 50, b + n / 50) for a, b in rows], rows, metric=metric, secondary=named
        )
        for n in range(2)
    ]


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
