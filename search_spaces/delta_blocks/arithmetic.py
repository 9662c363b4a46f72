"""Subtraction and addition of deltas as modules; unlike other element-wise operators they count as FLOPs."""

from __future__ import annotations

from torch import Tensor

from nas_kd.search_spaces.flops import CountedElementwise


class Minus(CountedElementwise):
    """left − right, counted: one FLOP an element."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Of equal shapes."""
        return left - right


class Plus(CountedElementwise):
    """left + right, counted: one FLOP an element."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Of shapes that broadcast to that of `left`."""
        return left + right


class PlusInPlace(Plus):
    """The same, where `left` is not needed afterwards; its memory becomes the result's."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Of equal shapes."""
        return left.add_(right)
