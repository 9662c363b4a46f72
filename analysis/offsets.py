"""Metric of streaming students at each offset from the key frame, and its drift over the offsets.

A streaming student computes a key frame in full and the frames after it from their changes, so an error can grow until
the next key frame. `metric@k` in a record is its primary metric over the frames k after their key frame; the primary
metric itself is the mean over k. At k = 0 the output is the teacher's, which raises that mean: hence the values per
offset.

References:
    Habibian, A., Ben Yahia, H., Abati, D., Gavves, E. and Porikli, F. (2022). Delta Distillation for Efficient Video
        Processing. ECCV.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nas_kd.analysis.front import ParetoFront, TeacherPoint
from nas_kd.analysis.statistics import Estimate, estimate_mean, paired_difference, seed_values
from nas_kd.trials.record import Metric, Split, Stage, TrialRecord

SPLITS: tuple[Split, ...] = ("val", "test")

# Nine digits are more frames than any key-frame interval has, and few enough for every reader of numbers.
_OFFSET = re.compile(r"0|[1-9][0-9]{0,8}")
_STEADINESS = ("temporal_consistency", "label_stability")


def has_streaming_students(records: Iterable[TrialRecord]) -> bool:
    """Whether any record is of a streaming student."""
    return any(record.cost is not None and record.cost.is_streaming for record in records)


def streaming_students(front: ParetoFront) -> tuple[TrialRecord, ...]:
    """The streaming students on the front, by increasing amortised cost."""
    return tuple(record for record in front.records if has_streaming_students([record]))


def at_offset(metric: Metric, offset: int) -> Metric:
    """The metric `offset` frames after the key frame."""
    return metric.model_copy(update={"name": f"{metric.name}@{offset}"})


def offset_scores(record: TrialRecord, split: Split = "val", stage: Stage = "retrained") -> dict[int, float]:
    """Offset from the key frame, in frames, to the primary metric there, in order; empty where none was measured."""
    start = f"{record.metric.name}@"
    measured = record.metrics.get(stage, {}).get(split, {})
    ends = {name.removeprefix(start): float(value) for name, value in measured.items() if name.startswith(start)}
    return dict(sorted((int(end), value) for end, value in ends.items() if _OFFSET.fullmatch(end)))


def offsets_of(records: Iterable[TrialRecord], stage: Stage = "retrained") -> list[int]:
    """All offsets that were measured in any of the records, on any split, in order."""
    return sorted({offset for record in records for split in SPLITS for offset in offset_scores(record, split, stage)})


def drift(record: TrialRecord, split: Split = "val", stage: Stage = "retrained") -> Estimate | None:
    """The primary metric at the last offset, K - 1, minus that at the key frame.

    Paired by seed where the trial was repeated: a seed's two values come from one student. Negative is a loss for a
    metric that is maximised. None for other students, for K = 1, and where an end was not measured.
    """
    interval = record.cost.keyframe_interval if record.cost is not None else None
    scores = offset_scores(record, split, stage)
    if interval is None or interval < 2 or not {0, interval - 1} <= scores.keys():
        return None
    ends = [seed_values(record, split, stage, at_offset(record.metric, offset).name) for offset in (interval - 1, 0)]
    if len(ends[0]) == len(ends[1]) > 1:
        return paired_difference(*ends)
    return estimate_mean([scores[interval - 1] - scores[0]])


def teacher_scores(record: TrialRecord, teacher: TeacherPoint, split: Split = "val") -> dict[int, float]:
    """Offset from the key frame to the teacher's primary metric on the frames of this student, in order.

    Empty where the teacher was not measured with the student's interval.
    """
    interval = (record.cost.keyframe_interval if record.cost is not None else None) or 0
    measured = teacher.by_interval.get(interval, {})
    names = {offset: f"{split}/{at_offset(record.metric, offset).name}" for offset in range(interval)}
    return {offset: measured[name] for offset, name in names.items() if name in measured}


def teacher_drift(record: TrialRecord, teacher: TeacherPoint, split: Split = "val") -> float | None:
    """How much the teacher's own metric changes from offset 0 to offset K - 1: the frames there are others."""
    scores = teacher_scores(record, teacher, split)
    last = ((record.cost.keyframe_interval if record.cost is not None else None) or 0) - 1
    return scores[last] - scores[0] if last > 0 and {0, last} <= scores.keys() else None


def gap_to_teacher(
    record: TrialRecord, teacher: TeacherPoint, offset: int, split: Split = "val", stage: Stage = "retrained"
) -> Estimate | None:
    """The student's primary metric minus the teacher's on the same frames, those `offset` after a key frame.

    The estimate is over the seeds of the student. None where either was not measured there.
    """
    level = teacher_scores(record, teacher, split).get(offset)
    own = offset_scores(record, split, stage).get(offset)
    if level is None or own is None:
        return None
    values = seed_values(record, split, stage, at_offset(record.metric, offset).name) or (own,)
    return estimate_mean([value - level for value in values])


def mean_of_delta_frames(record: TrialRecord, split: Split = "val", stage: Stage = "retrained") -> float | None:
    """Mean of the primary metric over the offsets 1 to K - 1: what the student itself reaches.

    None for other students, for K = 1, and where an offset was not measured.
    """
    interval = record.cost.keyframe_interval if record.cost is not None else None
    if interval is None or interval < 2:
        return None
    later = [value for offset, value in offset_scores(record, split, stage).items() if 1 <= offset < interval]
    return sum(later) / len(later) if len(later) == interval - 1 else None


def secondary_names(front: ParetoFront, teacher: TeacherPoint | None) -> list[str]:
    """Metrics of the front and the teacher beside the primary one and its values per offset.

    How steady the answers are over time comes first, the others by name.
    """
    names = {
        name
        for record in front.records
        for split in SPLITS
        for name in record.metrics.get(front.stage, {}).get(split, {})
    }
    if teacher is not None:
        names |= {name for split, _, name in (key.partition("/") for key in teacher.secondary) if split in SPLITS}
    names -= {record.metric.name for record in front.records}
    return sorted((name for name in names if "@" not in name), key=lambda name: (name not in _STEADINESS, name))
