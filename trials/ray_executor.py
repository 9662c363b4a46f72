"""The executor on Ray Tune: each trial runs in a worker process.

Tune executes and nothing more: its snapshots come late and are not atomic, so they are thrown away, and the ledger is
what a campaign resumes from. Actors are used again for the next trial, which takes 0.05 s instead of 2.4 s.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas_kd.trials.cluster import NodeView
from nas_kd.trials.context import Report, TrialFn, TrialStopped
from nas_kd.trials.driver import Driver
from nas_kd.trials.execution import Assignment, run_assignment
from nas_kd.trials.files import disk_full
from nas_kd.trials.leftovers import new_session_folder, scratch_folder
from nas_kd.trials.ray_servers import watched
from nas_kd.trials.record import TrialRecord
from nas_kd.trials.resources import Resources
from nas_kd.trials.searcher import LedgerScheduler, LedgerSearcher, Restarts

_SECONDS_BETWEEN_PROGRESS = 0.5
_SECONDS_TO_STOP = 30.0
_SECONDS_TO_ANSWER = 60.0  # of a machine that starts a process


class _Run:
    """A trial function in a thread, one report at a time.

    Tune pulls results; a trial function pushes reports. A report with values waits in its thread until Tune pulls
    again, which is its consent to go on, so that a trial does not train past the rung it is stopped at.
    """

    def __init__(self, assignment: Assignment, trial_fn: TrialFn, num_cpus: int, num_gpus: float) -> None:
        self._messages: queue.Queue[Report | TrialRecord | BaseException] = queue.Queue()
        self._go_on = threading.Semaphore(0)
        self._stopped = threading.Event()
        self._waiting = False
        self._last_progress = -math.inf

        def work() -> None:
            try:
                self._messages.put(
                    run_assignment(assignment, trial_fn, self._report, num_cpus=num_cpus, num_gpus=num_gpus)
                )
            except BaseException as error:
                self._messages.put(error)

        self._thread = threading.Thread(target=work, name=f"trial-{assignment.number}", daemon=True)
        self._thread.start()

    def _report(self, report: Report) -> None:
        """Called in the trial's thread."""
        if self._stopped.is_set():
            raise TrialStopped
        if report.values is not None:
            self._messages.put(report)
            self._go_on.acquire()
            if self._stopped.is_set():
                raise TrialStopped
        elif time.monotonic() - self._last_progress >= _SECONDS_BETWEEN_PROGRESS:
            self._last_progress = time.monotonic()
            self._messages.put(report)

    def next_message(self) -> Report | TrialRecord | OSError:
        """Let the trial run until its next report, its record, or the error of a full disk."""
        if self._waiting:
            self._waiting = False
            self._go_on.release()
        message = self._messages.get()
        if isinstance(message, BaseException):
            if (full := disk_full(message)) is not None:
                return full
            raise RuntimeError(f"the trial's thread ended with {message!r}") from message
        self._waiting = isinstance(message, Report) and message.values is not None
        return message

    def stop(self) -> bool:
        """Have the trial function leave at its present or next report; whether it did in time."""
        self._stopped.set()
        self._go_on.release()
        self._thread.join(_SECONDS_TO_STOP)
        return not self._thread.is_alive()


