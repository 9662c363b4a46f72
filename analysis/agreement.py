"""Whether a trial that was run again gave what its record says: value by value, and why it may not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich.table import Table

from nas_kd.analysis.text import MISSING, count, flops_label, in_percent, metric_text, range_text
from nas_kd.trials.record import Metric, Split, Stage, TrialRecord

ROUNDING = 1e-4  # two numbers that differ by less, of their size or of 1 where that is more, are equal within rounding

Verdict = Literal["bit by bit", "within rounding", "different"]

_STAGES: dict[Stage, str] = {
    "gated": ", supernet with its gates",
    "derived": ", weights of the supernet",
    "retrained": "",
}
_SPLITS: dict[Split, str] = {"val": "validation", "test": "test"}
_COSTS = {
    "params": "parameters",
    "keyframe_flops": "FLOPs of a key frame",
    "delta_flops": "FLOPs of a frame after it",
    "keyframe_interval": "frames from one key frame to the next",
    "state_bytes": "state between frames, bytes",
}  # latencies are measured anew in each trial, so they are not compared


@dataclass(frozen=True)
class WeightsCompared:
    """The weights that a record's trial left, and those of the trial that was run again.

    Attributes:
        tensors: how many the student has.
        numbers: in all of them.
        largest: the largest of the recorded ones, without its sign.
        difference: the largest one between two numbers; None where names or shapes differ.
    """

    tensors: int
    numbers: int
    largest: float
    difference: float | None


@dataclass(frozen=True)
class Row:
    """One value of a record beside the one that was reproduced.

    Attributes:
        name: what it is, with its unit.
        recorded: the value.
        reproduced: the value; None where there is none.
        difference: between two numbers; None of what is no number.
        is_equal: whether both are the same, to the last bit.
        is_close: whether they are within `ROUNDING`; of what is counted or named, whether they are the same.
        in_percent: whether it is a share of 1 that is written in percent.
        is_detail: whether tables show it only where it differs: secondary metrics, what was measured on the way to the
            trained student, and single trainings of several.
    """

    name: str
    recorded: float | int | str
    reproduced: float | int | str | None
    difference: float | None
    is_equal: bool
    is_close: bool
    in_percent: bool = False
    is_detail: bool = False

    def texts(self) -> tuple[str, str, str, str]:
        """Name, both values and their difference, as a table shows them."""
        return self.name, self._text(self.recorded), self._text(self.reproduced), self._difference()

    def _text(self, value: float | int | str | None) -> str:
        if isinstance(value, float):
            return f"{100 * value:.2f} %" if self.in_percent else f"{value:.6g}"
        return MISSING if value is None else f"{value:,}" if isinstance(value, int) else value

    def _difference(self) -> str:
        if self.is_equal:
            return "0" if self.difference is not None else "none"
        if self.difference is None:
            return "differs"
        if isinstance(self.recorded, str):
            return f"{self.difference:.2g}"
        if isinstance(self.recorded, int):
            return f"{self.difference:+,.0f}".replace("-", "−")
        scale, unit = (100, " points") if self.in_percent else (1, "")
        return f"{scale * self.difference:+.2g}{unit}".replace("-", "−")


@dataclass(frozen=True)
class Agreement:
    """A record held against that of the trial which was run again.

    Attributes:
        trial: its number.
        rows: what was compared.
        environment: what of the record's environment is another now -> (then, now).
        remarks: sentences on a difference: where it arose, and whether it is large beside the record's intervals.
    """

    trial: int
    rows: tuple[Row, ...]
    environment: Mapping[str, tuple[str, str]]
    remarks: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Whether all values are equal to the last bit, equal within `ROUNDING`, or different."""
        if all(row.is_equal for row in self.rows):
            return "bit by bit"
        return "within rounding" if all(row.is_close for row in self.rows) else "different"

    @property
    def is_reproduced(self) -> bool:
        """Whether the trial gave what its record says, to the last bit or within rounding."""
        return self.verdict != "different"

    def sentences(self) -> list[str]:
        """The verdict and what it may come from."""
        others = [row for row in self.rows if not row.is_equal]
        compared = f"{len(self.rows) - len(others)} of {count(len(self.rows), 'value')}"
        if self.verdict == "bit by bit":
            said = f"equal bit by bit: trial {self.trial} gives what its record says in all {len(self.rows)} values"
        elif self.verdict == "within rounding":
            said = (
                f"equal within rounding: {compared} are the same to the last bit, and no number differs by more than "
                f"{ROUNDING:g} of its size (of 1 where it is smaller)"
            )
        else:
            far = [row.name for row in self.rows if not row.is_close]
            shown = "; ".join(far[:4]) + (f"; and {len(far) - 4} more" if len(far) > 4 else "")
            said = f"different: trial {self.trial} does not give what its record says ({shown})"
            return [said, *self.remarks, *self._reasons()]
        return [said, *self._reasons()]

    def _reasons(self) -> Iterator[str]:
        listed = "; ".join(f"{name}: {then} then, {now} now" for name, (then, now) in self.environment.items())
        if listed and self.verdict == "bit by bit":
            yield f"although the environment is another one ({listed})"
        elif listed:
            yield f"the environment is another one, which may explain it ({listed})"
        elif self.verdict != "bit by bit":
            yield (
                "nothing that the record holds of its environment has changed; other libraries, code of your own, "
                "files of the run that were written over, or sums that a GPU takes in another order each time may "
                "explain it"
            )

    def table(self) -> Table:
        """The values side by side, without details that are equal."""
        hidden = sum(row.is_detail and row.is_equal for row in self.rows)
        caption = f"not shown, since equal to the last bit: {count(hidden, 'further value')}" if hidden else None
        table = Table("", "recorded", "reproduced", "difference", caption=caption, caption_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in self.rows:
            if not (row.is_detail and row.is_equal):
                table.add_row(*row.texts())
        return table

    def as_dict(self) -> dict[str, Any]:
        """As JSON, numbers as they are."""
        return {
            "trial": self.trial,
            "verdict": self.verdict,
            "sentences": self.sentences(),
            "values": [asdict(row) for row in self.rows],
            "environment": {name: {"then": then, "now": now} for name, (then, now) in self.environment.items()},
        }


def compare_records(
    recorded: TrialRecord,
    reproduced: TrialRecord,
    weights: WeightsCompared | None,
    settings: tuple[str, str] | None = None,
) -> Agreement:
    """Hold a record against that of the same trial, run again: architecture, costs, all metrics, weights.

    Args:
        recorded: of a complete trial.
        reproduced: of that trial, run again.
        weights: of both; None where the run does not keep those of the record.
        settings: the hashes of the settings then and as they are read now, where these differ.
    """
    chosen = _named("architecture", recorded.arch_id or MISSING, reproduced.arch_id or MISSING)
    before = [row for stage in _STAGES if stage != "retrained" for row in _metrics(recorded, reproduced, stage)]
    costs, trained = list(_costs(recorded, reproduced)), list(_metrics(recorded, reproduced, "retrained"))
    rows = [chosen, *costs, *before, *trained, *_repeats(recorded, reproduced)]
    if weights is not None:
        rows.append(_weights(weights))
    remarks = []
    if before and all(row.is_close for row in (chosen, *costs, *before)):
        remarks.append(
            "architecture, costs and what was measured before the student's training are equal within rounding, so the "
            "difference arose in that training"
        )
    remarks += _beside_intervals(recorded, reproduced)
    environment = {
        name: (recorded.environment.get(name, "not recorded"), now)
        for name, now in reproduced.environment.items()
        if recorded.environment.get(name) != now
    }
    if settings is not None:
        environment["hash of the settings"] = settings
    return Agreement(recorded.number, tuple(rows), environment, tuple(remarks))


def _metrics(recorded: TrialRecord, reproduced: TrialRecord, stage: Stage) -> Iterator[Row]:
    """All metrics of a stage."""
    for split, metrics in recorded.metrics.get(stage, {}).items():
        found = reproduced.metrics.get(stage, {}).get(split, {})
        for name, value in metrics.items():
            label = f"{_SPLITS[split]} {name}{_STAGES[stage]}"
            row = _measured(label, value, found.get(name), recorded.metric, name)
            yield replace(row, is_detail=stage != "retrained" or name != recorded.metric.name)


def _beside_intervals(recorded: TrialRecord, reproduced: TrialRecord) -> Iterator[str]:
    """Whether the main metric lies in the record's intervals, which other items would move it within."""
    metric = recorded.metric
    for split, words in _SPLITS.items():
        known, now = recorded.evaluated.get(split), reproduced.score(split, "retrained")
        if known is None or known.low is None or known.high is None or now is None:
            continue
        lies = "within" if known.low <= now <= known.high else "outside"
        yield (
            f"the {words} {metric.name} now, {metric_text(now, metric)}, lies {lies} the record's 95 % interval over "
            f"the items of the split, {range_text(known.low, known.high, metric)}"
        )


def _costs(recorded: TrialRecord, reproduced: TrialRecord) -> Iterator[Row]:
    """Costs that are counted, and the latency that the campaign's table predicts."""
    own, other = recorded.cost, reproduced.cost
    assert own is not None, "a complete trial has its cost"
    for field, name in {"flops": flops_label([recorded]), **_COSTS}.items():
        value = getattr(own, field)
        if value is not None:
            found = getattr(other, field, None)
            difference = None if found is None else float(found - value)
            yield Row(name, value, found, difference, found == value, found == value)
    if own.predicted_latency_ms is not None:
        then, now = own.predicted_latency_ms, getattr(other, "predicted_latency_ms", None)
        difference = None if now is None else now - then
        yield Row("predicted latency, ms", then, now, difference, then == now, then == now)


def _named(name: str, recorded: str, reproduced: str) -> Row:
    return Row(name, recorded, reproduced, None, recorded == reproduced, recorded == reproduced)


def _measured(name: str, recorded: float, reproduced: float | None, metric: Metric, metric_name: str) -> Row:
    """A metric; one that was not measured again is no equal one."""
    percent = in_percent(metric.model_copy(update={"name": metric_name})) and abs(recorded) <= 1
    if reproduced is None:
        return Row(name, recorded, None, None, False, False, percent)
    difference = reproduced - recorded
    return Row(
        name, recorded, reproduced, difference, difference == 0, _is_close(difference, recorded, reproduced), percent
    )


def _repeats(recorded: TrialRecord, reproduced: TrialRecord) -> Iterator[Row]:
    """Each training of a trial that has several."""
    for path, values in recorded.repeats.items():
        _, split, name = path.split("/", 2)
        found = reproduced.repeats.get(path, ())
        for i, value in enumerate(values):
            now = found[i] if i < len(found) else None
            words = _SPLITS["val" if split == "val" else "test"]
            row = _measured(f"{words} {name}, training {i + 1}", value, now, recorded.metric, name)
            yield replace(row, is_detail=True)


def _weights(compared: WeightsCompared) -> Row:
    text = f"{compared.numbers:,} in {count(compared.tensors, 'tensor')}"
    name = "weights, largest difference"
    if compared.difference is None:
        return Row(name, text, "other shapes", None, False, False)
    is_close = _is_close(compared.difference, compared.largest)
    return Row(name, text, text, compared.difference, compared.difference == 0, is_close)


def _is_close(difference: float, *values: float) -> bool:
    return abs(difference) <= ROUNDING * max(1.0, *(abs(value) for value in values))
