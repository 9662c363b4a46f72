"""Toy trial functions and records. Importable, so that Ray's workers find them."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from nas_kd.trials import (
    ChoiceKnob,
    Cost,
    FloatKnob,
    IntKnob,
    KnobSpace,
    Ledger,
    Metric,
    OutOfGpuMemoryError,
    TrialContext,
    TrialRecord,
)

METRIC = Metric(name="accuracy")
SPACE: KnobSpace = {
    "width": IntKnob(low=1, high=64),
    "rate": FloatKnob(low=1e-3, high=1.0, log=True),
    "op": ChoiceKnob(values=("conv", "shift", "delta")),
}


def make_record(number: int, knobs: Any, state: str = "complete", /, **changes: Any) -> TrialRecord:
    """A record whose accuracy and flops follow from the knobs."""
    width, rate = int(knobs["width"]), float(knobs["rate"])
    bonus = {"conv": 0.0, "shift": 0.05, "delta": 0.1}.get(str(knobs["op"]), 0.2)
    fields: dict[str, Any] = {
        "number": number,
        "state": state,
        "seed": 1,
        "config_hash": "toy",
        "knobs": dict(knobs),
        "metric": METRIC,
        "cost": Cost(flops=width * 1000, params=width),
        "metrics": {"derived": {"val": {"accuracy": (width / 64) ** 0.5 * 0.8 - abs(rate - 0.1) * 0.1 + bonus}}},
    }
    return TrialRecord(**{**fields, **changes})


def open_ledger(run_dir: Path, **changes: Any) -> Ledger:
    return Ledger.open(run_dir, **{"metric": METRIC, "config_hash": "toy", **changes})


def log_execution(context: TrialContext, what: str) -> None:
    """One line an execution, appended in one write, so that a kill leaves it whole."""
    path = context.directory.parent.parent / "executions.log"
    with path.open("a") as file:
        file.write(f"{context.number} {what}\n")


def executions(run_dir: Path) -> list[tuple[int, str]]:
    path = run_dir / "executions.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


class SlowToLoad:
    """A trial function whose modules take long to import, as on a busy machine."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        time.sleep(state["seconds"])

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": 1.5}

    def __call__(self, context: TrialContext) -> TrialRecord:
        return succeed(context)


def succeed(context: TrialContext) -> TrialRecord:
    log_execution(context, "run")
    context.report(0.5, "half way [bold]there")
    (context.directory / "checkpoint.pt").write_bytes(bytes(1000))
    (context.directory / "checkpoints").mkdir(exist_ok=True)
    (context.directory / "checkpoints" / "last.pt").write_bytes(bytes(1000))
    (context.directory / "student.pt").write_bytes(bytes(10))
    return make_record(context.number, context.knobs, seed=context.seed)


def fail_second(context: TrialContext) -> TrialRecord:
    if context.number == 1:
        raise ValueError("the second trial is unlucky")
    return succeed(context)


def second_finds_the_disk_full(context: TrialContext) -> TrialRecord:
    """Until there is a file `space` in the run's folder, as where PyTorch writes a checkpoint."""
    if context.number == 1 and not (context.directory.parent.parent / "space").exists():
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/cache/x")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904
    return succeed(context)


def _not_there() -> None:
    raise ModuleNotFoundError("No module named 'of_the_driver'")


class OnlyHere:
    """A trial function that other processes cannot load."""

    def __reduce__(self) -> Any:
        return _not_there, ()

    def __call__(self, context: TrialContext) -> TrialRecord:
        return succeed(context)


def fail_or_lie(context: TrialContext) -> Any:
    """Trial 1 raises; those from 3 to 7 return what no trial function may return."""
    if context.number < 3:
        return fail_second(context)
    knobs = dict(context.knobs)
    return [
        None,
        make_record(context.number + 1, knobs),
        make_record(context.number, {**knobs, "width": 99}),
        make_record(context.number, knobs, metrics={}),
        make_record(context.number, knobs, metric=Metric(name="mAP")),
    ][context.number - 3]


