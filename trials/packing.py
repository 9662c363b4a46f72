"""Which part of a GPU a trial gets, by the memory that trials were measured to take.

GPUs divide their time among processes, not their memory. With `gpus_per_trial: auto` trials have a GPU of their own
until one of them has ended; then as many share a GPU as the largest that was measured allows. Cheap students say
nothing of dear ones, so a trial of more work than any measured one is taken to need more in proportion: it is too much
in general, and right once it has run. What runs out of memory nevertheless is run again alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from nas_kd.trials.context import GPU_PEAK, GPU_USABLE
from nas_kd.trials.execution import Assignment
from nas_kd.trials.record import TrialRecord

if TYPE_CHECKING:
    from nas_kd.trials.resources import GpuShare

MARGIN = 1.1  # trials are given this times what was measured: allocators leave gaps
_PARTS = 10_000  # Ray knows a fraction of a GPU to four digits


def trials_of_gpu(peak_bytes: float, usable_bytes: float) -> int:
    """How many trials share a GPU.

    Args:
        peak_bytes: what one takes at most.
        usable_bytes: of the GPU.
    """
    return min(max(int(usable_bytes / (peak_bytes * MARGIN)), 1), _PARTS)


def places_of_gpu(share: float) -> int:
    """How many trials with this share, above 0, fit on a GPU; none spans two."""
    return int(1 / share + 1e-9)


class GpuPacking:
    """The shares of a campaign's trials.

    Args:
        wanted: as in `Resources.gpus_per_trial`.
        records: of trials that have ended under the present settings.
        works: number of a trial -> what its time grows with, where known.
    """

    def __init__(
        self, wanted: GpuShare, records: Iterable[TrialRecord] = (), works: Mapping[int, float] | None = None
    ) -> None:
        self._wanted = wanted
        self._peak = self._work = 0.0  # the largest that were measured
        self._usable = math.inf
        for record in records:
            self.see(record, (works or {}).get(record.number))

    def see(self, record: TrialRecord, work: float | None) -> None:
        """Take in what a trial that has ended was measured to take."""
        peak = record.diagnostics.get(GPU_PEAK)
        if peak is None:
            return
        self._peak = max(self._peak, peak)
        self._work = max(self._work, work or 0.0)
        self._usable = min(self._usable, record.diagnostics.get(GPU_USABLE, math.inf))

    @property
    def alone(self) -> float:
        """The share of a trial that ran out of memory on a shared GPU: all of one, where trials use GPUs."""
        return float(self._wanted != 0)

    def share(self, assignment: Assignment) -> float:
        """Of a trial that starts now."""
        if assignment.shortage is not None:
            return self.alone
        more = 1.0
        if assignment.work is not None and self._work:
            more = max(assignment.work / self._work, 1.0)
        return self._share(more)

    @property
    def least(self) -> float:
        """The share of a trial of which nothing is known yet."""
        return self._share(1.0)

    def _share(self, more: float) -> float:
        if self._wanted != "auto":
            return self._wanted
        if not self._peak or math.isinf(self._usable):
            return 1.0
        return math.floor(_PARTS / trials_of_gpu(self._peak * more, self._usable)) / _PARTS
