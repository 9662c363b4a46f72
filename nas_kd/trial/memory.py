"""Memory that a trial has freed goes back to the system, so that a worker does not grow from trial to trial."""

from __future__ import annotations

import ctypes
import gc

import torch


def release_memory() -> None:
    """Collect what is unreachable, and give free memory back.

    The C library keeps what a process has freed: after a trial often several hundred megabytes, in pieces between what
    is in use, and more after the next trial, whose pieces have other sizes. `malloc_trim` of glibc gives back all
    whole pages among them; where there is none, as on macOS, nothing is done. A GPU's memory that torch keeps for later
    is released, too, for the other trials on it.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
