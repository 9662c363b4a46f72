"""Which choices and knobs the trials' metric and costs follow: shares of variance, and parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from nas_kd.analysis.cells import badge
from nas_kd.analysis.figures import FRONT_COLOR, OTHER_COLOR, PICK_COLOR
from nas_kd.analysis.front import ParetoFront, Placed
from nas_kd.analysis.interactive import empty_chart, plain
from nas_kd.analysis.page import Chart, chart
from nas_kd.analysis.pareto import Floats
from nas_kd.analysis.text import metric_text

MIN_TRIALS = 20  # with fewer, chance alone gives shares as large as those of knobs that matter
_MAX_KNOBS = 16
_MAX_AXES = 9
_MAX_LINES = 300
_MAX_GROUPS = 4  # of a knob whose values are numbers
_MAX_STEPS = 8  # of numbers on an axis; more are placed by value


@dataclass(frozen=True)
class Driver:
    """A knob and the shares of variance that it explains alone.

    Attributes:
        knob: its name.
        metric: of the primary metric, from 0 to 1.
        cost: of the logarithm of the cost, from 0 to 1.
    """

    knob: str
    metric: float
    cost: float


@dataclass(frozen=True)
class Drivers:
    """The section of the report: bars of `importance`, what they are, and `parallel` coordinates."""

    importance: Chart
    note: str
    parallel: Chart


def explained_variance(groups: Sequence[Hashable], values: Floats) -> float:
    """omega squared of a one-way analysis of variance: the share of variance that a grouping explains.

    It corrects for the number of groups (Hays 1963): for values that do not depend on the group it is 0 on average,
    where the plain ratio of sums of squares grows with the number of groups. Negative estimates are cut at 0.

    Args:
        groups: of each value.
        values: shape `(n,)`.
    """
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values.tolist(), strict=True):
        members.setdefault(group, []).append(value)
    num_groups, n = len(members), len(values)
    total = float(((values - values.mean()) ** 2).sum())
    if num_groups < 2 or n <= num_groups or total == 0:
        return 0.0
    within = sum(float(((np.array(group) - np.mean(group)) ** 2).sum()) for group in members.values())
    within_mean = within / (n - num_groups)
    share = (total - within - (num_groups - 1) * within_mean) / (total + within_mean)
    return min(1.0, max(0.0, share))


def drivers(front: ParetoFront) -> list[Driver]:
    """All knobs but the budget that differ between the comparable trials, those that explain most first."""
    placed = front.placed
    names = sorted({name for record, _, _ in placed for name in record.knobs if name != front.axis.budget})
    values = np.array([value for _, _, value in placed])
    costs = np.log(np.maximum([cost for _, cost, _ in placed], 1e-12))
    found = []
    for name in names:
        groups = _groups([record.knobs.get(name) for record, _, _ in placed])
        if len(set(groups)) > 1:
            found.append(Driver(name, explained_variance(groups, values), explained_variance(groups, costs)))
    return sorted(found, key=lambda driver: (-max(driver.metric, driver.cost), driver.knob))


def _groups(values: Sequence[object]) -> list[Hashable]:
    """The values as groups; many different numbers in quarters. A knob that a trial does not have is a group too."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(set(numbers)) <= _MAX_GROUPS:
        return [str(value) for value in values]
    edges = np.quantile(numbers, np.linspace(0, 1, _MAX_GROUPS + 1)[1:-1])
    return [
        int(np.searchsorted(edges, value, side="right"))
        if isinstance(value, int | float) and not isinstance(value, bool)
        else str(value)
        for value in values
    ]


def drivers_section(front: ParetoFront) -> Drivers | None:
    """The section; None where too few trials can be compared, or nothing differs between them."""
    if len(front.placed) < MIN_TRIALS:
        return None
    found = drivers(front)
    if not found:
        return None
    left = len(found) - _MAX_KNOBS
    note = (
        f"Share of the variance over {len(front.placed)} trials that a knob explains alone (omega squared, 0 for what "
        "makes no difference). Knobs that act only together have little alone, and a sampler that tries good values "
        "more often hides part of what they matter."
    )
    if left > 0:
        note += f" {left} more have smaller shares."
    return Drivers(
        importance=chart(
            "importance",
            _importance_chart(found[:_MAX_KNOBS], front),
            "How much of the differences between trials each knob explains.",
            is_sized=True,
        ),
        note=note,
        parallel=chart(
            "parallel",
            _parallel_chart(found[: _MAX_AXES - 2], front),
            "One line a trial, from its knobs to its cost and its metric. Drag to zoom; point at a line's last mark.",
        ),
    )


