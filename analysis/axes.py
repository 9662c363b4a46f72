"""How an objective is written: at an axis, in a table, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nas_kd.analysis.text import MISSING, flops_label, metric_text, ms_text, si
from nas_kd.trials.objectives import Constraint, Objective, Ranking
from nas_kd.trials.record import Metric, Split, Stage, TrialRecord

_BUDGETS: Mapping[str, str] = {  # cost -> the knob that limits it
    "flops": "max_flops",
    "predicted_latency_ms": "max_latency_ms",
    "latency_ms": "max_latency_ms",
}


@dataclass(frozen=True)
class Axis:
    """An objective as readers see it.

    Attributes:
        objective: a cost, or a metric of the task.
        percent: of the metrics, those written in percent; see `Metric`.
    """

    objective: Objective
    percent: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the objective."""
        return self.objective.name

    @property
    def is_cost(self) -> bool:
        """Whether it is a cost, and not a metric."""
        return self.objective.cost is not None

    @property
    def is_count(self) -> bool:
        """Whether it is counted, so that a prefix such as M stands for its zeros."""
        return self.objective.cost is not None and self.objective.cost.unit != "ms"

    @property
    def unit(self) -> str:
        """Of a cost, as behind a number; of a metric its name."""
        return self.name if self.objective.cost is None else self.objective.cost.unit

    @property
    def noun(self) -> str:
        """What it is called in a sentence."""
        return self.name if self.objective.cost is None else self.objective.cost.noun

    @property
    def header(self) -> str:
        """At the head of a column."""
        if self.objective.cost is None:
            return f"validation {self.name}"
        return f"{self.noun}, {self.unit}" if self.unit in ("ms", "B") else self.noun

    @property
    def budget(self) -> str:
        """The knob that limits it; empty where there is none."""
        return _BUDGETS.get(self.name, "")

    @property
    def _metric(self) -> Metric:
        return Metric(name=self.name, maximize=self.objective.maximize, percent=self.percent)

    def of(self, record: TrialRecord, split: Split = "val", stage: Stage | None = "retrained") -> float | None:
        """The trial's value; None where that is not known."""
        return self.objective.of(record, split, stage)

    def budget_of(self, record: TrialRecord) -> float | None:
        """The trial's budget, None where it had none."""
        budget = record.knobs.get(self.budget)
        if isinstance(budget, bool) or not isinstance(budget, int | float):
            return None
        return round(budget) if self.is_count else float(budget)

    def number(self, value: float | None, *, trim: bool = True) -> str:
        """A value without its unit: `12.3 M` FLOPs, `1.25` ms; see `si` for `trim`."""
        if value is None:
            return MISSING
        if not self.is_cost:
            return metric_text(value, self._metric)
        return si(value, trim=trim) if self.is_count else ms_text(value)

    def text(self, value: float | None) -> str:
        """A value with its unit: `12.3 M FLOPs`, `1.25 ms`, `f1 81.2 %`."""
        return f"{self.number(value)} {self.unit}" if self.is_cost else f"{self.name} {self.number(value)}"

    def mark(self, value: float) -> str:
        """A value where there is little room: FLOPs go without saying."""
        return self.number(value) if self.name == "flops" else self.text(value)

    def label(self, records: Iterable[TrialRecord]) -> str:
        """What stands at an axis of it: over what a cost is counted, and how."""
        records = list(records)
        if self.name == "flops":
            return f"{flops_label(records)} (1 multiply-accumulate = 1 FLOP)"
        if self.unit != "ms":
            return f"{self.header} (1 multiply-accumulate = 1 FLOP)" if self.unit == "FLOPs" else self.header
        over = "clip" if flops_label(records) == "FLOPs per clip" else "frame, amortised"
        which = "measured" if self.name == "latency_ms" else "predicted"
        return f"{which} latency per {over} (ms)"


def _of_cost(name: str) -> Axis:
    return Axis(Objective(name=name))


FLOPS = _of_cost("flops")
PARAMETERS = _of_cost("parameters")
LATENCY = _of_cost("predicted_latency_ms")
MEASURED = _of_cost("latency_ms")  # after the trials, of those of the front, where trials are not ranked by it


def default_ranking(records: Iterable[TrialRecord], metric: Metric) -> Ranking:
    """What records are ranked by where nobody says it: their metric, and latency where each has the one predicted, or
    else FLOPs."""
    costs = [record.cost for record in records if record.cost is not None]
    axis = LATENCY if costs and all(cost.predicted_latency_ms is not None for cost in costs) else FLOPS
    return Ranking((Objective(name=metric.name, maximize=metric.maximize), axis.objective))


def constraint_text(constraint: Constraint, percent: tuple[str, ...] = ()) -> str:
    """A constraint in words: `f1 at least 80 %`, `latency at most 5 ms`."""
    axis = Axis(Objective(name=constraint.name), percent)
    limit = axis.number(constraint.limit) + (f" {axis.unit}" if axis.is_cost else "")
    return f"{axis.noun} {'at most' if constraint.min is None else 'at least'} {limit}"
