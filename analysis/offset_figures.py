"""Figures of the metric per offset from the key frame, static and interactive: one line a front trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nas_kd.analysis.figures import OTHER_COLOR, PICK_COLOR, TEACHER_COLOR, metric_label, percent_axis, printable
from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.interactive import empty_chart, plain
from nas_kd.analysis.offsets import SPLITS, at_offset, offset_scores, streaming_students, teacher_scores
from nas_kd.analysis.statistics import Estimate
from nas_kd.analysis.text import count, metric_text, si
from nas_kd.trials.record import Split, TrialRecord

X_TITLE = "frames since the key frame"

# Okabe and Ito (2008) without the colours of pick and teacher; the marker changes once the colours are used up.
_COLORS = ("#0072B2", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"))  # for matplotlib and for plotly
_MAX_NAMED = len(_COLORS) * len(_MARKERS)
_MAX_TICKS = 12


@dataclass(frozen=True)
class _Line:
    """A trial's values on one split, with its look.

    Attributes:
        record: the trial.
        scores: offset, in frames, to the primary metric.
        intervals: offset to the estimate over repeats, where it has an interval.
        name: what the legend calls it.
        is_pick: whether it is the recommended trial.
        is_named: whether it stands in the legend.
        color: of line and marks.
        markers: the mark, as matplotlib and as plotly call it.
        width: of the line, in points.
    """

    record: TrialRecord
    scores: dict[int, float]
    intervals: dict[int, Estimate]
    name: str
    is_pick: bool
    is_named: bool
    color: str
    markers: tuple[str, str]
    width: float


def _lines(front: ParetoFront, split: Split) -> list[_Line]:
    students = streaming_students(front)
    lines = []
    for place, record in enumerate(students):
        scores = offset_scores(record, split, front.stage)
        if not scores:
            continue
        estimates = {offset: front.estimate(record, split, at_offset(record.metric, offset).name) for offset in scores}
        is_pick = record is front.pick
        is_named = is_pick or len(students) <= _MAX_NAMED
        color, marker = _COLORS[place % len(_COLORS)], _MARKERS[place // len(_COLORS) % len(_MARKERS)]
        if is_pick:
            color = PICK_COLOR
        elif not is_named:
            color = OTHER_COLOR
        flops = si(record.cost.flops if record.cost else None)
        lines.append(
            _Line(
                record=record,
                scores=scores,
                intervals={at: found for at, found in estimates.items() if found is not None and found.interval},
                name=f"{'pick: ' if is_pick else ''}trial {record.number}, {flops} FLOPs",
                is_pick=is_pick,
                is_named=is_named,
                color=color,
                markers=("D", "diamond") if is_pick else marker,
                width=2.4 if is_pick else 1.5,
            )
        )
    return lines


def splits_with_offsets(front: ParetoFront) -> list[Split]:
    """The splits on which a student of the front was measured per offset; empty where there is nothing to draw."""
    return [split for split in SPLITS if _lines(front, split)]


@dataclass(frozen=True)
class _TeacherLine:
    """The teacher's values on the frames of students with one interval: offset, in frames, to the primary metric."""

    name: str
    scores: dict[int, float]


def _teacher_lines(front: ParetoFront, split: Split, teacher: TeacherPoint | None) -> list[_TeacherLine]:
    """One line an interval of the front's students: the frames at an offset, and so its values, depend on it."""
    if teacher is None:
        return []
    found: dict[int, dict[int, float]] = {}
    for record in streaming_students(front):
        interval = record.cost.keyframe_interval if record.cost is not None else None
        scores = teacher_scores(record, teacher, split)
        if interval is not None and scores:
            found[interval] = scores
    several = len(found) > 1
    return [
        _TeacherLine(f"teacher{f' at K = {interval}' if several else ''}: {printable(teacher.name, 40)}", scores)
        for interval, scores in sorted(found.items())
    ]


def _values(lines: Sequence[_Line], teacher: Sequence[_TeacherLine]) -> list[float]:
    scores = [*(line.scores for line in lines), *(line.scores for line in teacher)]
    return [value for each in scores for value in each.values()]


