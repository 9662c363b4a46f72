"""The plan of a delta net: which layers of a teacher become delta layers, their shapes, and which layers read them.

All of it is seen in one forward pass, so any module works; nothing is traced or rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.search_spaces.delta_blocks.ops import LayerShape
from nas_kd.search_spaces.flops import count_flops

_NAMED = 4  # layers in a sentence

Terms = frozenset[frozenset[str]]
"""A monotone condition as alternatives of conjunctions: {{}} is always true."""
ALWAYS: Terms = frozenset([frozenset()])
MAX_CONDITION = 2  # layers that may be zero on which the liveness of another one may depend


@dataclass(frozen=True)
class PlannedLayer:
    """One delta layer.

    Attributes:
        name: of the module in the teacher.
        shape: for its candidates.
        in_shape: of its input, for one frame.
        out_shape: of its output, for one frame.
        flops: of the teacher's layer, a frame.
        copy_input: the net overwrites the input afterwards.
        copy_output: the net overwrites the output.
        may_be_zero: whether `zero` is offered, see `_liveness`.
        alive: the layers of which one alternative must be other than zero for anybody to read this layer's output.
    """

    name: str
    shape: LayerShape
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    flops: int
    copy_input: bool
    copy_output: bool
    may_be_zero: bool
    alive: Terms


@dataclass(frozen=True)
class Plan:
    """The delta layers of a teacher in the order in which they run.

    Attributes:
        layers: the delta layers.
        left_out: module -> why it is none.
        teacher_flops: of the whole teacher, a frame.
    """

    layers: tuple[PlannedLayer, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    teacher_flops: int = 0

    @property
    def rest_flops(self) -> int:
        """FLOPs a frame of what runs on every frame."""
        return self.teacher_flops - sum(layer.flops for layer in self.layers)


class _Tag(torch.autograd.Function):
    """The identity, as a mark in the graph of gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


@dataclass
class _Seen:
    x: Tensor
    z: Tensor
    x_version: int
    z_version: int
    overwrites: bool  # the module writes into its own input
    calls: int = 1


