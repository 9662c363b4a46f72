"""The front as a static figure, and the axis ticks that all figures share.

matplotlib is used through its object interface with the Agg canvas: no display, no global state.
"""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from nas_kd.analysis.axes import Axis
from nas_kd.analysis.front import ParetoFront, Placed, TeacherPoint
from nas_kd.analysis.references import PUBLISHED, ReferencePoint, labels_of
from nas_kd.analysis.text import in_percent, metric_text
from nas_kd.trials.record import Metric, TrialRecord

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008); shapes differ as well.
FRONT_COLOR = "#0072B2"
PICK_COLOR = "#D55E00"
TEACHER_COLOR = "#009E73"
OTHER_COLOR = "#8A8F98"
PUBLISHED_COLOR = "#CC79A7"

_TICK_SETS = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
_MAX_TICKS = 9
_MAX_LABELS = 12


def cost_ticks(low: float, high: float) -> list[float]:
    """Round positions, at most nine, for a logarithmic axis from `low` to `high` (both > 0)."""
    if high / low < 3:  # less than half a decade looks linear
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return [float(tick) for tick in ticks if low <= tick <= high]
    decades = range(math.floor(math.log10(low)) - 1, math.floor(math.log10(high)) + 2)
    for mantissas in _TICK_SETS:
        ticks = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= _MAX_TICKS:
            break
    return inside


def cost_range(
    front: ParetoFront, teacher: TeacherPoint | None, references: Sequence[ReferencePoint] = ()
) -> tuple[float, float] | None:
    """Limits of a logarithmic axis of cost with room at both ends; None without points, with one at zero, or for an
    axis that is no cost."""
    if not front.axis.is_cost:
        return None
    values = [*(float(cost) for _, cost, _ in front.placed), *(point.cost for point in references)]
    teacher_cost = None if teacher is None else teacher.cost(front.axis)
    if teacher_cost is not None:
        values.append(float(teacher_cost))
    return with_room(values)


def with_room(values: Sequence[float]) -> tuple[float, float] | None:
    """Limits of a logarithmic axis with room at both ends; None without values, or with one at zero."""
    if not values or min(values) <= 0:
        return None
    room = max((max(values) / min(values)) ** 0.06, 1.1)
    return min(values) / room, max(values) * room


def metric_label(metric: Metric | None, split: str) -> str:
    """Axis label of the primary metric, such as `validation accuracy`."""
    name = {"val": "validation", "test": "test"}.get(split, split)
    return f"{name} {metric.name if metric else 'metric'}"


def printable(text: str, max_length: int = 80) -> str:
    """A text for a picture: one line, no control characters, cut to `max_length` characters."""
    kept = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    line = " ".join(kept.split())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


def front_figure(
    records: Sequence[TrialRecord],
    *,
    title: str = "",
    teacher: TeacherPoint | None = None,
    front: ParetoFront | None = None,
    references: Sequence[ReferencePoint] = (),
) -> Figure:
    """Draw all comparable trials, the front, the pick, seed intervals, budgets and the teacher.

    With two objectives the front is a step line, which is what a budget buys: at each cost, the best metric of any
    trial that costs no more. With three, the points of the front have the colour of the third.

    Args:
        records: the trials; those that cannot be placed are left out.
        title: printed above the picture.
        teacher: printed beside the students where known.
        front: built from `records` if None.
        references: points beside the front.
    """
    front = ParetoFront.from_records(records) if front is None else front
    figure = Figure(figsize=(8.0, 5.0), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    metric = records[0].metric if records else None
    rows, axis = front.placed, front.axis
    limits = cost_range(front, teacher, references)
    if not rows:
        axes.text(0.5, 0.5, "no complete trial yet", ha="center", va="center", transform=axes.transAxes)
    style_axes(axes, axis, limits, metric, [value for _, _, value in rows])
    axes.set_xlabel(axis.label(records))
    axes.set_ylabel(printable(metric_label(metric, front.split), 60), parse_math=False)
    if title:
        axes.set_title(printable(title), loc="left", fontsize=12, fontweight="bold", pad=12, parse_math=False)
    right = limits[1] if limits else max((cost for _, cost, _ in rows), default=1)
    _draw_front(axes, front, right)
    _draw_others(axes, rows, front)
    if limits is not None:
        _draw_budgets(axes, [budget for budget in budgets_of(records, axis) if limits[0] <= budget <= limits[1]])
    if teacher is not None:
        _draw_teacher(axes, teacher, front, teacher.level([record for record, _, _ in rows], front.split))
    _draw_references(axes, references)
    if axes.get_legend_handles_labels()[0]:
        # Below the axes: inside, it might cover points.
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8, markerscale=0.7)
    return figure


