"""Measure latency, and describe the machine that it was measured on."""

from __future__ import annotations

import hashlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.flops import Parted


@torch.no_grad()
def latency_ms(module: Callable[[Tensor], Any], example: Tensor, *, repeats: int = 20, warmup: int = 3) -> float:
    """Median time of one forward pass in milliseconds, with the threads and on the device that are set.

    Args:
        module: in evaluation mode, or any function of the input.
        example: its input; batch size 1 gives the latency of one clip.
        repeats: timed passes.
        warmup: passes before.
    """
    finish: Callable[[], Any] = torch.cuda.synchronize if example.is_cuda else lambda: None
    times = []
    for i in range(warmup + repeats):
        finish()
        start = time.perf_counter()
        module(example)
        finish()
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def step_bytes(net: nn.Module, example: Tensor, batch_size: int) -> int:
    """Bytes that a training step takes, roughly: what autograd keeps for the backward pass of a batch, and four numbers
    for each parameter (weight, gradient, two moments of Adam).

    Measured with two items and scaled to the batch.

    Args:
        net: put into training mode; its BatchNorm statistics change.
        example: one input, with batch size 1.
        batch_size: of the step.
    """
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no other tensor gets its place
        return tensor

    alive: list[Tensor] = []
    inputs = example.expand(2, *example.shape[1:]).contiguous()
    net.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(inputs)
    of_weights = 16 * sum(p.numel() for p in net.parameters())
    return of_weights + sum(kept.values()) * batch_size // 2


def part_flops(net: nn.Module, example: Tensor) -> dict[str, int]:
    """Name of a figure -> FLOPs of a part, for nets that report parts of their FLOPs (`Parted`).

    Args:
        net: in any mode.
        example: its input, with batch size 1.
    """
    return net.part_flops(example) if isinstance(net, Parted) else {}


def environment(device: str) -> dict[str, str]:
    """Versions, hardware and threads."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else _cpu_name(),
        "threads": str(torch.get_num_threads()),
        "host": platform.node(),
    }


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """PyTorch computes with so many threads; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def code_version() -> str:
    """The version of nas-kd with a hash of its sources: those of a checkout change between versions."""
    sources = hashlib.sha256()
    folder = Path(__file__).parents[1]
    files = [Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names]
    for path in sorted(path for path in files if path.suffix == ".py"):
        sources.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{version('nas-kd')} (sources {sources.hexdigest()[:12]})"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