def plan_layers(
    model: nn.Module,
    example: Tensor,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    blocks: Sequence[str] = (),
    skip_first: int = 1,
    skip_last: int = 1,
    min_share: float = 0.001,
) -> Plan:
    """Plan the delta layers of a model.

    Eligible are convolutions (`nn.Conv2d`) over more than one pixel and linear layers (`nn.Linear`) over tokens, and
    modules that `blocks` name as a whole. The first `skip_first` and the last `skip_last` convolutions and linear
    layers of the model, in the order of its forward pass, stay as they are, and so do depthwise convolutions, layers
    with less than `min_share` of the FLOPs, layers that run twice in a pass, and those that the output does not depend
    on.

    Args:
        model: (1, 3, H, W) -> a tensor; in evaluation mode.
        example: one frame.
        include: patterns (`*`, `?`) of module names; only these layers.
        exclude: patterns of module names that stay as they are.
        blocks: patterns of modules that become one delta layer as a whole.
        skip_first: number of layers at the start that stay.
        skip_last: number of layers at the end that stay.
        min_share: of the model's FLOPs.

    Raises:
        ValueError: a pattern matches nothing, or no layer is eligible.
    """
    names = [name for name, _ in model.named_modules() if name]
    for pattern in (*include, *exclude, *blocks):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"pattern {pattern!r} matches no module; the teacher has {', '.join(names[:12])}, …")
    wanted, left_out = _candidates(model, include, exclude, blocks)
    kernels = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    everything = _observe(model, example, list(dict.fromkeys([*wanted, *kernels])))
    seen = {name: everything[name] for name in everything if name in wanted}
    ordered = [name for name in everything if name in kernels]
    ends = {*ordered[:skip_first], *ordered[max(len(ordered) - skip_last, 0) :]}
    whole = count_flops(model, example).total
    eligible: dict[str, int] = {}
    for name in seen:  # in the order of the forward pass
        module = model.get_submodule(name)
        if reason := _unfit(module, seen[name], is_block=_matches(name, blocks)):
            left_out[name] = reason
            continue
        flops = count_flops(module, torch.zeros_like(seen[name].x)).total
        if name in ends:
            left_out[name] = "among the first or the last layers"
        elif flops < min_share * whole:
            left_out[name] = f"less than {min_share:.2%} of the FLOPs"
        else:
            eligible[name] = flops
    left_out |= {name: "does not run" for name in wanted if name not in seen}
    feeds = _feeds(model, example, list(eligible))
    for name in [n for n in eligible if not feeds.readers[n]]:
        left_out[name] = "the output does not depend on it"
        del eligible[name]
    if not eligible:
        raise ValueError(f"no layer of the teacher can become a delta layer{_why_none(left_out)}")
    may_be_zero, alive = _liveness(list(eligible), feeds)
    layers = tuple(
        PlannedLayer(
            name,
            _shape_of(model.get_submodule(name), seen[name]),
            tuple(seen[name].x.shape),
            tuple(seen[name].z.shape),
            flops,
            seen[name].x._version != seen[name].x_version,
            seen[name].z._version != seen[name].z_version,
            name in may_be_zero,
            alive[name],
        )
        for name, flops in eligible.items()
    )
    return Plan(layers, left_out, whole)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _candidates(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str], blocks: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Names of the modules that may become delta layers: no one inside another one."""
    chosen: list[str] = []
    left_out: dict[str, str] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in chosen) or not name:
            continue
        if _matches(name, blocks):
            chosen.append(name)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            if not _matches(name, include) or _matches(name, exclude):
                left_out[name] = "include and exclude"
            else:
                chosen.append(name)
    return chosen, left_out


def _observe(model: nn.Module, example: Tensor, names: Sequence[str]) -> dict[str, _Seen]:
    seen: dict[str, _Seen] = {}
    before: dict[str, int] = {}

    def enter(name: str, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            before[name] = inputs[0]._version

    def watch(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if name in seen:
            seen[name].calls += 1
        elif len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            version = inputs[0]._version
            seen[name] = _Seen(inputs[0], output, version, output._version, version != before[name])

    hooks = []
    for name in names:
        module = model.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(lambda _m, inputs, name=name: enter(name, inputs)))
        hooks.append(module.register_forward_hook(lambda _m, inputs, out, name=name: watch(name, inputs, out)))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _why_none(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return (
            ", since it has no nn.Conv2d and no nn.Linear; take a teacher with such layers, or name modules from "
            "(N, C, H, W) to (N, C', H', W') as blocks"
        )
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:_NAMED])
    more = f"; and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    return f" ({reasons}{more}); loosen include, exclude, skip_first or skip_last"


def _unfit(module: nn.Module, seen: _Seen, *, is_block: bool) -> str | None:
    """Why a module cannot be a delta layer, by itself or as a block, or None."""
    if seen.calls > 1:
        return "runs more than once a frame"
    if seen.x.shape[0] != 1 or seen.z.shape[0] != 1:
        return "its first dimension is not that of the frames"
    if seen.overwrites:
        return "it overwrites its input"
    if is_block:
        return None if seen.z.ndim == 4 and seen.x.ndim == 4 else "a block must map (N, C, H, W) to (N, C', H', W')"
    if isinstance(module, nn.Linear):
        if type(module) is not nn.Linear:
            return "no plain linear layer"
        return None if seen.x.ndim == 3 and seen.x.shape[1] > 1 else "a linear layer needs tokens (N, L, C)"
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or _padding(module) is None:
        return "no plain convolution with zeros as padding, as many on both sides"
    if module.groups == module.in_channels and module.groups > 1:
        return "depthwise"
    return None if seen.x.shape[-1] * seen.x.shape[-2] > 1 else "a map of one pixel"


def _shape_of(module: nn.Module, seen: _Seen) -> LayerShape:
    plain = _unfit(module, seen, is_block=False) is None
    if plain and isinstance(module, nn.Linear):
        ones = (1, 1)
        weight = module.weight.detach()
        return LayerShape(module.in_features, module.out_features, ones, ones, (0, 0), ones, 1, None, weight)
    size = (int(seen.z.shape[-2]), int(seen.z.shape[-1]))
    if plain and isinstance(module, nn.Conv2d):
        padding = _padding(module)
        assert padding is not None, "a plain convolution pads both sides alike"
        return LayerShape(
            module.in_channels, module.out_channels, _pair(module.kernel_size), _pair(module.stride),
            padding, _pair(module.dilation), module.groups, size, module.weight.detach(),
        )  # fmt: skip
    stride = tuple(max(1, round(int(i) / o)) for i, o in zip(seen.x.shape[-2:], size, strict=True))
    return LayerShape(
        int(seen.x.shape[1]), int(seen.z.shape[1]), (3, 3), (stride[0], stride[1]), (1, 1), (1, 1), 1, size, None
    )  # fmt: skip


def _padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """(height, width), or None where `same` pads one side more than the other."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        whole = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return None if any(p % 2 for p in whole) else _pair([p // 2 for p in whole])
    return _pair(conv.padding)


