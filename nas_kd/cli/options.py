"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CampaignFile = Annotated[Path | None, typer.Argument(help="Campaign file (YAML); without it, the embedded default.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a key of the file; repeatable.")
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="Recommend the cheapest student that is at most so much worse than the best one, in the metric's unit: "
        "0.01 is a point of a metric in percent. Default: a point, or 1 % of the best value of another metric; or one "
        "standard error of the best, where that is more."
    ),
]
