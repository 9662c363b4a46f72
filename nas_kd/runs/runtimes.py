"""Latency of a front's students as they are deployed: PyTorch, compiled, and ONNX Runtime, with one thread and several.

All students and runtimes take turns in several rounds, as in `nas_kd.deploy.timing`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.deploy.bundle import load_bundle, read_info
from nas_kd.deploy.record import third_party_warnings
from nas_kd.deploy.runtime_passes import RUNTIMES, runtime_passes
from nas_kd.deploy.timing import PASSES, ROUNDS, summary, timed
from nas_kd.files import write_text_atomically
from nas_kd.inputs import Passes
from nas_kd.runs.latencies import front_students
from nas_kd.runs.own_space import own_space
from nas_kd.runs.run import load_run
from nas_kd.training.measure import environment, using_threads
from nas_kd.trials.files import trial_directory

if TYPE_CHECKING:
    from nas_kd.analysis.bench import Bench


def bench(
    run_dir: Path | str,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    threads: int | None = None,
    progress: OnProgress = no_progress,
) -> Bench:
    """Measure the students of a run's front at batch 1 on the CPU, and keep the figures in `bench.json`.

    Args:
        run_dir: the run's folder.
        runtimes: `eager` and `compiled` PyTorch, `onnx` Runtime; what cannot run here is skipped with the reason.
        threads: measured beside one thread; as many as torch takes by default.
        progress: called with the share that is done and a text.

    Raises:
        ValueError: there is no such runtime, or no student.
    """
    from nas_kd.analysis.bench import BENCH_NAME, Bench

    for name in runtimes:
        if name not in RUNTIMES:
            raise ValueError(f"there is no runtime {name!r}; choose from {', '.join(RUNTIMES)}")
    run_dir = Path(run_dir)
    run = load_run(run_dir)
    complete = [record for record in run.records if record.state == "complete"]
    students = front_students(complete, run.config.ranking)
    if not students:
        raise ValueError("there is no complete trial to measure; `nas-kd report` shows what failed")
    numbers = sorted({1, threads or torch.get_num_threads()})
    rows: list[dict[str, Any]] = []
    skipped: dict[tuple[str, str], list[int]] = {}  # runtime and reason -> trials
    waited = 0.0
    for count in numbers:
        with using_threads(count):
            nets: dict[str, Passes] = {}
            for record in students:
                bundle = trial_directory(run_dir, record.number)
                space = own_space(run.config, run_dir, read_info(bundle))
                student, info = load_bundle(bundle, space)
                for name in runtimes:
                    progress(0.0, f"preparing, trial {record.number} {name} with {count} threads")
                    try:
                        made = runtime_passes(name, student, info, bundle, space)
                        with torch.no_grad(), third_party_warnings():
                            for run_once in made.parts.values():  # what is compiled is so when it first runs
                                run_once()
                        nets[f"{record.number}/{name}"] = made
                    except Exception as error:  # no compiler, no onnxruntime, a layer that one of them lacks
                        trials = skipped.setdefault((name, " ".join(str(error).split())[:200]), [])
                        if record.number not in trials:  # with another number of threads it fails in the same way
                            trials.append(record.number)
            times, share = timed(nets, torch.device("cpu"), progress)
            waited = max(waited, share)
            costs = {str(record.number): record.cost for record in students}
            for key, parts in times.items():
                number, _, name = key.partition("/")
                cost = costs[number]
                assert cost is not None, "students of a front have a cost"
                found = summary(parts, nets[key])
                rows.append({"trial": int(number), "flops": cost.flops, "runtime": name, "threads": count, **found})
    result = Bench.model_validate(
        {
            "environment": environment("cpu"),
            "passes": ROUNDS * PASSES,
            "waited_share": waited,
            "rows": rows,
            "skipped": [
                {"runtime": name, "reason": reason, "trials": trials} for (name, reason), trials in skipped.items()
            ],
        }
    )
    write_text_atomically(run_dir / BENCH_NAME, json.dumps(result.model_dump(mode="json"), indent=2) + "\n")
    return result
