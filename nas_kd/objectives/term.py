"""The contract of a distillation term: its options in the campaign file, its checks and its loss.

A term is one file: a `TermConfig`, whose fields are what a campaign may choose, and the `DistillationTerm` that it
builds. `objectives/config.py` lists those that ship with the package; a campaign names any other one as
`module:Class`, the class of its config (docs/extending.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from nas_kd.settings.strict import Section
from nas_kd.taps import ModelOutput
from nas_kd.tasks import Batch, Task

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TermContext:
    """What a term is built for.

    Attributes:
        name: of the term in the `objective` section.
        task: loss on the labels.
        student: a supernet or a student.
        teacher: the model that it learns from.
        example: one student input, at which the student runs its widest maps.
        teacher_example: one teacher input.
        varying_width: the student's maps may be narrower later.
        task_weight: of the task's own loss in the campaign file.
        finetune_share: last share of the training in which no term counts.
    """

    name: str
    task: Task
    student: nn.Module
    teacher: nn.Module
    example: Tensor
    teacher_example: Tensor
    varying_width: bool
    task_weight: float = 1.0
    finetune_share: float = 0.0


class TermConfig(Section):
    """The section of one term. Subclasses add its options and say what a campaign with it needs.

    Attributes:
        weight: of the term in the loss; 0 leaves it out.
        free_options: names of options of which any allowed value fits the nets as well as any other, such as a
            temperature: campaigns then check one of them only.
        map_names: names of the precomputed maps (`data.maps`) that the term can read.
    """

    free_options: ClassVar[tuple[str, ...]] = ()
    map_names: ClassVar[tuple[str, ...]] = ()

    weight: float = Field(default=0.0, ge=0)

    @abstractmethod
    def build(self, context: TermContext) -> DistillationTerm:
        """The term for these nets.

        Raises:
            ValueError: it does not fit the task or the nets.
        """

    @property
    def co_trains_teacher(self) -> bool:
        """Whether a fresh teacher trains beside the student, on the labels."""
        return False

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether the teacher's BatchNorm takes the statistics of the batch."""
        return False

    @property
    def needs_online_teacher(self) -> bool:
        """Whether the teacher's answers depend on more than the item, so that they cannot be cached."""
        return self.co_trains_teacher or self.uses_batch_statistics

    @property
    def why_empty(self) -> str:
        """Why a term with a weight has nothing to add to the loss; an empty text where it has."""
        return ""

    def check_alone(self) -> None:
        """Raise `ValueError` where the term cannot be the only one."""

    def check_search(self) -> None:
        """Raise `ValueError` where the term cannot be part of a gate search."""

    def slow_parameters(self, student: nn.Module) -> tuple[list[nn.Parameter], float]:
        """Parameters of the student that train at a share of the learning rate, and that share; none by default.

        Args:
            student: a supernet or a student.
        """
        return [], 0.0


class DistillationTerm(nn.Module):
    """A way to distil. It owns what trains along with the student for it, such as adapters.

    Args:
        name: of the term in the `objective` section.
        weight: of its value in the loss.

    Attributes:
        weights: name of each value that `forward` gives -> its weight in the loss.
        pairs: (module of the student, module of the teacher) for all that is compared map by map; set by `tap`.
        student_taps: modules of the student whose outputs are needed.
        teacher_taps: modules of the teacher whose outputs are needed.
        needs_teacher: whether the term uses the teacher's outputs.
        needs_previous_frame: of students with key frames, whether the frame before the compared one is needed too.
        student_keys: module of the student -> key of the `objective` section that names it.
        teacher_keys: module of the teacher -> key of the `objective` section that names it.
        ndims: how many dimensions the outputs of tapped modules may have; empty for any.
        left_out: name of a value that the term does not add, since it found nothing to compare -> why, and the key of
            the term's options that names modules.
        replaces_task: while the term is active, the task's own loss is left out: the term has the labels in its values.
    """

    weights: Mapping[str, float]
    pairs: Pairs = ()
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    student_keys: Mapping[str, str] = MappingProxyType({})
    teacher_keys: Mapping[str, str] = MappingProxyType({})
    ndims: tuple[int, ...] = ()
    needs_teacher: bool = True
    needs_previous_frame: bool = False
    left_out: Mapping[str, tuple[str, str]] = MappingProxyType({})
    replaces_task: bool = False

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        self.name = name
        self.weights = {name: weight}

    def tap(self, pairs: Iterable[tuple[str, str]], student_key: str = "", teacher_key: str = "") -> None:
        """Set the pairs of modules whose outputs the term compares.

        Args:
            pairs: (module of the student, module of the teacher) each.
            student_key: key of the `objective` section that names the student's modules, for error sentences.
            teacher_key: key that names the teacher's modules; `student_key` where it is not given.
        """
        self.pairs = tuple(pairs)
        if student_key:
            self.student_keys = {student_module: student_key for student_module, _ in self.pairs}
            self.teacher_keys = {teacher_module: teacher_key or student_key for _, teacher_module in self.pairs}
        self.student_taps = tuple(student_module for student_module, _ in self.pairs)
        self.teacher_taps = tuple(teacher_module for _, teacher_module in self.pairs)

    def build(self, student: ModelOutput, teacher: ModelOutput) -> None:
        """Make what depends on shapes, such as adapters, from the outputs for the examples, and compare them once.

        Raises:
            ValueError: the two cannot be compared.
        """

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` has to be called before the next `forward`."""
        return False

    def calibrate(self, key: ModelOutput, frame: ModelOutput) -> None:
        """Measure what the term scales its values by, once, on the first batch.

        Args:
            key: the teacher's output for the key frames.
            frame: the teacher's output for the frames after them, as in `forward`.
        """

    def is_active(self, progress: float) -> bool:
        """Whether the term counts at this progress of the training, from 0 to 1."""
        return True

    def needs_task_loss(self, progress: float) -> bool:
        """Whether the task's loss must be computed at this progress even where its weight is 0."""
        return False

    def check_batches(self, batches: int) -> None:
        """Raise `ValueError` where a training of so many batches, over all epochs, has none for a stage that the term
        needs."""

    def advance(self, progress: float) -> None:
        """Called before every step with the progress of the training, from 0 to 1."""

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        """Unweighted values by name, each a scalar.

        Args:
            student: outputs and tapped modules' outputs of the student.
            teacher: the same of the teacher, without gradient; None where `needs_teacher` is false.
            batch: with the keys of the task.
        """
        raise NotImplementedError
