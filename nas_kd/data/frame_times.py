"""Which frames of a video make a clip: uniform in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_ROUNDING_S = 1e-3  # Matroska, FLV and what was converted from them keep times in ms


def sample_positions(available: int, wanted: int) -> npt.NDArray[np.int64]:
    """[wanted] numbers of frames at equal distances, ascending: frame i of T is number ⌊(i + ½) · N / T⌋ of N.

    That is the middle of the i-th of T equal parts; with N < T frames repeat.

    Args:
        available: N ≥ 1.
        wanted: T.
    """
    return ((np.arange(wanted) + 0.5) * available / wanted).astype(np.int64)


def positions_in_time(
    times: Sequence[float], last_duration: float, wanted: int, tick: float = 0.0
) -> npt.NDArray[np.int64]:
    """[wanted] numbers of frames, ascending: those shown at the middles of `wanted` equal parts of the time.

    A frame is shown until the next one comes. Frames at equal distances, but for the rounding of times, are taken by
    `sample_positions`, which is the same without the rounding. So are frames whose times descend (AVI with
    B-frames, recordings that were joined).

    Args:
        times: Of all frames in the order in which they are shown, in seconds; at least one.
        last_duration: How long the last frame is shown, in seconds; at least the usual distance is taken.
        wanted: T.
        tick: The unit of the times in seconds, to which they are rounded.
    """
    count = len(times)
    shown = np.asarray(times, dtype=np.float64)
    distances = np.diff(shown)
    usual = float(np.median(distances)) if count > 1 else 0.0
    if usual <= 0 or distances.min() < 0:
        return sample_positions(count, wanted)
    rounding = min(max(tick, _ROUNDING_S), usual / 4)
    even = np.linspace(shown[0], shown[-1], count)
    if np.abs(shown - even).max() <= rounding and last_duration <= usual + rounding:
        return sample_positions(count, wanted)
    length = shown[-1] + max(last_duration, usual) - shown[0]
    middles = shown[0] + (np.arange(wanted) + 0.5) * length / wanted
    # A frame that begins at that very moment is shown, whatever the last bit of the sum is.
    begun = np.searchsorted(shown, middles + 1e-9 * (1 + np.abs(middles)), side="right")
    return np.asarray(begun - 1, dtype=np.int64)
