"""A student drawn as its layers, in the order of the net, each as long as its FLOPs; the teacher's beside it.

A trial writes `layers.json`, and `teacher.json` has the same list as `layers`. A net of many layers is drawn by its
blocks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nas_kd.analysis.figures import FRONT_COLOR, TEACHER_COLOR
from nas_kd.analysis.interactive import empty_chart, plain
from nas_kd.analysis.page import Chart, chart
from nas_kd.analysis.text import si
from nas_kd.trials.files import trial_directory
from nas_kd.trials.record import LAYERS_NAME

MOST_ROWS = 28


class Layer(BaseModel):
    """What one layer costs, as `search_spaces.LayerFlops` was written.

    Attributes:
        name: path of the module.
        kind: what it is.
        flops: of its own, for the input that the net was counted with: a clip, or a whole key-frame interval.
        params: number of its own parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    flops: int = Field(ge=0)
    params: int = Field(ge=0)


Layers: TypeAlias = tuple[Layer, ...]
_LAYERS = TypeAdapter(Layers)


def read_layers(run_dir: Path, number: int) -> Layers:
    """The layers of a trial's student; empty where its file is missing or damaged."""
    path = trial_directory(run_dir, number) / LAYERS_NAME
    try:
        return _LAYERS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return ()


def teacher_layers(run_dir: Path) -> Layers:
    """The layers of the teacher; empty where they are not known."""
    try:
        known = json.loads((run_dir / "teacher" / "teacher.json").read_bytes())
        return _LAYERS.validate_python(known.get("layers", ()))
    except (OSError, ValueError, AttributeError):
        return ()


def blocks(layers: Sequence[Layer], most: int = MOST_ROWS) -> Layers:
    """At most so many rows: layers add up in the longest common paths that are few enough.

    A block of several layers has the kind `N layers`. Layers stay in their order.
    """
    depth = max((layer.name.count(".") + 1 for layer in layers), default=1)
    while depth > 1 and len({_cut(layer.name, depth) for layer in layers}) > most:
        depth -= 1
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(_cut(layer.name, depth), []).append(layer)
    return tuple(
        group[0]
        if len(group) == 1
        else Layer(
            name=name,
            kind=f"{len(group)} layers",
            flops=sum(layer.flops for layer in group),
            params=sum(layer.params for layer in group),
        )
        for name, group in groups.items()
    )


def _cut(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


def layer_chart(name: str, layers: Sequence[Layer], whose: str, *, is_teacher: bool = False) -> Chart:
    """The bars of one net.

    Args:
        name: id of the chart in the page.
        layers: of the net.
        whose: for the caption, such as `trial 3`.
        is_teacher: drawn in the teacher's colour.
    """
    rows = list(reversed(blocks(layers)))
    total = sum(row.flops for row in rows) or 1
    figure = empty_chart("", None, [])
    places = list(range(len(rows)))
    figure.add_bar(
        x=[row.flops / total for row in rows],
        y=places,
        orientation="h",
        marker={"color": TEACHER_COLOR if is_teacher else FRONT_COLOR},
        hoverinfo="text",
        hovertext=[
            f"<b>{plain(row.name or 'the net itself')}</b><br>{plain(row.kind)}<br>{100 * row.flops / total:.1f} % of "
            f"the FLOPs: {si(row.flops)}<br>{si(row.params)} parameters"
            for row in rows
        ],
        showlegend=False,
    )
    figure.update_layout(height=88 + 17 * len(rows), bargap=0.25, margin={"t": 28, "b": 44})
    # On a phone the bars have little width beside the names of layers; the caption says what it is a share of.
    figure.update_xaxes(title_text="share", tickformat=".2~%", rangemode="tozero", nticks=3)
    labels = [plain(f"{row.name or '(net)'}: {row.kind}", 52) for row in rows]
    figure.update_yaxes(tickvals=places, ticktext=labels, automargin=True, showgrid=False, tickfont={"size": 10})
    caption = f"Layers of {whose} in the order of the net, by their share of its FLOPs."
    return chart(name, figure, caption, is_sized=True)
