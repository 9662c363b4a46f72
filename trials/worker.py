"""What runs in a worker process of Ray. It imports nothing of the study: a worker needs no Optuna."""

from __future__ import annotations

import math
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import cloudpickle, tune

from nas_kd.trials.context import Report, Shortage, TrialFn, TrialStopped
from nas_kd.trials.execution import Assignment, run_assignment
from nas_kd.trials.files import disk_full
from nas_kd.trials.record import TrialRecord

_SECONDS_BETWEEN_PROGRESS = 0.5
_SECONDS_TO_STOP = 30.0


@dataclass(frozen=True)
class Request:
    """What a trial of Tune asks Ray for.

    Attributes:
        cpus: cores; the share of a GPU is that of the trial.
    """

    cpus: float

    def __call__(self, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        """By the config that the searcher gave the trial."""
        return tune.PlacementGroupFactory([{"CPU": self.cpus, "GPU": config["share"]}])


class _Run:
    """A trial function in a thread, one report at a time.

    Tune pulls results; a trial function pushes reports. A report with values waits in its thread until Tune pulls
    again, which is its consent to go on, so that a trial does not train past the rung it is stopped at.
    """

    def __init__(self, assignment: Assignment, trial_fn: TrialFn, num_cpus: int, num_gpus: float) -> None:
        self._messages: queue.Queue[Report | TrialRecord | Shortage | BaseException] = queue.Queue()
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

    def next_message(self) -> Report | TrialRecord | Shortage | OSError:
        """Let the trial run until its next report, its end, or the error of a full disk."""
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


class TrialActor(tune.Trainable):
    """A process that runs one trial after the other."""

    def setup(self, config: dict[str, Any], **parameters: Any) -> None:
        num_cpus = int(parameters["num_cpus"])
        # Before the trial function is loaded, since that imports torch, which reads these when it is loaded.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(num_cpus)
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        # What the driver can import, the trial function may refer to.
        sys.path.extend(entry for entry in parameters["python_path"] if entry not in sys.path)
        self._trial_fn: TrialFn = cloudpickle.loads(parameters["payload"])
        self._num_cpus = num_cpus
        self._share: float = config["share"]  # a process is used again for trials with the same share only
        self._assignment: Assignment = config["assignment"]
        self._run: _Run | None = None

    def step(self) -> dict[str, Any]:
        if self._run is None:
            # Not earlier: a process that dies while Tune sets it up or resets it is counted by Tune as two failures.
            self._run = _Run(self._assignment, self._trial_fn, self._num_cpus, self._share)
        message = self._run.next_message()
        if isinstance(message, TrialRecord):
            return {"record": message.to_json(), "done": True}
        if isinstance(message, Shortage):
            return {"shortage": message, "done": True}
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
