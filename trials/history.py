"""The trials of a study as arrays for a sampler, kept from one proposal to the next so that each is looked at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from nas_kd.trials.encoding import Encoding
from nas_kd.trials.known_costs import KnownCosts

Floats = npt.NDArray[np.float64]
Objects = npt.NDArray[np.object_]
Key = tuple[Any, ...]

_PASSED_OVER, _COMPLETE, _RUNNING, _UNSUCCESSFUL = range(4)


@dataclass(frozen=True)
class Candidate:
    """A trial that was or may be proposed.

    Attributes:
        knobs: all of the space.
        cost: of the budget; NaN where unknown.
        values: of the objectives after the first, NaN where unknown; none without known costs.
    """

    knobs: dict[str, Any]
    cost: float
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, knobs: dict[str, Any], known: KnownCosts | None) -> Candidate:
        """A trial with what is known of it."""
        if known is None:
            return cls(knobs, math.nan)
        cost = float(known.cost(knobs))
        return cls(knobs, cost, (cost,) if known.objectives is None else tuple(map(float, known.objectives(knobs))))


@dataclass(frozen=True)
class History:
    """The trials of the study, as a loss and costs to be minimized: all objectives but the first count as costs.

    Attributes:
        complete: `n` candidates.
        losses: `n`.
        costs: `n x d`.
        known: `n x k`, the values of the candidates.
        excesses: `n`, how far each is beyond the constraint that it misses most; None without any.
        running: candidates that run or wait.
        unsuccessful: candidates that failed or were stopped.
        counts: how often each key was proposed.
        maximize: whether the loss is a metric with the other sign.
    """

    complete: Objects
    losses: Floats
    costs: Floats
    known: Floats
    excesses: Floats | None
    running: Objects
    unsuccessful: Objects
    counts: Mapping[Key, int]
    maximize: bool


class SeenTrials:
    """What a sampler keeps of the trials of one study. It follows from the trials alone.

    A trial is looked at again where the study has another object in its place, as of one that went on.
    """

    def __init__(self) -> None:
        self._of: tuple[Mapping[str, BaseDistribution], KnownCosts | None, tuple[float, ...]] | None = None
        self._forget()

    def _forget(self) -> None:
        self._seen: list[FrozenTrial | None] = []
        self._counts: dict[Key, int] = {}
        self._keys: list[Key | None] = []
        self._kinds = np.zeros(0, dtype=np.int8)
        self._candidates: Objects = np.zeros(0, dtype=np.object_)
        self._values = self._known = np.zeros((0, 0))
        self._excesses = np.zeros(0)

    def history(
        self,
        trials: Sequence[FrozenTrial],
        proposed: int,
        encoding: Encoding,
        known: KnownCosts | None,
        maximize: Sequence[bool],
    ) -> History:
        """The trials as arrays.

        Args:
            trials: Of the study, by number.
            proposed: Number of the trial that is being proposed, which is left out.
            encoding: Of the space; trials that lack a knob of it are left out.
            known: What is known of a trial from its knobs.
            maximize: Direction of each objective.
        """
        signs = tuple(-1.0 if each else 1.0 for each in maximize)
        if self._of is None or self._of[0] != encoding.space or self._of[1] is not known or self._of[2] != signs:
            self._forget()
            self._of = (dict(encoding.space), known, signs)
        for number in self._changed(trials):
            self._take_in(number, trials[number], encoding, known, signs, left_out=number == proposed)
        self._seen = list(trials)
        self._seen[proposed : proposed + 1] = [None]
        kinds = self._kinds[: len(trials)]
        complete = np.flatnonzero(kinds == _COMPLETE)
        excesses = self._excesses[complete]
        return History(
            complete=self._candidates[complete],
            losses=self._values[complete, 0],
            costs=self._values[complete, 1:],
            known=self._known[complete],
            excesses=None if np.isnan(excesses).all() else excesses,
            running=self._candidates[np.flatnonzero(kinds == _RUNNING)],
            unsuccessful=self._candidates[np.flatnonzero(kinds == _UNSUCCESSFUL)],
            counts=self._counts,
            maximize=signs[0] < 0,
        )

    def _changed(self, trials: Sequence[FrozenTrial]) -> Iterator[int]:
        for number, (seen, trial) in enumerate(zip(self._seen, trials, strict=False)):
            if seen is not trial:
                yield number
        yield from range(len(self._seen), len(trials))

    def _take_in(
        self,
        number: int,
        trial: FrozenTrial,
        encoding: Encoding,
        known: KnownCosts | None,
        signs: tuple[float, ...],
        *,
        left_out: bool,
    ) -> None:
        if number == len(self._keys):
            self._keys.append(None)
        earlier = self._keys[number]
        if earlier is not None:
            self._counts[earlier] -= 1
            if not self._counts[earlier]:
                del self._counts[earlier]
        self._keys[number] = None
        if number == len(self._kinds):
            self._grow(max(64, 2 * number), len(signs))
        self._kinds[number] = _PASSED_OVER
        params = trial.params or trial.system_attrs.get("fixed_params", {})
        if left_out or not all(name in params for name in encoding.names):
            return
        candidate = Candidate.of({name: params[name] for name in encoding.names}, known)
        key = self._keys[number] = encoding.key(candidate.knobs)
        self._counts[key] = self._counts.get(key, 0) + 1
        self._candidates[number] = candidate
        if trial.state == TrialState.COMPLETE:
            self._kinds[number] = _COMPLETE
            self._values[number] = [sign * value for sign, value in zip(signs, trial.values, strict=True)]
            self._known[number, : len(candidate.values)] = candidate.values
            self._excesses[number] = max(trial.constraints.values(), default=math.nan)
        else:
            running = trial.state in (TrialState.RUNNING, TrialState.WAITING)
            self._kinds[number] = _RUNNING if running else _UNSUCCESSFUL

    def _grow(self, size: int, num_objectives: int) -> None:
        """Make the arrays longer, so seldom that it does not count."""
        more = size - len(self._kinds)
        nan = np.full((more, num_objectives), np.nan)
        self._kinds = np.concatenate([self._kinds, np.zeros(more, dtype=np.int8)])
        self._candidates = np.concatenate([self._candidates, np.full(more, None, dtype=np.object_)])
        self._values = np.concatenate([self._values.reshape(-1, num_objectives), nan])
        self._known = np.concatenate([self._known.reshape(-1, num_objectives - 1), nan[:, 1:]])
        self._excesses = np.concatenate([self._excesses, nan[:, 0]])
