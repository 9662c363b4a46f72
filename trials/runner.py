"""Run a campaign: trials are started until the ledger holds as many as wanted, failed ones included.

The order of events is what makes a campaign survive: a proposal is in the ledger before its trial starts; a record is
in the trial's folder, on disk, before it is added to the ledger; it is in the ledger before it is announced. So after
`kill -9` at any moment the same command goes on: finished trials are not run again, and one that was running starts
under its number, in its folder, from its checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_kd.trials.cluster import NodeView, check_address, has_auth_token
from nas_kd.trials.context import TrialFn
from nas_kd.trials.driver import Driver
from nas_kd.trials.events import OnEvent
from nas_kd.trials.files import bytes_on_disk, disk_full
from nas_kd.trials.inline import run_inline
from nas_kd.trials.knobs import KnobSpace
from nas_kd.trials.known_costs import KnownCosts
from nas_kd.trials.ledger import DRIVER_LOCK, Ledger
from nas_kd.trials.leftovers import remove_leftovers
from nas_kd.trials.pace import Work
from nas_kd.trials.remote_files import RemoteFiles
from nas_kd.trials.resources import Resources
from nas_kd.trials.scheduler import RungScheduler

# Set by the user, they stay as they are.
_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_worker_niceness": "0",  # else 15: trials would starve beside other work; `nice nas-kd` lowers all
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^Raylet is terminated",  # with 20 lines of its log; the executor says it in one
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # hides GPUs from trials that ask for none, and warns otherwise
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files beside our records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the runner handles Ctrl-C
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # our searcher says how many; by itself Tune starts one process at a time
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's snapshots are not used
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Summary:
    """How a campaign stands when its driver returns. Counts are of the whole ledger, not of this run alone."""

    num_trials: int
    num_complete: int
    num_failed: int
    num_stopped: int
    failures: Mapping[int, str]
    """The last line of each failed trial's error, by number."""
    bytes_on_disk: int
    """Of the whole run folder."""
    elapsed_s: float
    """Of this run."""
    interrupted: bool

    def __str__(self) -> str:
        """A few lines for the terminal."""
        megabytes = self.bytes_on_disk / 1e6
        lines = [
            f"{self.num_complete} of {self.num_trials} trials complete, {self.num_stopped} stopped early, "
            f"{self.num_failed} failed; {megabytes:.1f} MB on disk; {self.elapsed_s:.0f} s"
        ]
        lines += [f"trial {number} failed: {reason}" for number, reason in sorted(self.failures.items())]
        if self.interrupted:
            lines.append("interrupted; run the same command again to continue")
        return "\n".join(lines)


def set_ray_environment(resources: Resources) -> None:
    """Set what Ray reads from the environment when it is imported; call it before `import ray`.

    A cluster that was started where there is a token of Ray asks for it, and one that asks for none takes who has it.
    """
    joins_with_token = resources.address is not None and has_auth_token()
    for name, value in {**_RAY_SETTINGS, "RAY_AUTH_MODE": "token" if joins_with_token else "disabled"}.items():
        os.environ.setdefault(name, value)


def check_cluster(resources: Resources) -> None:
    """Raise where no trial could run on the cluster that `resources` name; without an address nothing is done.

    Raises:
        ValueError: Nothing answers at the address, no machine of the cluster has what a trial asks for, or
            `resources.files_url` cannot be written.
    """
    if resources.executor != "ray" or resources.address is None:
        return
    if resources.files_url is not None:
        RemoteFiles(resources.files_url, Path()).check()
    check_address(resources.address)
    set_ray_environment(resources)
    from nas_kd.trials.ray_executor import check_places  # after its settings, and only where Ray is used

    check_places(resources)


def check_run_folder(resources: Resources, run_dir: Path) -> None:
    """Raise where a machine of the cluster does not see the folder of a run, which its driver holds.

    Without an address, and with `files_url`, nothing is done.

    Raises:
        ValueError: The machine, and what to do.
    """
    if resources.executor != "ray" or resources.address is None or resources.files_url is not None:
        return
    for node in view_nodes(resources, str(run_dir / DRIVER_LOCK)):
        if node.missing and node.cpus > 0:
            raise ValueError(
                f"resources.address: machine {node.host} does not have {run_dir}, where trials write; share it under "
                "the same path, or set resources.files_url"
            )


