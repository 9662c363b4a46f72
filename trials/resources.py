"""What a trial may use of the machines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """The share of one trial, and how many run at a time.

    Args:
        cpus_per_trial: CPU cores; a fraction lets trials share one. Its whole part, at least 1, is the number of
            threads that the libraries of a trial use.
        gpus_per_trial: GPUs; a fraction lets trials share one. Memory is not divided: see that they fit together.
        max_concurrent: At most so many trials at a time; by default as many as fit.
        address: Of a Ray cluster, such as `auto`; by default this machine alone. The run folder must be at the same
            path on all machines.
    """

    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_concurrent: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not self.cpus_per_trial > 0:
            raise ValueError(f"`cpus_per_trial` must be above 0, but got {self.cpus_per_trial}")
        if not self.gpus_per_trial >= 0:
            raise ValueError(f"`gpus_per_trial` must be 0 or more, but got {self.gpus_per_trial}")
        if self.gpus_per_trial > 1 and self.gpus_per_trial != int(self.gpus_per_trial):
            raise ValueError(f"`gpus_per_trial` above 1 must be whole, but got {self.gpus_per_trial}")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(f"`max_concurrent` must be 1 or more, but got {self.max_concurrent}")

    @property
    def threads(self) -> int:
        """Threads of a trial."""
        return max(1, int(self.cpus_per_trial))
