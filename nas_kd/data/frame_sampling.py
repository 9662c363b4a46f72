"""Sample single frames and pairs of frames from the clips of a batch, to train frame-wise tasks.

Shape legend: N clips, T frames, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nas_kd.data.augment import Batch
from nas_kd.data.framing import pick_frames


def take_frames(batch: Batch, picks: Tensor) -> Batch:
    """The batch with some of its frames.

    Args:
        batch: of clips, or of frames that were taken out of clips; keys without frames pass through.
        picks: (N, k) indices of the frames of each clip.

    Returns:
        The batch, with `position`, int64 (N, k): where in its clip each frame was.
    """
    taken = pick_frames(batch, picks)
    known = batch.get("position")
    taken["position"] = picks if known is None else known.gather(1, picks.to(known.device))
    return taken


def random_frames(batch: Batch) -> Batch:
    """One frame of each clip, drawn by torch's global generator: (N, 3, 1, H, W)."""
    clips, frames = len(batch["clip"]), batch["clip"].shape[2]
    return take_frames(batch, torch.randint(frames, (clips, 1)))


def random_pairs(batch: Batch, keyframe_interval: int, *, previous: bool = False) -> Batch:
    """(key frame, later frame) of each clip, 1 to K − 1 frames apart, all distances alike: (N, 3, 2, H, W).

    Args:
        batch: clips of at least two frames.
        keyframe_interval: K, at least 2.
        previous: give the frame before the later one as well, between the two: (N, 3, 3, H, W).
    """
    clips, frames = len(batch["clip"]), int(batch["clip"].shape[2])
    distance = 1 + torch.randint(min(keyframe_interval, frames) - 1, (clips,))
    start = (torch.rand(clips) * (frames - distance)).long()
    between = [start + distance - 1] if previous else []
    return take_frames(batch, torch.stack([start, *between, start + distance], 1))
