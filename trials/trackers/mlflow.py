"""MLflow: an experiment a campaign, a run a trial. Server and login are those of MLflow's environment variables."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from nas_kd.trials.record import KnobValue, TrialRecord
from nas_kd.trials.trackers.tracker import Place

_TAG = "nas_kd.id"
_STATES = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_MOST_PARAMS = 100  # of one request


class MLflow:
    """Logs to the server that MLFLOW_TRACKING_URI names; without it, where MLflow keeps its files.

    Args:
        place: of the campaign; its name is that of the experiment.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(place.name)
        self._experiment = self._client.create_experiment(place.name) if found is None else found.experiment_id
        self._runs: dict[int | None, str] = {}

    def begin(self, number: int, knobs: Mapping[str, KnobValue]) -> None:
        """Open the run of a trial, or go on with it."""
        run = self._run(number)
        params = [Param(name, str(value)) for name, value in knobs.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(run, params=params[start : start + _MOST_PARAMS])

    def curve(self, number: int, values: Mapping[str, float], step: int) -> None:
        """A point of each curve."""
        self._write(number, values, step)

    def end(self, record: TrialRecord, results: Mapping[str, float]) -> None:
        """The last values."""
        self._write(record.number, results, 0)
        self._client.set_terminated(self._runs.pop(record.number), _STATES[record.state])

    def front(self, values: Mapping[str, float], num_ended: int) -> None:
        """A point of each curve of the campaign's own run."""
        self._write(None, values, num_ended)

    def close(self) -> None:
        """End the campaign's own run; those of trials that go on later stay open."""
        if None in self._runs:
            self._client.set_terminated(self._runs.pop(None))

    def _run(self, number: int | None) -> str:
        if number not in self._runs:
            own = self._place.id_of(number)
            found = self._client.search_runs([self._experiment], f"tags.`{_TAG}` = '{own}'", max_results=1)
            if found:
                self._runs[number] = found[0].info.run_id
                self._client.update_run(found[0].info.run_id, status="RUNNING")
            else:
                name = "campaign" if number is None else f"trial {number:04d}"
                tags = {_TAG: own, "nas_kd.run_dir": str(self._place.run_dir)}
                self._runs[number] = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        return self._runs[number]

    def _write(self, number: int | None, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name.replace("@", " at "), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run(number), metrics=metrics)
