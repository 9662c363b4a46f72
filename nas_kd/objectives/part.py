"""What an objective is made of: parts, each a way to distil with terms of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from nas_kd.taps import ModelOutput
from nas_kd.tasks import Batch, Task

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Nets:
    """What a part is built for.

    Attributes:
        task: loss on the labels.
        student: a supernet or a student.
        teacher: the model that it learns from.
        example: one student input, at which the student runs its widest maps.
        teacher_example: one teacher input.
        varying_width: the student's maps may be narrower later.
    """

    task: Task
    student: nn.Module
    teacher: nn.Module
    example: Tensor
    teacher_example: Tensor
    varying_width: bool


class Part(nn.Module):
    """A way to distil. It owns what trains along with the student for it, such as adapters.

    Attributes:
        weights: term -> its weight in the sum.
        pairs: (module of the student, module of the teacher) for all that is compared map by map; set by `tap`.
        student_taps: modules of the student whose outputs are needed.
        teacher_taps: likewise of the teacher.
        needs_teacher: whether the teacher has to be asked at all.
        student_keys: module of the student -> key of the `objective` section that names it.
        teacher_keys: likewise of the teacher.
        ranks: how many dimensions the outputs of tapped modules may have; empty for any.
        replaces_task: while the part is active, the task's own term is left out: the part has the labels in its terms.
    """

    weights: Mapping[str, float]
    pairs: Pairs = ()
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    student_keys: Mapping[str, str] = MappingProxyType({})
    teacher_keys: Mapping[str, str] = MappingProxyType({})
    ranks: tuple[int, ...] = ()
    needs_teacher: bool = True
    replaces_task: bool = False

    def tap(self, pairs: Iterable[tuple[str, str]], student_key: str = "", teacher_key: str = "") -> None:
        """Ask for the maps of these pairs of modules, which the keys of the `objective` section name."""
        self.pairs = tuple(pairs)
        if student_key:
            self.student_keys = {ours: student_key for ours, _ in self.pairs}
            self.teacher_keys = {theirs: teacher_key or student_key for _, theirs in self.pairs}
        self.student_taps = tuple(ours for ours, _ in self.pairs)
        self.teacher_taps = tuple(theirs for _, theirs in self.pairs)

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        """Make what depends on shapes, from the answers to the examples, and compare them once.

        Raises:
            ValueError: the two cannot be compared.
        """

    def is_active(self, progress: float) -> bool:
        """Whether the part counts when the training is so far, from 0 to 1."""
        return True

    def asks_task(self, progress: float) -> bool:
        """Whether something learns from the task's own term alone then, so that it counts whatever its weight."""
        return False

    def check_steps(self, num_steps: int) -> None:
        """Raise `ValueError` where a training of so many steps leaves something that it needs without any."""

    def advance(self, progress: float) -> None:
        """Told before every step how far the training is."""

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        """Unweighted terms by name, each a scalar; the teacher's tensors carry no gradient."""
        raise NotImplementedError