def _importance_chart(found: Sequence[Driver], front: ParetoFront) -> go.Figure:
    rows = list(reversed(found))
    figure = empty_chart("", None, [])
    places = list(range(len(rows)))
    series = (
        (front.records[0].metric.name, [row.metric for row in rows], FRONT_COLOR),
        (front.axis.noun, [row.cost for row in rows], OTHER_COLOR),
    )
    for name, shares, color in series:
        figure.add_bar(
            x=shares,
            y=places,
            orientation="h",
            name=plain(name),
            marker={"color": color},
            hoverinfo="text",
            hovertext=[
                f"{plain(row.knob)}: {100 * share:.0f} % of {plain(name)}"
                for row, share in zip(rows, shares, strict=True)
            ],
        )
    figure.update_layout(barmode="group", height=90 + 30 * len(rows), bargap=0.3)
    figure.update_xaxes(title_text="share of variance", tickformat=".2~%", rangemode="tozero")
    figure.update_yaxes(
        tickvals=places, ticktext=[plain(row.knob, 36) for row in rows], automargin=True, showgrid=False
    )
    return figure


def _parallel_chart(found: Sequence[Driver], front: ParetoFront) -> go.Figure:
    """Lines through one vertical axis a knob, then cost and metric, each scaled to its own range.

    plotly's own parallel coordinates need WebGL and code made at run time, which the page's policy forbids.
    """
    placed: Sequence[Placed] = front.placed
    off = [row for row in placed if row[0].number not in front.numbers]
    placed = [*off[:: -(-len(off) // _MAX_LINES) or 1], *(row for row in placed if row[0].number in front.numbers)]
    metric = placed[0][0].metric
    axes = [(driver.knob, [record.knobs.get(driver.knob) for record, _, _ in placed]) for driver in found]
    heights: list[Sequence[float | None]] = []
    figure = empty_chart("", None, [])
    names = [*(name for name, _ in axes), front.axis.noun, metric.name]
    for place, (_, values) in enumerate(axes):
        steps, marks = _scale(values)
        heights.append(steps)
        for height, text in marks:
            _mark(figure, place, height, text)
    ends = (
        ([math.log(max(cost, 1e-12)) for _, cost, _ in placed], [front.axis.number(cost) for _, cost, _ in placed]),
        ([value for _, _, value in placed], [metric_text(value, metric) for _, _, value in placed]),
    )
    for place, (numbers, texts) in enumerate(ends, len(axes)):
        scaled = _by_value(numbers)
        heights.append(scaled)
        for number in {min(numbers), max(numbers)}:
            index = numbers.index(number)
            _mark(figure, place, scaled[index], texts[index])
    columns = list(range(len(names)))
    for group, name, color, opacity in (
        (None, "dominated", OTHER_COLOR, 0.35),
        ("front", "front", FRONT_COLOR, 0.9),
        ("pick", "pick", PICK_COLOR, 1.0),
    ):
        chosen = [i for i, (record, _, _) in enumerate(placed) if badge(record, front) == group]
        if not chosen:
            continue
        figure.add_scatter(
            x=[x for _ in chosen for x in (*columns, None)],
            y=[y for i in chosen for y in (*(heights[column][i] for column in columns), None)],
            customdata=[number for i in chosen for number in (*[placed[i][0].number] * len(columns), None)],
            mode="lines+markers",
            name=name,
            line={"color": color, "width": 1.5},
            marker={"size": 5},
            opacity=opacity,
            connectgaps=False,
            hoverinfo="text",
            hovertext=[
                text for i in chosen for text in (*[f"trial {placed[i][0].number}: {ends[1][1][i]}"] * len(columns), "")
            ],
        )
    figure.update_xaxes(tickvals=columns, ticktext=[plain(name, 24) for name in names], showgrid=True, tickangle=-30)
    figure.update_xaxes(range=[-0.3, len(names) - 0.5], automargin=True)
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    figure.update_layout(margin={"r": 56})  # the last axis has its marks there
    return figure


def _scale(values: Sequence[object]) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Heights from 0 to 1, and what to write at which: many numbers by value, other choices in even steps.

    A trial without the knob has no height, and its line a gap.
    """
    known = [value for value in values if value is not None]
    numbers = [float(value) for value in known if isinstance(value, int | float)]
    if len(numbers) == len(known) and len(set(numbers)) > _MAX_STEPS:
        scaled = iter(_by_value(numbers))
        heights = [None if value is None else next(scaled) for value in values]
        return heights, [(0.0, f"{min(numbers):.3g}"), (1.0, f"{max(numbers):.3g}")]
    options = sorted(set(known), key=lambda value: (value, "") if isinstance(value, int | float) else (0.0, str(value)))
    height = {option: i / max(1, len(options) - 1) for i, option in enumerate(options)}
    texts = [(height[option], f"{option:.4g}" if isinstance(option, float) else str(option)) for option in options]
    return [None if value is None else height[value] for value in values], texts


def _by_value(numbers: Sequence[float]) -> list[float]:
    """Heights from 0 for the least to 1 for the largest; the middle where all are one."""
    low, high = min(numbers), max(numbers)
    return [(number - low) / (high - low) if high > low else 0.5 for number in numbers]


def _mark(figure: go.Figure, place: int, height: float, text: str) -> None:
    note = {"x": place, "y": height, "text": plain(text, 18), "xanchor": "left", "xshift": 5, "showarrow": False}
    figure.add_annotation(**note, font={"size": 10})
