"""What a reader may put on the axes of the report's free chart: every cost of the students against every metric.

`startFreeChart` of `templates/script.js` draws it. Here its quantities are collected, each with one value a trial.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from nas_kd.analysis.figures import cost_ticks, with_room
from nas_kd.analysis.front import ParetoFront
from nas_kd.analysis.interactive import empty_chart, plain
from nas_kd.analysis.page import json_for_html, visible
from nas_kd.analysis.table import duration_s
from nas_kd.analysis.text import flops_label, in_percent, si
from nas_kd.trials.record import Split, TrialRecord

_SPLITS: tuple[tuple[Split, str], ...] = (("val", "validation"), ("test", "test, not used for selection"))


@dataclass(frozen=True)
class Quantity:
    """One value a trial, which may stand on an axis.

    Attributes:
        name: with its unit.
        values: of the trials in their order; None where it was not measured.
        better: of a metric, `max` or `min`; empty where it is not known, and then no front is drawn.
        percent: whether it is written in percent.
    """

    name: str
    values: Sequence[float | None]
    better: str = ""
    percent: bool = False

    @property
    def is_known(self) -> bool:
        """Whether any trial has a value."""
        return any(value is not None for value in self.values)

    def as_json(self) -> dict[str, Any]:
        """For the script: `label` is drawn by plotly, `ticks` are those of a logarithmic axis of a cost, with texts."""
        values = [None if value is None else float(f"{value:.6g}") for value in self.values]
        limits = with_room([value for value in self.values if value is not None])
        ticks = cost_ticks(*limits) if limits is not None else []
        return {
            "label": plain(self.name),
            "values": values,
            "better": self.better,
            "percent": self.percent,
            "ticks": [ticks, [si(tick) for tick in ticks]],
        }


def costs(records: Sequence[TrialRecord]) -> list[Quantity]:
    """Every cost that any of these trials has."""
    of: dict[str, Callable[[TrialRecord], float | None]] = {
        flops_label(records): lambda r: r.cost.flops if r.cost else None,
        "FLOPs of the worst frame": lambda r: r.cost.worst_frame_flops if r.cost else None,
        "parameters": lambda r: r.cost.params if r.cost else None,
        "state of a stream (bytes)": lambda r: r.cost.state_bytes if r.cost else None,
        "measured latency (ms)": lambda r: r.cost.latency_ms if r.cost else None,
        "predicted latency (ms)": lambda r: r.cost.predicted_latency_ms if r.cost else None,
        "time of the trial (s)": duration_s,
    }
    found = [Quantity(name, [value(record) for record in records]) for name, value in of.items()]
    return [quantity for quantity in found if quantity.is_known]


def metrics(records: Sequence[TrialRecord], front: ParetoFront) -> list[Quantity]:
    """Every metric at the front's stage, the primary one first; of the others it is not known which way is better."""
    names = {
        name for record in records for by_split in record.metrics.get(front.stage, {}).values() for name in by_split
    }
    primary = records[0].metric
    ordered = sorted(names, key=lambda name: (name != primary.name, name))
    found = []
    for name in ordered:
        metric = primary.model_copy(update={"name": name})
        for split, word in _SPLITS:
            values = [record.metrics.get(front.stage, {}).get(split, {}).get(name) for record in records]
            better = ("max" if primary.maximize else "min") if name == primary.name else ""
            found.append(Quantity(f"{name} ({word})", values, better, in_percent(metric)))
    return [quantity for quantity in found if quantity.is_known]


@dataclass(frozen=True)
class FreeChart:
    """The chart whose axes a reader chooses.

    Attributes:
        costs: names for the horizontal axis.
        metrics: names for the vertical axis.
        data: for the script, as JSON.
    """

    costs: Sequence[str]
    metrics: Sequence[str]
    data: Markup


def free_chart(records: Sequence[TrialRecord], front: ParetoFront) -> FreeChart | None:
    """All complete trials with their costs and metrics; None where there is nothing to choose."""
    complete = [record for record in records if record.state == "complete"]
    if not complete:
        return None
    horizontal, vertical = costs(complete), metrics(complete, front)
    if len(horizontal) * len(vertical) < 2:
        return None
    data = {
        "trials": [record.number for record in complete],
        "pick": front.pick.number if front.pick is not None else None,
        "layout": empty_chart("", None, []).layout.to_plotly_json(),
        "costs": [quantity.as_json() for quantity in horizontal],
        "metrics": [quantity.as_json() for quantity in vertical],
    }
    return FreeChart(
        [visible(quantity.name) for quantity in horizontal],
        [visible(quantity.name) for quantity in vertical],
        json_for_html(json.dumps(data, separators=(",", ":"))),
    )
