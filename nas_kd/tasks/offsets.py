"""Metrics by the offset of a frame from its key frame, the protocol of Delta Distillation (ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Offset = int | None
"""How many frames a frame is after its key frame; None where a model has no key frames."""


def frames_by_offset(offsets: Sequence[int] | None, frames: int) -> dict[Offset, list[int]]:
    """The frames of a clip of `frames` frames that share an offset.

    Raises:
        ValueError: there is not one offset a frame.
    """
    if offsets is None:
        return {None: list(range(frames))}
    if len(offsets) != frames:
        raise ValueError(f"offsets must name each of the {frames} frames of a clip, but name {len(offsets)}")
    return {k: [t for t, offset in enumerate(offsets) if offset == k] for k in sorted(set(offsets))}


def over_offsets(metric: str, values: Mapping[Offset, float]) -> dict[str, float]:
    """`metric` alone where there are no offsets, else each `metric@k` and their mean as `metric`.

    Raises:
        ValueError: some values have an offset and some have none.
    """
    if None in values:
        if len(values) > 1:
            raise ValueError("offsets must come with all batches or none, but came with some; call compute between")
        return {metric: values[None]}
    by_offset = {f"{metric}@{k}": value for k, value in sorted(values.items(), key=lambda item: item[0] or 0)}
    return {metric: sum(by_offset.values()) / len(by_offset), **by_offset}
