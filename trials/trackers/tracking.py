"""From what a campaign announces to its trackers: calls in a thread for each, errors as sentences."""

from __future__ import annotations

import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from nas_kd.trials.events import Event, OnEvent
from nas_kd.trials.files import trial_directory
from nas_kd.trials.passwords import MASK, masked
from nas_kd.trials.progress import FrontVolume
from nas_kd.trials.record import TrialRecord
from nas_kd.trials.trackers.tracker import Place, Tracker

LOG_NAME = "log.jsonl"  # of a trial: a line an epoch
_SECONDS_TO_CLOSE = 20.0  # for all trackers together
_MOST_WAITING = 10_000  # calls, of a server that does not answer
_SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)

Call = Callable[[Tracker], None]


class Tracking:
    """Tells trackers what happens; use it as `on_event` of `run_trials`, inside its `with` block.

    Args:
        makers: name of each tracker -> what makes it.
        place: of the campaign.
        records: of trials that ended before this run.
        hypervolume: records -> the share of a box that their front dominates.
        on_event: called with every event, and with one for each tracker that is left out.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[Place], Tracker]],
        place: Place,
        records: Sequence[TrialRecord],
        hypervolume: Callable[[Sequence[TrialRecord]], float | None],
        on_event: OnEvent | None = None,
    ) -> None:
        self._threads = [_Thread(name, partial(make, place)) for name, make in makers.items()]
        self._run_dir = place.run_dir
        self._on_event = on_event or (lambda event: None)
        self._volume = FrontVolume(hypervolume, records)
        self._read: dict[int, int] = {}  # bytes of each trial's log that the trackers know
        self._last = Event("begun", 0, 0)

    def __enter__(self) -> Tracking:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait a while for what is still to be told."""
        until = time.monotonic() + _SECONDS_TO_CLOSE
        for thread in self._threads:
            thread.tell(None)
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))
            if thread.is_alive():
                thread.failed = f"did not answer for {_SECONDS_TO_CLOSE:.0f} s"
        self._say_failures()

    def __call__(self, event: Event) -> None:
        """Tell the trackers, and pass the event on."""
        self._last = event
        number = event.number
        if self._threads and number is not None:
            if event.kind in ("started", "continued", "retried"):
                self._read[number] = 0
                self._tell(lambda tracker: tracker.begin(number, event.knobs))
            self._tell_curves(number)
            if event.record is not None:
                self._tell_end(event.record, event.num_ended)
        self._on_event(event)
        self._say_failures()

    def _tell_curves(self, number: int) -> None:
        """The whole lines that have come to the log of a trial since it was read last."""
        log = trial_directory(self._run_dir, number) / LOG_NAME
        for values, step in self._new_lines(log, number):
            self._tell(lambda tracker, values=values, step=step: tracker.curve(number, values, step))  # type: ignore[misc]

    def _new_lines(self, log: Path, number: int) -> list[tuple[dict[str, float], int]]:
        begin = self._read.setdefault(number, 0)
        try:
            if log.stat().st_size <= begin:
                return []
            with log.open("rb") as file:
                file.seek(begin)
                text = file.read()
        except OSError:  # there is none yet
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read[number] = begin + len(whole)
        found = []
        for line in whole.splitlines():
            try:
                content = json.loads(line)
                stage, epoch = content.pop("stage"), int(content.pop("epoch"))
            except (ValueError, KeyError, TypeError, AttributeError):  # it was cut
                continue
            found.append(({f"{stage}/{name}": float(value) for name, value in _numbers(content).items()}, epoch))
        return found

    def _tell_end(self, record: TrialRecord, num_ended: int) -> None:
        results = results_of(record)
        self._tell(lambda tracker: tracker.end(record, results))
        if record.state != "complete":
            return
        self._volume.add(record)
        volume = self._volume.measured()
        if volume is not None:
            self._tell(lambda tracker: tracker.front({"hypervolume": volume}, num_ended))

    def _tell(self, call: Call) -> None:
        for thread in self._threads:
            thread.tell(call)

    def _say_failures(self) -> None:
        for thread in self._threads:
            if thread.failed is not None and not thread.is_told:
                thread.is_told = True
                text = f"tracker {thread.name} is left out from now on: {thread.failed}"
                self._on_event(Event("noted", self._last.num_ended, self._last.num_trials, message=text))


class _Thread(threading.Thread):
    """Makes calls to one tracker, one after the other, until one fails."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        super().__init__(name=name, daemon=True)  # a call that hangs does not keep the process
        self.failed: str | None = None
        self.is_told = False
        self._make = make
        self._calls: queue.Queue[Call | None] = queue.Queue(_MOST_WAITING)

    def tell(self, call: Call | None) -> None:
        """Queue a call; None closes the tracker."""
        if self.failed is not None:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self.failed = f"it is {_MOST_WAITING:,} messages behind"

    def run(self) -> None:
        try:
            tracker = self._make()
            while self.failed is None and (call := self._calls.get()) is not None:
                call(tracker)
            tracker.close()
        except Exception as error:  # whatever a library or its server raises
            self.failed = _sentence(error)


def results_of(record: TrialRecord) -> dict[str, float]:
    """The numbers of a record: metrics as `stage/split/name`, costs as `cost/name`, seconds as `seconds/stage`."""
    found = {
        f"{stage}/{split}/{name}": value
        for stage, splits in record.metrics.items()
        for split, metrics in splits.items()
        for name, value in metrics.items()
    }
    if record.cost is not None:
        found |= {f"cost/{name}": value for name, value in _numbers(record.cost.model_dump()).items()}
    found |= {f"seconds/{name}": value for name, value in record.durations_s.items()}
    return {name: float(value) for name, value in _numbers(found).items()}


def _numbers(values: Mapping[str, object]) -> dict[str, int | float]:
    """Those of the values that are finite numbers."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _sentence(error: Exception) -> str:
    """The first line of an error, without passwords."""
    lines = str(error).strip().splitlines()
    text = masked(lines[0] if lines else type(error).__name__)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) > 3:
            text = text.replace(value, MASK)
    return text
