"""The record of a finished trial: the only output of a trial, and the only input of the analysis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nas_kd.trials.files import write_atomically

SCHEMA_VERSION = 1
LAYERS_NAME = "layers.json"  # beside the record: what each layer of the student costs

KnobValue = bool | int | float | str
FinalState = Literal["complete", "failed", "stopped"]
Stage = Literal["teacher", "gated", "derived", "retrained"]
Split = Literal["val", "test"]

# A student is judged by its last stage; the teacher's metrics do not count.
STAGES_OF_A_STUDENT: tuple[Stage, ...] = ("retrained", "derived", "gated")

# Fields of the cost of a streaming student beside its amortised FLOPs: all of them are set, or for others none.
STREAMING_FIELDS = ("keyframe_flops", "delta_flops", "keyframe_interval", "state_bytes")


class FrozenDict(dict[Any, Any]):
    """A dict that refuses changes. It stays a `dict`, so that JSON and pydantic take it as it is."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a trial record cannot be changed; build a new one with `model_copy(update=...)`")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[Any, Any]]]:
        # The default rebuilds a dict item by item, through the `__setitem__` that refuses.
        return FrozenDict, (dict(self),)


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenDict({key: _freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    return value


_T = TypeVar("_T")
Frozen = Annotated[_T, AfterValidator(_freeze)]


class Cost(BaseModel):
    """Cost of a student. FLOPs: one multiply-accumulate is one FLOP (fvcore's convention), per clip.

    A streaming student computes one key frame in full and then `keyframe_interval - 1` frames from their deltas. Its
    `flops` is the amortised cost of a frame, (key frame + (K - 1) · delta frame) / K, `latency_ms` its amortised
    latency, and the four fields of `STREAMING_FIELDS` are set.

    Attributes:
        flops: per clip, or per frame for streaming students.
        params: number of parameters.
        latency_ms: measured, in ms, of what `flops` counts.
        predicted_latency_ms: in ms, of what `flops` counts, as the latency table of a campaign predicts it; set where
            the budget is one of latency, or students are ranked by it.
        keyframe_flops: FLOPs of a key frame.
        delta_flops: FLOPs of a frame between key frames.
        keyframe_interval: K, in frames: every K-th frame is a key frame.
        state_bytes: size of the state between frames, in bytes for one stream of frames.
        keyframe_latency_ms: measured latency of a key frame, in ms.
        delta_latency_ms: measured latency of a frame between key frames, in ms.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    flops: int = Field(ge=0)
    params: int = Field(ge=0)
    latency_ms: float | None = None
    predicted_latency_ms: float | None = Field(default=None, exclude_if=lambda value: value is None)
    keyframe_flops: int | None = Field(default=None, ge=0)
    delta_flops: int | None = Field(default=None, ge=0)
    keyframe_interval: int | None = Field(default=None, ge=1)
    state_bytes: int | None = Field(default=None, ge=0)
    keyframe_latency_ms: float | None = None
    delta_latency_ms: float | None = None

    @model_validator(mode="after")
    def _streaming_fields_come_together(self) -> Cost:
        missing = [name for name in STREAMING_FIELDS if getattr(self, name) is None]
        if missing and len(missing) < len(STREAMING_FIELDS):
            raise ValueError(
                f"the cost of a streaming student must have all of {', '.join(STREAMING_FIELDS)}; missing: {missing}"
            )
        if missing and (self.keyframe_latency_ms, self.delta_latency_ms) != (None, None):
            raise ValueError(
                "latencies of key and delta frames belong to streaming students, whose cost has all of "
                f"{', '.join(STREAMING_FIELDS)}"
            )
        return self

    @property
    def is_streaming(self) -> bool:
        """Whether this is the cost of a streaming student, counted per frame."""
        return self.keyframe_interval is not None

    @property
    def worst_frame_flops(self) -> int | None:
        """FLOPs of a streaming student's most expensive frame, normally the key frame.

        None for other students.
        """
        if self.keyframe_flops is None or self.delta_flops is None:
            return None
        return max(self.keyframe_flops, self.delta_flops)


class Metric(BaseModel):
    """The primary metric of the task, and how the task's metrics are written.

    Attributes:
        name: as among the metrics of a record.
        maximize: whether more is better.
        percent: metrics of the task, by name, that are shares of 1 and written in percent; `*` stands for any letters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    maximize: bool = True
    percent: tuple[str, ...] = Field(default=(), exclude_if=lambda value: not value)

    def is_same_as(self, other: Metric) -> bool:
        """Whether both measure the same, however they are written."""
        return (self.name, self.maximize) == (other.name, other.maximize)


class Evaluated(BaseModel):
    """What the metrics of a split rest on, and how sure the primary one is.

    Attributes:
        num_items: clips, or sequences of features, of the split.
        num_groups: groups that they come from, such as recordings; None where items are independent.
        views: clips and crops of each item whose outputs are averaged; costs are those of one.
        low: lower end of the 95 % interval of the primary metric over items (over groups, where there are any). It
            says how far another set of items would move the metric, not how far another training would: that is in
            `repeats`. With several trainings it is the interval of their mean. None where it is not known.
        high: upper end.
        majority: the primary metric of a net that always gives the most frequent answer; None where it is not known.
        chance: the primary metric of a net that guesses; None where it is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_items: int = Field(ge=1)
    num_groups: int | None = Field(default=None, ge=1)
    views: int = Field(default=1, ge=1)
    low: float | None = None
    high: float | None = None
    majority: float | None = None
    chance: float | None = None


@contextmanager
def _one_sentence() -> Iterator[None]:
    """The first mistake of a record in a sentence."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"not a trial record: {key + ': ' if key else ''}{first['msg']}") from error


class TrialRecord(BaseModel):
    """Everything that is kept of one trial. Immutable to its leaves; a complete one holds finite numbers only.

    As JSON, NaN and the infinities of a failed or stopped trial are the strings `"NaN"`, `"Infinity"` and
    `"-Infinity"`, since JSON has no numbers for them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: int = SCHEMA_VERSION
    number: int = Field(ge=0)  # the number of the trial in the ledger
    state: FinalState
    seed: int
    config_hash: str
    knobs: Frozen[Mapping[str, KnobValue]]  # what the study proposed; `max_flops` is the budget
    metric: Metric
    arch: Frozen[Mapping[str, Any] | None] = None  # ArchSpec as its canonical JSON object
    arch_id: str | None = None
    cost: Cost | None = None
    metrics: Frozen[Mapping[Stage, Mapping[Split, Mapping[str, float]]]] = Field(default_factory=FrozenDict)
    repeats: Frozen[Mapping[str, tuple[float, ...]]] = Field(default_factory=FrozenDict)  # "retrained/val/accuracy"
    # Which repeat's weights are kept: the best one on the validation split. None where there was one training only.
    chosen_repeat: int | None = Field(default=None, ge=0, exclude_if=lambda value: value is None)
    # Of the retrained student; absent from records of failed trials.
    evaluated: Frozen[Mapping[Split, Evaluated]] = Field(default_factory=FrozenDict, exclude_if=lambda value: not value)
    diagnostics: Frozen[Mapping[str, float]] = Field(default_factory=FrozenDict)
    warnings: tuple[str, ...] = ()
    environment: Frozen[Mapping[str, str]] = Field(default_factory=FrozenDict)
    durations_s: Frozen[Mapping[str, float]] = Field(default_factory=FrozenDict)
    started_at: str = ""  # ISO 8601, UTC
    error: str | None = None  # traceback text of a failed trial

    @model_validator(mode="before")
    @classmethod
    def _known_schema(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            version = data.get("schema_version", SCHEMA_VERSION)
            if version != SCHEMA_VERSION:
                raise ValueError(
                    f"`schema_version` must be {SCHEMA_VERSION}, but got {version!r}; "
                    "read this record with the release of nas-kd that wrote it, or a later one"
                )
        return data

    @model_validator(mode="after")
    def _finite_where_it_must_be(self) -> TrialRecord:
        # A knob may be a string as well, so an infinite one would come back from JSON as "Infinity".
        for name, value in _numbers(self.knobs, "knobs"):
            if not math.isfinite(value):
                raise ValueError(f"trial {self.number}: {name} is {value}; a knob must be finite")
        if self.state != "complete":
            return self
        if self.cost is None:
            raise ValueError(f"trial {self.number}: a complete trial must carry its cost")
        for name, value in _numbers(self.model_dump()):
            if not math.isfinite(value):
                raise ValueError(f"trial {self.number}: {name} is {value}; a complete trial's must be finite")
        return self

    def score(self, split: Split = "val", stage: Stage | None = None, name: str | None = None) -> float | None:
        """The primary metric, or None where it was not measured.

        Args:
            split: The split it was measured on; the search ranks by `val` and never sees `test`.
            stage: One stage; by default the last one that has it: retrained, derived, gated.
            name: Of another metric.
        """
        for candidate in STAGES_OF_A_STUDENT if stage is None else (stage,):
            value = self.metrics.get(candidate, {}).get(split, {}).get(name or self.metric.name)
            if value is not None:
                return float(value)
        return None

    def with_remarks(self, diagnostics: Mapping[str, float], *warnings: str) -> TrialRecord:
        """The record with more diagnostics and warnings."""
        changes = {
            "diagnostics": _freeze({**self.diagnostics, **diagnostics}),
            "warnings": (*self.warnings, *warnings),
        }
        return self.model_copy(update=changes)

    def reason(self) -> str | None:
        """Why the trial failed, in a line: the last one of `error`. None where there is no error."""
        lines = (self.error or "").strip().splitlines()
        return lines[-1] if lines else None

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> TrialRecord:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: `text` is not a record of this schema version.
        """
        with _one_sentence():
            return cls.model_validate_json(text)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> TrialRecord:
        """Read back what JSON made of `to_json`, as the ledger keeps it.

        Raises:
            ValueError: `data` is not a record of this schema version.
        """
        with _one_sentence():
            return cls.model_validate(data)

    def write(self, path: Path) -> None:
        """Write the record to `path`, atomically and durably, indented for the reader."""
        write_atomically(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> TrialRecord:
        """Read a record file.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is not a record of this schema version; the message names the file.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All floats below `value`, with their paths."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{name}/{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{name}/{index}")
