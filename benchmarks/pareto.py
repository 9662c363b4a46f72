"""Time the Pareto functions against moocore and plain numpy, in one run: `python benchmarks/pareto.py [--repeats N]`.

Prints a table of medians and, as the last line, one JSON object. All sides must agree before they are timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from nas_kd.analysis.pareto import Direction, hypervolume, non_dominated

SEED = 0


Points = NDArray[np.float64]
Task = dict[str, Callable[[], Any]]  # library -> the computation; "nas_kd" is among them


def cloud(num_points: int, num_objectives: int) -> NDArray[np.float64]:
    return np.random.default_rng(SEED).random((num_points, num_objectives))


def all_on_front(num_points: int, num_objectives: int) -> NDArray[np.float64]:
    """Points of the positive unit sphere, in random order: minimising, none dominates another."""
    points = np.abs(np.random.default_rng(SEED).normal(size=(num_points, num_objectives)))
    return np.asarray(-points / np.linalg.norm(points, axis=1, keepdims=True))


def undominated_by_one(points: Points) -> NDArray[np.intp]:
    """Rows that the row with the smallest sum does not dominate: what a numpy user would do first with a cloud."""
    return np.flatnonzero((points <= points[points.sum(axis=1).argmin()]).any(axis=1))


def numpy_filter(points: Points) -> NDArray[np.bool_]:
    """The front of `(n, 2)` points without copies, by a sort and a running minimum."""
    rows = undominated_by_one(points)
    x, y = points[rows].T
    order = np.lexsort((y, x))
    lowest = np.minimum.accumulate(y[order])
    on_front = np.append(True, lowest[1:] < lowest[:-1])
    mask = np.zeros(len(points), dtype=bool)
    mask[rows[order[on_front]]] = True
    return mask


def numpy_hypervolume(points: Points, reference: Points) -> float:
    """Area that `(n, 2)` points better than the reference dominate, by a sort and a running minimum."""
    x, y = points[undominated_by_one(points)].T
    order = np.argsort(x)
    widths = np.diff(x[order], append=reference[0])
    return float(np.dot(widths, reference[1] - np.minimum.accumulate(y[order])))


def filter_task(points: Points) -> Task:
    directions: list[Direction] = ["minimize"] * points.shape[1]
    task: Task = {
        "nas_kd": lambda: non_dominated(points, directions),
        "moocore": lambda: moocore.is_nondominated(points, keep_weakly=True),
    }
    if points.shape[1] == 2:
        task["numpy"] = lambda: numpy_filter(points)
    return task


def hypervolume_task(points: Points) -> Task:
    directions: list[Direction] = ["minimize"] * points.shape[1]
    reference = np.ones(points.shape[1])
    task: Task = {
        "nas_kd": lambda: hypervolume(points, directions, reference),
        "moocore": lambda: moocore.hypervolume(points, ref=reference),
    }
    if points.shape[1] == 2:
        task["numpy"] = lambda: numpy_hypervolume(points, reference)
    return task


def tasks() -> dict[str, Task]:
    million = 10**6
    return {
        "filter 2-D, 10^6 cloud": filter_task(cloud(million, 2)),
        "filter 2-D, 10^6 all on front": filter_task(all_on_front(million, 2)),
        "filter 3-D, 10^6 cloud": filter_task(cloud(million, 3)),
        "filter 3-D, 10^6 all on front": filter_task(all_on_front(million, 3)),
        "hypervolume 2-D, 10^6 cloud": hypervolume_task(cloud(million, 2)),
        "hypervolume 2-D, 10^6 all on front": hypervolume_task(all_on_front(million, 2)),
        "hypervolume 3-D, 10^4 cloud": hypervolume_task(cloud(10**4, 3)),
        "hypervolume 3-D, 10^6 cloud": hypervolume_task(cloud(million, 3)),
        "hypervolume 3-D, 10^6 all on front": hypervolume_task(all_on_front(million, 3)),
    }


def milliseconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def measure(task: Task, repeats: int) -> dict[str, float]:
    """Median milliseconds of each library, interleaved so that a busy moment hits all; the first call is a warm-up.

    `speedup` is the median over the rounds of the fastest other library's time divided by that of nas_kd.
    """
    expected = task["nas_kd"]()
    for function in task.values():
        np.testing.assert_allclose(function(), expected, rtol=1e-9)
    rounds = [{name: milliseconds(function) for name, function in task.items()} for _ in range(repeats)]
    result = {name: round(statistics.median(times[name] for times in rounds), 2) for name in task}
    fastest = min((name for name in task if name != "nas_kd"), key=lambda name: result[name])
    result["speedup"] = round(statistics.median(times[fastest] / times["nas_kd"] for times in rounds), 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    results: dict[str, dict[str, float]] = {}
    libraries = ("nas_kd", "moocore", "numpy")
    print(f"{'milliseconds':<40}" + "".join(f"{name:>10}" for name in libraries) + f"{'speed-up':>10}")
    for name, task in tasks().items():
        results[name] = row = measure(task, repeats)
        times = "".join(f"{row[library]:>10.1f}" if library in row else f"{'-':>10}" for library in libraries)
        print(f"{name:<40}{times}{row['speedup']:>9.1f}x", flush=True)
    context = {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
    versions = {"moocore": moocore.__version__, "seed": SEED, "repeats": repeats}
    print(json.dumps({"benchmark": "pareto", **context, **versions, "results": results}))


if __name__ == "__main__":
    main()