class _TrialActor(tune.Trainable):
    """A process that runs one trial after the other."""

    def setup(self, config: dict[str, Any], **parameters: Any) -> None:
        num_cpus, num_gpus = int(parameters["num_cpus"]), float(parameters["num_gpus"])
        # Before the trial function is loaded, since that imports torch, which reads these when it is loaded.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(num_cpus)
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        # What the driver can import, the trial function may refer to.
        sys.path.extend(entry for entry in parameters["python_path"] if entry not in sys.path)
        self._trial_fn: TrialFn = cloudpickle.loads(parameters["payload"])
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._assignment: Assignment = config["assignment"]
        self._run: _Run | None = None

    def step(self) -> dict[str, Any]:
        if self._run is None:
            # Not earlier: a process that dies while Tune sets it up or resets it is counted by Tune as two failures.
            self._run = _Run(self._assignment, self._trial_fn, self._num_cpus, self._num_gpus)
        message = self._run.next_message()
        if isinstance(message, TrialRecord):
            return {"record": message.to_json(), "done": True}
        if isinstance(message, OSError):
            return {"disk_full": message, "done": True}
        return {"report": message, "done": False}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._assignment = new_config["assignment"]
        return True

    def cleanup(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._run is not None and not self._run.stop():
            # It swallows `TrialStopped` or computes without reporting; the next trial must not share the machine with
            # it. Tune starts a new process for that one.
            os._exit(1)
        self._run = None


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keep Tune from printing tracebacks of errors that are handled and announced here."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # Ray 2.60 warns of what it does itself (its own deprecated names, `os.fork` beside threads).
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _session(resources: Resources, run_dir: Path | None = None) -> Iterator[None]:
    """A Ray session: the one that is there already, or one for the time of the campaign.

    Args:
        resources: with the address of a cluster, or without.
        run_dir: of the campaign; None where a cluster is only asked something.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    if resources.address is not None:
        options = {"address": resources.address, "log_to_driver": False, "logging_level": "ERROR"}
    elif run_dir is not None:
        # Without an address Ray joins a cluster that was begun here by `ray start`, or fails at what a dead one left.
        num_cpus = len(os.sched_getaffinity(0))
        options |= {"address": "local", "num_cpus": num_cpus, "_temp_dir": new_session_folder(run_dir)}
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        _start_ray(options, resources)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_termination)  # Ray's own handler prints a backtrace of C++
        with contextlib.nullcontext() if run_dir is None else watched(run_dir, resources.address):
            yield
    finally:
        ray.shutdown()


def _start_ray(options: dict[str, Any], resources: Resources) -> None:
    """Start Ray, or join the cluster.

    Raises:
        ValueError: the cluster cannot be joined.
        RuntimeError: Ray does not start on this machine.
    """
    try:
        ray.init(**options)
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        if resources.address is not None:
            raise ValueError(
                f"resources.address: no cluster of Ray can be joined at {resources.address} ({reason}); start it with "
                "`ray start --head`, or drop the address"
            ) from error
        # A node that is not up in time is a plain `Exception` of Ray.
        raise RuntimeError(
            f"Ray did not start on this machine ({reason}); run the same command again when the machine is less busy, "
            "or set resources.executor: inline"
        ) from error


def _places(resources: Resources) -> int:
    """How many trials fit on the cluster at a time.

    Raises:
        ValueError: Not a single one.
    """
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    places = resources.max_concurrent or 10**9
    for name, wanted in (("CPU", resources.cpus_per_trial), ("GPU", resources.gpus_per_trial)):
        if wanted > 0:
            there = available.get(name, 0.0)
            places = min(places, math.floor(there / wanted + 1e-9))
            if places < 1:
                raise ValueError(
                    f"a trial asks for {wanted} {name}, but the machines have {there:g}; ask for less in `resources`"
                )
    return places


def check_places(resources: Resources) -> None:
    """Join the cluster and leave it again.

    Raises:
        ValueError: It cannot be joined, or has no place for a trial.
    """
    with _quiet_tune(), _session(resources):
        _places(resources)


def ask_nodes(resources: Resources, folders: Sequence[str]) -> list[NodeView]:
    """See `nas_kd.trials.runner.view_nodes`."""

    # A function inside of another one travels by value: a machine without nas-kd can say so.
    def look(wanted: Sequence[str]) -> tuple[str, tuple[str, ...], float]:
        import importlib.metadata
        import pathlib
        import time

        missing = tuple(folder for folder in wanted if not pathlib.Path(folder).is_dir())
        return importlib.metadata.version("nas-kd"), missing, time.time()

    found = []
    with _quiet_tune(), _session(resources):
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if not node["Alive"]:
                continue
            view = NodeView(
                node["NodeManagerHostname"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)
            )
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                before = time.time()
                asked = ray.remote(look).options(num_cpus=0, scheduling_strategy=place).remote(tuple(folders))
                version, missing, clock = ray.get(asked, timeout=_SECONDS_TO_ANSWER)
            except Exception as error:  # whatever its Python raises
                reason = str(error).strip().splitlines()[-1][:200]
                found.append(replace(view, error=f"cannot run nas-kd ({reason}); install it there"))
            else:
                off = min(clock - before, clock - time.time(), key=abs)  # the answer took some time itself
                off = 0.0 if before <= clock <= time.time() else off
                found.append(replace(view, version=version, missing=missing, clock_s=off))
    return found


def run_on_ray(driver: Driver, trial_fn: TrialFn, resources: Resources) -> None:
    """Run all trials of the driver on Ray; see `nas_kd.trials.runner.run_trials`."""
    with _quiet_tune(), _session(resources, driver.ledger.run_dir):
        places = _places(resources)
        restarts = Restarts(resources.max_failures)
        searcher = LedgerSearcher(driver, max_concurrent=places, restarts=restarts)
        trainable = tune.with_resources(
            tune.with_parameters(
                _TrialActor,
                payload=cloudpickle.dumps(trial_fn),  # type: ignore[no-untyped-call]
                python_path=list(sys.path),
                num_cpus=resources.threads,
                num_gpus=resources.gpus_per_trial,
            ),
            {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
        )
        try:
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=LedgerScheduler(driver, searcher, restarts),
                    num_samples=-1,  # the searcher says when it is enough
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(scratch_folder(driver.ledger.run_dir)),
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=-1),  # `restarts` says how often
                    callbacks=[restarts],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()
        except tune.TuneError as error:
            # Tune wraps errors of the driver in advice on its own way to resume, which does not apply here.
            if error.__cause__ is not None:
                raise error.__cause__ from None
            raise
