"""Which frames of a sequence a student sees: the six rules that Bhardwaj et al. (CVPR 2019, section 5) compare.

A rule is a pure function from the number of frames there are and the number wanted to ascending, distinct indices.
`SELECTORS` holds them under one signature: (total, wanted, items) -> int64 (items, wanted), a row for each sequence of
a batch. Only `random` gives rows that differ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Selector = Callable[[int, int, int], Tensor]


def uniform(total: int, wanted: int) -> list[int]:
    """Centres of `wanted` equal parts of the sequence, for clips too.

    Bhardwaj et al. take every (total / wanted)-th frame; centres also fit where that is no integer.
    """
    return [int((i + 0.5) * total / wanted) for i in range(wanted)]


def first(total: int, wanted: int) -> list[int]:
    """The first `wanted` frames."""
    return list(range(wanted))


def middle(total: int, wanted: int) -> list[int]:
    """The `wanted` frames around the centre; where they cannot be centred, one frame earlier rather than later."""
    start = (total - wanted) // 2
    return list(range(start, start + wanted))


def last(total: int, wanted: int) -> list[int]:
    """The last `wanted` frames."""
    return list(range(total - wanted, total))


def first_middle_last(total: int, wanted: int) -> list[int]:
    """A third of the frames from each of the beginning, the centre and the end.

    Where `wanted` is no multiple of 3, the beginning and the end still give the same number: one frame too many goes
    to the centre, two go to the beginning and the end. So the three parts never overlap.
    """
    side = (wanted + 1) // 3
    return first(total, side) + middle(total, wanted - 2 * side) + last(total, side)


def random(total: int, wanted: int, items: int) -> Tensor:
    """Distinct frames, uniformly at random and in ascending order, drawn anew for each item.

    The draw is from torch's global generator on the CPU, so a seed gives the same frames on every device.

    Returns:
        int64 (items, wanted).
    """
    return torch.rand(items, total).topk(wanted, dim=1).indices.sort(dim=1).values


def _same_for_all(rule: Callable[[int, int], list[int]]) -> Selector:
    return lambda total, wanted, items: torch.tensor(rule(total, wanted)).expand(items, -1)


SELECTORS: dict[str, Selector] = {
    "uniform": _same_for_all(uniform),
    "random": random,
    "first": _same_for_all(first),
    "middle": _same_for_all(middle),
    "last": _same_for_all(last),
    "first_middle_last": _same_for_all(first_middle_last),
}
"""Name -> (frames there are, frames wanted, items) -> int64 (items, wanted)."""


def select_frames(features: Tensor, wanted: int, selector: str) -> Tensor:
    """The frames of each sequence that the selector of that name takes.

    Args:
        features: (N, T, D).
        wanted: frames to take; where that is T, the result is `features` itself, whatever the selector.
        selector: a key of `SELECTORS`.

    Returns:
        (N, wanted, D).

    Raises:
        ValueError: no such selector, or fewer frames than wanted.
    """
    if selector not in SELECTORS:
        raise ValueError(f"unknown frame selector {selector!r}; choose from {', '.join(SELECTORS)}")
    items, total, size = features.shape
    if wanted > total:
        raise ValueError(f"the student wants {wanted} frames, but the sequence has {total}; lower space.frames")
    if wanted == total:
        return features
    index = SELECTORS[selector](total, wanted, items).to(features.device)
    return features.gather(1, index[:, :, None].expand(-1, -1, size))
