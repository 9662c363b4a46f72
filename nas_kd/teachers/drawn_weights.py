"""A net with weights that its structure alone decides, for what must not depend on those that it has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_GAIN = 0.5  # of a layer; below 1, so that blocks change what passes them by less than that itself


@contextlib.contextmanager
def drawn_weights(net: nn.Module, number: int) -> Iterator[None]:
    """The net with other weights; it has its own again afterwards.

    Weights of a layer of F inputs are normal with standard deviation ½ / √F, biases are 0, other vectors, such as
    scales of a normalisation, 1. Statistics of a BatchNorm are those of a new one; other buffers stay.

    Args:
        net: any net.
        number: of the draw; equal numbers give nets of one structure equal weights.
    """
    generator = torch.Generator().manual_seed(number)
    own: list[tuple[Tensor, Tensor]] = []
    for name, parameter in net.named_parameters():
        if parameter.is_floating_point():
            own.append((parameter, parameter.data))
            parameter.data = _drawn(name, parameter.data, generator)
    for name, buffer in net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            own.append((buffer, buffer.data))
            buffer.data = torch.full_like(buffer, float(name.endswith("var")))
    try:
        yield
    finally:
        for tensor, values in own:
            tensor.data = values


def _drawn(name: str, values: Tensor, generator: torch.Generator) -> Tensor:
    if values.ndim < 2:
        return torch.full_like(values, float("bias" not in name.rpartition(".")[2]))
    spread = _GAIN * (values.numel() / len(values)) ** -0.5 if values.numel() else 0.0
    return (spread * torch.randn(values.shape, generator=generator)).to(values)
