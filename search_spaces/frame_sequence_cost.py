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
from search_spaces.frame_sequence_net import build_net
from search_spaces.frame_sequence_settings import FrameSequenceSettings

BATCH_NORM = 2  # FLOPs an element, as fvcore counts it: scale and shift


def frame_sequence_costs(
    settings: FrameSequenceSettings, variables: Mapping[str, tuple[Choice, ...]], family: str, frames: int
) -> CostTable:
    """The cost table of one family for sequences of `frames` frames."""
    t, d, classes, experts = frames, settings.feature_size, settings.num_classes, settings.experts

    def term(name: str, over: tuple[str, ...], flops: Callable[..., int]) -> CostTerm:
        names = tuple(v if v == "head" else f"{family}.{v}" for v in over)
        table = np.zeros([len(variables[v]) for v in names], dtype=np.int64)
        for index in np.ndindex(*table.shape):
            table[index] = flops(*(variables[v][i] for v, i in zip(names, index, strict=True)))
        return CostTerm(f"{family}.{name}" if name != "head" else name, names, table)

    constant = 0
    if family == "h_rnn":

        def lower(size: int, length: int) -> int:
            return 4 * size * (t * d + (t - -(-t // length)) * size)

        def upper(inputs: int, length: int, size: int) -> int:
            blocks = -(-t // length)
            return 4 * size * (blocks * inputs + (blocks - 1) * size)

        terms = [
            term("lower", ("lower", "block_length"), lower),
            term("upper", ("lower", "block_length", "upper"), upper),
        ]
    elif family == "net_vlad":
        constant = BATCH_NORM * t * d

        def pool(clusters: int) -> int:
            return t * clusters * (d + BATCH_NORM + d)

        def layer(clusters: int, hidden: int) -> int:
            return hidden * (clusters * d + BATCH_NORM + hidden + BATCH_NORM)

        terms = [term("pool", ("clusters",), pool), term("layer", ("clusters", "hidden"), layer)]
    else:
        assert settings.nextvlad is not None, "settings hold the options of every family that they name"
        reduction = settings.nextvlad.reduction

        def expand(factor: int) -> int:
            return t * d * factor * d

        def grouped(factor: int, groups: int, clusters: int) -> int:
            assigned = t * groups * (factor * d + clusters * (factor * d + BATCH_NORM))  # with their attention
            summed = t * clusters * factor * d
            return assigned + summed + BATCH_NORM * clusters * (factor * d // groups)

        def squeezed(factor: int, groups: int, clusters: int, hidden: int) -> int:
            inner = hidden // reduction
            gating = inner * (hidden + BATCH_NORM + hidden)
            return hidden * (clusters * (factor * d // groups) + BATCH_NORM) + gating

        terms = [
            term("expand", ("expansion",), expand),
            term("pool", ("expansion", "groups", "clusters"), grouped),
            term("layer", ("expansion", "groups", "clusters", "hidden"), squeezed),
        ]

    def head(width: int, kind: str) -> int:
        return width * classes * (1 if kind == "linear" else 2 * experts + 1)

    terms.append(term("head", ("upper" if family == "h_rnn" else "hidden", "head"), head))
    return CostTable(variables, tuple(terms), constant, _free_operators(family, settings.head))


@lru_cache(maxsize=64)
def _free_operators(family: str, heads: tuple[str, ...]) -> tuple[str, ...]:
    """Operators that are not counted, by convention, in the nets of a family; found in small ones."""
    sizes: dict[str, dict[str, list[int]]] = {
        "h_rnn": {"lower": [2], "upper": [2], "block_length": [2]},
        "net_vlad": {"clusters": [2], "hidden": [2]},
        "nextvlad": {"clusters": [2], "groups": [2], "expansion": [2], "hidden": [8]},
    }
    small = FrameSequenceSettings.model_validate(
        {"num_classes": 2, "feature_size": 2, "family": [family], "head": heads, family: sizes[family]}
    )
    choices: dict[str, Choice] = {f"{family}.{name}": options[0] for name, options in small.options(family).items()}
    free: set[str] = set()
    for head in heads:
        net = build_net(small, {"family": family, "head": head, **choices})
        free.update(count_flops(net, torch.zeros(1, 3, 2)).uncounted)
    return tuple(sorted(free))
