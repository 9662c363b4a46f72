"""What turns a batch into the terms of a loss: a net, its objective, and the teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor, nn

from nas_kd.data import Batch
from nas_kd.objectives import Objective, ObjectiveConfig
from nas_kd.taps import ModelOutput, Taps
from nas_kd.teachers import Teacher
from nas_kd.workbench import Workbench
from search_spaces.arch import Choice


class Learner:
    """A net under its objective, with the teacher's answers from the cache or from the teacher itself.

    Args:
        bench: data and teacher.
        net: a supernet or a student.
        config: the objective.
        knobs: the student's view of a clip.
        cached: take the teacher's answers from the cache, if there is one with the maps that are needed.
        varying: the net's maps may be narrower in training than now.
    """

    def __init__(
        self,
        bench: Workbench,
        net: nn.Module,
        config: ObjectiveConfig,
        knobs: Mapping[str, Choice],
        *,
        cached: bool,
        varying: bool = False,
    ) -> None:
        self.bench, self.knobs = bench, dict(knobs)
        example = bench.space.example_input(self.knobs).to(bench.device)
        teacher = bench.teacher_model if config.distils else None
        self.objective = Objective(config, bench.task, net, teacher, example, bench.example(), varying_width=varying)
        self.objective.to(bench.device)
        self._student = Taps(net, self.objective.student_taps)
        self._teacher: Teacher | None = None
        self._answers: Callable[[Batch, Tensor], ModelOutput | None] = lambda batch, clip: None
        if teacher is not None:
            cache = bench.cache
            if cached and cache is not None and cache.taps >= set(self.objective.teacher_taps):
                self._answers = lambda batch, clip: cache(batch)
            else:
                live = self._teacher = Teacher(teacher, self.objective.teacher_taps)
                self._answers = lambda batch, clip: live(clip)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Unweighted terms of a batch."""
        clip = self.bench.clip(batch)
        student = self._student(self.bench.space.fit_input(clip, self.knobs))
        return cast(dict[str, Tensor], self.objective(student, self._answers(batch, clip), batch))

    def close(self) -> None:
        """Remove all hooks."""
        self._student.close()
        if self._teacher is not None:
            self._teacher.close()
