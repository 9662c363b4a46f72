"""Latency of several nets: all take turns in several rounds, one at a time.

So a machine that slows down or is used by others shows in the spread of each and not in the order of the nets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nas_kd.callbacks import OnProgress
from nas_kd.inputs import Passes

ROUNDS, PASSES, ROUND_S, WARMUP = 5, 10, 0.5, 2
_QUANTILES = (0.5, 0.1, 0.9)


@torch.no_grad()
def timed(
    nets: Mapping[str, Passes], device: torch.device, progress: OnProgress, *, rounds: int | None = None
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """(net -> part -> milliseconds of each pass, share of the time in which the process did not run).

    Args:
        nets: name of a net -> its passes.
        device: where they run.
        progress: called with the share that is done and a text.
        rounds: `ROUNDS` by default.
    """
    rounds = ROUNDS if rounds is None else rounds
    finish: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, dict[str, list[float]]] = {name: {part: [] for part in net.parts} for name, net in nets.items()}
    wall, cpu = 0.0, 0.0
    for turn in range(rounds):
        for place, (name, net) in enumerate(nets.items()):
            progress((turn + place / len(nets)) / rounds, "latency, all nets in turns")
            for part, run in net.parts.items():
                for _ in range(WARMUP):
                    run()
                finish()
                begun, begun_cpu = time.perf_counter(), time.process_time()
                for _ in range(PASSES):
                    start = time.perf_counter()
                    run()
                    finish()
                    times[name][part].append((time.perf_counter() - start) * 1e3)
                    if time.perf_counter() - begun > ROUND_S:
                        break
                wall += time.perf_counter() - begun
                cpu += time.process_time() - begun_cpu
    waited = max(0.0, 1 - cpu / wall) if wall > 0 and device.type == "cpu" else 0.0
    return times, waited


def summary(parts: Mapping[str, Sequence[float]], net: Passes) -> dict[str, float]:
    """Median of the net's latency with its 10 % and 90 % quantiles, and the medians of its parts.

    Of a net of several parts, such as key frame and later frames, they are the weighted means of those of the parts,
    since passes of different parts do not belong together: the range is then rather too wide.
    """
    quantiles = {part: np.quantile(values, _QUANTILES) for part, values in parts.items()}
    ms, low, high = np.sum([net.weights[part] * values for part, values in quantiles.items()], axis=0)
    found = {"ms": float(ms), "low": float(low), "high": float(high)}
    return found | {part: float(values[0]) for part, values in quantiles.items() if part != "ms"}
