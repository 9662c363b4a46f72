"""BatchNorm folded into the convolution before it: the strong form of a net that is only evaluated."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3  # of the folded net's output, relative to its largest value


def fold_batchnorm(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `model` in evaluation mode with every BatchNorm2d folded whose input is a convolution's output.

    Which pairs belong together is seen in a forward pass, so no structure is assumed. A fold that changes the output,
    since something else reads the convolution as well, is taken back.

    Args:
        model: any module.
        example: one input.
    """
    folded = copy.deepcopy(model).eval()
    pairs = _pairs(folded, example)
    probe = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    with torch.no_grad():
        expected = folded(probe)
        whole = _fold(copy.deepcopy(folded), pairs)
        if _same(whole(probe), expected):
            return whole
        for pair in pairs:
            trial = _fold(copy.deepcopy(folded), [pair])
            if _same(trial(probe), expected):
                folded = trial
    return folded


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """(convolution, BatchNorm) names where the second one's input is the first one's output."""
    made: dict[int, tuple[str, int]] = {}
    alive: list[Tensor] = []  # so that an id is not given to a second tensor
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}

    def convolved(name: str, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        made[id(output)] = (name, output._version)
        alive.append(output)

    def normalised(name: str, value: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        conv, version = made.get(id(value), ("", 0))
        if conv and version == value._version:  # nothing was written into it in between
            pairs.append((conv, name))

    hooks = []
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(lambda _m, _i, out, name=name: convolved(name, out)))
        elif type(module) is nn.BatchNorm2d and module.running_var is not None:
            hooks.append(module.register_forward_pre_hook(lambda _m, inputs, name=name: normalised(name, inputs[0])))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


def _fold(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
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
        parent, _, attribute = norm_name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.Identity())
    return model


def _same(ours: Tensor, expected: Tensor) -> bool:
    return bool((ours - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp_min(1e-6))
