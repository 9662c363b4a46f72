"""TensorBoard: event files in `tensorboard/` of the run's folder, a folder a trial and one for the front."""

from __future__ import annotations

from collections.abc import Mapping

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from nas_kd.trials.record import KnobValue, TrialRecord
from nas_kd.trials.trackers.tracker import Place

FOLDER = "tensorboard"
FRONT = "front"


class TensorBoard:
    """Writes event files. The hyperparameters of a trial come with its results, when it ends.

    Args:
        place: of the campaign.
    """

    def __init__(self, place: Place) -> None:
        self._folder = place.run_dir / FOLDER
        self._writers: dict[str, SummaryWriter] = {}

    def begin(self, number: int, knobs: Mapping[str, KnobValue]) -> None:
        """Curves begin anew: they are read again from the trial's log where it goes on."""
        self._writer(f"{number:04d}", purge_step=0)

    def curve(self, number: int, values: Mapping[str, float], step: int) -> None:
        """A point of each curve."""
        self._write(self._writer(f"{number:04d}"), values, step)

    def end(self, record: TrialRecord, results: Mapping[str, float]) -> None:
        """The last values, and the row of the table of hyperparameters."""
        name = f"{record.number:04d}"
        writer = self._writer(name)
        self._write(writer, results, 0)
        for summary in hparams(dict(record.knobs), dict(results)):
            writer.file_writer.add_summary(summary)
        self._writers.pop(name).close()

    def front(self, values: Mapping[str, float], num_ended: int) -> None:
        """A point of each curve of the campaign."""
        self._write(self._writer(FRONT), values, num_ended)

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, name: str, **options: int) -> SummaryWriter:
        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self._folder / name), **options)
        return self._writers[name]

    def _write(self, writer: SummaryWriter, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()
