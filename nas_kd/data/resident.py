"""Whether data of a training stay on an accelerator: copied there once, instead of batch by batch."""

from __future__ import annotations

import torch

RESIDENT_BYTES = 2 * 2**30  # several trials may share a GPU, and each has its own copy


def stays_on(device: torch.device, size_bytes: int) -> bool:
    """Whether data of this size are copied to a device once.

    Args:
        device: of the training.
        size_bytes: of the data.
    """
    return device.type != "cpu" and size_bytes <= RESIDENT_BYTES
