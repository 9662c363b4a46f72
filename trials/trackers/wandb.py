"""Weights & Biases: a group a campaign, a run a trial. Project, login and mode are in its environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb

from nas_kd.trials.record import KnobValue, TrialRecord
from nas_kd.trials.trackers.tracker import Place

PROJECT = "nas-kd"  # where WANDB_PROJECT names none
_EXIT_CODES = {"complete": 0, "stopped": 0, "failed": 1}


class WeightsAndBiases:
    """Logs to the project that WANDB_PROJECT names.

    Args:
        place: of the campaign; its name is that of the group.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._project = wandb.Settings().project or PROJECT
        self._runs: dict[int | None, Any] = {}

    def begin(self, number: int, knobs: Mapping[str, KnobValue]) -> None:
        """Open the run of a trial, or go on with it."""
        self._run(number).config.update(dict(knobs), allow_val_change=True)

    def curve(self, number: int, values: Mapping[str, float], step: int) -> None:
        """A point of each curve, over the epoch of its stage."""
        self._run(number).log({**values, "epoch": step})

    def end(self, record: TrialRecord, results: Mapping[str, float]) -> None:
        """The last values."""
        run = self._run(record.number)
        run.summary.update({**results, "state": record.state})
        del self._runs[record.number]
        run.finish(exit_code=_EXIT_CODES[record.state])

    def front(self, values: Mapping[str, float], num_ended: int) -> None:
        """A point of each curve of the campaign's own run."""
        self._run(None).log({**values, "trials": num_ended})

    def close(self) -> None:
        """Upload what is left."""
        for run in self._runs.values():
            run.finish()
        self._runs.clear()

    def _run(self, number: int | None) -> Any:
        if number not in self._runs:
            self._runs[number] = wandb.init(
                project=self._project,
                group=self._place.name,
                name="campaign" if number is None else f"trial {number:04d}",
                id=self._place.id_of(number),
                resume="allow",
                reinit="create_new",  # trials run beside each other
                dir=str(self._place.run_dir),
                settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
            )
        return self._runs[number]
