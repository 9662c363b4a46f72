"""Whether data of a training stay on an accelerator: copied there once, instead of batch by batch."""

from __future__ import annotations

import torch

ALWAYS_BYTES = 2 * 2**30
FREE_SHARE = 0.25  # of a GPU's free memory; the rest is for the nets, and for other trials


def stays_on(device: torch.device, size_bytes: int) -> bool:
    """Whether data of this size are copied to a device once.

    Up to 2 GiB are, on a GPU also up to a quarter of its free memory: batches that were gathered and copied from the
    host cost more there than the teacher's own pass (docs/performance.md).

    Args:
        device: of the training.
        size_bytes: of the data.
    """
    if device.type == "cpu":
        return False
    if size_bytes <= ALWAYS_BYTES:
        return True
    return device.type == "cuda" and size_bytes <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]
