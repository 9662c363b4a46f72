"""The page that compares campaigns: one HTML file that works offline, a CSV file and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nas_kd.analysis.cells import Cell, Table, interval_text, number_cell
from nas_kd.analysis.comparison import Comparison, Run, compare
from nas_kd.analysis.figures import cost_ticks, metric_label, printable, step_line, style_axes, with_room, write_picture
from nas_kd.analysis.interactive import empty_chart, hover_text, plain
from nas_kd.analysis.page import chart, render
from nas_kd.analysis.statistics import Estimate
from nas_kd.analysis.table import write_csv
from nas_kd.analysis.text import MISSING, count, in_percent, metric_text, signed_text
from nas_kd.trials.record import Metric

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008), the darkest first; marks differ as well.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"))
_MOST_SETTINGS = 40


@dataclass(frozen=True)
class ComparisonPaths:
    """Where `write_comparison` put its files.

    Attributes:
        page: the HTML file.
        students: the students at each cost, one row for each campaign, as CSV.
        picture: the fronts as PNG.
        headline: the outcome in one sentence for each group after the first.
    """

    page: Path
    students: Path
    picture: Path
    headline: tuple[str, ...]


def write_comparison(runs: Sequence[Run], out_dir: Path | str) -> ComparisonPaths:
    """Write `comparison.html`, `comparison.csv` and `comparison.png`; older ones are replaced.

    Args:
        runs: see `compare`.
        out_dir: created if missing.

    Raises:
        ValueError: see `compare`.
        OSError: a file cannot be written.
    """
    made, out_dir = compare(runs), Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = ComparisonPaths(
        out_dir / "comparison.html", out_dir / "comparison.csv", out_dir / "comparison.png", headlines(made)
    )
    write_csv(student_table(made), paths.students)
    write_picture(fronts_figure(made), paths.picture)
    caption = (
        "Each line is what a budget buys in one campaign: at each cost, the best validation value of any trial that "
        "costs no more. Campaigns that differ in their seed alone have one colour."
    )
    values = {
        "title": f"Compared: {', '.join(group.name for group in made.groups)}",
        "cautions": made.cautions(),
        "headline": paths.headline,
        "groups": _group_table(made),
        "chart": chart("fronts", fronts_chart(made), caption, fallback_png=paths.picture.read_bytes()),
        "students": _student_cells(made),
        "settings": _difference_table(made, _as_text(made.setting_differences(), _value_text), "setting"),
        "num_seeds": max(len(group.runs) for group in made.groups),
        "choices": [
            (
                made.axis.text(cost),
                _difference_table(made, _as_text(made.choice_differences(cost), _values_text), "choice"),
            )
            for cost in made.costs
        ],
    }
    paths.page.write_text(render("comparison.html", values), encoding="utf-8", newline="\n")
    return paths


def headlines(made: Comparison) -> tuple[str, ...]:
    """For each group after the first: how its hypervolume compares, and whether seeds can tell them apart."""
    first, sentences = made.groups[0], []
    if len(made.groups) == 1:
        volume = made.hypervolume(first)
        spread = (
            "" if volume.interval is None else f", 95 % interval {volume.interval[0]:.3f} to {volume.interval[1]:.3f}"
        )
        return (f"The campaigns differ in their seed alone: mean hypervolume {volume.mean:.3f}{spread}.",)
    for group in made.groups[1:]:
        gain = made.gain(group)
        assert gain is not None
        values = f"{made.hypervolume(group).mean:.3f} against {made.hypervolume(first).mean:.3f}"
        start = f"{group.name} covers a hypervolume of {values} of {first.name}"
        if gain.low is None or gain.high is None:
            runs = min(len(group.runs), len(first.runs))
            sentences.append(
                f"{start}. With {count(runs, 'seed')} this may be chance: run each with three seeds or more."
            )
        elif gain.low > 0 or gain.high < 0:
            word = "more" if gain.mean > 0 else "less"
            sentences.append(f"{start}: {word}, by {_interval(gain)} (95 % interval over seeds).")
        else:
            sentences.append(
                f"{start}; the seeds do not tell them apart: the difference is {_interval(gain)} (95 % interval)."
            )
    return tuple(sentences)


def _interval(gain: Estimate) -> str:
    assert gain.low is not None
    assert gain.high is not None
    return f"{gain.low:+.3f} to {gain.high:+.3f}".replace("-", "−")


def student_table(made: Comparison) -> pd.DataFrame:
    """One row for each cost and campaign: the student that is best on validation within that cost."""
    rows = []
    for cost in made.costs:
        for group in made.groups:
            for run, record in zip(group.runs, group.best_within(cost), strict=True):
                row: dict[str, Any] = {"within": cost, "group": group.name, "run": run.name, "seed": run.seed}
                if record is not None:
                    row |= {
                        "trial": record.number,
                        "cost": made.axis.of(record),
                        "arch_id": record.arch_id,
                        "val": record.score("val", "retrained"),
                        "test": record.score("test", "retrained"),
                    }
                rows.append(row)
    columns = ["within", "group", "run", "seed", "trial", "cost", "arch_id", "val", "test"]
    return pd.DataFrame(rows, columns=columns).astype({"trial": "Int64"})


def _group_table(made: Comparison) -> Table:
    rows = []
    for group in made.groups:
        volume, gain = made.hypervolume(group), made.gain(group)
        ended = [len(run.records) for run in group.runs]
        trials = str(ended[0]) if len(set(ended)) == 1 else f"{min(ended)} to {max(ended)}"
        teachers = [run.teacher.test for run in group.runs if run.teacher is not None and run.teacher.test is not None]
        teacher = sum(teachers) / len(teachers) if teachers else None
        spread = None if volume.low is None or volume.high is None else f"{volume.low:.3f} – {volume.high:.3f}"
        rows.append(
            [
                Cell(group.name),
                number_cell(str(len(group.runs))),
                number_cell(trials),
                Cell(f"{volume.mean:.3f}", note=spread, is_number=True),
                Cell(
                    MISSING if gain is None else f"{gain.mean:+.3f}".replace("-", "−"),
                    note=None if gain is None or gain.low is None else _interval(gain),
                    is_number=True,
                ),
                number_cell(metric_text(teacher, made.metric)),
            ]
        )
    headers = ["campaign", "seeds", "trials each", "hypervolume", "difference to the first", "teacher, test"]
    return Table(headers, rows)


def _student_cells(made: Comparison) -> Table:
    points, rows = in_percent(made.metric), []
    for cost in made.costs:
        for group, at in zip(made.groups, made.at(cost), strict=True):
            costs = [value for record in at.records if (value := made.axis.of(record)) is not None]
            mean_cost = sum(costs) / len(costs) if costs else None
            rows.append(
                [
                    number_cell(made.axis.number(cost)),
                    Cell(group.name),
                    number_cell(made.axis.number(mean_cost)),
                    _estimate_cell(at.val, made.metric),
                    _estimate_cell(at.test, made.metric),
                    _difference_cell(at.difference, made.metric),
                    Cell(", ".join(dict.fromkeys(record.arch_id or MISSING for record in at.records)), is_code=True),
                ]
            )
    headers = [
        f"within, {made.axis.unit}", "campaign", f"cost, {made.axis.unit}", f"validation {made.metric.name}",
        f"test {made.metric.name} *", f"difference to the first, test{', points' if points else ''}", "architecture",
    ]  # fmt: skip
    return Table(headers, rows)


def _estimate_cell(estimate: Estimate | None, metric: Metric) -> Cell:
    if estimate is None:
        return number_cell(MISSING)
    note = None if estimate.interval is None else interval_text(estimate, metric)
    return Cell(metric_text(estimate.mean, metric), note=note, is_number=True)


def _difference_cell(difference: Estimate | None, metric: Metric) -> Cell:
    if difference is None:
        return number_cell(MISSING)
    note = "fewer than three seeds"
    if difference.low is not None and difference.high is not None:
        note = f"{signed_text(difference.low, metric)} to {signed_text(difference.high, metric)}"
    return Cell(signed_text(difference.mean, metric), note=note, is_number=True)


def _difference_table(made: Comparison, differences: dict[str, list[str]], noun: str) -> Table | None:
    """The values that differ, a row each; None where nothing does."""
    shown = list(differences.items())[:_MOST_SETTINGS]
    rows = [[Cell(name, is_code=True), *map(Cell, texts)] for name, texts in shown]
    left = len(differences) - len(shown)
    if left:
        rows.append([Cell(f"and {left} more"), *(Cell() for _ in made.groups)])
    return Table([noun, *(group.name for group in made.groups)], rows) if rows else None


def _as_text(differences: Mapping[str, Sequence[Any]], to_text: Callable[[Any], str]) -> dict[str, list[str]]:
    return {name: [to_text(value) for value in values] for name, values in differences.items()}


def _value_text(value: Any) -> str:
    return MISSING if value is None else str(value)


def _values_text(values: Sequence[Any]) -> str:
    """Those of several campaigns: one where they agree, else each with how many have it, the most frequent first."""
    counted = Counter(map(_value_text, values)).most_common()
    if len(counted) < 2:
        return counted[0][0] if counted else MISSING
    return ", ".join(f"{text} ({number} of {len(values)})" for text, number in counted)


def fronts_figure(made: Comparison) -> Figure:
    """The fronts over each other, a colour and a mark for each group."""
    figure = Figure(figsize=(8.0, 5.0), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    limits, values = _limits(made), [value for _, _, value in made.box.placed]
    style_axes(axes, made.axis, limits, made.metric, values)
    axes.set_xlabel(made.axis.label([record for record, _, _ in made.box.placed]))
    axes.set_ylabel(printable(metric_label(made.metric, "val"), 60), parse_math=False)
    for i, group in enumerate(made.groups):
        color, mark = _COLORS[i % len(_COLORS)], _MARKS[i % len(_MARKS)][0]
        label = printable(group.name, 40).replace("$", r"\$")
        for front in group.fronts:
            x, y = front.points[:, 0], front.points[:, -1]
            if len(x) and front.is_plane:
                line_x, line_y, shape = step_line(front, limits[1] if limits else float(x[-1]))
                style = {"hv": "steps-post", "vh": "steps-pre"}[shape]
                axes.plot(line_x, line_y, drawstyle=style, color=color, linewidth=1.3, alpha=0.7)
            axes.scatter(x, y, s=26, marker=mark, color=color, label=label, zorder=3)
            label = "_"  # one entry in the legend
    # Below the axes: inside, it might cover points.
    figure.legend(loc="outside lower center", ncols=min(len(made.groups), 3), frameon=False, fontsize=9)
    return figure


def fronts_chart(made: Comparison) -> go.Figure:
    """The same for the page, with the details of a student where it is pointed at."""
    values = [value for _, _, value in made.box.placed]
    figure = empty_chart(metric_label(made.metric, "val"), made.metric, values)
    figure.update_xaxes(title_text=made.axis.label([record for record, _, _ in made.box.placed]))
    limits = _limits(made)
    if limits is not None:
        ticks = cost_ticks(*limits)
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[made.axis.number(tick) for tick in ticks])
    for i, group in enumerate(made.groups):
        color, mark = _COLORS[i % len(_COLORS)], _MARKS[i % len(_MARKS)][1]
        for j, (run, front) in enumerate(zip(group.runs, group.fronts, strict=True)):
            x, y = front.points[:, 0].tolist(), front.points[:, -1].tolist()
            name = plain(group.name, 40)
            if x and front.is_plane:
                line_x, line_y, shape = step_line(front, limits[1] if limits else x[-1])
                figure.add_scatter(
                    x=line_x,
                    y=line_y,
                    mode="lines",
                    line={"shape": shape, "color": color, "width": 1.5},
                    hoverinfo="skip",
                    showlegend=False,
                    legendgroup=str(i),
                )
            texts = [f"{plain(run.name, 40)}, seed {run.seed}<br>{hover_text(r, front)}" for r in front.records]
            figure.add_scatter(
                x=x,
                y=y,
                mode="markers",
                marker={"symbol": mark, "size": 9, "color": color},
                hovertext=texts,
                hoverinfo="text",
                name=name,
                legendgroup=str(i),
                showlegend=j == 0,
            )
    return figure


def _limits(made: Comparison) -> tuple[float, float] | None:
    """Of the axis of cost over all fronts; see `with_room`. None for an axis that is no cost."""
    if not made.axis.is_cost:
        return None
    return with_room([float(cost) for group in made.groups for front in group.fronts for cost in front.points[:, 0]])