def climb(context: TrialContext) -> TrialRecord:
    """Four steps; trial 0 is the best that a budget can buy, the others cost more and are worse."""
    quality = 0.9 if context.number == 0 else 0.5 / context.number
    flops = 1000.0 * (1 + context.number)
    for step in range(1, 5):
        log_execution(context, f"step{step}")
        context.report(step / 4, values={"accuracy": quality * step / 4, "flops": flops}, step=step)
    metrics = {"derived": {"val": {"accuracy": quality}}}
    return make_record(
        context.number, context.knobs, cost=Cost(flops=int(flops), params=1), metrics=metrics, seed=context.seed
    )


def die_once(context: TrialContext) -> TrialRecord:
    """Trial 1 is killed once, after a checkpoint; trial 2 always."""
    checkpoint = context.directory / "checkpoint.txt"
    log_execution(context, "resumed" if checkpoint.exists() else "run")
    if context.number == 2 or (context.number == 1 and not checkpoint.exists()):
        checkpoint.write_text("1")
        os.kill(os.getpid(), signal.SIGKILL)
    return make_record(context.number, context.knobs)


def wait_twice(context: TrialContext) -> TrialRecord:
    """Trials 2 and 4 write a checkpoint, the file `waiting-N` into the run folder, and wait for the file `go-N`."""
    checkpoint, run_dir = context.directory / "checkpoint.txt", context.directory.parent.parent
    log_execution(context, "resumed" if checkpoint.exists() else "run")
    if context.number in (2, 4):
        if not checkpoint.exists():
            checkpoint.write_text("epoch 1")
            (run_dir / f"waiting-{context.number}").touch()
        while not (run_dir / f"go-{context.number}").exists():
            time.sleep(0.02)
            context.report(message="waiting")
        assert checkpoint.read_text() == "epoch 1"
    return make_record(context.number, context.knobs)


def tell_environment(context: TrialContext) -> TrialRecord:
    import sys

    environment = {
        "pid": str(os.getpid()),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "torch": str("torch" in sys.modules),
        "device": context.device,
        "num_cpus": str(context.num_cpus),
    }
    return make_record(context.number, context.knobs, seed=context.seed, environment=environment)


def share_a_gpu(context: TrialContext) -> TrialRecord:
    """Four trials on halves of two GPUs wait until they have seen each other; trial 3 runs out of memory there."""
    gpu, run_dir, share = os.environ["CUDA_VISIBLE_DEVICES"], context.directory.parent.parent, context.num_gpus
    until = time.monotonic() + 120

    def wait_for_others(what: str) -> None:
        (run_dir / f"{what}-{share:g}-{gpu}-{context.number}").touch()
        while len(list(run_dir.glob(f"{what}-{share:g}-*"))) < (4 if share < 1 else 1) and time.monotonic() < until:
            time.sleep(0.05)

    wait_for_others("on")
    at_once = len(list(run_dir.glob(f"on-*-{gpu}-*")))
    wait_for_others("seen")
    (run_dir / f"on-{share:g}-{gpu}-{context.number}").unlink()
    log_execution(context, f"{share:g}")
    checkpoints = len(list(context.directory.glob("checkpoint*")))
    if context.number == 3 and share < 1:
        (context.directory / "checkpoint.txt").write_text("epoch 1")
        raise OutOfGpuMemoryError("CUDA out of memory", 30e9)
    diagnostics = {"gpu/peak_bytes": 50e9 if context.number == 3 else 35e9}
    diagnostics |= {"at_once": at_once, "from_checkpoint": checkpoints}
    if share == 1:
        diagnostics["gpu/usable_bytes"] = 80e9
    return make_record(context.number, context.knobs, diagnostics=diagnostics)


def train_on_a_node(context: TrialContext) -> TrialRecord:
    """Three epochs with a checkpoint after each; in the second one it waits for the file `go`."""
    import ray  # which most toys do without

    run_dir, checkpoint = context.directory.parent.parent, context.directory / "checkpoint.txt"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    log_execution(context, f"from-{done}")
    for epoch in range(done + 1, 4):
        checkpoint.write_text(str(epoch))
        if epoch == 2:
            node = ray.get_runtime_context().get_node_id()
            (run_dir / f"waiting-{context.number}-{node}-{os.getpid()}").touch()
            while not (run_dir / "go").exists():
                time.sleep(0.02)
    return make_record(context.number, context.knobs, diagnostics={"continued_after": done})
