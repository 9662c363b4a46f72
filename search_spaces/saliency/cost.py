"""Costs of the space `saliency`: each part measured at its real shape, parts of equal shape once a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from search_spaces.arch import Choice
from search_spaces.cost import CostTable, CostTerm
from search_spaces.flops import FlopCount, count_flops
from search_spaces.saliency.net import convs_of
from search_spaces.saliency.ops import ResponseNorm, deconv, frame_op
from search_spaces.saliency.settings import TRUNKS_OF, SaliencySettings

Ints = npt.NDArray[np.int64]


def saliency_costs(
    settings: SaliencySettings, variables: Mapping[str, tuple[Choice, ...]], net: str, side: int
) -> CostTable:
    """The cost table of one net for frames of `side` × `side` pixels; a variable that it lacks has no term."""
    meter = _Meter(settings)
    terms: list[CostTerm] = []
    for trunk in TRUNKS_OF[net]:
        terms += meter.trunk(trunk, side)
    terms += meter.decoder(TRUNKS_OF[net], side // 4)
    for free in ("norm", "pool"):
        assert meter.flops(free, 4, 4, 4) == 0, "free by convention"
    return CostTable(variables, tuple(terms), 0, tuple(sorted(meter.free)))


class _Meter:
    """Terms of the parts, and the free operators met on the way."""

    def __init__(self, settings: SaliencySettings) -> None:
        self.settings = settings
        self.free: set[str] = set()

    def flops(self, part: str, c_in: int, c_out: int, side: int) -> int:
        count = _measure(part, c_in, c_out, side)
        self.free.update(count.uncounted)
        return count.total

    def table(self, parts: Sequence[str], inputs: Sequence[int], outputs: Sequence[int], side: int) -> Ints:
        """(inputs, outputs, parts) FLOPs."""
        values = [[[self.flops(part, a, b, side) for part in parts] for b in outputs] for a in inputs]
        return np.array(values, dtype=np.int64)

    def trunk(self, trunk: str, side: int) -> Iterator[CostTerm]:
        """Terms of one trunk."""
        s = self.settings.trunk(trunk)
        siamese = trunk == "temporal"
        widths = [f"{trunk}.stages.{i}.width" for i in range(4)]
        depth = f"{trunk}.stages.2.depth"
        for key in convs_of(s.depths[-1]):
            stage, place = int(key[0]), int(key[2:])
            name, there, outputs = f"{trunk}.convs.{key}", side // (1, 2, 4, 4)[stage], s.widths[stage]
            if key == "0_0":
                axes, flops = [widths[0]], self.table(s.ops, (3,), outputs, there)[0]
            elif place:  # it keeps the width; only right behind the join it halves it
                read = 2 if siamese and key == "2_1" else 1
                each = [self.table(s.ops, (read * w,), (w,), there)[0, 0] for w in outputs]
                axes, flops = [widths[stage]], np.stack(each)
            else:
                axes = [widths[stage - 1], widths[stage]]
                flops = self.table(s.ops, s.widths[stage - 1], outputs, there)
            if stage == 2 and place:  # a convolution beyond the depth costs nothing
                runs = np.array([d > place for d in s.depths])
                axes, flops = [*axes, depth], flops[:, None] * runs[:, None]
            elif stage == 3 and siamese:
                joined = self.table(s.ops, [2 * w for w in s.widths[2]], outputs, there)
                axes, flops = [*axes, depth], np.stack([joined if d == 1 else flops for d in s.depths], axis=2)
            if siamese and (stage, place) <= (2, 0):  # on both frames
                flops = 2 * flops
            yield CostTerm(name, (*axes, name), flops)

    def decoder(self, trunks: Sequence[str], side: int) -> Iterator[CostTerm]:
        """Terms of the decoder, whose input is `side` pixels wide."""
        s = self.settings.decoder
        width = [f"decoder.layers.{j}.width" for j in range(5)]
        before = [self.settings.trunk(trunk).widths[3] for trunk in trunks]
        channels = np.add.outer(*before) if len(before) > 1 else np.array(before[0])
        first = self.table(("conv_k1",), channels.reshape(-1).tolist(), s.widths[0], side)
        entering = (*(f"{trunk}.stages.3.width" for trunk in trunks), width[0])
        yield CostTerm("decoder.layers.0", entering, first.reshape(*channels.shape, len(s.widths[0])))
        for j in (1, 2, 3):
            name = f"decoder.convs.{j}"
            flops = self.table(s.ops, s.widths[j - 1], s.widths[j], side)
            yield CostTerm(name, (width[j - 1], width[j], name), flops)
        grow = self.table(("deconv",), s.widths[3], s.widths[4], side)
        yield CostTerm("decoder.layers.4", (width[3], width[4]), grow[..., 0])
        last = self.table(("deconv",), s.widths[4], (1,), 2 * side)
        yield CostTerm("decoder.layers.5", (width[4],), last[:, 0, 0])


@lru_cache(maxsize=65536)
def _measure(part: str, c_in: int, c_out: int, side: int) -> FlopCount:
    if part == "deconv":
        module: nn.Module = deconv(c_in, c_out)
    elif part == "norm":
        module = ResponseNorm()
    elif part == "pool":
        module = nn.MaxPool2d(2)
    else:
        module = frame_op(part)(c_in, c_out)
    return count_flops(module, torch.zeros(1, c_in, side, side))
