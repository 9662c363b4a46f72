"""Figures of a shared search: gates over the budget and over the epochs, costs, metrics, idle layers, losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from nas_kd.analysis.axes import Axis
from nas_kd.analysis.figures import FRONT_COLOR, OTHER_COLOR, PICK_COLOR, TEACHER_COLOR, cost_ticks, printable
from nas_kd.analysis.interactive import empty_chart, plain
from nas_kd.analysis.search_files import Search, SearchResult
from nas_kd.analysis.search_numbers import (
    by_change,
    entropy,
    gates_by_budget,
    idle_names,
    idle_shares,
    interpolated,
    retrained,
)
from nas_kd.analysis.text import metric_text
from nas_kd.trials.record import KnobValue, Metric, TrialRecord

# Okabe and Ito (2008); the dash changes once the colours are used up. Idle choices are grey.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))  # for plotly and for matplotlib
_STEPS = 5  # interpolated points from one budget to the next
_ROW_HEIGHT, _LEGEND_HEIGHT = 190, 110  # pixels

MOST_SHOWN = 6  # gates that the report shows at once
MOST_TRAJECTORIES = 3


@dataclass(frozen=True)
class _Panel:
    """One of several small pictures: probabilities of the choices of a gate or knob.

    Attributes:
        title: above it.
        x: places, ascending.
        is_measured: for each place whether a mark is drawn there.
        curves: choice -> probability at each place.
    """

    title: str
    x: Sequence[float]
    is_measured: Sequence[bool]
    curves: Mapping[KnobValue, Sequence[float]]


@dataclass(frozen=True)
class _Look:
    """Colour and dash of a choice, the same in all panels."""

    color: str
    dashes: tuple[str, str]


# Probabilities


def gate_order(result: SearchResult) -> list[str]:
    """Gates with several choices, those first whose probabilities change most over the budget."""
    return by_change(gates_by_budget(result))


def gates_chart(result: SearchResult, names: Sequence[str]) -> go.Figure:
    """Probabilities of some gates over the budget, one small picture a gate."""
    return _multiples([_gate_panel(result, name) for name in names], 3, _looks(result), axis=result.axis)


def gates_picture(result: SearchResult, names: Sequence[str], title: str = "") -> Figure:
    """The same as a static figure."""
    panels, looks, axis = [_gate_panel(result, name) for name in names], _looks(result), result.axis
    num_rows = max(-(-len(panels) // 3), 1)
    figure = Figure(figsize=(9.6, 1.0 + 2.0 * num_rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, 3, sharex=True, sharey=True, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.set_title(printable(panel.title, 40), fontsize=9, loc="left", parse_math=False)
        for choice, p in panel.curves.items():
            look, label = looks[choice], printable(str(choice), 40)
            (line,) = axes.plot(panel.x, p, color=look.color, linestyle=look.dashes[1], linewidth=1.6)
            marks = [(x, y) for x, y, shown in zip(panel.x, p, panel.is_measured, strict=True) if shown]
            axes.plot(*zip(*marks, strict=True), "o", color=look.color, markersize=2.5)
            handles.setdefault(label, line)
        _static_axis(axes, panel.x, axis)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    for axes in grid[-1]:
        axes.set_xlabel(f"budget ({axis.unit})", fontsize=8)
    figure.supylabel("probability", fontsize=9)
    if title:
        figure.suptitle(printable(title), fontsize=11, x=0.02, ha="left", parse_math=False)
    if handles:
        legend = figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _static_axis(axes: Any, x: Sequence[float], axis: Axis) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E6EA", linewidth=0.8)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_ticks(x)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.number(value)))
    axes.tick_params(labelsize=8)


def _gate_panel(result: SearchResult, name: str) -> _Panel:
    budgets = [result.scaled(entry.budget) for entry in result.budgets]
    rows = [entry.gates[name] for entry in result.budgets]
    x, is_measured, between = [budgets[0]], [True], [list(rows[0])]
    for (low, high), (before, after) in zip(pairwise(budgets), pairwise(rows), strict=True):
        for step in range(1, _STEPS + 1):
            share = step / _STEPS
            x.append(low ** (1 - share) * high**share)
            is_measured.append(step == _STEPS)
            between.append(interpolated(before, after, share))
    curves = dict(zip(result.variables[name].choices, zip(*between, strict=True), strict=True))
    return _Panel(name, x, is_measured, curves)


def knobs_chart(result: SearchResult) -> go.Figure | None:
    """Probabilities of the space's knobs over the budget; None where no knob has several values."""
    tables = [entry.knob_probabilities() for entry in result.budgets]
    names = list(dict.fromkeys(name for table in tables for name in table))
    if not names:
        return None
    x = [result.scaled(entry.budget) for entry in result.budgets]
    panels = []
    for name in names:
        values = list(dict.fromkeys(value for table in tables for value in table.get(name, {})))
        curves = {value: [table.get(name, {}).get(value, 0.0) for table in tables] for value in values}
        panels.append(_Panel(name, x, [True] * len(x), curves))
    looks = _looks_of([value for panel in panels for value in panel.curves], set())
    return _multiples(panels, 2 if len(panels) > 1 else 1, looks, axis=result.axis)


