"""Samplers on tables of nets with two objectives, without training: `python benchmarks/sampler.py [PATH] [options]`.

PATH is NAS-Bench-Macro's `nas-bench-macro_cifar10.json` (6,561 trained nets, github.com/xiusu/NAS-Bench-Macro); without
it that table is left out. The other tables are generated, another one for each seed:

    additive     4^8 nets: gates of different importance, independent of each other, a little noise
    interacting  3^9 nets: strong terms of all pairs of gates beside weak single effects
    failures     4^7 nets: as the additive one, but an eighth of the nets failed to train and are at chance
    structured   resolution, width and depth beside the operators of five layers: cost is a product, and layers below
                 the depth have no effect
    learned      `structured` again, but nobody tells the sampler the costs

Regret is the hypervolume of the table's front minus that of what was evaluated, metric and cost scaled to [0, 1] by
the table's extremes, with the worst corner as the reference. Evaluations are counted once for each net. The last line
is one JSON object: table -> sampler -> evaluations -> median regret. Seconds of a proposal are CPU time, averaged over
the last tenth. All samplers, 20 seeds and 400 evaluations take hours of one core; the defaults take minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from nas_kd.trials import KnownCosts, build_sampler, proposal_seed
from nas_kd.trials.samplers import quiet_optuna

Floats = NDArray[np.float64]
MARKS = (25, 50, 100, 200, 400)
CHANCE = 0.1


@dataclass(frozen=True)
class Table:
    """All nets of a small space.

    Attributes:
        choices: name -> values.
        metric: of each net, in the order of `itertools.product` of the choices.
        cost: of each net, in the same order.
        twin: of each net, the position of the net that it is equal to; mostly its own.
        costs_known: whether the sampler is told them.
    """

    choices: Mapping[str, Sequence[int]]
    metric: Floats
    cost: Floats
    twin: NDArray[np.int64]
    costs_known: bool = True

    def position(self, knobs: Mapping[str, Any]) -> int:
        """Which net these knobs are."""
        position = 0
        for name, values in self.choices.items():
            position = position * len(values) + values.index(knobs[name])
        return int(self.twin[position])

    def knobs(self, position: int) -> dict[str, int]:
        """The knobs of a net."""
        knobs = {}
        for name, values in reversed(list(self.choices.items())):
            position, index = divmod(position, len(values))
            knobs[name] = values[index]
        return knobs


def grid(choices: Mapping[str, Sequence[int]]) -> NDArray[np.int64]:
    """All combinations, as indices: `nets x knobs`."""
    return np.array(list(itertools.product(*(range(len(values)) for values in choices.values()))), dtype=np.int64)


def gates(count: int, num_choices: int) -> dict[str, Sequence[int]]:
    return {f"gate{index}": tuple(range(num_choices)) for index in range(count)}


def of_gates(nets: NDArray[np.int64], by_choice: Floats) -> Floats:
    """Sum over gates of what their choices give: `by_choice` is `gates x choices`."""
    return np.asarray(sum(by_choice[gate][nets[:, gate]] for gate in range(nets.shape[1])))


def accuracy(score: Floats, rng: np.random.Generator, noise: float) -> Floats:
    """Errors that fall geometrically with a score: 4 % at the best, most between 5 and 20 %."""
    scaled = (score - score.mean()) / score.std()
    error = 0.04 + 0.06 * np.exp(-0.6 * scaled) + noise * rng.normal(size=len(score))
    return np.asarray(np.clip(1.0 - error, CHANCE, 1.0))


def gate_costs(count: int, num_choices: int, rng: np.random.Generator) -> Floats:
    """Costs of choices, ascending, of gates between 1 and 4 times as expensive as each other."""
    return np.asarray(np.sort(rng.uniform(0.1, 1.0, (count, num_choices)), axis=1) * rng.uniform(1.0, 4.0, (count, 1)))


def additive(seed: int) -> Table:
    rng = np.random.default_rng([seed, 0])
    choices = gates(8, 4)
    nets, costs = grid(choices), gate_costs(8, 4, rng)
    importance = rng.gamma(2.0, 0.5, (8, 1))
    effects = importance * (np.sqrt(costs) + 0.4 * rng.normal(size=costs.shape))
    metric = accuracy(of_gates(nets, effects), rng, 0.001)
    return Table(choices, metric, of_gates(nets, costs) + 1.0, np.arange(len(nets)))


def interacting(seed: int) -> Table:
    rng = np.random.default_rng([seed, 1])
    choices = gates(9, 3)
    nets, costs = grid(choices), gate_costs(9, 3, rng)
    score = of_gates(nets, np.sqrt(costs))
    for first, second in itertools.combinations(range(9), 2):
        score = score + 0.35 * rng.normal(size=(3, 3))[nets[:, first], nets[:, second]]
    return Table(choices, accuracy(score, rng, 0.001), of_gates(nets, costs) + 1.0, np.arange(len(nets)))


def failures(seed: int) -> Table:
    rng = np.random.default_rng([seed, 2])
    choices = gates(7, 4)
    nets, costs = grid(choices), gate_costs(7, 4, rng)
    effects = rng.gamma(2.0, 0.5, (7, 1)) * (np.sqrt(costs) + 0.4 * rng.normal(size=costs.shape))
    metric = accuracy(of_gates(nets, effects), rng, 0.002)
    diverged = ((nets[:, 0] == 0) & (nets[:, 3] == 0)) | (rng.random(len(nets)) < 0.06)
    metric[diverged] = CHANCE + 0.01 * rng.normal(size=int(diverged.sum()))
    return Table(choices, metric, of_gates(nets, costs) + 1.0, np.arange(len(nets)))


def structured(seed: int) -> Table:
    rng = np.random.default_rng([seed, 3])
    choices: dict[str, Sequence[int]] = {"resolution": (16, 24, 32, 48), "width": (1, 2, 3, 4), "depth": (2, 3, 4, 5)}
    choices |= gates(5, 3)
    nets = grid(choices)
    resolution, width, depth = (np.array(choices[name])[nets[:, i]] for i, name in enumerate(list(choices)[:3]))
    active = np.arange(5) < depth[:, None]
    operator_costs, effects = np.sort(rng.uniform(0.3, 2.0, (5, 3)), axis=1), rng.normal(size=(5, 3))
    layers = np.arange(5)
    cost = resolution**2 * ((width[:, None] ** 2 * operator_costs[layers, nets[:, 3:]]) * active).sum(axis=1)
    score = np.log(resolution) * rng.uniform(0.5, 1.5) + np.sqrt(width) * rng.uniform(0.5, 1.5)
    score = score + ((0.35 + 0.35 * effects[layers, nets[:, 3:]]) * active).sum(axis=1)
    score = score - 0.15 * (np.log2(resolution / 16) - (depth - 2) / 2) ** 2  # deep nets need large inputs, and back
    metric = accuracy(score, rng, 0.001)
    first = np.where(active, nets[:, 3:], 0)
    twin = np.ravel_multi_index([*nets[:, :3].T, *first.T], [len(values) for values in choices.values()])
    return Table(choices, metric[twin], cost, twin)


def learned(seed: int) -> Table:
    table = structured(seed)
    return Table(table.choices, table.metric, table.cost, table.twin, costs_known=False)


def nas_bench_macro(path: Path) -> Table:
    data = json.loads(path.read_text())
    choices = gates(8, 3)
    rows = [data["".join(map(str, net))] for net in grid(choices)]
    metric, cost = (np.array([row[key] for row in rows], dtype=np.float64) for key in ("mean_acc", "flops"))
    return Table(choices, metric, cost, np.arange(len(rows)))


GENERATED: Mapping[str, Callable[[int], Table]] = {
    "additive": additive,
    "interacting": interacting,
    "failures": failures,
    "structured": structured,
    "learned": learned,
}


def hypervolume(losses: Floats, costs: Floats) -> float:
    """Area that points of [0, 1]^2 dominate, up to (1, 1)."""
    order = np.lexsort((losses, costs))
    lowest = np.minimum.accumulate(np.concatenate([[1.0], losses[order]]))
    return float(((lowest[:-1] - lowest[1:]) * (1.0 - costs[order])).sum())


def run(table: Table, sampler: str, seed: int, evaluations: int) -> tuple[dict[int, float], float]:
    """One search.

    Returns:
        Regret by number of evaluations, and seconds of a proposal, on average over the last tenth.
    """
    losses = (table.metric.max() - table.metric) / np.ptp(table.metric)
    costs = (table.cost - table.cost.min()) / np.ptp(table.cost)
    best = hypervolume(losses, costs)
    known = KnownCosts(
        cost=lambda knobs: float(table.cost[table.position(knobs)]),
        canonical=lambda knobs: table.knobs(table.position(knobs)),
    )
    space: dict[str, BaseDistribution] = {n: CategoricalDistribution(tuple(v)) for n, v in table.choices.items()}
    study = optuna.create_study(directions=["maximize", "minimize"])
    evaluated: dict[int, None] = {}
    regret: dict[int, float] = {}
    seconds: list[float] = []
    for number in range(5 * evaluations):
        study.sampler = build_sampler(sampler, proposal_seed(seed, number), space, known if table.costs_known else None)
        start = time.process_time()
        trial = study.ask(space)
        seconds.append(time.process_time() - start)
        position = table.position(trial.params)
        study.tell(trial, [float(table.metric[position]), float(table.cost[position])])
        evaluated[position] = None
        if len(evaluated) in MARKS and len(evaluated) not in regret:
            rows = list(evaluated)
            regret[len(evaluated)] = best - hypervolume(losses[rows], costs[rows])
        if len(evaluated) == evaluations:
            break
    return regret, float(np.mean(seconds[-max(evaluations // 10, 1) :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="nas-bench-macro_cifar10.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--samplers", nargs="+", default=["known_cost", "tpe", "nsga2", "mutation", "random"])
    parser.add_argument("--tables", nargs="+", default=["nas_bench_macro", *GENERATED])
    options = parser.parse_args()
    tables: dict[str, Callable[[int], Table]] = {n: make for n, make in GENERATED.items() if n in options.tables}
    if "nas_bench_macro" in options.tables:
        if options.path is not None and options.path.is_file():
            macro = nas_bench_macro(options.path)
            tables = {"nas_bench_macro": lambda seed: macro, **tables}
        else:
            print("nas_bench_macro is left out: give the path of nas-bench-macro_cifar10.json to include it")
    marks = [mark for mark in MARKS if mark <= options.evaluations]
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'table':<17}{'sampler':<12}" + "".join(f"{f'@{mark}':>24}" for mark in marks) + f"{'s':>8}")
    for name, make in tables.items():
        for sampler in options.samplers:
            with quiet_optuna():
                runs = [run(make(seed), sampler, seed, options.evaluations) for seed in range(options.seeds)]
            row, cells = {}, ""
            for mark in marks:
                found = [regret.get(mark, np.nan) for regret, _ in runs]
                low, middle, high = np.nanpercentile(found, [25, 50, 75])
                row[str(mark)] = round(float(middle), 5)
                cells += f"{f'{middle:.4f} ({low:.4f}-{high:.4f})':>24}"
            results.setdefault(name, {})[sampler] = row
            seconds = float(np.mean([seconds for _, seconds in runs]))
            print(f"{name:<17}{sampler:<12}{cells}{seconds:>8.3f}", flush=True)
    print("median (quartiles) over seeds;", platform.machine(), f"Optuna {optuna.__version__}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
