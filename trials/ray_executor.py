"""The executor on Ray Tune: each trial runs in a worker process.

Tune executes and nothing more: its snapshots come late and are not atomic, so they are thrown away, and the ledger is
what a campaign resumes from. Actors are used again for the next trial, which takes 0.05 s instead of 2.4 s.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
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
from nas_kd.trials.context import TrialFn
from nas_kd.trials.driver import Driver
from nas_kd.trials.ledger import Ledger
from nas_kd.trials.leftovers import new_session_folder, scratch_folder
from nas_kd.trials.packing import GpuPacking
from nas_kd.trials.places import PlacesWatch, find_places, remove_abandoned_groups
from nas_kd.trials.ray_servers import watched
from nas_kd.trials.resources import Resources
from nas_kd.trials.searcher import LedgerScheduler, LedgerSearcher, Restarts
from nas_kd.trials.worker import Request, TrialActor

_SECONDS_TO_ANSWER = 60.0  # of a machine that starts a process
_TRIALS_OF_A_ROUND = 1000


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

    Raises:
        ValueError: this process is a Ray client, or the cluster cannot be joined.
    """
    if ray.is_initialized():
        if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
            raise ValueError(
                "trials are started from a machine of the cluster, but this process is a Ray client (ray://); call "
                "ray.shutdown() and set resources.address there"
            )
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
                "`ray start --head`, see that this machine is part of it, copy its ~/.ray/auth_token to this machine "
                "if it asks for a token, or drop the address"
            ) from error
        # A node that is not up in time is a plain `Exception` of Ray.
        raise RuntimeError(
            f"Ray did not start on this machine ({reason}); run the same command again when the machine is less busy, "
            "or set resources.executor: inline"
        ) from error


def _packing(ledger: Ledger, resources: Resources) -> GpuPacking:
    """The shares of trials, with what those of an earlier run have taken under the same settings."""
    if resources.gpus_per_trial != "auto":
        return GpuPacking(resources.gpus_per_trial)
    settings = ledger.metadata.get("config_hash", "")
    measured = [record for record in ledger.records() if record.config_hash == settings]
    return GpuPacking("auto", measured, ledger.works())


def check_places(resources: Resources) -> None:
    """Join the cluster and leave it again.

    Raises:
        ValueError: It cannot be joined, or has no place for a trial.
    """
    with _quiet_tune(), _session(resources):
        find_places(resources, GpuPacking(resources.gpus_per_trial))


def ask_nodes(resources: Resources, paths: Sequence[str]) -> list[NodeView]:
    """See `nas_kd.trials.runner.view_nodes`."""

    # A function inside of another one travels by value: a machine without nas-kd can say so.
    def look(wanted: Sequence[str]) -> tuple[str, tuple[str, ...], float]:
        import importlib.metadata
        import pathlib
        import time

        missing = tuple(path for path in wanted if not pathlib.Path(path).exists())
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
                asked = ray.remote(look).options(num_cpus=0, scheduling_strategy=place).remote(tuple(paths))
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
        trainable = tune.with_resources(
            tune.with_parameters(
                TrialActor,
                payload=cloudpickle.dumps(trial_fn),  # type: ignore[no-untyped-call]
                python_path=list(sys.path),
                num_cpus=resources.threads,
            ),
            Request(resources.cpus_per_trial),
        )
        packing = _packing(driver.ledger, resources)
        # In rounds: Tune keeps what it knows of a trial until it ends itself, 25 KB of memory, and files.
        # One more round comes where a trial was handed back when Tune asked for no more.
        while driver.has_work():
            _run_with_tune(driver, trainable, resources, packing)
            shutil.rmtree(scratch_folder(driver.ledger.run_dir), ignore_errors=True)
            gc.collect()  # Tune's objects refer to each other


def _run_with_tune(driver: Driver, trainable: Any, resources: Resources, packing: GpuPacking) -> None:
    """Run trials of the driver, those of a round at most, until those that were started have ended."""
    restarts = Restarts(resources.max_failures)
    remove_abandoned_groups()
    places = find_places(resources, packing)
    searcher = LedgerSearcher(driver, places=places, restarts=restarts, num_trials=_TRIALS_OF_A_ROUND)

    def renew_places() -> None:
        with contextlib.suppress(ValueError):  # where no machine is left, trials wait for the next one
            searcher.places = find_places(resources, packing)

    def note(sentence: str) -> None:
        driver.announce("noted", message=sentence)

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
                callbacks=[restarts, PlacesWatch(resources, renew_places, note)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    except tune.TuneError as error:
        # Tune wraps errors of the driver in advice on its own way to resume, which does not apply here.
        if error.__cause__ is not None:
            raise error.__cause__ from None
        raise
