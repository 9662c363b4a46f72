"""Interactive figures of a run, made with plotly.

plotly reads a few HTML tags and entities in every text it draws, so each text from a record goes through `plain`.
Hover texts are given ready-made: a template would also look for `%{...}` in them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from nas_kd.analysis.attainment import attainment
from nas_kd.analysis.axes import Axis, constraint_text
from nas_kd.analysis.failures import failure_groups
from nas_kd.analysis.figures import (
    FRONT_COLOR,
    OTHER_COLOR,
    PICK_COLOR,
    PUBLISHED_COLOR,
    TEACHER_COLOR,
    budgets_of,
    cost_range,
    cost_ticks,
    metric_label,
    percent_axis,
    printable,
    step_line,
)
from nas_kd.analysis.front import ParetoFront, Placed, TeacherPoint
from nas_kd.analysis.references import PUBLISHED, ReferencePoint, labels_of
from nas_kd.analysis.text import bytes_text, count, metric_text, ms_text, si
from nas_kd.trials.objectives import COSTS, Objective
from nas_kd.trials.record import Metric, Stage, TrialRecord

_STAGES: tuple[Stage, ...] = ("gated", "derived", "retrained")
_MAX_KNOBS = 8
_MAX_FAILURES = 12
_MAX_MARKS = 500  # of a picture of trials; more are too many to be told apart
STAGE_WORDS: dict[Stage, str] = {
    "gated": "the supernet with its gates",
    "derived": "the derived student",
    "retrained": "the trained student",
}


def plain(text: object, max_length: int = 80) -> str:
    """A text that plotly draws letter by letter: one line, tags and entities escaped, cut to `max_length`."""
    return html.escape(printable(str(text), max_length), quote=False)


def hover_text(record: TrialRecord, front: ParetoFront, *, brief: bool = False) -> str:
    """The hover text of a point, lines separated by `<br>`; everything from the record is escaped.

    A brief one leaves out what the table of all trials has too: the knobs.
    """
    value, test = record.score(front.split, front.stage), record.score("test", front.stage)
    lines = [f"<b>trial {record.number}</b>"]
    lines.append(f"{plain(metric_label(record.metric, front.split))}: {metric_text(value, record.metric)}")
    interval = front.interval(record)
    if interval is None:
        lines.append(f"no interval from {count(front.num_trainings(record), 'training')}")
    else:
        ends = f"{metric_text(interval.low, record.metric)} to {metric_text(interval.high, record.metric)}"
        lines.append(f"95 % interval over {interval.basis}: {ends}")
    if test is not None:
        lines.append(f"test, not used for selection: {metric_text(test, record.metric)}")
    if record.cost is not None:
        lines.append(f"{si(record.cost.flops)} FLOPs, {si(record.cost.params)} parameters")
        if record.cost.is_streaming:
            lines.append(
                f"key frame {si(record.cost.keyframe_flops)} FLOPs, others {si(record.cost.delta_flops)}, "
                f"one key frame in {record.cost.keyframe_interval}"
            )
        if record.cost.predicted_latency_ms is not None:
            lines.append(f"{ms_text(record.cost.predicted_latency_ms)} ms predicted")
        if record.cost.latency_ms is not None:
            lines.append(f"{ms_text(record.cost.latency_ms)} ms measured")
        if record.cost.state_bytes is not None and "state_bytes" in front.ranking.names:
            lines.append(f"{bytes_text(record.cost.state_bytes)} of state")
    for each in front.ranking.ranked:
        if each.name not in (*COSTS, record.metric.name):
            axis = Axis(Objective(name=each.name), record.metric.percent)
            lines.append(f"{plain(axis.header)}: {axis.number(axis.of(record, front.split, front.stage))}")
    if not front.ranking.keeps(record):
        beyond = [each for each in front.ranking.constraints if each.excess(each.of(record)) > 0]
        limits = " and ".join(plain(constraint_text(each, record.metric.percent)) for each in beyond)
        lines.append(f"does not keep {limits}")
    if brief:
        return "<br>".join(lines)
    shown = list(record.knobs.items())[:_MAX_KNOBS]
    lines += [f"{plain(name, 40)} = {plain(_knob_text(name, value), 40)}" for name, value in shown]
    if len(record.knobs) > len(shown):
        lines.append(f"… and {len(record.knobs) - len(shown)} more knobs")
    return "<br>".join(lines)


def _knob_text(name: str, value: object) -> str:
    if name.endswith("_flops") and isinstance(value, int | float):
        return si(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def front_chart(
    records: Sequence[TrialRecord],
    *,
    front: ParetoFront | None = None,
    teacher: TeacherPoint | None = None,
    references: Sequence[ReferencePoint] = (),
) -> go.Figure:
    """All comparable trials in their first cost and their metric, with the front, the pick, seed intervals, budgets and
    the teacher. A third objective is the colour of the front's points, and stands where one is pointed at.

    Each point carries its trial number as `customdata`, so that a page can link it to its row.
    """
    front = ParetoFront.from_records(records) if front is None else front
    rows, axis = front.placed, front.axis
    metric = records[0].metric if records else None
    figure = empty_chart(metric_label(metric, front.split), metric, [value for _, _, value in rows])
    limits = cost_range(front, teacher, references)
    figure.update_xaxes(title_text=axis.label(records))
    if limits is not None:
        ticks = cost_ticks(*limits)
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[axis.number(tick) for tick in ticks])
    figure.add_traces(_budget_trace(records, axis))
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    figure.add_traces(_attainment_traces(front, limits))
    figure.add_traces(_interval_trace(front))
    others = [row for row in rows if row[0].number not in front.numbers]
    figure.add_traces(_points(others, front, "dominated", {"symbol": "circle-open", "size": 8, "color": OTHER_COLOR}))
    on_front = [row for row in rows if row[0].number in front.numbers]
    figure.add_traces(_reference_traces(references, metric, axis, limits))
    figure.add_traces(_step_trace(front, limits))
    figure.add_traces(_points(on_front, front, "front", {"size": 10, **_front_colors(on_front, front)}))
    if front.pick is not None:
        number = front.pick.number
        picked = [row for row in on_front if row[0].number == number]
        marker = {"symbol": "diamond", "size": 15, "color": PICK_COLOR}
        figure.add_traces(_points(picked, front, f"pick: trial {number}", marker))
    if teacher is not None:
        label = {"annotation_text": f"teacher: {plain(teacher.name, 40)}"} if teacher.cost(axis) is None else {}
        line = {"color": TEACHER_COLOR, "width": 1, "dash": "dot"}
        level = teacher.level([record for record, _, _ in rows], front.split)
        if level is not None:
            figure.add_hline(level, line=line, layer="below", **label)
        figure.add_traces(_teacher_trace(teacher, metric, axis, teacher.value if level is None else level))
    return figure


def empty_chart(y_title: str, metric: Metric | None, values: Sequence[float]) -> go.Figure:
    """An empty figure with the shared look; the page sets the colours of text and grid to its own."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 72, "r": 24, "t": 16, "b": 56},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        hoverlabel={"align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": OTHER_COLOR, "activecolor": FRONT_COLOR},
    )
    figure.update_xaxes(showgrid=False, zeroline=False, ticks="outside", showline=True)
    as_percent = percent_axis(metric, values)
    figure.update_yaxes(title_text=plain(y_title), zeroline=False, tickformat=".3~p" if as_percent else None)
    return figure


