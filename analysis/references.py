"""Points beside the front that are no trials, such as published nets: a CSV file with `name`, `cost` and `value`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


def read_points(path: Path | str) -> tuple[ReferencePoint, ...]:
    """The points of a CSV file with the columns `name`, `cost` and `value` in any order; others are passed over.

    Raises:
        ValueError: it cannot be read, lacks a column, or a cost or value is no usable number; names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a CSV file with name, cost and value") from error
    rows = csv.DictReader(lines)
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise ValueError(f"{path}: the first line must name the columns name, cost and value; missing: {missing}")
    points = []
    for row in rows:
        name, cost, value = (str(row[column] or "").strip() for column in _COLUMNS)
        try:
            point = ReferencePoint(name, float(cost), float(value))
        except ValueError:
            point = ReferencePoint(name, math.nan, math.nan)
        if not (point.name and math.isfinite(point.cost) and point.cost > 0 and math.isfinite(point.value)):
            raise ValueError(
                f"{path}, line {rows.line_num}: a point needs a name, a cost above 0 and a value, such as "
                f"`X3D-M,6.2e9,0.76`, but got {name!r}, {cost!r}, {value!r}"
            )
        points.append(point)
    return tuple(points)
