"""The context that a trial function receives, and its reports to the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nas_kd.trials.record import KnobValue, TrialRecord

RECORD_NAME = "record.json"

# Diagnostics that a trial function on a GPU tells; the second where nobody shared the GPU.
GPU_PEAK = "gpu/peak_bytes"  # what the trial took at most
GPU_USABLE = "gpu/usable_bytes"  # of the GPU, without what others hold


class TrialStopped(BaseException):
    """Raised by `TrialContext.report` where the scheduler stops the trial.

    Let it pass. It is no `Exception`, so that a broad `except Exception` does not swallow it; `finally` and `with`
    clean up as usual.
    """


class OutOfGpuMemoryError(Exception):
    """Raised by a trial function whose GPU has too little memory left. On a GPU that it shares, it runs again alone.

    Args:
        message: a sentence.
        peak_bytes: what it had taken of the GPU.
    """

    def __init__(self, message: str, peak_bytes: float) -> None:
        super().__init__(message)
        self.peak_bytes = peak_bytes


@dataclass(frozen=True)
class Shortage:
    """A trial ran out of the memory of a GPU that it shared.

    Attributes:
        peak_bytes: what it had taken until then.
        share: of the GPU, that it was given.
    """

    peak_bytes: float
    share: float

    def __str__(self) -> str:
        """In a sentence."""
        return f"it ran out of GPU memory after {self.peak_bytes / 1e9:.1f} GB, given {self.share:g} of a GPU"


@dataclass(frozen=True)
class Report:
    """Progress of a running trial. By its `values` and `step` the scheduler may stop the trial."""

    fraction: float | None = None
    message: str = ""
    values: Mapping[str, float] | None = None
    step: int | None = None


Reporter = Callable[[Report], None]


def _ignore(report: Report) -> None:
    pass


@dataclass(frozen=True)
class TrialContext:
    """Inputs of one trial: its knobs, seed, folder, and its share of the machine."""

    number: int
    knobs: Mapping[str, KnobValue]
    seed: int
    directory: Path
    num_cpus: int = 1
    num_gpus: float = 0.0
    device: str = "cpu"
    ranked_by: tuple[str, ...] = ()
    """The names of objectives and constraints, which a report's `values` must hold."""
    reporter: Reporter = field(default=_ignore, repr=False, compare=False)

    def report(
        self,
        fraction: float | None = None,
        message: str = "",
        *,
        values: Mapping[str, float] | None = None,
        step: int | None = None,
    ) -> None:
        """Report progress to the driver. It is cheap: of reports in quick succession only some are passed on.

        Args:
            fraction: From 0 to 1.
            message: A few words for the progress display.
            values: Where the trial stands, one value for each name of `ranked_by`; goes to the scheduler, which may
                stop the trial here.
            step: The step that `values` belong to, such as the epoch; counts from 1.

        Raises:
            TrialStopped: The scheduler stops the trial.
            ValueError: An argument breaks its rule.
        """
        if fraction is not None and not 0.0 <= fraction <= 1.0:
            raise ValueError(f"`fraction` must be from 0 to 1, but got {fraction}")
        if (values is None) != (step is None):
            raise ValueError(f"`values` and `step` go together, but got values={values}, step={step}; give both")
        if values is not None and (missing := [name for name in self.ranked_by if name not in values]):
            raise ValueError(f"`values` must hold {', '.join(self.ranked_by)}, but lacks {', '.join(missing)}")
        if step is not None and step < 1:
            raise ValueError(f"`step` must be 1 or more, but got {step}")
        self.reporter(Report(fraction, message, values, step))


TrialFn = Callable[[TrialContext], TrialRecord]
"""The work of a trial. It continues from `checkpoint*` in `directory` where a run before it was killed.

The process may be used again for the next trial: what is worth keeping (data, a teacher) may stay in a module-level
cache. The files `checkpoint*` are deleted once the trial has ended; everything else stays.
"""
