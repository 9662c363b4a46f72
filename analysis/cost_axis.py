"""The cost that a campaign counts, FLOPs or milliseconds: the unit of budgets, fronts and labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nas_kd.analysis.text import MISSING, flops_label, si
from nas_kd.trials.record import TrialRecord


@dataclass(frozen=True)
class CostAxis:
    """A cost by which students are ranked.

    Attributes:
        field: of `Cost`: what a student costs.
        budget: the knob that limits it.
        unit: of both.
        noun: what is saved.
    """

    field: str
    budget: str
    unit: str
    noun: str

    @property
    def is_flops(self) -> bool:
        """Whether FLOPs are counted."""
        return self.field == "flops"

    def of(self, record: TrialRecord) -> float | None:
        """What the trial's student costs; None where that is not known."""
        value: float | None = None if record.cost is None else getattr(record.cost, self.field)
        return value

    def budget_of(self, record: TrialRecord) -> float | None:
        """The trial's budget, None where it had none."""
        budget = record.knobs.get(self.budget)
        if isinstance(budget, bool) or not isinstance(budget, int | float):
            return None
        return round(budget) if self.is_flops else float(budget)

    def number(self, value: float | None, *, trim: bool = True) -> str:
        """A cost without its unit: `12.3 M` FLOPs, `1.25` ms; see `si` for `trim`."""
        if value is None:
            return MISSING
        return si(value, trim=trim) if self.is_flops else f"{value:.3g}"

    def text(self, value: float | None) -> str:
        """A cost with its unit: `12.3 M FLOPs`, `1.25 ms`."""
        return f"{self.number(value)} {self.unit}"

    def mark(self, value: float) -> str:
        """A cost where there is little room: FLOPs go without saying."""
        return self.number(value) if self.is_flops else self.text(value)

    def label(self, records: Iterable[TrialRecord]) -> str:
        """What stands at an axis of it: over what the cost is counted, and how."""
        records = list(records)
        if self.is_flops:
            return f"{flops_label(records)} (1 multiply-accumulate = 1 FLOP)"
        over = "clip" if flops_label(records) == "FLOPs per clip" else "frame, amortised"
        which = "measured" if self.field == "latency_ms" else "predicted"
        return f"{which} latency per {over} (ms)"


FLOPS = CostAxis("flops", "max_flops", "FLOPs", "FLOPs")
LATENCY = CostAxis("predicted_latency_ms", "max_latency_ms", "ms", "latency")
MEASURED = CostAxis("latency_ms", "max_latency_ms", "ms", "latency")  # after the trials, of those of the front


def cost_axis(records: Iterable[TrialRecord]) -> CostAxis:
    """The cost that these records were ranked by: latency where each of them has the one predicted, else FLOPs."""
    costs = [record.cost for record in records if record.cost is not None]
    return LATENCY if costs and all(cost.predicted_latency_ms is not None for cost in costs) else FLOPS
