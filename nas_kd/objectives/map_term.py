"""Distillation of feature maps: which pairs of modules are compared by default, and the term that compares them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import cast

import torch
from torch import Tensor, nn

from nas_kd.objectives.default_maps import last_maps, spread_maps
from nas_kd.objectives.maps import adapter_for
from nas_kd.objectives.term import DistillationTerm, Pairs, TermContext
from nas_kd.search_spaces.delta_blocks import delta_net_of
from nas_kd.taps import ModelOutput, tappable
from nas_kd.tasks import Batch

_GIVES = "gives feature maps, (N, C, H, W) or (N, C, T, H, W) of more than one pixel"

Keys = tuple[str, str]
"""Keys of the `objective` section that name modules of the student and of the teacher."""


class MapTerm(DistillationTerm):
    """Feature maps of pairs of modules, the mean over pairs.

    Args:
        context: what it is built for.
        weight: of the term.
        pairs: (module of the student, module of the teacher) each.
        keys: that name them in the campaign file.
        distance: of (adapted student map, teacher map).
    """

    def __init__(
        self,
        context: TermContext,
        weight: float,
        pairs: Pairs,
        keys: Keys,
        distance: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__(context.name, weight)
        self._keys, self._distance = keys, distance
        self.tap(pairs, *keys)
        self.ndims = (4, 5)
        self._varying_width = context.varying_width
        self.adapters = nn.ModuleDict()

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        for student_module, teacher_module in self.pairs:
            student_map, teacher_map = student.features[student_module], teacher.features[teacher_module]
            for key, module, found in zip(
                self._keys, (student_module, teacher_module), (student_map, teacher_map), strict=True
            ):
                if found.ndim not in (4, 5):
                    raise ValueError(
                        f"{key}: maps have the form (N, C, H, W) or (N, C, T, H, W), but {module!r} gives "
                        f"{tuple(found.shape)}; name a module that gives maps, or set {self.name}.weight to 0"
                    )
            adapter = adapter_for(student_map, teacher_map, always=self._varying_width)
            self.adapters[_pair_key(student_module, teacher_module)] = adapter
        self(student, teacher, {})

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        values = []
        for student_module, teacher_module in self.pairs:
            adapter = self.adapters[_pair_key(student_module, teacher_module)]
            values.append(self._distance(adapter(student.features[student_module]), teacher.features[teacher_module]))
        return {self.name: torch.stack(values).mean()}


def _pair_key(student_module: str, teacher_module: str) -> str:
    """Names the adapter of a pair, also for who inherits it; names of modules have no dots."""
    return f"{student_module} {teacher_module}".replace(".", "/")


def module_of_student(student: nn.Module, name: str) -> str:
    """The student's module of that name; a delta student has the modules of its teacher, below `net`."""
    return name if delta_net_of(student) is None or name.startswith("net.") else f"net.{name}"


class NoMapsError(ValueError):
    """There is nothing to compare by default.

    Attributes:
        reason: what is missing, without the key and the way out.
    """

    def __init__(self, term: str, reason: str, keys: Keys) -> None:
        self.reason = reason
        super().__init__(
            f"{term}: {reason}; set {term}.weight to 0, or name modules at {' and '.join(dict.fromkeys(keys))}"
        )


class LeftOut(DistillationTerm):
    """A term that finds nothing to compare: it adds nothing to the loss.

    Args:
        context: what it is built for.
        weight: of the term.
        reason: why, for people.
    """

    needs_teacher = False

    def __init__(self, context: TermContext, weight: float, reason: str) -> None:
        super().__init__(context.name, weight)
        self.left_out = {context.name: (reason, "pairs")}

    def is_active(self, progress: float) -> bool:
        return False

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        return {}


def pairs_by_scale(context: TermContext, keys: Keys) -> Pairs:
    """The last map of each scale of both nets, from the smallest up; of a teacher of one scale, as transformers are,
    the maps of evenly spaced blocks.

    The student runs on as many pixels as the teacher: with a small input its last map would be one pixel, which is no
    scale, and trials of one campaign would compare different modules. Maps of whole clips, without frames, are not
    compared with maps that have frames.

    Raises:
        NoMapsError: one of them has no maps that the other one's could be compared with.
        ValueError: the teacher is no net with layers.
    """
    if delta_net_of(context.student) is not None:  # it has the teacher's own modules, with delta layers among them
        teacher_names = last_maps(context.teacher, context.teacher_example)
        if not teacher_names:
            raise NoMapsError(context.name, f"no module of the teacher {_GIVES}", keys)
        return tuple((f"net.{name}", name) for name in teacher_names)
    if len(tappable(context.teacher)) == 1:
        raise ValueError(str(NoMapsError(context.name, f"no module of the teacher {_GIVES}", keys)))
    example, teacher_example = context.example, context.teacher_example
    student_names: tuple[str, ...] = ()
    shown = example
    if example.ndim in (4, 5) and teacher_example.ndim in (4, 5):
        shown = example.new_zeros(*example.shape[:-2], *teacher_example.shape[-2:])
        with suppress(Exception):  # a net for one size only, however it says so, has its own maps to go by
            student_names = last_maps(context.student, shown)
    if not student_names:
        shown, student_names = example, last_maps(context.student, example)
    ndim = example.ndim if example.ndim in (4, 5) else None
    of_all = spread_maps(context.teacher, teacher_example, len(student_names))
    teacher_names = spread_maps(context.teacher, teacher_example, len(student_names), ndim)
    if not of_all or not student_names:
        who = "student" if of_all else "teacher"
        raise NoMapsError(context.name, f"no module of the {who} {_GIVES}", keys)
    if ndim is not None and student_names:
        student_names = last_maps(context.student, shown, ndim) or student_names
    if not teacher_names:
        raise NoMapsError(
            context.name,
            f"the teacher's maps, such as {of_all[-1]!r}, have {'no frames' if ndim == 5 else 'frames'}, and the "
            f"student's, such as {student_names[-1]!r}, have {'some' if ndim == 5 else 'none'}",
            keys,
        )
    count = min(len(student_names), len(teacher_names))
    return cast(Pairs, tuple(zip(student_names[-count:], teacher_names[-count:], strict=True)))
