"""Cost of a streaming student: amortised FLOPs, FLOPs of key and delta frames, and memory of the state."""

from __future__ import annotations

import torch
from torch import Tensor

from nas_kd.search_spaces.key_frame_net import KeyFrameNet, state_bytes


@torch.no_grad()
def streaming_cost(student: KeyFrameNet, frame: Tensor, interval_flops: int, params: int) -> dict[str, int]:
    """The fields of the cost of one stream.

    Args:
        student: in evaluation mode.
        frame: (1, 3, H, W).
        interval_flops: FLOPs of one key-frame interval, as `count_flops` gives them for a clip of K frames.
        params: number of parameters.
    """
    interval = student.keyframe_interval
    frame = frame.contiguous(memory_format=torch.channels_last)
    _, state = student.key(frame)
    delta = student.delta_flops(frame)
    return {
        "flops": -(-interval_flops // interval),
        "params": params,
        "keyframe_flops": interval_flops - (interval - 1) * delta,
        "delta_flops": delta,
        "keyframe_interval": interval,
        "state_bytes": state_bytes(state),
    }