def trajectories_chart(search: Search) -> go.Figure | None:
    """Probabilities after each epoch of the gates that change most over the search, at the lowest, a middle and the
    highest knot; None where they were not kept."""
    knots = knots_of(search)
    if not knots:
        return None
    shown = list(dict.fromkeys([knots[0], knots[len(knots) // 2], knots[-1]]))
    names = trajectory_order(search)[:MOST_TRAJECTORIES]
    epochs = [epoch for epoch in sorted(search.history) if all(knot in search.history[epoch] for knot in shown)]
    axis, result, panels = search.result.axis, search.result, []
    for name in names:
        for knot in shown:
            rows = [search.history[epoch][knot].gates[name] for epoch in epochs]
            curves = dict(zip(result.variables[name].choices, zip(*rows, strict=True), strict=True))
            title = f"{name}, {axis.mark(result.scaled(knot))}"
            panels.append(_Panel(title, epochs, [True] * len(epochs), curves))
    return _multiples(panels, len(shown), _looks(result), axis=None) if panels else None


def knots_of(search: Search) -> list[float]:
    """Budgets of which the gates were kept after every epoch, ascending."""
    if not search.history:
        return []
    kept = set.intersection(*(set(knots) for knots in search.history.values()))
    return sorted(kept)


def trajectory_order(search: Search) -> list[str]:
    """Gates with several choices, those first whose probabilities change most from the first to the last epoch."""
    first, last = min(search.history), max(search.history)
    changes = {}
    for name in search.result.variables:
        changes[name] = max(
            (
                sum(abs(a - b) for a, b in zip(at[first], at[last], strict=True)) / 2
                for at in _gate_by_epoch(search, name, (first, last))
            ),
            default=0.0,
        )
    open_gates = [name for name, variable in search.result.variables.items() if len(variable.choices) > 1]
    return sorted(open_gates, key=lambda name: -changes[name])


def _gate_by_epoch(search: Search, name: str, epochs: Sequence[int]) -> Iterable[dict[int, tuple[float, ...]]]:
    for knot in knots_of(search):
        yield {epoch: search.history[epoch][knot].gates[name] for epoch in epochs}


def _looks(result: SearchResult) -> dict[KnobValue, _Look]:
    choices = [choice for variable in result.variables.values() for choice in variable.choices]
    return _looks_of(choices, set(idle_names(result)))


def _looks_of(choices: Sequence[KnobValue], idle: set[str]) -> dict[KnobValue, _Look]:
    """A look for each choice: idle operators are grey, numbers go from violet to yellow, others have a colour each."""
    looks: dict[KnobValue, _Look] = {}
    named = [choice for choice in dict.fromkeys(choices) if isinstance(choice, str)]
    for place, choice in enumerate(choice for choice in named if choice in idle):
        looks[choice] = _Look(OTHER_COLOR, _DASHES[place % len(_DASHES)])
    for place, choice in enumerate(choice for choice in named if choice not in idle):
        looks[choice] = _Look(_COLORS[place % len(_COLORS)], _DASHES[place // len(_COLORS) % len(_DASHES)])
    numbers = sorted({choice for choice in choices if not isinstance(choice, str)})
    for place, number in enumerate(numbers):
        share = place / max(len(numbers) - 1, 1)
        looks[number] = _Look(to_hex(colormaps["plasma"](0.25 + 0.6 * share)), _DASHES[0])
    return looks


def _multiples(
    panels: Sequence[_Panel], num_columns: int, looks: Mapping[KnobValue, _Look], *, axis: Axis | None
) -> go.Figure:
    """Small pictures in rows; `axis` writes the budget, without it the places are epochs."""
    num_rows = max(-(-len(panels) // num_columns), 1)
    height = num_rows * _ROW_HEIGHT + _LEGEND_HEIGHT
    figure = make_subplots(
        num_rows,
        num_columns,
        subplot_titles=[plain(panel.title, 44) for panel in panels],
        shared_yaxes="all",
        horizontal_spacing=0.035,
        vertical_spacing=60 / (height - _LEGEND_HEIGHT) if num_rows > 1 else 0,  # a share of the height
    )
    figure.update_layout(empty_chart("", None, []).layout)
    figure.update_layout(height=height, margin={"l": 48, "r": 12, "t": 48, "b": 40}, xaxis_title=None)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})
    figure.update_annotations(font_size=12)
    named: set[KnobValue] = set()
    for place, panel in enumerate(panels):
        row, column = divmod(place, num_columns)
        for choice, p in panel.curves.items():
            look = looks[choice]
            figure.add_scatter(
                row=row + 1,
                col=column + 1,
                x=list(panel.x),
                y=[round(value, 4) for value in p],
                mode="lines+markers",
                name=plain(choice, 40),
                legendgroup=plain(f"{type(choice).__name__} {choice}"),
                showlegend=choice not in named,
                line={"color": look.color, "width": 2, "dash": look.dashes[0]},
                marker={"size": [5 if shown else 0 for shown in panel.is_measured], "line": {"width": 0}},
                hoverinfo="text",
                hovertext=[
                    f"{plain(choice, 40)}: {value * 100:.1f} %<br>"
                    + (f"epoch {x:.0f}" if axis is None else f"budget {axis.text(x)}")
                    for x, value in zip(panel.x, p, strict=True)
                ],
            )
            named.add(choice)
    figure.update_xaxes(showgrid=False, zeroline=False, ticks="outside", showline=True, tickfont_size=11)
    figure.update_yaxes(range=[-0.03, 1.03], zeroline=False, tickformat=".0%", tickfont_size=11, dtick=0.5)
    if axis is not None and panels:
        figure.update_xaxes(**_cost_axis(panels[0].x, axis, few=True))
    return figure


# Curves over the budget or the epochs


def cost_chart(result: SearchResult) -> go.Figure:
    """Expected cost and cost of the derived architecture against the budget."""
    axis, figure = result.axis, empty_chart("cost", None, [])
    x = [result.scaled(entry.budget) for entry in result.budgets]
    line = {"color": OTHER_COLOR, "width": 1, "dash": "dot"}
    figure.add_scatter(x=x, y=x, mode="lines", name="budget", line=line, hoverinfo="skip")
    for name, costs, color in (
        ("expected", [entry.expected_cost for entry in result.budgets], FRONT_COLOR),
        ("derived", [entry.cost for entry in result.budgets], PICK_COLOR),
    ):
        y = [result.scaled(cost) for cost in costs]
        hover = [f"{name}: {axis.text(b)}, {b / a * 100:.0f} % of the budget" for a, b in zip(x, y, strict=True)]
        figure.add_scatter(
            x=x, y=y, name=name, mode="lines+markers", line={"color": color}, hoverinfo="text", hovertext=hover
        )
    figure.update_xaxes(**_cost_axis(x, axis), title_text=f"budget ({axis.unit})")
    costs = [value for entry in result.budgets for value in (entry.budget, entry.cost, entry.expected_cost)]
    if min(costs) > 0:
        figure.update_yaxes(**_cost_axis([result.scaled(cost) for cost in costs], axis))
    figure.update_yaxes(title_text=f"cost ({axis.unit})")
    return figure


def metric_chart(result: SearchResult, records: Sequence[TrialRecord], metric: Metric | None) -> go.Figure:
    """The metric of the derived architectures: inherited weights, and trained as trials, with intervals over seeds."""
    axis = result.axis
    x = [result.scaled(entry.budget) for entry in result.budgets]
    inherited = [entry.inherited for entry in result.budgets]
    trained = [retrained(entry, records) for entry in result.budgets]
    values = [*inherited, *(pair[1].mean for pair in trained if pair)]
    name = metric.name if metric else "metric"
    figure = empty_chart(name, metric, values)

    def text(value: float) -> str:
        return metric_text(value, metric) if metric else f"{value:.4g}"

    figure.add_scatter(
        x=x,
        y=inherited,
        name="inherited",
        mode="lines+markers",
        line={"color": TEACHER_COLOR},
        hoverinfo="text",
        hovertext=[f"inherited: {text(y)}<br>budget {axis.text(b)}" for b, y in zip(x, inherited, strict=True)],
    )
    shown = [(b, *pair) for b, pair in zip(x, trained, strict=True) if pair]
    if shown:
        intervals = [estimate.interval or (estimate.mean, estimate.mean) for _, _, estimate in shown]
        means = [estimate.mean for _, _, estimate in shown]
        figure.add_scatter(
            x=[b for b, _, _ in shown],
            y=means,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - mean for mean, (_, high) in zip(means, intervals, strict=True)],
                "arrayminus": [mean - low for mean, (low, _) in zip(means, intervals, strict=True)],
                "width": 3,
                "thickness": 1.2,
            },
            name="retrained",
            mode="lines+markers",
            line={"color": FRONT_COLOR},
            customdata=[record.number for _, record, _ in shown],
            hoverinfo="text",
            hovertext=[
                f"<b>trial {record.number}</b>: {text(estimate.mean)}, n = {estimate.num_values}<br>"
                f"budget {axis.text(b)}"
                for b, record, estimate in shown
            ],
        )
    figure.update_xaxes(**_cost_axis(x, axis), title_text=f"budget ({axis.unit})")
    return figure


def idle_chart(result: SearchResult) -> go.Figure:
    """Shares of idle operators and of layers that are left out: expected, and in the derived architectures."""
    axis, figure = result.axis, empty_chart("share of layers", None, [])
    x = [result.scaled(entry.budget) for entry in result.budgets]
    shares = [idle_shares(result, entry) for entry in result.budgets]
    for name, values, color, dash in (
        ("idle, expected", [s.operators for s in shares], FRONT_COLOR, "dot"),
        ("idle, derived", [s.chosen_operators for s in shares], FRONT_COLOR, "solid"),
        ("left out, expected", [s.skipped for s in shares], PICK_COLOR, "dot"),
        ("left out, derived", [s.chosen_skipped for s in shares], PICK_COLOR, "solid"),
    ):
        if any(value is not None for value in values):
            hover = [
                "" if y is None else f"{name}: {y * 100:.1f} %<br>budget {axis.text(b)}"
                for b, y in zip(x, values, strict=True)
            ]
            figure.add_scatter(
                x=x,
                y=values,
                name=name,
                mode="lines+markers",
                line={"color": color, "dash": dash},
                hoverinfo="text",
                hovertext=hover,
            )
    figure.update_xaxes(**_cost_axis(x, axis), title_text=f"budget ({axis.unit})")
    highest = max((value for trace in figure.data for value in trace.y if value is not None), default=0.0)
    figure.update_yaxes(range=[0, max(1.08 * highest, 0.05)], tickformat=".2~%")
    return figure


def entropy_chart(search: Search) -> go.Figure | None:
    """Mean entropy of the gates after each epoch, one line a knot; None where gates were not kept."""
    knots = knots_of(search)
    if not knots:
        return None
    axis, figure = search.result.axis, empty_chart("entropy of gates", None, [])
    epochs = sorted(search.history)
    colors = sample_colorscale("Viridis", [0.85 * (1 - i / max(len(knots) - 1, 1)) for i in range(len(knots))])
    for knot, color in zip(knots, colors, strict=True):
        y = [entropy(search.history[epoch][knot].gates) for epoch in epochs]
        label = axis.mark(search.result.scaled(knot))
        hover = [f"budget {label}, epoch {epoch}: {value:.3f}" for epoch, value in zip(epochs, y, strict=True)]
        figure.add_scatter(
            x=epochs, y=y, name=label, mode="lines+markers", line={"color": color}, hoverinfo="text", hovertext=hover
        )
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(range=[0, 1.02])
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})
    return figure


def losses_chart(search: Search) -> go.Figure | None:
    """Mean of each loss by epoch, on a logarithmic axis; None where losses were not kept."""
    names = dict.fromkeys(name for terms in search.losses.values() for name in terms if name != "gap")
    if not names:
        return None
    figure = empty_chart("mean loss", None, [])
    epochs = sorted(search.losses)
    for place, name in enumerate(names):
        y = [search.losses[epoch].get(name) for epoch in epochs]
        hover = [
            "" if v is None else f"{plain(name, 40)}: {v:.4g}<br>epoch {e}" for e, v in zip(epochs, y, strict=True)
        ]
        color, dash = _COLORS[place % len(_COLORS)], _DASHES[place // len(_COLORS) % len(_DASHES)][0]
        figure.add_scatter(
            x=epochs,
            y=y,
            name=plain(name, 40),
            mode="lines+markers",
            line={"color": color, "dash": dash},
            hoverinfo="text",
            hovertext=hover,
        )
    values = [value for terms in search.losses.values() for name, value in terms.items() if name != "gap"]
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(type="log" if min(values) > 0 else "linear")
    return figure


def _ticks(x: Sequence[float]) -> list[float]:
    low, high = min(x), max(x)
    return cost_ticks(low, high) if high > low * 1.01 else [low]


def _cost_axis(x: Sequence[float], axis: Axis, *, few: bool = False) -> dict[str, Any]:
    """A logarithmic axis of costs; `few` keeps at most five ticks."""
    ticks = _ticks(x)
    if few:
        ticks = ticks[:: -(-len(ticks) // 5)]
    room = max((max(x) / min(x)) ** 0.04, 1.02)
    limits = [math.log10(min(x) / room), math.log10(max(x) * room)]
    return {"type": "log", "range": limits, "tickvals": ticks, "ticktext": [axis.number(tick) for tick in ticks]}