def view_nodes(resources: Resources, *paths: str) -> list[NodeView]:
    """Ask every machine of the cluster at `resources.address`.

    Args:
        resources: with the address.
        paths: of files and folders that must be there.
    """
    set_ray_environment(resources)
    from nas_kd.trials.ray_executor import ask_nodes  # after its settings

    return ask_nodes(resources, paths)


def run_trials(
    trial_fn: TrialFn,
    ledger: Ledger,
    knobs: KnobSpace,
    *,
    num_trials: int,
    run_dir: Path,
    resources: Resources | None = None,
    seed: int = 0,
    sampler: str = "tpe",
    known_costs: KnownCosts | None = None,
    work: Work | None = None,
    scheduler: RungScheduler | None = None,
    on_event: OnEvent | None = None,
    shared_files: Sequence[str] = (),
) -> Summary:
    """Run trials until the ledger holds `num_trials`; call it again to resume, or with more to go on.

    Args:
        trial_fn: The work; see `nas_kd.trials.context.TrialFn`. On Ray it travels to other processes by cloudpickle.
        ledger: Opened with `Ledger.open`.
        knobs: What to search over; may differ from an earlier run's.
        num_trials: How many the ledger shall hold in all. Failed and stopped trials count.
        run_dir: Gets one folder a trial, `trials/0003`. On several machines it must be the same path on each.
        resources: Where trials run and what each may use; by default one CPU core a trial, on Ray.
        seed: With one trial at a time, the same seed gives the same proposals, resumed or not.
        sampler: A name in `nas_kd.trials.samplers.SAMPLERS`.
        known_costs: What is known of a trial from its knobs, for samplers that can use it.
        work: What the time of a trial grows with, by which the time left is told.
        scheduler: Stops trials early; by default none is.
        on_event: Called with everything that happens, in this process.
        shared_files: Names in `run_dir` that trials read, which are copied to `resources.files_url`.

    Returns:
        How the campaign stands. After Ctrl-C it says `interrupted`, and running trials can be continued.

    Raises:
        ValueError: An argument breaks its rule, or the machines cannot hold a single trial.
        RuntimeError: A disk is full, which ends the campaign; running trials can be continued.
    """
    resources = resources or Resources()
    started = time.monotonic()
    driver = Driver(
        ledger,
        knobs,
        num_trials=num_trials,
        run_dir=run_dir,
        seed=seed,
        sampler=sampler,
        known_costs=known_costs,
        work=work,
        scheduler=scheduler,
        on_event=on_event,
        files_url=resources.files_url,
        shared_files=shared_files,
    )
    interrupted = False
    try:
        remove_leftovers(run_dir)  # of a driver that was killed
        driver.recover()
        if resources.executor == "inline":
            run_inline(driver, trial_fn, num_cpus=resources.threads, num_gpus=float(resources.use_gpus))
        elif driver.has_work():
            driver.announce("preparing", message="starting Ray, which takes up to a minute")
            set_ray_environment(resources)
            from nas_kd.trials.ray_executor import run_on_ray  # after its settings, and only where Ray is used

            run_on_ray(driver, trial_fn, resources)
    except KeyboardInterrupt:
        interrupted = True
    except Exception as error:
        full = disk_full(error)
        if full is None:
            raise
        place = full.filename or f"that of {run_dir}, or of temporary files"
        raise RuntimeError(
            f"a disk is full ({place}); free some space, and run the same command again to continue"
        ) from error
    finally:
        remove_leftovers(run_dir)
    driver.announce(
        "interrupted" if interrupted else "finished",
        message="interrupted; run the same command again to continue" if interrupted else "",
    )
    failed = [record for record in ledger.records() if record.state == "failed"]
    return Summary(
        num_trials=ledger.count("complete", "failed", "stopped", "running"),
        num_complete=ledger.count("complete"),
        num_failed=ledger.count("failed"),
        num_stopped=ledger.count("stopped"),
        failures={record.number: record.reason() or "no reason given" for record in failed},
        bytes_on_disk=bytes_on_disk(run_dir),
        elapsed_s=time.monotonic() - started,
        interrupted=interrupted,
    )
