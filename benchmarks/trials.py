"""What a trial costs beyond its work: `python benchmarks/trials.py [--numbers N ...] [--executors NAME ...]`.

Trials that do nothing, in this process (`inline`) and on Ray with one and two workers. Of each campaign: seconds a
trial and CPU seconds of this process a trial, each over all and over the last tenth, where a cost that grows with the
number of trials shows; growth of the driver's
memory over the last half; size of the ledger a trial; seconds to open the ledger again and to read its records. Ray's
start is not part of a trial and stands by itself. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from no_op_trials import METRIC, SPACE, no_op

from nas_kd.trials import Event, Ledger, Resources, run_trials

GOAL_S = 0.15  # of one core, a trial
GOAL_REOPEN_S = 2.0
EXECUTORS = {"inline": None, "ray-1": 1, "ray-2": 2}


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def campaign(run_dir: Path, number: int, executor: str, sampler: str) -> dict[str, float]:
    """Run `number` trials and measure."""
    ended: list[float] = []
    used: list[float] = []
    memory: list[int] = []

    def note(event: Event) -> None:
        if event.kind == "ended":
            ended.append(time.perf_counter())
            used.append(time.process_time())
            if len(ended) in (number // 2, number):
                memory.append(resident_bytes())

    workers = EXECUTORS[executor]
    resources = Resources(executor="inline") if workers is None else Resources(executor="ray", max_concurrent=workers)
    started = time.perf_counter()
    with Ledger.open(run_dir, metric=METRIC, config_hash="benchmark") as ledger:
        run_trials(
            no_op,
            ledger,
            SPACE,
            num_trials=number,
            run_dir=run_dir,
            resources=resources,
            sampler=sampler,
            on_event=note,
        )
    tail = max(number // 10, 1)
    clock, spent = time.perf_counter(), time.process_time()
    ledger = Ledger.load(run_dir)
    reopened, reopened_cpu = time.perf_counter(), time.process_time()
    ledger.records()
    read = time.perf_counter()
    journal = run_dir / "ledger.jsonl"
    return {
        "first_trial_s": ended[0] - started,
        "s_per_trial": (ended[-1] - ended[0]) / max(number - 1, 1),
        "s_per_late_trial": (ended[-1] - ended[max(number - 1 - tail, 0)]) / tail,
        "cpu_s_per_trial": (used[-1] - used[0]) / max(number - 1, 1),
        "cpu_s_per_late_trial": (used[-1] - used[max(number - 1 - tail, 0)]) / tail,
        "driver_growth_mb": (memory[-1] - memory[0]) / 1e6,
        "ledger_kb_per_trial": journal.stat().st_size / number / 1e3,
        "reopen_s": reopened - clock,
        "reopen_cpu_s": reopened_cpu - spent,
        "records_s": read - reopened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, nargs="+", default=[200, 1000, 10000])
    parser.add_argument("--executors", nargs="+", default=list(EXECUTORS), choices=list(EXECUTORS))
    parser.add_argument("--samplers", nargs="+", default=["random", "known_cost"])
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    heads = f"{'s a trial':>10}{'late':>8}{'CPU s':>8}{'late':>8}{'memory MB':>11}{'reopen s':>10}{'records s':>11}"
    print(f"{'campaign':<32}{heads}", flush=True)
    for sampler in options.samplers:
        for executor in options.executors:
            for number in options.numbers:
                name = f"{sampler}/{executor}/{number}"
                with tempfile.TemporaryDirectory() as folder:
                    row = found[name] = campaign(Path(folder) / "run", number, executor, sampler)
                print(
                    f"{name:<32}{row['s_per_trial']:>10.3f}{row['s_per_late_trial']:>8.3f}"
                    f"{row['cpu_s_per_trial']:>8.3f}{row['cpu_s_per_late_trial']:>8.3f}"
                    f"{row['driver_growth_mb']:>11.1f}{row['reopen_s']:>10.2f}{row['records_s']:>11.2f}",
                    flush=True,
                )
    slow = [name for name, row in found.items() if max(row["cpu_s_per_trial"], row["cpu_s_per_late_trial"]) > GOAL_S]
    late = [name for name, row in found.items() if row["reopen_cpu_s"] > GOAL_REOPEN_S]
    print(f"at most {GOAL_S} s of this process a trial: {'held' if not slow else 'MISSED by ' + ', '.join(slow)}")
    print(f"reopened in {GOAL_REOPEN_S:g} s of this process: {'held' if not late else 'MISSED by ' + ', '.join(late)}")
    rounded = {name: {key: round(value, 4) for key, value in row.items()} for name, row in found.items()}
    print(json.dumps({"trials": rounded, "hardware": f"{platform.machine()}, {os.cpu_count()} cores"}))


if __name__ == "__main__":
    main()