def write_picture(figure: Figure, path: Path | str) -> None:
    """Render a figure in the format of the file's suffix: `.png`, or `.svg` and `.pdf`, whose text stays text.

    The same figure gives the same file. A character that the font lacks is drawn as a box; that is not worth a warning.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    metadata: dict[str, dict[str, str | None]] = {
        "png": {"Software": "nas_kd"},
        "svg": {"Creator": "nas_kd", "Date": None},
        "pdf": {"Creator": "nas_kd", "CreationDate": None},
    }
    with (
        warnings.catch_warnings(),
        rc_context({"svg.fonttype": "none", "svg.hashsalt": "nas_kd", "pdf.fonttype": 42}),
    ):
        warnings.filterwarnings("ignore", message=r".*[Gg]lyph.* missing from", category=UserWarning)
        figure.savefig(path, format=kind, metadata=metadata[kind])


def budgets_of(records: Sequence[TrialRecord], axis: Axis) -> list[float]:
    """The budgets of the trials, each once, ascending."""
    budgets = {axis.budget_of(record) for record in records}
    return sorted(budget for budget in budgets if budget is not None)


def percent_axis(metric: Metric | None, values: Sequence[float]) -> bool:
    """Whether an axis of these values of the metric reads in percent."""
    return metric is not None and in_percent(metric) and all(abs(value) <= 1 for value in values)


def style_axes(
    axes: Axes, axis: Axis, limits: tuple[float, float] | None, metric: Metric | None, values: Sequence[float]
) -> None:
    """The look of a picture of cost and metric.

    Args:
        axes: of the picture.
        axis: the cost.
        limits: of a logarithmic axis of cost; None for a linear one.
        metric: on the other axis.
        values: of it that are drawn, which decide whether it reads in percent.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E6EA", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(y=0.12)
    if limits is not None:
        axes.set_xscale("log")
        axes.set_xlim(*limits)
        axes.xaxis.set_major_locator(FixedLocator(cost_ticks(*limits)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.number(value)))
    if percent_axis(metric, values):
        axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))


def _percent_tick(value: float, _: int | None) -> str:
    """A share of 1; the room above 100 % has none."""
    return f"{value * 100:.4g} %" if value < 1 + 1e-9 else ""


def _draw_others(axes: Axes, rows: Sequence[Placed], front: ParetoFront) -> None:
    others = [(cost, value) for record, cost, value in rows if record.number not in front.numbers]
    if others:
        x, y = zip(*others, strict=True)
        axes.scatter(x, y, s=22, facecolors="none", edgecolors=OTHER_COLOR, label="dominated trial")


def _draw_budgets(axes: Axes, inside: Sequence[float]) -> None:
    if inside:
        axes.plot(
            inside,
            [0.012] * len(inside),
            "|",
            color=OTHER_COLOR,
            markersize=6,
            markeredgewidth=0.8,
            transform=axes.get_xaxis_transform(),
            label="budget",
        )


def _draw_front(axes: Axes, front: ParetoFront, right: float) -> None:
    if not front.records:
        return
    x, y = front.points[:, 0], front.points[:, -1]
    if front.is_plane:
        line_x, line_y, shape = step_line(front, right)
        style = {"hv": "steps-post", "vh": "steps-pre"}[shape]
        axes.plot(line_x, line_y, drawstyle=style, color=FRONT_COLOR, linewidth=1.5, alpha=0.8, zorder=2)
        axes.scatter(x, y, s=34, color=FRONT_COLOR, zorder=3, label="front")
    else:
        third = front.axes[1]
        marks = axes.scatter(
            x,
            y,
            s=40,
            c=front.points[:, 1],
            cmap="viridis",
            edgecolors="#777777",
            linewidths=0.8,
            zorder=3,
            label="front",
        )
        bar = axes.figure.colorbar(marks, ax=axes, pad=0.02)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: third.number(value)))
        bar.set_label(third.header)
    label = "95 % interval"
    for record, cost in zip(front.records, x, strict=True):
        interval = front.interval(record)
        if interval is not None:
            ends = [interval.low, interval.high]
            axes.plot([cost, cost], ends, color=FRONT_COLOR, linewidth=1.0, alpha=0.6, zorder=2, label=label)
            label = "_"  # one entry in the legend
    if len(front.records) <= _MAX_LABELS:
        for record, cost, value in zip(front.records, x, y, strict=True):
            if front.pick is None or record.number != front.pick.number:
                axes.annotate(
                    str(record.number), (cost, value), (-4, 4), textcoords="offset points", ha="right", fontsize=8
                )
    if front.pick is not None:
        _draw_pick(axes, front, front.pick)