def _pair(values: Any) -> tuple[int, int]:
    return int(values[0]), int(values[1])


@dataclass(frozen=True)
class _Feeds:
    """Who reads whose output without another delta layer in between. A reader "" is the net's output.

    Attributes:
        readers: layer -> who reads its output.
        sources: layer -> the layers that it reads; the frame itself is "".
        costly: for every operation with FLOPs that belongs to no layer, who reads its result.
    """

    readers: dict[str, set[str]]
    sources: dict[str, set[str]]
    costly: list[set[str]]


_COSTLY = (
    "Convolution", "Addmm", "Addbmm", "Mm", "Bmm", "Baddbmm", "Linear", "NativeBatchNorm", "NativeLayerNorm",
    "NativeGroupNorm", "Upsample", "GridSampler", "ScaledDotProduct", "AdaptiveAvgPool", "Mean", "Mv", "Dot",
)  # fmt: skip
"""How the nodes of operations that have FLOPs begin."""


def _feeds(model: nn.Module, example: Tensor, names: Sequence[str]) -> _Feeds:
    """From the graph of gradients of one pass in which every layer's output carries a mark."""
    marks: dict[Any, str] = {}
    reads: dict[str, Any] = {}
    frame = example.detach().clone().requires_grad_(True)

    def mark(name: str, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        reads[name] = inputs[0].grad_fn
        tagged: Tensor = _Tag.apply(output)  # type: ignore[no-untyped-call]
        marks[tagged.grad_fn] = name
        return tagged

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, inputs, out, name=name: mark(name, inputs, out))
        for name in names
    ]
    try:
        with torch.enable_grad():
            reads[""] = model(frame.clone()).grad_fn
    finally:
        for hook in hooks:
            hook.remove()
    costly: dict[Any, set[str]] = {}
    sources: dict[str, set[str]] = {}
    for reader, start in reads.items():
        found: set[str] = set()
        visited: set[Any] = set()
        stack = [start]
        while stack:
            node = stack.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            if node in marks:
                found.add(marks[node])
                continue
            if node.name().startswith(_COSTLY):
                costly.setdefault(node, set()).add(reader)
            if getattr(node, "variable", None) is frame:
                found.add("")
            stack.extend(parent for parent, _ in node.next_functions)
        sources[reader] = found or {""}
    useful: set[str] = set()  # what the output depends on
    waiting = [""]
    while waiting:
        if (reader := waiting.pop()) not in useful:
            useful.add(reader)
            waiting.extend(sources[reader])
    readers = {name: {reader for reader in useful if name in sources[reader]} for name in names}
    return _Feeds(readers, sources, [readers_of & useful for readers_of in costly.values() if readers_of & useful])


def _liveness(names: Sequence[str], feeds: _Feeds) -> tuple[set[str], dict[str, Terms]]:
    """Which layers may be zero, and the liveness of all: under which zeros their output is still read.

    A layer may be zero where every reader has another source as well, as the last convolution of a residual branch
    has. So that costs are exact and small, `zero` is withdrawn where the liveness of a layer would depend on more than
    `MAX_CONDITION` of them, and where it would take the only reader from an operation outside of the search.
    """
    position = {name: i for i, name in enumerate([*names, ""])}
    may_be_zero = {name for name in names if all(len(feeds.sources[reader]) > 1 for reader in feeds.readers[name])}
    while True:
        alive: dict[str, Terms] = {"": ALWAYS}
        withdrawn: set[str] = set()
        for name in reversed(names):
            terms: set[frozenset[str]] = set()
            for reader in feeds.readers[name]:
                own = {reader} if reader in may_be_zero else set()
                terms |= {term | own for term in alive[reader]}
            alive[name] = frozenset(t for t in terms if not any(other < t for other in terms))
            conditions = frozenset[str]().union(*alive[name])
            if len(conditions) > MAX_CONDITION:
                zeros = sorted(feeds.readers[name] & may_be_zero, key=lambda reader: position[reader])
                # A reader that is always live settles it; otherwise any variable that is left must go.
                certain = [reader for reader in zeros if alive[reader] == ALWAYS]
                withdrawn = {(certain or zeros or sorted(conditions))[-1]}
                break
        if not withdrawn:
            for operation in feeds.costly:
                if any(reader not in may_be_zero and alive[reader] == ALWAYS for reader in operation):
                    continue
                last = max(operation, key=lambda reader: position[reader])
                withdrawn |= ({last} & may_be_zero) | frozenset[str]().union(*alive[last])
        if not withdrawn:
            return may_be_zero, {name: alive[name] for name in names}
        may_be_zero -= withdrawn
