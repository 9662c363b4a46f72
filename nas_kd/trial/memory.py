"""Memory of a trial: what it takes of a GPU, and how what it has freed goes back to the system."""

from __future__ import annotations

import ctypes
import gc

import torch

# What a process holds of a GPU beside torch's own memory, in bytes: CUDA's context and the code of its libraries. It
# depends on the GPU and on what is used: on an H100 with torch 2.11 0.79 GB after convolutions and products in float32
# and bfloat16, 0.90 GB after linear algebra and Fourier transforms.
OUTSIDE_OF_TORCH = 900_000_000
# Errors of CUDA's libraries where memory ran out that torch had not asked for itself.
_OUT_OF_MEMORY = ("CUDA error: out of memory", "STATUS_ALLOC_FAILED")
# What libraries also say where they find no memory for their own, and where next to nothing is free: seen on an H100.
_INTERNAL_ERROR, _NOTHING_FREE_BYTES = "STATUS_INTERNAL_ERROR", 200_000_000


def start_measuring(device: str) -> None:
    """Forget the largest memory of the trial before."""
    if device != "cpu" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # before, torch refuses it
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> float:
    """What this process has taken of a GPU at most since the measuring began, in bytes; 0 of a CPU.

    It is what torch reserved, not what tensors filled of it: the gaps between them are no other trial's.
    """
    return float(torch.cuda.max_memory_reserved(device) + OUTSIDE_OF_TORCH) if device != "cpu" else 0.0


def usable_bytes(device: str) -> float:
    """What a GPU has for trials, in bytes, where this process is the only one of a trial on it."""
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device) + OUTSIDE_OF_TORCH)


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU has no memory left, or comes from there being none."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if _INTERNAL_ERROR in str(error) and torch.cuda.is_available():
        try:
            return torch.cuda.mem_get_info()[0] < _NOTHING_FREE_BYTES
        except RuntimeError:  # the GPU answers nothing more; the first error says why
            return False
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def release_memory() -> None:
    """Collect what is unreachable, and give free memory back, so that a worker does not grow from trial to trial.

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