def step_line(front: ParetoFront, right: float) -> tuple[list[float], list[float], Literal["hv", "vh"]]:
    """The line of a front of two objectives that are drawn across and up, and whether it goes first across or up.

    Args:
        front: of two objectives, not empty.
        right: where it ends, of a cost.
    """
    x, y = front.points[:, 0].tolist(), front.points[:, -1].tolist()
    if front.directions[0] == "maximize":  # what is attained at a value is attained below it
        return [min([0.0, *x]), *x], [y[0], *y], "vh"
    return [*x, right], [*y, y[-1]], "hv"


def _draw_pick(axes: Axes, front: ParetoFront, pick: TrialRecord) -> None:
    cost, *_, value = front.points[front.records.index(pick)].tolist()
    axes.scatter([cost], [value], s=70, marker="D", color=PICK_COLOR, zorder=4, label="suggested pick")
    place = front.axis.mark(cost) if front.is_plane else front.place_text(pick)
    # Above a front nothing can lie, so the label goes to the upper left, where there is room for it.
    has_room = axes.transAxes.inverted().transform(axes.transData.transform((cost, value)))[0] > 0.3
    axes.annotate(
        f"trial {pick.number}: {metric_text(value, pick.metric)} at {place}",
        (cost, value),
        (-9, 7) if has_room else (9, -16),
        textcoords="offset points",
        ha="right" if has_room else "left",
        color=PICK_COLOR,
        fontsize=9,
        fontweight="bold",
        path_effects=[withStroke(linewidth=3, foreground="white")],
        zorder=5,
    )


def _draw_references(axes: Axes, references: Sequence[ReferencePoint]) -> None:
    named: set[str] = set()  # one entry of a group in the legend
    for point, text in zip(references, labels_of(references), strict=True):
        place, label = (point.cost, point.value), "_" if point.group in named else point.group
        named.add(point.group)
        # A frame around the student whose file it is, where both lie on each other.
        marker, size = ("^", 40) if point.group == PUBLISHED else ("s", 260)
        axes.scatter(
            *place, s=size, marker=marker, facecolors="none", edgecolors=PUBLISHED_COLOR, label=label, zorder=6
        )
        is_left = axes.transAxes.inverted().transform(axes.transData.transform(place))[0] < 0.3  # no room on that side
        axes.annotate(
            printable(text, 60),
            place,
            (5, 11) if is_left else (-5, 5),
            textcoords="offset points",
            ha="left" if is_left else "right",
            fontsize=8,
            parse_math=False,
        )


def _draw_teacher(axes: Axes, teacher: TeacherPoint, front: ParetoFront, level: float | None) -> None:
    """The teacher's value as a line where all students may be compared with it, else as a point alone."""
    cost = teacher.cost(front.axis)
    value = teacher.value if level is None else level
    if level is not None:
        axes.axhline(level, color=TEACHER_COLOR, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
    label = f"teacher: {printable(teacher.name, 40)}"
    if cost is None:
        place, within = (1.0, value), axes.get_yaxis_transform()
    else:
        place, within = (float(cost), value), axes.transData
        axes.scatter([cost], [value], s=150, marker="*", color=TEACHER_COLOR, zorder=4)
    axes.autoscale_view()
    has_room = True
    if front.pick is not None:  # its label lies above the front, too
        pick_cost, *_, pick_value = front.points[front.records.index(front.pick)].tolist()
        across, up = axes.transAxes.inverted().transform(within.transform(place))
        pick_across, pick_up = axes.transAxes.inverted().transform(axes.transData.transform((pick_cost, pick_value)))
        has_room = abs(up - pick_up) > 0.08 or across - pick_across > 0.35
    axes.annotate(
        label,
        place,
        (0, 9 if has_room else -18),
        xycoords=within,
        textcoords="offset points",
        ha="right",
        color=TEACHER_COLOR,
        fontsize=9,
        path_effects=[withStroke(linewidth=3, foreground="white")],
        parse_math=False,
    )
