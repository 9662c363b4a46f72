"""Latencies of a front in several runtimes, `bench.json` of a run: the table, and whether FLOPs order them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nas_kd.analysis.cells import Cell, Table, latency_cell, number_cell
from nas_kd.analysis.latencies import Latency, busy_sentence
from nas_kd.analysis.statistics import MIN_PAIRS, rank_correlation
from nas_kd.analysis.text import count, si

BENCH_NAME = "bench.json"
Runtime = Literal["eager", "compiled", "onnx"]
_WORDS: dict[str, str] = {"eager": "PyTorch", "compiled": "PyTorch, compiled", "onnx": "ONNX Runtime"}


class BenchRow(Latency):
    """Latency of a student in a runtime, at batch 1; of a stream (key frame + (K − 1) · delta frame) / K, as for its
    FLOPs, with the state carried.

    Attributes:
        trial: of the student.
        flops: that it costs.
        runtime: `eager`, `compiled` or `onnx`.
        threads: that it had.
    """

    trial: int
    flops: int
    runtime: Runtime
    threads: int


class Skipped(BaseModel):
    """Students that a runtime could not run.

    Attributes:
        runtime: `eager`, `compiled` or `onnx`.
        reason: that it gave.
        trials: of the students.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Runtime
    reason: str
    trials: tuple[int, ...]

    @property
    def sentence(self) -> str:
        """`ONNX Runtime was skipped for trials 1 and 3: no such operator.`"""
        *others, last = map(str, self.trials)
        which = f"trials {', '.join(others)} and {last}" if others else f"trial {last}"
        return f"{_WORDS[self.runtime]} was skipped for {which}: {self.reason.rstrip('.')}."


class Bench(BaseModel):
    """What `bench.json` holds.

    Attributes:
        environment: hardware and versions.
        passes: of each student in each runtime, at most.
        waited_share: share of the time in which the process did not run, because others did.
        rows: the latencies.
        skipped: what did not run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Mapping[str, str]
    passes: int
    waited_share: float
    rows: tuple[BenchRow, ...]
    skipped: tuple[Skipped, ...]

    @property
    def columns(self) -> list[tuple[Runtime, int]]:
        """(runtime, threads) of all rows, as they were measured."""
        return list(dict.fromkeys((row.runtime, row.threads) for row in self.rows))

    def table(self) -> Table:
        """A row for each student by increasing FLOPs, a column for each runtime and number of threads."""
        found = {(row.trial, row.runtime, row.threads): row for row in self.rows}
        costs = sorted({(row.flops, row.trial) for row in self.rows})
        rows = []
        for flops, trial in costs:
            cells = [Cell(str(trial)), number_cell(si(flops, trim=False))]
            for runtime, threads in self.columns:
                row = found.get((trial, runtime, threads))
                cells.append(latency_cell(row))
            rows.append(cells)
        headers = [f"{_where(*column)}, ms" for column in self.columns]
        return Table(["trial", "FLOPs", *headers], rows)

    def sentences(self) -> list[str]:
        """What the columns say together: the order by FLOPs and by time, and what was left out."""
        said = []
        for runtime, threads in self.columns:
            rows = [row for row in self.rows if (row.runtime, row.threads) == (runtime, threads)]
            where = _where(runtime, threads)
            agreement = rank_correlation([float(row.flops) for row in rows], [row.ms for row in rows])
            if agreement.kendall is None or agreement.num_pairs < MIN_PAIRS:
                few = f"{count(len(rows), 'student')} {'is' if len(rows) == 1 else 'are'}"
                said.append(f"{where}: {few} too few for a rank correlation of FLOPs and time.")
            else:
                said.append(
                    f"{where}: rank correlation of FLOPs and time: Kendall's tau {agreement.kendall:.2f}, Spearman's "
                    f"rho {agreement.spearman:.2f} over {agreement.num_pairs} students."
                )
        said += [each.sentence for each in self.skipped]
        if busy := busy_sentence(self.waited_share):
            said.append(busy)
        return said


def _where(runtime: str, threads: int) -> str:
    return f"{_WORDS[runtime]}, {count(threads, 'thread')}"


def read_bench(run_dir: Path | str) -> Bench | None:
    """The latencies of a run; None where none were measured, or the file is damaged."""
    try:
        return Bench.model_validate_json((Path(run_dir) / BENCH_NAME).read_bytes())
    except (OSError, ValidationError):
        return None
