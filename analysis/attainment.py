"""How far the front moves with the seed: the front of each repeat, and the band from the worst to the best of them.

Where each trial was trained with the same number of seeds, the s-th trainings of all trials are one run of the campaign
with other seeds. At each cost, what the worst and the best of these runs attain are the ends of the band (the
attainment surfaces of Fonseca and Fleming 1996, for two objectives).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_kd.analysis.front import ParetoFront
from nas_kd.analysis.pareto import Floats
from nas_kd.analysis.statistics import seed_values

MIN_SEEDS = 3


@dataclass(frozen=True)
class Attainment:
    """What the fronts of all seeds attain.

    Attributes:
        costs: ascending, shape `(k,)`; a front is a step at each.
        worst: the metric that every seed attains at that cost, shape `(k,)`.
        best: the metric that at least one seed attains, shape `(k,)`.
        num_seeds: how many there are.
    """

    costs: Floats
    worst: Floats
    best: Floats
    num_seeds: int


def attainment(front: ParetoFront) -> Attainment | None:
    """The band over seeds; None where trials have fewer than three repeats, or not the same number of them, and where
    the front is no line of costs and a metric, or has constraints."""
    if not front.is_plane or not front.axis.is_cost or front.ranking.constraints:
        return None
    rows = sorted(front.placed, key=lambda row: row[1])
    repeats = [seed_values(record, front.split, front.stage) for record, _, _ in rows]
    lengths = {len(values) for values in repeats}
    if len(lengths) != 1 or min(lengths) < MIN_SEEDS:
        return None
    maximize = front.directions[1] == "maximize"
    values = np.array(repeats)  # (trials, seeds)
    running = np.maximum.accumulate(values) if maximize else np.minimum.accumulate(values)
    costs = np.array([cost for _, cost, _ in rows], dtype=np.float64)
    last = np.append(costs[1:] != costs[:-1], True)  # of equal costs the last row knows them all
    low, high = running[last].min(axis=1), running[last].max(axis=1)
    return Attainment(costs[last], *((low, high) if maximize else (high, low)), values.shape[1])
