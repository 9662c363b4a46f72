"""The mean losses of each epoch, and where they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

Log = Callable[[int, Mapping[str, float]], None]
"""(epoch that ended, mean of every term over its steps)."""


def no_log(epoch: int, means: Mapping[str, float]) -> None:
    """Keeps nothing."""


def log_epoch(folder: Path, stage: str, epoch: int, means: Mapping[str, float]) -> None:
    """Append a line with the mean of every term to `log.jsonl`; what is continued appends after what it had."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"stage": stage, "epoch": epoch + 1, **{name: round(value, 6) for name, value in means.items()}}
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
