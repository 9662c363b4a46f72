"""What a trial may use of the machines, and where trials run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nas_kd.trials.passwords import masked

Executor = Literal["ray", "inline"]
GpuShare = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]


class Resources(BaseModel):
    """Where trials run, the share of one trial, and how many run at a time.

    Attributes:
        executor: `ray` for parallel trials, also on a cluster; `inline` runs one after the other in this process.
        cpus_per_trial: CPU cores; a fraction lets trials share one. Its whole part, at least 1, is the number of
            threads that the libraries of a trial use.
        gpus_per_trial: 1 for a GPU of its own, a fraction to share one, 0 for none; `auto` for as many trials on a GPU
            as its memory holds, by what the first ones took. A trial that runs out of a shared GPU's memory is run
            again later, with a GPU of its own.
        max_concurrent: at most so many trials at a time; null for as many as fit.
        address: of a running Ray cluster, such as `auto`; without it a local one is started. The run's folder must be
            at the same path on all machines: on a disk that they share, or see `files_url`.
        files_url: a URL of fsspec, such as `s3://bucket/demo`, where machines that share no disk exchange the run's
            files: what trials have in common, their checkpoints, and what they leave. Null where they share a disk.
        max_failures: how often a trial is started again whose process died. An exception is no such death: it is
            recorded at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    executor: Executor = "ray"
    cpus_per_trial: int | float = Field(default=1, gt=0)
    gpus_per_trial: GpuShare = 0.0
    max_concurrent: int | None = Field(default=None, ge=1)
    address: str | None = None
    files_url: str | None = None
    max_failures: int = Field(default=1, ge=0)

    @field_validator("cpus_per_trial", "max_concurrent", "max_failures", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"must be a number, but got {str(value).lower()}")
        return value

    @field_validator("gpus_per_trial", mode="before")
    @classmethod
    def _part_of_one(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value != "auto" and not (is_number and 0 <= value <= 1):
            got = str(value).lower() if isinstance(value, bool) else f"{value:g}" if is_number else repr(value)
            raise ValueError(
                f"must be `auto`, or a number from 0 to 1, but got {got}: a trial computes on one GPU, and several "
                "GPUs run several trials"
            )
        return value

    @model_validator(mode="after")
    def _one_after_the_other(self) -> Resources:
        if self.executor == "inline" and self.max_concurrent not in (None, 1):
            raise ValueError(f"max_concurrent must be 1 or null with executor inline, but is {self.max_concurrent}")
        return self

    @model_validator(mode="after")
    def _url_of_a_cluster(self) -> Resources:
        if self.files_url is not None and self.address is None:
            raise ValueError(
                f"files_url is for machines of a cluster that share no disk, but there is no address; drop files_url "
                f"({masked(self.files_url)}), or name the cluster"
            )
        return self

    @property
    def use_gpus(self) -> bool:
        """Whether trials compute on GPUs."""
        return self.gpus_per_trial != 0

    @property
    def threads(self) -> int:
        """Threads of a trial."""
        return max(1, int(self.cpus_per_trial))
