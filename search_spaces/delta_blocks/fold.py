"""Conv-BN fusion for inference: BatchNorm folded into the convolution before it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def fold_batchnorm(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `model` in evaluation mode with every BatchNorm2d folded that alone reads a convolution's output.

    Which pairs belong together is seen in a forward pass, in which operator reads whose memory: no structure is
    assumed, and weights do not matter, so an untrained net is folded like the trained one.

    Args:
        model: any module.
        example: one input.
    """
    folded = copy.deepcopy(model).eval()
    for conv, norm in _pairs(folded, example):
        _fold(folded, conv, norm)
    return folded


class _Readers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which memory of a convolution or a BatchNorm is read or written outside of it, and by whom.

    Attributes:
        inside: the watched module that runs now.
        readers: module -> the watched modules that touch its weights or its output; None stands for all other code.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside: nn.Module | None = None
        self.readers: dict[nn.Module, set[nn.Module | None]] = {}
        self._owners: dict[int, nn.Module] = {}
        self._alive: list[Tensor] = []  # so that memory is not given to a second tensor

    def own(self, module: nn.Module, tensor: Tensor) -> None:
        if not (memory := _memory(tensor)):
            return
        owner = self._owners.setdefault(memory, module)
        self._alive.append(tensor)
        if owner is not module:  # tied weights, or an output that is an older tensor
            self.readers[owner].add(module)
            self.readers[module].add(owner)

    def note(self, values: Any) -> None:
        for value in tree_leaves(values):
            owner = self._owners.get(_memory(value)) if isinstance(value, Tensor) else None
            if owner is not None and owner is not self.inside:
                self.readers[owner].add(self.inside)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.note((args, kwargs))
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    """Address of a tensor's memory; 0 where there is none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Where a BatchNorm is all that reads the output of a convolution, and nobody else uses the weights of both."""
    watch = _Readers()
    made: dict[nn.Module, Tensor] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: dict[nn.Module, int] = {}

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        watch.inside = module
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.BatchNorm2d):
            pairs.extend((conv, module) for conv, z in made.items() if inputs and z is inputs[0])  # type: ignore[misc]

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        watch.inside = None
        if isinstance(module, nn.Conv2d):
            made[module] = output
            watch.own(module, output)

    hooks = []
    for module in model.modules():
        plain = type(module) is nn.Conv2d or (type(module) is nn.BatchNorm2d and module.running_var is not None)
        if not plain or module._forward_hooks or module._forward_pre_hooks:  # hooks may make a weight anew
            continue
        watch.readers[module] = set()
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            watch.own(module, tensor)
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.no_grad(), watch:
            watch.note(model(example))  # whoever called gets it
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (conv, norm)
        for conv, norm in pairs
        if calls[conv] == calls[norm] == 1 and watch.readers[conv] == {norm} and not watch.readers[norm]
    ]


def _fold(model: nn.Module, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # torch.nn.utils.fusion.fuse_conv_bn_weights takes the products in another order. It rounds otherwise, and a search
    # that begins from such weights gives other figures.
    with torch.no_grad():
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        bias = conv.bias if conv.bias is not None else torch.zeros_like(norm.running_mean)
        bias = (bias - norm.running_mean) * scale
        if norm.bias is not None:
            bias = bias + norm.bias
        conv.weight.mul_(scale[:, None, None, None])
        conv.bias = nn.Parameter(bias.clone())
    replace_module(model, norm, nn.Identity())


def replace_module(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of `old` under all of its names; inside of `new`, `old` stays."""
    for parent in list(net.modules()):
        if parent is not new:
            parent._modules.update({name: new for name, child in parent._modules.items() if child is old})
