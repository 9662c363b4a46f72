"""Frames and pixels that nets see of a stored clip, which may have more of both.

Shape legend: B clips, S stored frames of H' × W' pixels, T frames of H × W pixels that nets see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from nas_kd.data.frame_times import sample_positions
from nas_kd.data.sample import DataError

FRAME_KEYS = {"clip": 2, "features": 1, "mask": 1, "boxes": 1}
"""Keys of a batch that have frames, and which dimension they are; that of `map.<name>` is 1."""


@dataclass(frozen=True)
class Cut:
    """A part of a stored clip.

    Attributes:
        frames: Numbers of the frames, T of them.
        top: First row.
        left: First column.
        height: H.
        width: W.
    """

    frames: tuple[int, ...]
    top: int
    left: int
    height: int
    width: int


def middle_cut(stored: Sequence[int], seen: Sequence[int], *, consecutive: bool = False) -> Cut:
    """T frames uniform over the S stored ones, or those in their middle; and the middle of the frame.

    Args:
        stored: (S, H', W').
        seen: (T, H, W).
        consecutive: Whether frames follow each other.
    """
    start = (stored[0] - seen[0]) // 2
    frames = tuple(range(start, start + seen[0]) if consecutive else sample_positions(stored[0], seen[0]).tolist())
    return Cut(frames, (stored[1] - seen[1]) // 2, (stored[2] - seen[2]) // 2, seen[1], seen[2])


def evaluation_cuts(
    stored: Sequence[int], seen: Sequence[int], *, clips: int = 1, window: float = 1.0, crops: int = 1
) -> tuple[Cut, ...]:
    """The parts of a stored clip that are evaluated: `crops` windows of the frame for each of `clips` windows in time.

    Windows in time of a share w < 1 begin at equal distances from the start to the end of the clip, a single one in its
    middle, and frames are those in the middles of T equal parts. With w = 1, frame i of clip j of N is
    ⌊(i + (j + ½) / N) · S / T⌋, so the clips interleave. Three crops lie along the side that is longer than needed by
    more: at its start, in its middle and at its end.

    Args:
        stored: (S, H', W').
        seen: (T, H, W).
        clips: N.
        window: w.
        crops: 1 or 3.

    Raises:
        DataError: Fewer frames or pixels are stored than different clips or crops need.
    """
    needed = clips * seen[0] if window == 1 else ceil(seen[0] / window - 1e-9)
    if stored[0] < needed:
        raise DataError(
            f"{clips} clips of {seen[0]} frames from {window:g} of the stored clip need {needed} stored frames, but "
            f"there are {stored[0]}"
        )
    excess = (stored[1] - seen[1], stored[2] - seen[2])
    if crops > 1 and not any(excess):
        raise DataError(
            f"{crops} crops of {seen[1]} × {seen[2]} pixels need a larger stored frame, such as "
            f"[{seen[1]}, {ceil(4 / 3 * seen[2])}], but it has as many"
        )
    middle = middle_cut(stored, seen)
    corners = [(middle.top, middle.left)]
    if crops > 1:
        along_rows = excess[0] > excess[1]
        places = (0, excess[0] // 2, excess[0]) if along_rows else (0, excess[1] // 2, excess[1])
        corners = [(place, middle.left) if along_rows else (middle.top, place) for place in places]
    length = window * stored[0]
    cuts = []
    for number in range(clips):
        start = (stored[0] - length) * (number / (clips - 1) if clips > 1 else 0.5)
        phase = (number + 0.5) / clips if window == 1 else 0.5
        frames = [int(start + (i + phase) * length / seen[0]) for i in range(seen[0])]
        cuts += [replace(middle, frames=tuple(frames), top=top, left=left) for top, left in corners]
    return tuple(cuts)


def cut_batch(batch: dict[str, Tensor], cut: Cut) -> dict[str, Tensor]:
    """A part of every clip of a batch, with its targets; boxes are cut at its edges, without area they become absent.

    Args:
        batch: Stacked samples with `clip`, [B, 3, S, H', W'], or `features`, [B, S, D].
        cut: Which part; of features, only its frames count.
    """
    stored, height, width = stored_shape(batch)
    taken = dict(batch)
    if cut.frames != tuple(range(stored)):
        items = len(batch["clip"] if "clip" in batch else batch["features"])
        taken = pick_frames(taken, torch.tensor(cut.frames).expand(items, -1))
    if (cut.height, cut.width) == (height, width):
        return taken
    for key in of_pixels(taken):
        taken[key] = taken[key][..., cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    if "boxes" in taken:
        boxes = taken["boxes"].clone()
        for first, start, size in ((0, cut.left, cut.width), (1, cut.top, cut.height)):
            boxes[..., first : first + 3 : 2] = (boxes[..., first : first + 3 : 2] - start).clamp(0, size)
        taken["boxes"] = with_area(boxes, taken["boxes"])
    return taken


def stored_shape(batch: dict[str, Tensor]) -> tuple[int, int, int]:
    """(S, H', W') of the clips of a batch; (S, 0, 0) of frame features."""
    if "clip" not in batch:
        return (batch["features"].shape[1], 0, 0)
    frames, height, width = batch["clip"].shape[2:]
    return (frames, height, width)


def pick_frames(batch: dict[str, Tensor], picks: Tensor) -> dict[str, Tensor]:
    """The batch with some of its frames.

    Args:
        batch: Of clips; keys without frames pass through.
        picks: int64 (B, k), numbers of the frames of each clip.
    """
    taken = dict(batch)
    for key in batch:
        if key in FRAME_KEYS or key.startswith("map."):
            dim = FRAME_KEYS.get(key, 1)
            value = batch[key].movedim(dim, 1)
            rows = torch.arange(len(value), device=value.device)[:, None]
            taken[key] = value[rows, picks.to(value.device)].movedim(1, dim)
    return taken


def window_frames(stored: int, seen: int, share: Tensor, place: Tensor) -> Tensor:
    """int64 (B, T): frames uniform over a window of the stored ones, ⌊start + (i + ½) · length / T⌋.

    Args:
        stored: S.
        seen: T.
        share: (B,) length of the window in shares of the stored clip.
        place: (B,) where it lies, from 0 (at the start) to 1 (at the end).
    """
    length = share.double() * stored
    start = place.double() * (stored - length)
    middles = (torch.arange(seen, device=share.device) + 0.5) / seen
    return (start[:, None] + middles * length[:, None]).long().clamp(0, stored - 1)


def of_pixels(batch: dict[str, Tensor]) -> list[str]:
    """Keys of values [B, ..., H, W]."""
    return [key for key in batch if key in ("clip", "mask") or key.startswith("map.")]


def with_area(moved: Tensor, before: Tensor) -> Tensor:
    """Moved boxes, of which those without area and those that were absent are absent (−1)."""
    has_area = (moved[..., 2] > moved[..., 0]) & (moved[..., 3] > moved[..., 1])
    return torch.where(((before[..., 4] >= 0) & has_area)[..., None], moved, -1.0)