def _front_colors(rows: Sequence[Placed], front: ParetoFront) -> dict[str, Any]:
    """The colour of the front's points: with three objectives by the third, with a bar that says which is which."""
    if front.is_plane or not rows:
        return {"color": FRONT_COLOR}
    axis = front.axes[1]
    values = [axis.of(record, front.split, front.stage) or 0.0 for record, _, _ in rows]
    ends = sorted({min(values), max(values)})
    bar = {
        "title": {"text": plain(axis.header), "side": "right"},
        "tickvals": ends,
        "ticktext": [axis.number(value) for value in ends],
        "thickness": 12,
    }
    edge = {"color": "#777777", "width": 1}  # the ends of the scale are near to the page's colour, light and dark
    return {"color": values, "colorscale": "Viridis", "showscale": True, "colorbar": bar, "line": edge}


def _points(rows: Sequence[Placed], front: ParetoFront, name: str, marker: dict[str, Any]) -> list[go.Scatter]:
    if not rows:
        return []
    return [
        go.Scatter(
            x=[cost for _, cost, _ in rows],
            y=[value for _, _, value in rows],
            customdata=[record.number for record, _, _ in rows],
            mode="markers",
            name=name,
            marker=marker,
            hoverinfo="text",
            hovertext=[hover_text(record, front, brief=len(rows) > _MAX_MARKS) for record, _, _ in rows],
        )
    ]


def _step_trace(front: ParetoFront, limits: tuple[float, float] | None) -> list[go.Scatter]:
    if not front.records or not front.is_plane:
        return []
    x, y, shape = step_line(front, limits[1] if limits else float(front.points[-1, 0]))
    line = {"shape": shape, "color": FRONT_COLOR, "width": 2}
    return [go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)]


