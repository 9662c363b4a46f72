"""Memory of a worker over many real trials: `python benchmarks/worker_memory.py [--trials N]`.

One worker of Ray runs a campaign of small trials, each with a gate search and a retraining on generated clips. After
each trial its private memory is read (USS: without pages that processes share). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from kill_faults import MARK, marked

from nas_kd.campaign import Campaign
from nas_kd.config import CampaignConfig, validate
from nas_kd.trials import Event

MEGABYTE = 1e6


def config_of(folder: str, trials: int) -> CampaignConfig:
    """A campaign whose trials take a second or two of an idle core."""
    return validate(
        {
            "name": "worker-memory",
            "runs": folder,
            "trials": trials,
            "sampler": "random",
            "data": {"num_train": 64, "num_val": 32, "num_test": 32, "frames": 8, "size": 32},
            "teacher": {"fit": {"epochs": 1}},
            "budget": {"max_flops": ["2M", "3M", "4M"]},
            "search": {"epochs": 1, "shared": False},
            "retrain": {"epochs": 1},
            "rehearse": False,
            "trackers": [],
            "resources": {"max_concurrent": 1},
        },
        source="benchmark",
    )


def private_bytes(pid: int) -> int:
    """USS of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def main() -> None:
    """Run the campaign, print the memory after each trial, and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=50)
    number = parser.parse_args().trials
    sizes: list[float] = []
    workers: set[int] = set()
    mark = os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"

    def note(event: Event) -> None:
        if event.kind == "ended":
            pid = max(marked(f"{MARK}={mark}", "ray::"), key=private_bytes)  # the others are Ray's own
            workers.add(pid)
            sizes.append(private_bytes(pid) / MEGABYTE)
            print(f"after trial {len(sizes)}: {sizes[-1]:.0f} MB", flush=True)

    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Campaign(config_of(folder, number)) as campaign:
        campaign.prepare()
        summary = campaign.run(note).summary
    half = sizes[len(sizes) // 2 :]
    result = {
        "trials": len(sizes),
        "failed": summary.num_failed,
        "workers": len(workers),
        "uss_mb": {f"after {i}": round(sizes[i - 1]) for i in (1, 2, 5, 10, 20, 30, 40, 50) if i <= len(sizes)},
        "largest_mb": round(max(sizes)),
        "growth_over_last_half_mb": round(half[-1] - half[0]),
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
