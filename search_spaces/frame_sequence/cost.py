"""Costs of the space `frame_sequence`, in closed form.

Recurrent nets unroll, so measuring every size at its real shape would trace thousands of operators a part; the sums
below are those of `count_flops`, as tests hold. Of one part of each family the free operators are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch

from search_spaces.arch import Choice
from search_spaces.cost import CostTable, CostTerm
from search_spaces.flops import count_flops
from search_spaces.frame_sequence.net import build_net
from search_spaces.frame_sequence.settings import FAMILIES, FrameSequenceSettings

BATCH_NORM = 2  # FLOPs an element, as fvcore counts it: scale and shift

Part = tuple[str, tuple[str, ...], Callable[..., int]]
"""Name of a part, the gates that it depends on, and its FLOPs for their choices."""


def frame_sequence_costs(
    settings: FrameSequenceSettings, variables: Mapping[str, tuple[Choice, ...]], family: str, frames: int
) -> CostTable:
    """The cost table of one family for sequences of `frames` frames."""

    def head(width: int, kind: str) -> int:
        return width * settings.num_classes * (1 if kind == "linear" else 2 * settings.experts + 1)

    constant, parts = ENCODER_PARTS[family](settings, frames)
    terms = []
    for name, over, flops in [*parts, ("head", (settings.of(family).encoding, "head"), head)]:
        names = tuple(v if v == "head" else f"{family}.{v}" for v in over)
        table = np.zeros([len(variables[v]) for v in names], dtype=np.int64)
        for index in np.ndindex(*table.shape):
            table[index] = flops(*(variables[v][i] for v, i in zip(names, index, strict=True)))
        terms.append(CostTerm(name if name == "head" else f"{family}.{name}", names, table))
    return CostTable(variables, tuple(terms), constant, _free_operators(family, settings.head))


def _h_rnn(settings: FrameSequenceSettings, t: int) -> tuple[int, list[Part]]:
    def lower(size: int, length: int) -> int:
        return 4 * size * (t * settings.feature_size + (t - -(-t // length)) * size)

    def upper(inputs: int, length: int, size: int) -> int:
        blocks = -(-t // length)
        return 4 * size * (blocks * inputs + (blocks - 1) * size)

    return 0, [
        ("lower", ("lower", "block_length"), lower),
        ("upper", ("lower", "block_length", "upper"), upper),
    ]


def _net_vlad(settings: FrameSequenceSettings, t: int) -> tuple[int, list[Part]]:
    d = settings.feature_size

    def pool(clusters: int) -> int:
        return t * clusters * (d + BATCH_NORM + d)

    def layer(clusters: int, hidden: int) -> int:
        return hidden * (clusters * d + BATCH_NORM + hidden + BATCH_NORM)

    return BATCH_NORM * t * d, [("pool", ("clusters",), pool), ("layer", ("clusters", "hidden"), layer)]


def _nextvlad(settings: FrameSequenceSettings, t: int) -> tuple[int, list[Part]]:
    d = settings.feature_size
    reduction: int = settings.of("nextvlad").fixed()["reduction"]

    def expand(factor: int) -> int:
        return t * d * factor * d

    def pool(factor: int, groups: int, clusters: int) -> int:
        assigned = t * groups * (factor * d + clusters * (factor * d + BATCH_NORM))  # with their attention
        summed = t * clusters * factor * d
        return assigned + summed + BATCH_NORM * clusters * (factor * d // groups)

    def layer(factor: int, groups: int, clusters: int, hidden: int) -> int:
        inner = hidden // reduction
        gating = inner * (hidden + BATCH_NORM + hidden)
        return hidden * (clusters * (factor * d // groups) + BATCH_NORM) + gating

    return 0, [
        ("expand", ("expansion",), expand),
        ("pool", ("expansion", "groups", "clusters"), pool),
        ("layer", ("expansion", "groups", "clusters", "hidden"), layer),
    ]


ENCODER_PARTS: dict[str, Callable[[FrameSequenceSettings, int], tuple[int, list[Part]]]] = {
    "h_rnn": _h_rnn,
    "net_vlad": _net_vlad,
    "nextvlad": _nextvlad,
}
"""Family -> (settings, frames) -> FLOPs of what is always there, and the parts that gates decide."""


@lru_cache(maxsize=64)
def _free_operators(family: str, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Operators that are not counted, by convention, in the nets of a family; found in small ones."""
    size, gates = 8, FAMILIES[family].gates
    options = {"family": [family], family: dict.fromkeys(gates, (size,)), "head": heads}
    small = FrameSequenceSettings.model_validate({"num_classes": 2, "feature_size": size, **options})
    sizes = {f"{family}.{name}": size for name in gates}
    free: set[str] = set()
    for head in heads:
        net = build_net(small, {"family": family, "head": head, **sizes})
        free.update(count_flops(net, torch.zeros(1, size + 1, size)).uncounted)  # a block, and a short one
    return tuple(sorted(free))
