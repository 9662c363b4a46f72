"""Which feature maps of a net are distilled where the campaign file names none."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from nas_kd.taps import Passed, passes, tappable

Scale = tuple[int, int]
_NUMBERED = re.compile(r"(.+)\.(\d+)")


def last_maps(module: nn.Module, example: Tensor, ndim: int | None = None) -> tuple[str, ...]:
    """Names of the submodules that give the last feature map of each scale, in the order of the forward pass.

    A feature map is a 4-D or 5-D output of more than one pixel, a scale its height and width. A module inside one that
    leaves the scale which it read is no candidate, and of nested modules that return the same map the outermost one is
    named: `layers.2`, and neither `layers.2.1.relu` nor what `layers.3` does before its stride. Of pathways with
    different numbers of frames at one scale, the one with the most channels counts. Empty where no submodule returns
    such a map.

    Args:
        module: any module.
        example: its input.
        ndim: of the maps that count; None for 4 and 5.
    """
    return tuple(_last_of_scales(_maps(module, example, ndim)).values())


def spread_maps(module: nn.Module, example: Tensor, count: int, ndim: int | None = None) -> tuple[str, ...]:
    """The maps of `last_maps`; of a net with one scale and a row of equal blocks, as transformers are, those of up to
    `count` blocks, evenly spaced up to the last one.

    Args:
        module: any module.
        example: its input.
        count: how many maps can be compared.
        ndim: of the maps that count; None for 4 and 5.
    """
    maps = _maps(module, example, ndim)
    last = _last_of_scales(maps)
    if len(last) != 1:
        return tuple(last.values())
    blocks = _row_of_blocks(maps, tappable(module), next(iter(last)))
    if not blocks:
        return tuple(last.values())
    wanted = min(max(count, 1), len(blocks))
    return tuple(blocks[-(-(i + 1) * len(blocks) // wanted) - 1] for i in range(wanted))


def _maps(module: nn.Module, example: Tensor, ndim: int | None) -> dict[str, Passed]:
    """Of submodules that give maps."""
    allowed = (4, 5) if ndim is None else (ndim,)
    return {
        name: passed
        for name, passed in passes(module, example).items()
        if len(passed.shape) in allowed and _scale(passed)[0] * _scale(passed)[1] > 1
    }


def _scale(passed: Passed) -> Scale:
    return passed.shape[-2], passed.shape[-1]


def _frames(passed: Passed) -> int:
    return passed.shape[2] if len(passed.shape) == 5 else 1


def _last_of_scales(maps: Mapping[str, Passed]) -> dict[Scale, str]:
    """Scale -> its last map, ordered by their time."""
    last: dict[Scale, dict[int, str]] = {}  # by frames: pathways differ in them
    for name, passed in maps.items():  # in the order in which modules finish: an outer one after its inner ones
        if any(_hides(maps[outer], passed) for outer in _outer(name) if outer in maps):
            continue
        scale, frames = _scale(passed), _frames(passed)
        at_scale = last.pop(scale, {})  # scales are ordered by their last map
        at_scale.pop(frames, None)
        last[scale] = {**at_scale, frames: name}
    chosen: dict[Scale, str] = {}
    for scale, names in last.items():
        latest_first = list(names.values())[::-1]
        chosen[scale] = max(latest_first, key=lambda name: maps[name].shape[1])  # the first one of equals
    return chosen


def _outer(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _hides(outer: Passed, inner: Passed) -> bool:
    """Whether an outer module leaves the scale of an inner one, which it read: what comes before its stride."""
    scale = _scale(inner)
    return scale != _scale(outer) and (outer.read is None or outer.read == scale)


def _row_of_blocks(maps: Mapping[str, Passed], modules: Mapping[str, nn.Module], scale: Scale) -> list[str]:
    """Names of the numbered modules of one class that give maps of one shape at a scale: the outermost and longest row
    of at least two; empty where there is none."""
    rows: dict[tuple[str, type[nn.Module], tuple[int, ...]], list[str]] = {}
    for name, passed in maps.items():
        match = _NUMBERED.fullmatch(name)
        if match is not None and _scale(passed) == scale:
            rows.setdefault((match[1], type(modules[name]), passed.shape), []).append(name)
    best: list[str] = []
    for (parent, _, _), names in rows.items():
        if len(names) < 2 or not list(modules[names[0]].children()):  # single layers are no blocks
            continue
        depth = parent.count(".")
        if not best or (-depth, len(names)) >= (-best[0].rpartition(".")[0].count("."), len(best)):
            best = names
    return best
