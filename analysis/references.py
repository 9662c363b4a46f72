"""Points beside the front that are no trials, such as published nets: a CSV file with `name`, `cost` and `value`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_kd.analysis.text import in_percent
from nas_kd.trials.record import Metric

PUBLISHED = "published"
_COLUMNS = ("name", "cost", "value")


@dataclass(frozen=True)
class ReferencePoint:
    """A net that is no student of the campaign.

    Attributes:
        name: what to call it.
        cost: as the campaign counts it: FLOPs (one multiply-accumulate is one FLOP), or milliseconds.
        value: of the primary metric, as the campaign writes it: 0.85 for an accuracy of 85 %.
        group: what it is one of, for the legend.
    """

    name: str
    cost: float
    value: float
    group: str = PUBLISHED


def labels_of(points: Sequence[ReferencePoint]) -> list[str]:
    """What is written beside each point; of those that lie on each other the first one has the names of all."""
    places: dict[tuple[float, float], list[str]] = {}
    for point in points:
        places.setdefault((point.cost, round(point.value, 2)), []).append(point.name)
    return [", ".join(places.pop((point.cost, round(point.value, 2)), ())) for point in points]


def read_points(path: Path | str, metric: Metric | None = None) -> tuple[ReferencePoint, ...]:
    """The points of a CSV file with the columns `name`, `cost` and `value` in any order; others are passed over.

    Args:
        path: of the file.
        metric: of the values; one in percent has none above 1. None where it is not known.

    Raises:
        ValueError: it cannot be read, has no point, lacks a column, or a cost or value is no usable number; names the
            line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            read = [(rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a CSV file with name, cost and value") from error
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise ValueError(f"{path}: the first line must name the columns name, cost and value; missing: {missing}")
    if not read:
        raise ValueError(f"{path} has no point below its first line; add one, such as `X3D-M,6.2e9,0.76`")
    points = []
    for line, row in read:
        name, cost, value = (str(row[column] or "").strip() for column in _COLUMNS)
        try:
            point = ReferencePoint(name, float(cost), float(value))
        except ValueError:
            point = ReferencePoint(name, math.nan, math.nan)
        if not (point.name and math.isfinite(point.cost) and point.cost > 0 and math.isfinite(point.value)):
            raise ValueError(
                f"{path}, line {line}: a point needs a name, a cost above 0 and a value, such as "
                f"`X3D-M,6.2e9,0.76`, but got {name!r}, {cost!r}, {value!r}"
            )
        if metric is not None and in_percent(metric) and abs(point.value) > 1:
            raise ValueError(
                f"{path}, line {line}: {metric.name} is written as a share of 1, but the value of {name!r} is {value}; "
                f"write {point.value / 100:g} for {value} %"
            )
        points.append(point)
    return tuple(points)
