"""BatchNorm with the statistics of the batch in a model that otherwise stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """While it is open, all BatchNorm layers normalise with the batch's own statistics, and nothing is updated.

    The teacher of ResKD (Ma et al., NeurIPS 2022) normalises like this on purpose, as advised by Heo et al. (ICCV 2019,
    arXiv 1904.01866). Deviation from the released code: that one leaves the whole teacher in training mode, so its
    running statistics drift and its dropout is on; here neither parameters nor buffers (running mean and variance,
    number of batches) change, and every other layer keeps its mode.

    Outputs then depend on the batch, so they cannot be cached by clip. Layers of `nn.BatchNorm1d` to `3d`,
    `nn.SyncBatchNorm` and their subclasses are meant; a normalisation of your own stays as it is.

    Args:
        module: any model. Its layers have their modes back afterwards, also after an error.

    Raises:
        ValueError: in the forward pass, by torch, where a channel has a single value in the batch.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    modes = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False  # not train(): a model may override it
        yield
    finally:
        for layer, (training, tracks) in zip(layers, modes, strict=True):
            layer.training, layer.track_running_stats = training, tracks
