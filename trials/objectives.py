"""The objectives of a study, two or more, read from a record by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from nas_kd.trials.record import Cost, Metric, TrialRecord


class Objective(BaseModel):
    """One direction of the search.

    `name` is the primary metric's name (its `val` score), a field of `Cost` such as `flops`, or a metric in full as
    `stage/split/name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    maximize: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({'maximize' if self.maximize else 'minimize'})"


def default_objectives(metric: Metric) -> tuple[Objective, ...]:
    """The primary metric, and `flops` to be minimized."""
    return (Objective(name=metric.name, maximize=metric.maximize), Objective(name="flops"))


def objective_values(record: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The values of a complete record, in the order of the objectives.

    Raises:
        ValueError: The record lacks one, or holds one that is not finite.
    """
    return tuple(_value(record, objective.name) for objective in objectives)


def _value(record: TrialRecord, name: str) -> float:
    value: float | None = None
    if name == record.metric.name:
        value = record.score()
    elif name in Cost.model_fields:
        value = None if record.cost is None else getattr(record.cost, name)
    elif name.count("/") == 2:
        stage, split, metric = name.split("/")
        splits = {str(key): values for key, values in record.metrics.items()}
        value = {str(key): values for key, values in splits.get(stage, {}).items()}.get(split, {}).get(metric)
    if value is None:
        raise ValueError(f"trial {record.number}: a complete trial must carry the objective {name!r}, but has none")
    if not math.isfinite(value):
        raise ValueError(f"trial {record.number}: the objective {name!r} must be finite, but is {value}")
    return float(value)
