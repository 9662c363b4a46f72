"""`Sliced`: one set of weights that runs at several sizes (slimmable and once-for-all nets).

A module is built at its largest sizes; a smaller one computes with leading slices of its weights (Yu et al., Slimmable
neural networks, ICLR 2019). Kernels are cropped around their centre (Cai et al., Once-for-all, ICLR 2020). Channels
that were joined from several parts take the leading slice of each part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

Size = int | tuple[int, ...]
"""A number that a module is built with; a tuple where it is the sum of several."""
Block = tuple[tuple[slice, ...], ...]
"""For each dimension of a tensor, the ranges that a smaller module uses."""


class _Narrow(NamedTuple):
    shell: nn.Module  # the structure at these sizes; its tensors are on the meta device and never used
    blocks: dict[str, Block]  # name of a parameter or buffer -> its part of the largest one


class Sliced(nn.Module):
    """A module built at its largest sizes, which also runs at every smaller one by slices of its weights.

    The smaller module is built like any other, on the meta device, and given views of the large weights: whatever
    `build` returns works, as long as each of its parameters at a smaller size is a block of that at a larger one.
    BatchNorm statistics are views too, so they are updated in place.

    Args:
        build: sizes -> module.
        widest: the largest sizes.
        centred: positions of sizes that are kernels, which are cropped around their centre.
    """

    def __init__(self, build: Callable[..., nn.Module], *widest: Size, centred: Collection[int] = ()) -> None:
        super().__init__()
        self.build, self.widest, self.centred = build, widest, frozenset(centred)
        self.full = build(*widest)
        self._narrow: dict[tuple[Size, ...], _Narrow] = {}

    def forward(self, x: Tensor, *sizes: Size) -> Tensor:
        """The module of these sizes, applied to x."""
        if sizes == self.widest:
            return cast(Tensor, self.full(x))
        narrow = self._at(sizes)
        if narrow.shell.training != self.training:
            narrow.shell.train(self.training)
        own = self._slices(narrow)
        output = functional_call(narrow.shell, own, (x,))
        if self.training:
            self._keep_statistics(narrow, own)
        return cast(Tensor, output)

    def narrowed(self, *sizes: Size) -> dict[str, Tensor]:
        """State dict of the module of these sizes: copies of the slices."""
        return {name: tensor.detach().clone() for name, tensor in self._slices(self._at(sizes)).items()}

    def _at(self, sizes: tuple[Size, ...]) -> _Narrow:
        if sizes not in self._narrow:
            shell = self._shell(sizes)
            causes = self._causes(sizes)
            blocks = {}
            for name, part in _tensors(shell).items():
                full = self._full()[name].shape
                blocks[name] = tuple(
                    self._ranges(sizes, causes.get((name, d)), n, int(full[d])) for d, n in enumerate(part.shape)
                )
            self._narrow[sizes] = _Narrow(shell, blocks)
        return self._narrow[sizes]

    def _shell(self, sizes: tuple[Size, ...]) -> nn.Module:
        with torch.device("meta"):
            return self.build(*sizes)

    def _causes(self, sizes: tuple[Size, ...]) -> dict[tuple[str, int], int]:
        """(tensor, dimension) -> position of the size that it follows, for kernels and sums: seen by changing it."""
        causes = {}
        for position, size in enumerate(sizes):
            if (position in self.centred or isinstance(size, tuple)) and size != self.widest[position]:
                probe = self._shell((*self.widest[:position], size, *self.widest[position + 1 :]))
                for name, part in _tensors(probe).items():
                    full = self._full()[name].shape
                    causes.update({(name, d): position for d, n in enumerate(part.shape) if n != full[d]})
        return causes

    def _ranges(self, sizes: tuple[Size, ...], cause: int | None, number: int, widest: int) -> tuple[slice, ...]:
        """What of a dimension of length `widest` a module uses that has `number` there."""
        if cause is None:
            return (slice(number),)
        own, full = sizes[cause], self.widest[cause]
        if not isinstance(own, tuple) or not isinstance(full, tuple):
            start = (widest - number) // 2
            return (slice(start, start + number),)
        scale, ranges, start = widest // sum(full), [], 0
        for part, largest in zip(own, full, strict=True):
            ranges.append(slice(scale * start, scale * (start + part)))
            start += largest
        return tuple(ranges)

    def _full(self) -> dict[str, Tensor]:
        return _tensors(self.full)

    def _slices(self, narrow: _Narrow) -> dict[str, Tensor]:
        full = self._full()
        return {name: _block(full[name], block) for name, block in narrow.blocks.items()}

    def _keep_statistics(self, narrow: _Narrow, own: dict[str, Tensor]) -> None:
        """Buffers that are no views, since they were joined from parts, are written back."""
        for name, buffer in self.full.named_buffers():
            for d, ranges in enumerate(narrow.blocks[name]):
                if len(ranges) > 1:
                    pieces = torch.split(own[name], [r.stop - r.start for r in ranges], dim=d)
                    for piece, r in zip(pieces, ranges, strict=True):
                        buffer.narrow(d, r.start, r.stop - r.start).copy_(piece)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sliced:
        clone = copy.copy(self)
        memo[id(self)] = clone
        clone.__dict__ = {key: copy.deepcopy(v, memo) for key, v in self.__dict__.items() if key != "_narrow"}
        clone._narrow = {}
        return clone


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))


def _block(tensor: Tensor, block: Block) -> Tensor:
    """The block of a tensor: a view, where no dimension takes more than one range."""
    view = tensor[tuple(ranges[0] if len(ranges) == 1 else slice(None) for ranges in block)]
    for d, ranges in enumerate(block):
        if len(ranges) > 1:
            view = torch.cat([view.narrow(d, r.start, r.stop - r.start) for r in ranges], dim=d)
    return view