def _attainment_traces(front: ParetoFront, limits: tuple[float, float] | None) -> list[go.Scatter]:
    """The band between what the worst and the best seed attain."""
    band = attainment(front)
    if band is None:
        return []
    x = [*band.costs.tolist(), limits[1] if limits else float(band.costs[-1])]
    line = {"shape": "hv", "color": FRONT_COLOR, "width": 0}
    worst, best = ([*ends.tolist(), float(ends[-1])] for ends in (band.worst, band.best))
    name = f"fronts of {band.num_seeds} seeds"
    hidden = {"x": x, "mode": "lines", "line": line, "hoverinfo": "skip"}
    return [
        go.Scatter(y=worst, showlegend=False, **hidden),
        go.Scatter(y=best, name=name, fill="tonexty", fillcolor="rgba(0,114,178,0.15)", **hidden),
    ]


def _reference_traces(
    references: Sequence[ReferencePoint], metric: Metric | None, axis: Axis, limits: tuple[float, float] | None
) -> list[go.Scatter]:
    """A trace for each group of points beside the front."""
    traces = []
    middle = math.sqrt(limits[0] * limits[1]) if limits else 0.0  # of a logarithmic axis; labels go where there is room
    for group in dict.fromkeys(point.group for point in references):
        points = [point for point in references if point.group == group]
        values = [metric_text(p.value, metric) if metric else f"{p.value:.4g}" for p in points]
        # A frame around the student whose file it is, where both lie on each other.
        symbol, size = ("triangle-up-open", 10) if group == PUBLISHED else ("square-open", 22)
        trace = go.Scatter(
            x=[point.cost for point in points],
            y=[point.value for point in points],
            mode="markers+text",
            name=group,
            marker={"symbol": symbol, "size": size, "color": PUBLISHED_COLOR},
            text=[plain(label, 60) for label in labels_of(points)],
            textposition=["top right" if point.cost < middle else "top left" for point in points],
            textfont={"size": 10},
            hoverinfo="text",
            hovertext=[
                f"<b>{plain(point.name)}</b>, {group}<br>{value}<br>{axis.text(point.cost)}"
                for point, value in zip(points, values, strict=True)
            ],
        )
        traces.append(trace)
    return traces


def _interval_trace(front: ParetoFront) -> list[go.Scatter]:
    """One vertical bar a front trial with an interval, as a single line broken by None."""
    x: list[float | None] = []
    y: list[float | None] = []
    for record, cost in zip(front.records, front.points[:, 0].tolist(), strict=True):
        interval = front.interval(record)
        if interval is not None:
            x += [cost, cost, None]
            y += [interval.low, interval.high, None]
    line = {"color": FRONT_COLOR, "width": 1.5}
    name = "95 % interval"
    return [go.Scatter(x=x, y=y, mode="lines", line=line, opacity=0.6, hoverinfo="skip", name=name)] if x else []


