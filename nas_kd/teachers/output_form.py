"""Which output of a net is the answer that a task reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nas_kd.search_spaces.nested import Path
from nas_kd.teachers.outputs import find, pick


@dataclass(frozen=True)
class OutputForm:
    """Which output of a net is the answer.

    Attributes:
        path: names or numbers that lead to it; None takes the one that fits.
        picked: outputs that stand for the task's classes, in their order; None takes all.
        num_outputs: that the task needs.
        maps: whether the answer is maps (N, C, h, w) and not logits (N, C).
    """

    path: Path | None
    picked: tuple[int, ...] | None
    num_outputs: int
    maps: bool = False

    def fits(self, value: Tensor, rows: Sequence[int]) -> bool:
        """Whether a tensor has the shape of an answer for one of these numbers of rows."""
        if value.ndim != (4 if self.maps else 2) or len(value) not in rows or not value.is_floating_point():
            return False
        return self._has_outputs(value.shape[1])

    def fits_averaged(self, value: Tensor, rows: Sequence[int]) -> bool:
        """Whether a tensor is an answer once it is averaged over places or frames."""
        return self._averaged(value, rows) is not None

    def find(self, output: Any, rows: Sequence[int]) -> list[Path]:
        """Paths of what could be the answer; of outputs that would have to be averaged only where no other one fits."""
        return find(output, lambda value: self.fits(value, rows)) or find(
            output, lambda value: self.fits_averaged(value, rows)
        )

    def take(self, output: Any, rows: Sequence[int]) -> Any:
        """The answer in what a net returned; all of it where nothing fits."""
        if self.path is not None:
            try:
                output = pick(output, self.path)
            except KeyError:  # in training, nets give other things than in evaluation
                found = self.find(output, rows)
                output = pick(output, found[0]) if found else output
        elif not isinstance(output, Tensor) and (found := self.find(output, rows)):
            output = pick(output, found[0])
        if not isinstance(output, Tensor):
            return output
        if (averaged := self._averaged(output, rows)) is not None:
            output = averaged
        if output.ndim == 2 and len(rows) > 1 and len(output) == rows[1]:  # one row a frame: the mean over frames
            output = output.reshape(rows[0], -1, output.shape[1]).mean(1)
        if self.picked is not None and output.ndim > 1 and output.shape[1] > max(self.picked):
            output = output[:, list(self.picked)]
        return output

    def _has_outputs(self, number: int) -> bool:
        return number > max(self.picked) if self.picked else number == self.num_outputs

    def _averaged(self, value: Tensor, rows: Sequence[int]) -> Tensor | None:
        """Logits (N, C) of (N, C, t), (N, C, h, w), (N, C, t, h, w), or of each frame, (N, T, C), by the mean.

        None where the tensor has no such form, or could have two of them.
        """
        if self.maps or value.ndim not in (3, 4, 5) or len(value) not in rows or not value.is_floating_point():
            return None
        frames = rows[1] // rows[0] if len(rows) > 1 else 1
        first = self._has_outputs(value.shape[1]) and (value.ndim > 3 or value.shape[2] <= frames)
        last = value.ndim == 3 and self._has_outputs(value.shape[2]) and value.shape[1] in (1, frames)
        if first == last:
            return None
        return value.flatten(2).mean(2) if first else value.mean(1)
