"""Where trials find room on a cluster of Ray, looked at again while a campaign runs: machines come and go.

This module imports Ray; `import nas_kd.trials` does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.tune import Callback
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

from nas_kd.trials.packing import GpuPacking, places_of_gpu
from nas_kd.trials.resources import Resources

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

_SECONDS_BETWEEN_LOOKS = 15.0
_SECONDS_WITHOUT_TRIAL = 60.0
_SECONDS_BETWEEN_NOTES = 600.0


@dataclass(frozen=True)
class Places:
    """Where trials find room.

    Attributes:
        trials: so many at a time, as CPU cores and `max_concurrent` allow.
        gpus: of all machines.
        packing: which part of a GPU a trial gets.
    """

    trials: int
    gpus: int
    packing: GpuPacking

    def has_room(self, taken: Mapping[str, float], share: float) -> bool:
        """Whether a trial would start at once.

        Args:
            taken: the shares of the trials that run, by Tune's ids.
            share: of a GPU, that it would get.
        """
        used = sum(1 / places_of_gpu(each) for each in taken.values() if each > 0)
        needed = 1 / places_of_gpu(share) if share > 0 else 0.0
        return len(taken) < self.trials and (not needed or used + needed <= self.gpus + 1e-9)


def find_places(resources: Resources, packing: GpuPacking) -> Places:
    """Where trials find room on the machines that are there now.

    Raises:
        ValueError: There is none for a single one.
    """
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = available.get("CPU", 0.0), int(available.get("GPU", 0.0))
    trials = math.floor(cpus / resources.cpus_per_trial + 1e-9)
    for there, wanted, name in ((trials, resources.cpus_per_trial, "CPU"), (gpus, resources.gpus_per_trial, "GPU")):
        if wanted != 0 and there < 1:
            has = available.get(name, 0.0)
            asked = f"{wanted} {name}" if wanted != "auto" else "a GPU (gpus_per_trial: auto)"
            raise ValueError(f"a trial asks for {asked}, but the machines have {has:g}; ask for less in `resources`")
    return Places(trials=min(trials, resources.max_concurrent or trials), gpus=gpus, packing=packing)


def remove_abandoned_groups() -> None:
    """Free what ended drivers hold, of any campaign.

    Ray does so itself when a driver ends, but not always where the driver's machine died with it: such a group was seen
    to hold the only free core of a cluster for good.
    """
    ended = ended_jobs()
    for group in _groups():
        # As Ray has it: a group ends with its driver unless it is detached, or made by an actor, which may be detached.
        is_bound = group.creator_actor_dead and not group.is_detached
        if is_bound and group.creator_job_id.hex() in ended and group.state != group.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _groups() -> Iterator[Any]:
    """All placement groups of the cluster, as Ray's `PlacementGroupTableData`."""
    for found in state._connect_and_get_accessor().get_placement_group_table():
        yield gcs_pb2.PlacementGroupTableData.FromString(found)  # type: ignore[attr-defined]


def ended_jobs() -> set[str]:
    """Ids of the drivers that have ended."""
    jobs: list[dict[str, Any]] = state.job_table()  # type: ignore[no-untyped-call]
    return {job["JobID"] for job in jobs if job["IsDead"]}


class PlacesWatch(Callback):
    """Looks at the machines every 15 seconds while Tune runs, and says so where no trial runs for a minute.

    Args:
        resources: that a trial asks for.
        renew: called at each look, for machines that came or went.
        note: says a sentence to the user.
    """

    def __init__(self, resources: Resources, renew: Callable[[], None], note: Callable[[str], None]) -> None:
        self._resources = resources
        self._renew = renew
        self._note = note
        self._last_look = self._last_running = time.monotonic()
        self._last_note = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the searcher."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look, where it is time."""
        now = time.monotonic()
        if any(trial.status == trial.RUNNING for trial in reversed(trials)):  # the last ones are the likeliest
            self._last_running = now
        if now - self._last_look < _SECONDS_BETWEEN_LOOKS:
            return
        self._last_look = now
        remove_abandoned_groups()
        self._renew()
        seconds = now - self._last_running
        if seconds >= _SECONDS_WITHOUT_TRIAL and now - self._last_note >= _SECONDS_BETWEEN_NOTES:
            self._last_note = now
            self._note(f"no trial has run for {seconds:.0f} s: {_room(self._resources)}")


def _room(resources: Resources) -> str:
    """Why no trial runs: what one asks for and what is free, or that processes are being started."""
    own = ray.get_runtime_context().get_job_id()
    if starting := sum(group.creator_job_id.hex() == own and group.state == group.CREATED for group in _groups()):
        processes = "the process of 1 is" if starting == 1 else f"the processes of {starting} are"
        return f"{processes} starting, which takes minutes on a busy machine"
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    machines = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    answer = "1 machine that answers" if machines == 1 else f"{machines} machines that answer"
    asked, found = [f"{resources.cpus_per_trial:g} CPU"], [f"{free.get('CPU', 0.0):g} of {there.get('CPU', 0.0):g} CPU"]
    if resources.gpus_per_trial != 0:
        share = resources.gpus_per_trial
        asked.append("a part of a GPU" if share == "auto" else f"{share:g} GPU")
        found.append(f"{free.get('GPU', 0.0):g} of {there.get('GPU', 0.0):g} GPU")
    return (
        f"one asks for {' and '.join(asked)}, and {' and '.join(found)} are free on {answer}; "
        "`ray status` shows what holds them, and the campaign goes on once there is room"
    )