def offsets_figure(front: ParetoFront, *, title: str = "", teacher: TeacherPoint | None = None) -> Figure:
    """Draw the primary metric at each offset from the key frame: a line a streaming student, a panel a split.

    Args:
        front: its streaming students are drawn.
        title: printed above the picture.
        teacher: a dotted line where it was measured per offset. It computes every frame alike, but the frames at one
            offset are others than those at the next.
    """
    splits = splits_with_offsets(front)
    figure = Figure(figsize=(4.0 + 4.0 * max(1, len(splits)), 4.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(splits)), sharey=True, squeeze=False)[0]
    if not splits:
        panels[0].text(
            0.5, 0.5, "no student measured per offset yet", ha="center", va="center", transform=panels[0].transAxes
        )
    if title:
        figure.suptitle(printable(title), x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    values: list[float] = []
    for axes, split in zip(panels, splits, strict=False):
        lines, levels = _lines(front, split), _teacher_lines(front, split, teacher)
        values += _values(lines, levels)
        _draw_lines(axes, lines, levels)
        axes.set_title(printable(metric_label(lines[0].record.metric, split), 60), fontsize=10, parse_math=False)
    metric = front.records[0].metric if front.records else None
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E4E6EA", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel(X_TITLE)
        axes.xaxis.set_major_locator(MaxNLocator(_MAX_TICKS, integer=True))
        if percent_axis(metric, values):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.4g} %"))
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        legend = figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _draw_lines(axes: Axes, lines: Sequence[_Line], levels: Sequence[_TeacherLine]) -> None:
    for level in levels:
        axes.plot(
            list(level.scores),
            list(level.scores.values()),
            color=TEACHER_COLOR,
            linewidth=1.2,
            linestyle=(0, (2, 3)),
            zorder=1,
            label=level.name,
        )
    for line in lines:
        x, y = list(line.scores), list(line.scores.values())
        over = 4 if line.is_pick else 3
        label = line.name if line.is_named else "_"  # matplotlib keeps such labels out of the legend
        axes.plot(x, y, color=line.color, linewidth=line.width, marker=line.markers[0], ms=5, zorder=over, label=label)
        for offset, estimate in line.intervals.items():
            ends = estimate.interval
            assert ends is not None, "kept only where there is an interval"
            axes.plot([offset, offset], ends, color=line.color, linewidth=1.0, alpha=0.6, zorder=2)


def offsets_chart(front: ParetoFront, split: Split = "val", *, teacher: TeacherPoint | None = None) -> go.Figure:
    """The primary metric at each offset from the key frame, a line a streaming student, with intervals over seeds.

    Each point carries its trial number as `customdata`, so that a page can link it to its row.

    Args:
        front: its streaming students are drawn.
        split: the split whose values are drawn.
        teacher: a dotted line where it was measured per offset. It computes every frame alike, but the frames at one
            offset are others than those at the next.
    """
    lines, levels = _lines(front, split), _teacher_lines(front, split, teacher)
    metric = front.records[0].metric if front.records else None
    figure = empty_chart(metric_label(metric, split), metric, _values(lines, levels))
    last = max((offset for line in lines for offset in line.scores), default=0)
    figure.update_xaxes(title_text=X_TITLE, range=[-0.3, last + 0.3], dtick=max(1, -(-last // _MAX_TICKS)))
    for level in levels:
        assert metric is not None, "the front has students"
        figure.add_scatter(
            x=list(level.scores),
            y=list(level.scores.values()),
            mode="lines",
            name=plain(level.name),
            line={"color": TEACHER_COLOR, "width": 1.5, "dash": "dot"},
            hoverinfo="text",
            hovertext=[f"{plain(level.name)}<br>{metric_text(value, metric)}" for value in level.scores.values()],
        )
    for line in lines:
        figure.add_traces(_traces(line, split))
    # On a phone each entry of the legend takes a line; charts of both splits are equally high.
    entries = [len(_teacher_lines(front, each, teacher)) + len(_lines(front, each)) for each in SPLITS]
    figure.update_layout(height=290 + 20 * min(max(entries), _MAX_NAMED))
    return figure


def _traces(line: _Line, split: Split) -> list[go.Scatter]:
    """A trial's line, and its intervals as one more line, broken by None, that the legend hides with it."""
    x: list[int | None] = []
    y: list[float | None] = []
    for offset, estimate in line.intervals.items():
        ends = estimate.interval
        assert ends is not None, "kept only where there is an interval"
        x += [offset, offset, None]
        y += [*ends, None]
    group = f"trial-{line.record.number}"
    bars = go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": line.color, "width": 1.5},
        opacity=0.6,
        hoverinfo="skip",
        showlegend=False,
        legendgroup=group,
    )
    points = go.Scatter(
        x=list(line.scores),
        y=list(line.scores.values()),
        customdata=[line.record.number] * len(line.scores),
        mode="lines+markers",
        name=line.name,
        line={"color": line.color, "width": line.width},
        marker={"symbol": line.markers[1], "size": 8},
        legendgroup=group,
        showlegend=line.is_named,
        hoverinfo="text",
        hovertext=[_hover(line, offset, split) for offset in line.scores],
    )
    return [bars, points] if x else [points]


def _hover(line: _Line, offset: int, split: Split) -> str:
    metric = line.record.metric
    where = "key frame" if offset == 0 else f"{count(offset, 'frame')} after the key frame"
    text = f"<b>trial {line.record.number}</b>, {where}<br>{plain(metric_label(metric, split))}: "
    text += metric_text(line.scores[offset], metric)
    estimate = line.intervals.get(offset)
    if estimate is not None and estimate.interval is not None:
        low, high = (metric_text(end, metric) for end in estimate.interval)
        text += f"<br>over {count(estimate.num_values, 'seed')}: {low} to {high} (95 %)"
    return text
