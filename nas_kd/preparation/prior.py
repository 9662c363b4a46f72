"""What a finished search guesses of architectures that it has not compared, for the sampler `known_cost`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nas_kd.search_spaces import SearchSpace
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.gates import position
from nas_kd.trial.shared import SharedSearch
from nas_kd.trial.study_values import study_choices
from nas_kd.trials import Knob, KnobValue
from nas_kd.trials.encoding import Encoding
from nas_kd.trials.surrogate import Surrogate

LEAST_COMPARED = 8  # architectures, for a guess

Values = Mapping[str, KnobValue]


@dataclass(frozen=True)
class GateTable:
    """The log-probabilities of all choices of a search, at the knots of its gates.

    Attributes:
        space: that was searched.
        log_knots: logarithms of the costs at the knots.
        combinations: values of the space's knobs -> gate -> (knots, choices) log-probabilities; the combination's own
            ones are those of the gate "".
    """

    space: SearchSpace
    log_knots: tuple[float, ...]
    combinations: Mapping[tuple[Choice, ...], Mapping[str, npt.NDArray[np.float64]]]

    @classmethod
    def of(cls, space: SearchSpace, entry: Mapping[str, Any]) -> GateTable:
        """From what `gate_table` wrote."""
        combinations = {}
        for combination in entry["combinations"]:
            gates = {name: np.array(values, dtype=np.float64) for name, values in combination["gates"].items()}
            own = np.array(combination["log_probability"], dtype=np.float64)[:, None]
            combinations[tuple(combination["knobs"][name] for name in space.knobs)] = {**gates, "": own}
        return cls(space, tuple(math.log(knot) for knot in entry["knots"]), combinations)

    def log_probability(self, choices: Mapping[str, Choice], cost: float) -> float:
        """Of an architecture at a budget that equals its cost, by interpolation between the knots.

        As in `Supernet.log_probability`, gates without effect count with their most probable choice.
        """
        gates = self.combinations[tuple(choices[name] for name in self.space.knobs)]
        active = self.space.active(choices)
        lower, share = position(cost, self.log_knots)
        upper = min(lower + 1, len(self.log_knots) - 1)
        total = (1 - share) * gates[""][lower, 0] + share * gates[""][upper, 0]
        for name, options in self.space.variables.items():
            at_cost = (1 - share) * gates[name][lower] + share * gates[name][upper]
            total += at_cost[options.index(choices[name])] if name in active else at_cost.max()
        return float(total)


def gate_table(search: SharedSearch) -> dict[str, Any]:
    """The log-probabilities of a search as JSON: of each combination of knobs, and of its gates, at each knot."""
    knots, policy = search.supernets[0].knots, search.policy
    shares = [policy.probabilities(knot).detach().clamp_min(1e-9).log().tolist() for knot in knots]
    combinations = []
    for index, (net, setting) in enumerate(policy.settings):
        supernet = search.supernets[net]
        gates: dict[str, list[list[float]]] = {name: [] for name in search.context.space.variables}
        for knot in knots:
            supernet.condition(setting, knot)
            for name, p in supernet.probabilities().items():
                gates[name].append([round(value, 4) for value in p.detach().clamp_min(1e-9).log().tolist()])
        combinations.append(
            {
                "knobs": dict(supernet.settings[setting]),
                "log_probability": [round(of_knot[index], 4) for of_knot in shares],
                "gates": gates,
            }
        )
    return {"knots": list(knots), "combinations": combinations}


class InheritedPrior:
    """The metric that architectures would have with inherited weights, guessed from those that were compared.

    A Gaussian process over the architectures' choices, with their log cost and their probability under the gates as
    linear features.

    Args:
        compared: values of the study -> metric with inherited weights; `LEAST_COMPARED` or more.
        knobs: of the study.
        cost: values of the study -> cost in the units of the gates' knots.
        gates: of the search.
        gain: `Task.gain`, which is its own inverse.
    """

    def __init__(
        self,
        compared: Sequence[tuple[Values, float]],
        knobs: Mapping[str, Knob],
        cost: Callable[[Values], float],
        gates: GateTable,
        *,
        gain: Callable[[float], float],
    ) -> None:
        self._encoding = Encoding({name: knob.distribution() for name, knob in knobs.items()})
        self._cost, self._gates, self._gain = cost, gates, gain
        points = self._points([values for values, _ in compared])
        losses = np.array([-gain(metric) for _, metric in compared])
        self._surrogate = Surrogate(points, losses, np.random.default_rng(0))

    def _points(self, rows: Sequence[Values]) -> Any:
        known = []
        for values in rows:
            cost = self._cost(values)
            choices = study_choices(values, self._gates.space)
            known.append([math.log(cost), self._gates.log_probability(choices, cost)])
        return self._encoding.points(rows, np.array(known, dtype=np.float64))

    def __call__(self, rows: Sequence[Values]) -> list[float]:
        """The guess for each."""
        mean, _ = self._surrogate.predict(self._points(rows))
        return [self._gain(-float(loss)) for loss in self._surrogate.scale.from_scale(mean)]
