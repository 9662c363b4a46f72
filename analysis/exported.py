"""What exports of a run measured: `verification.json` of each bundle below `export` in the run's folder.

Files of less precision are students of their own for whoever runs them: the same FLOPs, another metric, size and
latency. They stand beside the front and are no part of it, since trials are chosen by what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nas_kd.analysis.axes import Axis
from nas_kd.analysis.cells import Cell, Table, latency_cell, number_cell
from nas_kd.analysis.figures import metric_label
from nas_kd.analysis.latencies import Latency, busy_sentence
from nas_kd.analysis.references import ReferencePoint
from nas_kd.analysis.text import MISSING, count, metric_text, range_text, si
from nas_kd.trials.record import TrialRecord

FOLDER, RECORD_NAME = "export", "verification.json"
LESS_PRECISE = "file of less precision"
_WORDS = {"safetensors": "PyTorch", "pt2": "torch.export", "onnx": "ONNX", "onnx-int8": "ONNX, int8"}
_WORDS |= {"onnx-fp16": "ONNX, fp16"}


class _Model(BaseModel):
    """A part of the file; what the report does not show is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _File(_Model):
    file: str
    bytes: int
    is_exact: bool = True


class _Measured(_Model):
    low: float | None = None
    high: float | None = None


class _Form(_Model):
    backend: str
    files: tuple[str, ...]
    metric: str
    metrics: Mapping[str, float]
    measured: _Measured


class _Latencies(_Model):
    threads: int
    waited_share: float
    forms: Mapping[str, Latency]


class _Record(_Model):
    arch_id: str
    trial: int | None = None
    parity: tuple[_File, ...]
    validation: tuple[_Form, ...] = ()
    latency: _Latencies | None = None


@dataclass(frozen=True)
class ExportedForm:
    """One form of an exported student, measured on the validation split.

    Attributes:
        record: of its trial.
        form: what runs it, such as `ONNX, int8`.
        size: bytes of its files.
        value: of the primary metric.
        low: of its 95 % interval over items; None where there is none.
        high: of the same.
        is_exact: whether it computes what was trained.
        latency: None where it was not measured.
    """

    record: TrialRecord
    form: str
    size: int
    value: float
    low: float | None
    high: float | None
    is_exact: bool
    latency: Latency | None


@dataclass(frozen=True)
class Exported:
    """The forms of all students of a run that were exported and measured.

    Attributes:
        forms: by trial.
        note: how the latencies were measured.
    """

    forms: tuple[ExportedForm, ...]
    note: str

    def points(self, axis: Axis) -> tuple[ReferencePoint, ...]:
        """The forms of less precision as points beside the front."""
        found = []
        for form in self.forms:
            cost = axis.of(form.record)
            if not form.is_exact and axis.is_cost and cost is not None:
                name = f"{form.record.number}: {form.form}"
                found.append(ReferencePoint(name, float(cost), form.value, LESS_PRECISE))
        return tuple(found)

    def table(self) -> Table:
        """A row for each form."""
        label = metric_label(self.forms[0].record.metric, "val")
        headers = ["trial", "form", "FLOPs", "size", label, "95 % interval", "latency, ms"]
        rows = []
        for form in self.forms:
            metric, cost = form.record.metric, form.record.cost
            interval = MISSING if form.low is None or form.high is None else range_text(form.low, form.high, metric)
            rows.append(
                [
                    Cell(str(form.record.number)),
                    Cell(form.form),
                    number_cell(MISSING if cost is None else si(cost.flops, trim=False)),
                    number_cell(f"{form.size / 1000:,.0f} kB"),
                    number_cell(metric_text(form.value, metric)),
                    number_cell(interval),
                    latency_cell(form.latency),
                ]
            )
        return Table(headers, rows)


def read_exported(run_dir: Path | str, records: Sequence[TrialRecord]) -> Exported | None:
    """What the exports of a run measured; None without any. Damaged files, and exports of other students, are left out.

    Args:
        run_dir: the run's folder.
        records: its trials.
    """
    trials = {record.number: record for record in records if record.state == "complete"}
    forms: dict[tuple[int, str], ExportedForm] = {}
    measured: list[_Latencies] = []
    for path in sorted((Path(run_dir) / FOLDER).rglob(RECORD_NAME)):
        try:
            found = _Record.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        record = trials.get(found.trial) if found.trial is not None else None
        if record is None or record.arch_id != found.arch_id:
            continue
        if found.latency is not None:
            measured.append(found.latency)
        for form in _forms(found, record):
            forms[record.number, form.form] = form  # of one student exported twice, the last one by name
    if not forms:
        return None

    def order(key: tuple[int, str]) -> tuple[int, bool, bool, str]:
        """By trial; what computes exactly what was trained first, and of this the weights."""
        number, form = key
        return number, not forms[key].is_exact, form != _WORDS["safetensors"], form

    threads = [count(number, "thread") for number in sorted({each.threads for each in measured})]
    waited = max((each.waited_share for each in measured), default=0.0)
    note = f"Latency at batch 1 on the CPU of the machine that exported, {' or '.join(threads)}." if threads else ""
    return Exported(tuple(forms[key] for key in sorted(forms, key=order)), f"{note} {busy_sentence(waited)}".strip())


def _forms(found: _Record, record: TrialRecord) -> list[ExportedForm]:
    files = {entry.file: entry for entry in found.parity}
    made = []
    for form in found.validation:
        if form.metric != record.metric.name or form.metric not in form.metrics:
            continue
        known = [files[name] for name in form.files if name in files]
        made.append(
            ExportedForm(
                record=record,
                form=_WORDS.get(form.backend, form.backend),
                size=sum(entry.bytes for entry in known),
                value=form.metrics[form.metric],
                low=form.measured.low,
                high=form.measured.high,
                is_exact=all(entry.is_exact for entry in known),
                latency=None if found.latency is None else found.latency.forms.get(form.backend),
            )
        )
    return made
