"""Knobs as random draws, as mutants, and as arrays for a surrogate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from nas_kd.trials.surrogate import Floats, Points

_NUM_TRIES = 100  # draws for a mutant that differs from its parent


class Encoding:
    """A space of knobs, and its values as arrays.

    A choice between three or more numbers is encoded twice, as a choice and as a number: neighbours may be alike, and
    each value may be a case of its own. Knobs with one value are left out.

    Args:
        space: Name to distribution.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)
        self.names = sorted(space)
        self._of_all = itemgetter(*self.names) if len(self.names) > 1 else None
        self.free = [name for name in self.names if not space[name].single()]
        self._positions: dict[str, dict[Any, int]] = {}
        self._units: dict[str, dict[Any, float]] = {}
        for name in self.free:
            distribution = self.space[name]
            if isinstance(distribution, CategoricalDistribution):
                self._positions[name] = {value: index for index, value in enumerate(distribution.choices)}
                if _are_numbers(distribution.choices):
                    self._units[name] = _spread(distribution.choices)

    def key(self, knobs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Equal for equal knobs."""
        if self._of_all is not None:  # for many trials, which are gone through for each proposal
            return tuple(self._of_all(knobs))
        return tuple(knobs[name] for name in self.names)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """Random knobs."""
        return {name: draw(self.space[name], rng) for name in self.names}

    def mutant(self, knobs: Mapping[str, Any], num_mutated: int, rng: np.random.Generator) -> dict[str, Any]:
        """A copy in which some knobs have other values."""
        mutant = {name: knobs[name] for name in self.names}
        if self.free:
            # Several may be the same knob, which is mutated once more then.
            for position in rng.integers(len(self.free), size=num_mutated):
                name = self.free[position]
                mutant[name] = mutate(self.space[name], mutant[name], rng)
        return mutant

    def size(self) -> float:
        """How many different knobs there are; infinity where a knob is continuous."""
        total = 1.0
        for name in self.free:
            distribution = self.space[name]
            if isinstance(distribution, CategoricalDistribution):
                total *= len(distribution.choices)
            elif isinstance(distribution, IntDistribution):
                total *= (distribution.high - distribution.low) // distribution.step + 1
            else:
                return math.inf
        return total

    def values(self, name: str) -> list[Any]:
        """All values of a knob that is not continuous."""
        distribution = self.space[name]
        if isinstance(distribution, CategoricalDistribution):
            return list(distribution.choices)
        assert isinstance(distribution, IntDistribution), f"{name} is continuous"
        return list(range(distribution.low, distribution.high + 1, distribution.step))

    def points(self, rows: Sequence[Mapping[str, Any]], known: Floats) -> Points:
        """Knobs as points of a surrogate.

        Args:
            rows: `n` knobs.
            known: `n x k`, what else is known of them.
        """
        choices: list[list[int]] = []
        numbers: list[list[float]] = []
        for name in self.free:
            if name in self._positions:
                positions = self._positions[name]
                choices.append([positions[row[name]] for row in rows])
                if name in self._units:
                    units = self._units[name]
                    numbers.append([units[row[name]] for row in rows])
            else:
                distribution = self.space[name]
                assert isinstance(distribution, IntDistribution | FloatDistribution)
                numbers.append([to_unit(distribution, row[name]) for row in rows])
        return Points(
            np.array(choices, dtype=np.int64).reshape(-1, len(rows)).T,
            np.array(numbers, dtype=np.float64).reshape(-1, len(rows)).T,
            known,
        )


def _are_numbers(values: Sequence[Any]) -> bool:
    return len(values) > 2 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _spread(values: Sequence[Any]) -> dict[Any, float]:
    """Numbers scaled to [0, 1], by their logarithms where all are positive."""
    scaled = [math.log(value) if min(values) > 0 else float(value) for value in values]
    low, high = min(scaled), max(scaled)
    return {value: (at - low) / (high - low) for value, at in zip(values, scaled, strict=True)}


def draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """A random value, uniform on the scale of the distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[rng.integers(len(distribution.choices))]
    return from_unit(distribution, float(rng.random()))


def mutate(distribution: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    """Another value than `value`, where there is one."""
    if distribution.single():
        return value
    if isinstance(distribution, CategoricalDistribution):
        index = distribution.choices.index(value)
        other = int(rng.integers(len(distribution.choices) - 1))
        return distribution.choices[other + (other >= index)]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    for _ in range(_NUM_TRIES):
        near = rng.random() < 0.5
        mutated = _neighbour(distribution, value, rng) if near else draw(distribution, rng)
        if mutated != value:
            return mutated
    return value


def _neighbour(distribution: IntDistribution | FloatDistribution, value: float, rng: np.random.Generator) -> Any:
    sign = 1 if rng.random() < 0.5 else -1
    if isinstance(distribution, IntDistribution) and not distribution.log:
        moved = int(value) + sign * distribution.step
        return moved if distribution.low <= moved <= distribution.high else int(value) - sign * distribution.step
    # A tenth of the range; reflected at the bounds, so that they are not favoured.
    unit = abs(to_unit(distribution, value) + sign * abs(float(rng.normal(0.0, 0.1))))
    return from_unit(distribution, 2.0 - unit if unit > 1.0 else unit)


def to_unit(distribution: IntDistribution | FloatDistribution, value: float) -> float:
    """A number on the scale of its distribution, between 0 and 1."""
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def from_unit(distribution: BaseDistribution, unit: float) -> Any:
    """The number at a place between 0 and 1 of the scale of its distribution."""
    assert isinstance(distribution, IntDistribution | FloatDistribution), f"no way to draw from {distribution}"
    unit = min(max(unit, 0.0), 1.0)
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        if distribution.log:  # half a step on both sides, so that the bounds are as likely as the rest
            value = math.exp(math.log(low - 0.5) + unit * (math.log(high + 0.5) - math.log(low - 0.5)))
            return min(max(round(value), distribution.low), distribution.high)
        num_values = (distribution.high - distribution.low) // distribution.step + 1
        return distribution.low + distribution.step * min(int(unit * num_values), num_values - 1)
    if distribution.step is not None:
        num_values = round((high - low) / distribution.step) + 1
        return min(low + distribution.step * min(int(unit * num_values), num_values - 1), high)
    if distribution.log:
        value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
    else:
        value = low + unit * (high - low)
    return min(max(value, low), high)
