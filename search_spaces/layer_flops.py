"""Where in a net its FLOPs are: those of each layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas_kd.search_spaces.flops import FlopCount


@dataclass(frozen=True)
class LayerFlops:
    """What one layer of a net costs.

    Attributes:
        name: path of the module; empty for work of the net itself.
        kind: its class, and for convolutions and linear layers what they map: `Conv3d 8 → 16, 1×3×3, groups 8`.
        flops: of its own, without those of modules in it.
        params: number of its own parameters.
    """

    name: str
    kind: str
    flops: int
    params: int


def layer_flops(module: nn.Module, count: FlopCount) -> tuple[LayerFlops, ...]:
    """All layers that cost FLOPs or have parameters, in the order in which the net names its modules.

    Args:
        module: any module but an exported graph, whose modules are gone.
        count: of it, by `count_flops`, of which the layers' FLOPs are the parts.
    """
    flops = count.by_module
    found = []
    for name, part in module.named_modules():
        params = sum(p.numel() for p in part.parameters(recurse=False))
        if flops.get(name) or params:
            found.append(LayerFlops(name, _kind(part), flops.get(name, 0), params))
    return tuple(found)


def _kind(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        return f"{name} {module.in_features} → {module.out_features}"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kernel = "×".join(str(size) for size in module.kernel_size)
        groups = f", groups {module.groups}" if module.groups > 1 else ""
        return f"{name} {module.in_channels} → {module.out_channels}, {kernel}{groups}"
    return name
