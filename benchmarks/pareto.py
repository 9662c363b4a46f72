"""Time the Pareto functions against moocore, in one run: `python benchmarks/pareto.py [--repeats N]`.

Prints a table of medians and, as the last line, one JSON object. Both sides must agree before they are timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from nas_kd.analysis.pareto import Direction, hypervolume, non_dominated

SEED = 0


@dataclass(frozen=True)
class Task:
    name: str
    ours: Callable[[], Any]
    moocore: Callable[[], Any]


def cloud(num_points: int, num_objectives: int) -> NDArray[np.float64]:
    return np.random.default_rng(SEED).random((num_points, num_objectives))


def all_on_front(num_points: int, num_objectives: int) -> NDArray[np.float64]:
    """Points of the positive unit sphere, in random order: minimising, none dominates another."""
    points = np.abs(np.random.default_rng(SEED).normal(size=(num_points, num_objectives)))
    return np.asarray(-points / np.linalg.norm(points, axis=1, keepdims=True))


def filter_task(name: str, points: NDArray[np.float64]) -> Task:
    directions: list[Direction] = ["minimize"] * points.shape[1]
    return Task(
        f"filter {name}",
        lambda: non_dominated(points, directions),
        lambda: moocore.is_nondominated(points, keep_weakly=True),
    )


def hypervolume_task(name: str, points: NDArray[np.float64]) -> Task:
    directions: list[Direction] = ["minimize"] * points.shape[1]
    reference = np.ones(points.shape[1])
    return Task(
        f"hypervolume {name}",
        lambda: hypervolume(points, directions, reference),
        lambda: moocore.hypervolume(points, ref=reference),
    )


def tasks() -> list[Task]:
    million = 10**6
    return [
        filter_task("2-D, 10^6 cloud", cloud(million, 2)),
        filter_task("2-D, 10^6 all on front", all_on_front(million, 2)),
        filter_task("3-D, 10^6 cloud", cloud(million, 3)),
        filter_task("3-D, 10^6 all on front", all_on_front(million, 3)),
        hypervolume_task("2-D, 10^6 cloud", cloud(million, 2)),
        hypervolume_task("2-D, 10^6 all on front", all_on_front(million, 2)),
        hypervolume_task("3-D, 10^4 cloud", cloud(10**4, 3)),
        hypervolume_task("3-D, 10^6 cloud", cloud(million, 3)),
    ]


def milliseconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def measure(task: Task, repeats: int) -> dict[str, float]:
    """Median milliseconds of both sides, interleaved so that a busy moment hits both; the first call is a warm-up."""
    np.testing.assert_allclose(task.ours(), task.moocore(), rtol=1e-9)
    pairs = [(milliseconds(task.ours), milliseconds(task.moocore)) for _ in range(repeats)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"ours_ms": round(ours, 2), "moocore_ms": round(theirs, 2), "speedup": round(theirs / ours, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    results: dict[str, dict[str, float]] = {}
    print(f"{'task':<40}{'ours, ms':>10}{'moocore, ms':>14}{'speed-up':>10}")
    for task in tasks():
        results[task.name] = row = measure(task, repeats)
        print(f"{task.name:<40}{row['ours_ms']:>10.1f}{row['moocore_ms']:>14.1f}{row['speedup']:>9.1f}x", flush=True)
    context = {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
    versions = {"moocore": moocore.__version__, "seed": SEED, "repeats": repeats}
    print(json.dumps({"benchmark": "pareto", **context, **versions, "results": results}))


if __name__ == "__main__":
    main()
