"""Does the search search? Arms of equal compute, and what a sceptic would ask: `python benchmarks/search.py [options]`.

Arms: `shared` (one search for all budgets), `per_budget` (a search a trial), `random` architectures, the samplers
`known_cost`, `nsga2` and `tpe` on architectures without a supernet, and `darts_sweep` (full mixtures, λ from weak to
strong). Compute is that of all steps, in FLOPs that are really executed, the teacher excluded; a backward pass counts
as two forward passes.

Of each arm, over its compute: the mean test metric over budgets, uniform in log FLOPs between the lowest and the
highest one, of the student within the budget that is best on validation (0 where there is none). It is the hypervolume
of the chosen students with the axis of cost in logarithms. Of the shared search, too:

    percentile  of the derived architecture at `equal_cost` among random ones of 95 to 100 % of it, all trained from
                fresh weights with the same seeds (`percentile_fresh`), or all from the search's weights, as a campaign
                trains its students (`percentile_inherited`)
    tau         Kendall's τ of the metric with inherited weights and that after a training from them, over random
                architectures, half of them of equal cost and half of them of all costs; `tau_equal_cost` over the
                first half alone, `tau_fresh` with trainings from fresh weights
    front_cost  compute of search and derivation for all budgets over that for one budget

Everything that was trained is kept in `--work` and is not trained again, so the same command goes on after an
interruption. All arms and five seeds take many hours of one core. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, t
from search_arms import ARMS, Point, derivation_compute
from search_lab import SETTINGS, Lab, Result, count_supernets

from nas_kd.search_spaces import ArchSpec
from nas_kd.trial.shared import SharedSearch

SHARES = (0.25, 0.5, 1.0)  # of the compute, at which arms are compared
GOALS = {"percentile_fresh": 90.0, "tau": 0.6, "front_cost_ratio": 1.3, "compute_to_reach_best_baseline": 0.25}


def quality(points: Sequence[Point], low: float, high: float) -> float:
    """Mean test metric over log-uniform budgets of the students chosen on validation; see the module."""
    ordered = sorted((point.result for point in points), key=lambda result: result.cost)
    edges = sorted({low, high, *(result.cost for result in ordered if low < result.cost < high)})
    total = 0.0
    for start, end in itertools.pairwise(edges):
        within = [result for result in ordered if result.cost <= start]
        if within:
            total += max(within, key=lambda result: result.val).test * math.log(end / start)
    return total / math.log(high / low)


def run_arm(lab: Lab, arm: str, seed: int) -> list[Point]:
    """The students of an arm; read where they are known, and kept as they come."""
    path = lab.folder / "arms" / f"{arm}-{seed}.json"
    if path.is_file():
        return [Point(entry["compute"], Result(**entry["result"])) for entry in json.loads(path.read_text())]
    points: list[Point] = []
    start = time.time()
    for point in ARMS[arm](lab, seed):
        points.append(point)
        share, elapsed = point.compute / lab.compute, time.time() - start
        print(
            f"{arm} seed {seed}: {len(points)} students, {share:.0%} of its compute, {point.result.cost / 1e6:.2f}M "
            f"FLOPs, val {point.result.val:.3f}, {elapsed:.0f} s, {elapsed * max(1 / share - 1, 0):.0f} s left",
            flush=True,
        )
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([asdict(point) for point in points]))
    return points


def pool(lab: Lab, kind: str, number: int) -> Iterator[ArchSpec]:
    """Random architectures at `equal_cost`, or at budgets of the whole range."""
    rng, budget = np.random.default_rng(1 if kind == "equal" else 2), lab.config.budget
    for _ in range(number):
        limit = lab.setting.equal_cost
        if kind != "equal":
            limit = float(np.exp(rng.uniform(np.log(budget.lowest), np.log(budget.highest))))
        yield lab.random_arch(rng, 0.95 * limit, limit)


def checks(lab: Lab, seed: int, number: int, num_trainings: int) -> dict[str, float]:
    """What a sceptic asks of one shared search; kept in the folder."""
    path = lab.folder / "checks" / f"{seed}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    search = SharedSearch(lab.searching(seed))
    with count_supernets() as meter:
        search.train()
    one, *_ = costs = [derivation_compute(lab, search, budget) for budget in search.budgets]
    arch, _ = search.compare(lab.setting.equal_cost, lab.config.search.candidates)[0]
    equal, spread = list(pool(lab, "equal", number)), list(pool(lab, "range", number))
    inherited = [search.inherited_score(other) for other in [*equal, *spread]]
    from_fresh = [fresh(lab, other, num_trainings) for other in [*equal, *spread]]
    from_search = [after_search(lab, search, other, seed) for other in [*equal, *spread]]
    chosen_fresh, chosen = fresh(lab, arch, num_trainings), after_search(lab, search, arch, seed)
    found = {
        "percentile_fresh": 100 * float(np.mean([chosen_fresh > other for other in from_fresh[:number]])),
        "percentile_inherited": 100 * float(np.mean([chosen > other for other in from_search[:number]])),
        "tau": float(kendalltau(inherited, from_search).statistic),
        "tau_equal_cost": float(kendalltau(inherited[:number], from_search[:number]).statistic),
        "tau_fresh": float(kendalltau(inherited, from_fresh).statistic),
        "front_cost_ratio": (meter.total + sum(costs)) / (meter.total + one),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def fresh(lab: Lab, arch: ArchSpec, num_trainings: int) -> float:
    """Mean test metric of some trainings from fresh weights."""
    results = []
    for seed in range(num_trainings):
        known = len(lab.results)
        results.append(lab.train(arch, seed))
        if len(lab.results) > known:
            print(f"fresh {arch.arch_id} seed {seed}: test {results[-1].test:.3f}", flush=True)
    return float(np.mean([result.test for result in results]))


def after_search(lab: Lab, search: SharedSearch, arch: ArchSpec, seed: int) -> float:
    """The test metric of a student that is trained from the weights of a search, as the arm `shared` does."""
    result = lab.train(arch, seed, search.student(arch), search.adapters_of(arch), init=f"shared-{seed}")
    print(f"from the search {arch.arch_id} seed {seed}: test {result.test:.3f}", flush=True)
    return result.test


def interval(values: Sequence[float]) -> str:
    """Mean and the half width of its 95 % interval (Student's t)."""
    if len(values) < 2:
        return f"{values[0]:.3f} (one seed)"
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def reached(points: Sequence[Point], goal: float, low: float, high: float) -> float:
    """The least compute at which the students of an arm are as good as `goal`; infinity where they never are."""
    for i, point in enumerate(points):
        if quality(points[: i + 1], low, high) >= goal:
            return point.compute
    return math.inf


def curve(lab: Lab, points: Sequence[Point]) -> list[tuple[float, float]]:
    """Quality of an arm over its share of the compute, where it changes; seeds of several runs can be joined by it."""
    low, high = lab.config.budget.lowest, lab.config.budget.highest
    steps: list[tuple[float, float]] = []
    for i, point in enumerate(points):
        now = round(quality(points[: i + 1], low, high), 5)
        if not steps or now != steps[-1][1]:
            steps.append((round(point.compute / lab.compute, 5), now))
    return steps


def compare(lab: Lab, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Run the arms and print their table."""
    low, high = lab.config.budget.lowest, lab.config.budget.highest
    runs: dict[str, list[list[Point]]] = {arm: [] for arm in arms}
    for seed in seeds:  # all arms of a seed first, so that an interrupted run can be read with fewer seeds
        for arm in arms:
            runs[arm].append(run_arm(lab, arm, seed))
    table: dict[str, dict[str, list[float]]] = {}
    print(f"\n{'arm':<14}" + "".join(f"{f'at {share:.0%}':>18}" for share in SHARES))
    for arm, of_seeds in runs.items():
        table[arm] = {}
        for share in SHARES:
            limit = share * lab.compute
            table[arm][f"{share:g}"] = [quality([p for p in r if p.compute <= limit], low, high) for r in of_seeds]
        print(f"{arm:<14}" + "".join(f"{interval(values):>18}" for values in table[arm].values()))
    curves = {arm: [curve(lab, points) for points in of_seeds] for arm, of_seeds in runs.items()}
    found: dict[str, Any] = {"hypervolume": table, "curves": curves}
    rivals = {arm: float(np.mean(row["1"])) for arm, row in table.items() if arm != "shared"}
    if "shared" in runs and rivals:
        best = max(rivals, key=lambda arm: rivals[arm])
        shares = [reached(points, rivals[best], low, high) / lab.compute for points in runs["shared"]]
        found |= {"best_baseline": best, "compute_to_reach_best_baseline": float(np.median(shares))}
    return found


def verdicts(found: dict[str, Any]) -> None:
    """Print what was reached and what was missed."""
    for name, goal in GOALS.items():
        if name in found:
            at_most = name in ("front_cost_ratio", "compute_to_reach_best_baseline")
            held = found[name] <= goal if at_most else found[name] >= goal
            print(f"{name}: {found[name]:.3f}, goal {'at most' if at_most else 'at least'} {goal:g}: ", end="")
            print("held" if held else "MISSED")


def plain(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds the real data sets")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)), help="of the arms")
    parser.add_argument("--checks", type=int, default=5, help="shared searches that are checked")
    parser.add_argument("--pool", type=int, default=12, help="random architectures of each kind for the checks")
    parser.add_argument("--trainings", type=int, default=2, help="fresh trainings of each of them")
    parser.add_argument("--result", type=Path, help="JSON file that keeps the outcome")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, Any] = {}
    for name in options.settings:
        lab = Lab(SETTINGS[name].at(options.data), options.work / name)
        print(f"{name}: an arm has {lab.compute:.3g} FLOPs; results are kept in {lab.folder}", flush=True)
        found: dict[str, Any] = {"seeds": options.seeds, "checks": options.checks}
        each = [checks(lab, seed, options.pool, options.trainings) for seed in range(options.checks)]
        for key in each[0] if each else ():
            values = [entry[key] for entry in each]
            found[key] = float(np.median(values))
            print(f"{key}: {interval(values)}")
        found |= compare(lab, options.arms, options.seeds) if options.arms and options.seeds else {}
        verdicts(found)
        settings[name] = found
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    outcome = {
        "settings": plain(settings),
        "commit": commit,
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
    }
    if options.result:
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(outcome) + "\n")
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