def _budget_trace(records: Sequence[TrialRecord], axis: Axis) -> list[go.Scatter]:
    """Budgets as ticks along the lower edge, on an axis of their own."""
    budgets = [budget for budget in budgets_of(records, axis) if budget > 0]
    if not budgets:
        return []
    budgets = budgets[:: -(-len(budgets) // _MAX_MARKS)]
    marker = {"symbol": "line-ns-open", "size": 9, "color": OTHER_COLOR, "line": {"width": 1}}
    hover = [f"budget {axis.text(budget)}" for budget in budgets]
    return [
        go.Scatter(
            x=budgets,
            y=[0.012] * len(budgets),
            yaxis="y2",
            mode="markers",
            name="budget",
            marker=marker,
            hoverinfo="text",
            hovertext=hover,
        )
    ]


def _teacher_trace(teacher: TeacherPoint, metric: Metric | None, axis: Axis, level: float) -> list[go.Scatter]:
    cost = teacher.cost(axis)
    if cost is None:
        return []
    value = metric_text(level, metric) if metric else f"{level:.4g}"
    hover = f"<b>teacher</b>: {plain(teacher.name)}<br>{value}<br>{axis.text(cost)}"
    marker = {"symbol": "star", "size": 16, "color": TEACHER_COLOR}
    return [
        go.Scatter(
            x=[cost],
            y=[level],
            mode="markers",
            name=f"teacher: {plain(teacher.name, 40)}",
            marker=marker,
            hoverinfo="text",
            hovertext=[hover],
        )
    ]


def hypervolume_chart(front: ParetoFront, spent_s: Mapping[int, float] | None = None) -> go.Figure:
    """Hypervolume after each comparable trial, in the box of the final front: has the search levelled off?

    Args:
        front: of all trials.
        spent_s: number of a trial -> seconds of all trials up to it, to draw over in place of their numbers.
    """
    history = list(front.hypervolume_history)
    if len(history) > _MAX_MARKS:  # a line between the trials at which it changes
        changes = [row for row, before in zip(history[1:], history, strict=False) if row[1] != before[1]]
        history = [history[0], *changes, history[-1]]
    figure = empty_chart("hypervolume (share of the box)", None, [])
    figure.update_yaxes(rangemode="tozero")  # of a share; around a single value the axis would go below 0
    x: list[float] = [number for number, _ in history]
    title = "trial"
    if spent_s is not None:
        in_hours = max(spent_s.values(), default=0) > 2 * 3600
        x = [spent_s[number] / (3600 if in_hours else 60) for number, _ in history]
        title = f"{'hours' if in_hours else 'minutes'} of all trials so far"
    figure.update_xaxes(title_text=title)
    figure.add_scatter(
        x=x,
        y=[value for _, value in history],
        mode="lines+markers",
        line={"shape": "hv", "color": FRONT_COLOR, "width": 2},
        marker={"size": 5},
        hoverinfo="text",
        hovertext=[f"after trial {number}: {value:.4f}" for number, value in history],
        showlegend=False,
    )
    return figure


def measured_stages(records: Sequence[TrialRecord]) -> tuple[Stage, ...]:
    """The stages that any complete trial was measured at: a campaign need not have a search in each trial."""
    complete = [record for record in records if record.state == "complete"]
    return tuple(stage for stage in _STAGES if any(record.score("val", stage) is not None for record in complete))


def stage_chart(records: Sequence[TrialRecord], front: ParetoFront) -> go.Figure:
    """Each complete trial's validation metric from stage to stage: what deriving costs and training wins back.

    Of many trials off the front, an even sample is drawn.
    """
    stages = measured_stages(records)
    complete = [record for record in records if record.state == "complete"]
    lines = [(record, [record.score("val", stage) for stage in stages]) for record in complete]
    lines = [(record, steps) for record, steps in lines if sum(step is not None for step in steps) > 1]
    values = [step for _, steps in lines for step in steps if step is not None]
    metric = records[0].metric if records else None
    figure = empty_chart(metric_label(metric, "val"), metric, values)
    figure.update_xaxes(title_text="stage", type="category", range=[-0.15, len(stages) - 0.85])
    for on_front, name, color, opacity in ((False, "dominated", OTHER_COLOR, 0.45), (True, "front", FRONT_COLOR, 0.9)):
        # One trace a group, broken by None between trials: hundreds of traces would make the page slow.
        group = [(record, steps) for record, steps in lines if (record.number in front.numbers) is on_front]
        if not on_front:
            group = group[:: -(-len(group) // _MAX_MARKS) or 1]
        figure.add_scatter(
            x=[stage for _ in group for stage in (*stages, None)],
            y=[step for _, steps in group for step in (*steps, None)],
            mode="lines+markers",
            name=name,
            line={"color": color, "width": 1.5},
            marker={"size": 6},
            opacity=opacity,
            hoverinfo="text",
            hovertext=[
                f"trial {record.number}, {stage}: {metric_text(step, record.metric)}"
                for record, steps in group
                for stage, step in zip((*stages, ""), (*steps, None), strict=True)
            ],
        )
    return figure


def failure_chart(records: Sequence[TrialRecord]) -> go.Figure:
    """Number of failed trials by what went wrong, most frequent on top."""
    groups = failure_groups(records)
    ranked = [(reason, len(group)) for reason, group in reversed(groups[:_MAX_FAILURES])]
    figure = empty_chart("", None, [])
    most = max((number for _, number in ranked), default=1)
    figure.update_xaxes(title_text="failed trials", dtick=max(1, most // 8))
    # Two reasons may read the same once they are cut, so the position is a number and the text its label.
    figure.update_yaxes(
        tickvals=list(range(len(ranked))), ticktext=[plain(reason, 48) for reason, _ in ranked], automargin=True
    )
    figure.add_bar(
        x=[number for _, number in ranked],
        y=list(range(len(ranked))),
        orientation="h",
        marker={"color": PICK_COLOR},
        hoverinfo="text",
        hovertext=[f"{count(number, 'trial')}: {plain(reason, 160)}" for reason, number in ranked],
    )
    figure.update_layout(height=80 + 26 * len(ranked), bargap=0.4)
    return figure
