"""The last line of a benchmark: one JSON object, which may be kept in `benchmarks/results`."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def print_result(benchmark: str, found: Mapping[str, Any], *, threads: str, keep: Path | None) -> None:
    """Print what was found, with commit, date and hardware.

    Args:
        benchmark: its name.
        found: what it measured.
        threads: how many ran, in words.
        keep: file to write it to, too.
    """
    known = {
        "benchmark": benchmark,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.machine()}, {threads}, torch {torch.__version__}",
    }
    text = json.dumps({**known, **found})
    if keep is not None:
        keep.parent.mkdir(exist_ok=True)
        keep.write_text(text + "\n")
    print(text)


def commit() -> str:
    """Of the checkout, with a mark where it has changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder).stdout.strip()
