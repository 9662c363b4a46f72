"""Which feature maps of a net are distilled where the campaign file names none."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from nas_kd.taps import Passed, Viewed, has_shape_of, passes, tappable

Scale = tuple[int, int]
_NUMBERED = re.compile(r".+\.\d+")


def last_maps(module: nn.Module, example: Tensor, ndim: int | None = None) -> tuple[str, ...]:
    """Names of the submodules that give the last feature map of each scale, in the order of the forward pass.

    A feature map is a 4-D or 5-D output of more than one pixel, a scale its height and width. A module inside one that
    leaves the scale which it read is no candidate, unless it is the last of a row of equal blocks, and of nested
    modules that return the same map the outermost one is named: `layers.2`, and neither `layers.2.1.relu` nor what
    `layers.3` does before its stride, but `layers.3.blocks.1` where a stage of transformer blocks merges its patches
    at its end. Of pathways with different numbers of frames at one scale, the one with the most channels counts, and
    narrower connections into it do not. Empty where no submodule returns such a map.

    Args:
        module: any module.
        example: its input.
        ndim: of the maps that count; None for 4 and 5.
    """
    return tuple(_last_of_scales(_maps(module, example, ndim), tappable(module)).values())


def spread_maps(module: nn.Module, example: Tensor, count: int, ndim: int | None = None) -> tuple[str, ...]:
    """The maps of `last_maps`; of a net with one scale and a row of equal blocks, as transformers are, those of up to
    `count` blocks, evenly spaced up to the last one.

    Args:
        module: any module.
        example: its input.
        count: how many maps can be compared.
        ndim: of the maps that count; None for 4 and 5.
    """
    maps, modules = _maps(module, example, ndim), tappable(module)
    last = _last_of_scales(maps, modules)
    if len(last) != 1:
        return tuple(last.values())
    blocks = _row_of_blocks(maps, modules, next(iter(last)))
    if not blocks:
        return tuple(last.values())
    wanted = min(max(count, 1), len(blocks))
    return tuple(blocks[-(-(i + 1) * len(blocks) // wanted) - 1] for i in range(wanted))


def _maps(module: nn.Module, example: Tensor, ndim: int | None) -> dict[str, Passed]:
    """Of submodules that give maps, whose shape is that of the input at another scale."""
    allowed = (4, 5) if ndim is None else (ndim,)
    size = tuple(example.shape[-2:]) if example.ndim in (4, 5) else None
    if size is not None and isinstance(module, Viewed):
        size = module.seen_size or size
    found = {}
    for name, passed in passes(module, example).items():
        h, w = passed.shape[-2:] if len(passed.shape) in allowed else (1, 1)
        if passed.shape[0] == len(example) and h * w > 1 and (size is None or has_shape_of((h, w), size)):
            found[name] = passed
    return found


def _scale(passed: Passed) -> Scale:
    return passed.shape[-2], passed.shape[-1]


def _frames(passed: Passed) -> int:
    return passed.shape[2] if len(passed.shape) == 5 else 1


def _last_of_scales(maps: Mapping[str, Passed], modules: Mapping[str, nn.Module]) -> dict[Scale, str]:
    """Scale -> its last map, ordered by their time."""
    last: dict[Scale, dict[int, str]] = {}  # by frames: pathways differ in them
    ends = {row[-1] for row in _rows(maps, modules)}
    for name, passed in maps.items():  # in the order in which modules finish: an outer one after its inner ones
        outer = [maps[each] for each in _outer(name) if each in maps]
        if name not in ends and any(_hides(each, passed, _is_block(name, modules)) for each in outer):
            continue
        scale, frames = _scale(passed), _frames(passed)
        at_scale = last.pop(scale, {})  # scales are ordered by their last map
        before = at_scale.get(frames)
        if before is not None and _is_beside(passed, maps[before]):
            last[scale] = at_scale
            continue
        at_scale.pop(frames, None)
        last[scale] = {**at_scale, frames: name}
    chosen: dict[Scale, str] = {}
    for scale, names in last.items():
        latest_first = list(names.values())[::-1]
        chosen[scale] = max(latest_first, key=lambda name: maps[name].shape[1])  # the first one of equals
    return chosen


def _is_beside(passed: Passed, before: Passed) -> bool:
    """Whether a map is none of the main path, which the one before it was of: a connection from a pathway with more
    frames into this one, or a score of each place."""
    channels, wider = passed.shape[1], before.shape[1] > passed.shape[1]
    return wider and (channels == 1 or passed.frames_read > _frames(passed))


def _outer(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _hides(outer: Passed, inner: Passed, is_block: bool) -> bool:
    """Whether an outer module leaves the scale of an inner one, which it read: what comes before its stride.

    Likewise what comes before a stride of time. Of what reads tokens the scale is not known; then blocks within it are
    taken for stages of their own.
    """
    scale = _scale(inner)
    if scale == _scale(outer) and _frames(inner) > _frames(outer):
        return True
    return scale != _scale(outer) and (outer.read == scale or (outer.read is None and not is_block))


def _is_block(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module is an item of a list, and no single layer."""
    return _NUMBERED.fullmatch(name) is not None and bool(list(modules[name].children()))


def _rows(maps: Mapping[str, Passed], modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """Names of the numbered modules of one class and one parent that give maps of one shape, at least two in a row."""
    rows: dict[tuple[str, type[nn.Module], tuple[int, ...]], list[str]] = {}
    for name, passed in maps.items():
        if _is_block(name, modules):
            rows.setdefault((name.rpartition(".")[0], type(modules[name]), passed.shape), []).append(name)
    return [names for names in rows.values() if len(names) > 1]


def _row_of_blocks(maps: Mapping[str, Passed], modules: Mapping[str, nn.Module], scale: Scale) -> list[str]:
    """The outermost and longest row of blocks at a scale; empty where there is none."""
    best: list[str] = []
    for names in _rows(maps, modules):
        if _scale(maps[names[0]]) != scale:
            continue
        depth = names[0].rpartition(".")[0].count(".")
        if not best or (-depth, len(names)) >= (-best[0].rpartition(".")[0].count("."), len(best)):
            best = names
    return best
