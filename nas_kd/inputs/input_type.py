"""The contract between the kinds of input and the rest: how the items of a data set reach teacher and students.

A campaign has one `InputType`, chosen by `choose_input_type` from its data, its task and its space. Trials, the
preparation of the teacher, checks and bundles ask it, and know no kind of input by name. A new kind is a subclass and
an entry in `INPUT_TYPES`.

Shape legend: N items of a batch, T frames, H and W pixels, D features of a frame, C channels of an output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.data import Batch, ClipLoader, DataInfo
from nas_kd.search_spaces import CostTable, SearchSpace, Supernet
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.lower_bound import bounded_flops
from nas_kd.taps import ModelOutput
from nas_kd.tasks import Task
from nas_kd.teachers.adapter import AdaptedTeacher
from nas_kd.teachers.teacher import trained_outputs
from nas_kd.training.evaluate import Scored, evaluate
from nas_kd.training.settings import FitConfig, LocalConfig

EXAMPLE_SEED = 20_240_607
KINDS_BY_NDIM = {3: "frame features (N, T, D)", 4: "frames (N, 3, H, W)", 5: "clips (N, 3, T, H, W)"}


@dataclass(frozen=True)
class TrainingView:
    """What a training step sees of a batch.

    Attributes:
        student: positional arguments of the student.
        teacher: input of the teacher, of the same items or frames.
        batch: the labels of what both nets answer for.
        key_frames: frames (N, 3, H, W) that the student's changes are relative to; None where it has none.
        key_position: int64 (N, 1), where in their clips they are; None where there are none.
    """

    student: tuple[Any, ...]
    teacher: Tensor
    batch: Batch
    key_frames: Tensor | None = None
    key_position: Tensor | None = None


@dataclass(frozen=True)
class Passes:
    """What is timed for the latency of a net.

    Attributes:
        parts: name of a part -> one pass of it.
        weights: name of a part -> its weight in the latency.
    """

    parts: Mapping[str, Callable[[], Any]]
    weights: Mapping[str, float]

    @classmethod
    def whole(cls, run: Callable[[], Any]) -> Passes:
        """Of a net that does the same for every input."""
        return cls({"ms": run}, {"ms": 1.0})

    @classmethod
    def interval(cls, key: Callable[[], Any], later: Callable[[], Any], frames: int) -> Passes:
        """Of a net that does something else in the first one of so many frames; the latency is the mean of a frame."""
        share = 1 / frames
        return cls({"keyframe_ms": key, "delta_ms": later}, {"keyframe_ms": share, "delta_ms": 1 - share})


class InputType(ABC):
    """How the items of a data set reach the teacher and the students of a campaign.

    The methods below are those of nets that see whole items, clips or sequences of features; kinds whose nets see
    frames override them.

    Args:
        info: what is known of the data.
        mean: of R, G, B, in shares of full brightness.
        std: standard deviation of R, G, B, in the same unit.

    Attributes:
        reads: what teachers and students read, as in `teachers.TEACHERS` and `nas_kd.search_spaces.SPACES`.
        key: of a sample, where its items are.
        item: what a net gets at once, in messages.
        unit: what FLOPs and latencies are counted for.
        eval_batch_size: items of a batch in evaluation, at most, where the campaign file does not say.
        students_fit_items: whether a space has a say in what its students see, by `SearchSpace.fit_input`.
        students_give_what_the_teacher_gives: so that the outputs of students need no check of their own.
        always_searches: whether the search has work to do where a space has one architecture only.
        students_keep_a_state: from frame to frame, so that they are exported as more than one graph.
        frame_knobs: knobs that ask for frames of a clip -> what they ask for, in messages.
        fallback_knob: knob whose next value a trial takes where no student meets its budget; None without.
        defaults: of a campaign file with this kind of input; what the file says goes before.
    """

    reads: ClassVar[str]
    key: ClassVar[str] = "clip"
    item: ClassVar[str] = "an item"
    unit: ClassVar[str] = "clip"
    eval_batch_size: ClassVar[int] = 64
    students_fit_items: ClassVar[bool] = True
    students_give_what_the_teacher_gives: ClassVar[bool] = False
    always_searches: ClassVar[bool] = False
    students_keep_a_state: ClassVar[bool] = False
    frame_knobs: ClassVar[Mapping[str, str]] = MappingProxyType({"frames": "a student may see"})
    fallback_knob: ClassVar[str | None] = None
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    def __init__(self, info: DataInfo, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        self.info, self.mean, self.std = info, mean, std

    @classmethod
    @abstractmethod
    def matches(cls, info: DataInfo, task: type[Task], space: SearchSpace) -> bool:
        """Whether a campaign with these data, this task and this space has this kind of input."""

    @classmethod
    def outputs_are_maps(cls, task: type[Task]) -> bool:
        """Whether nets give maps (N, C, h, w) for a task instead of logits (N, C)."""
        return task.dense

    # What nets see

    @abstractmethod
    def read(self, batch: Batch) -> Tensor:
        """Whole items as nets see them: normalised clips (N, 3, T, H, W), or frame features (N, T, D), float32."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one input of the teacher, without the batch dimension."""

    def example(self, items: int = 1) -> Tensor:
        """Inputs of the teacher with values such as the data have, as nets see them: always the same for a shape.

        Nets of users may refuse other values, such as those below 0 where they are trained on shares of brightness.

        Args:
            items: how many.
        """
        return self.examples_of((items, *self.shape), torch.Generator().manual_seed(EXAMPLE_SEED))

    @abstractmethod
    def examples_of(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random inputs of a shape with values such as the data have, as nets see them."""

    def student_example(self, space: SearchSpace, knobs: Mapping[str, Choice]) -> Tensor:
        """Zeros of what a student sees in a training step, with batch size 1."""
        return space.example_input(knobs)

    def check_space(self, space: SearchSpace, knobs: Mapping[str, Choice]) -> None:
        """Raise where what a space makes of the data is not what its students read.

        Raises:
            ValueError: what they read and what there is.
        """
        reads, given = space.example_input(knobs), torch.zeros(1, *self.shape)
        if reads.ndim != given.ndim:
            raise ValueError(
                f"space.name: students of space {space.name!r} read "
                f"{KINDS_BY_NDIM.get(reads.ndim, tuple(reads.shape))}, but the data are {KINDS_BY_NDIM[given.ndim]}; "
                "choose another space or other data"
            )
        try:
            fitted = space.fit_input(given, knobs)
        except ValueError as error:
            raise ValueError(f"space: {error}") from error
        if fitted.shape != reads.shape:
            raise ValueError(
                f"space: students of space {space.name!r} read inputs of shape {tuple(reads.shape)[1:]}, but the data "
                f"give {tuple(fitted.shape)[1:]}; change the space's settings or the data's"
            )

    # Training

    def training_view(
        self, batch: Batch, space: SearchSpace, knobs: Mapping[str, Choice], *, previous_frame: bool = False
    ) -> TrainingView:
        """What student and teacher see in a training step.

        Args:
            batch: of a loader.
            space: of the student.
            knobs: of the student.
            previous_frame: the objective compares changes from frame to frame; for students with key frames.
        """
        inputs = self.read(batch)
        return TrainingView((space.fit_input(inputs, knobs),), inputs, batch)

    def student_output(self, output: ModelOutput, num_items: int) -> ModelOutput:
        """The student's answer to a training view in the form that the task's loss reads."""
        return output

    def teacher_output(self, output: ModelOutput, num_items: int) -> ModelOutput:
        """The teacher's answer to a training view in the form that the task's loss reads."""
        return output

    @property
    def positions(self) -> int:
        """How many inputs of the teacher an item has: its frames, where the teacher sees frames, or 1."""
        return 1

    def teacher_inputs(self, batch: Batch) -> Tensor:
        """All that trainings may show the teacher of a batch: (N · positions, …), the inputs of an item in a row."""
        return self.read(batch)

    def teacher_training_view(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], Batch]:
        """The outputs of a teacher in its own training, each of which has a loss, and the labels for them."""
        return trained_outputs(model, self.read(batch)), batch

    def start_search(  # noqa: B027  (most kinds have nothing to do here)
        self,
        supernet: Supernet,
        weights: ClipLoader,
        gates: ClipLoader,
        fit: FitConfig,
        config: LocalConfig,
        *,
        seed: int,
        progress: OnProgress = no_progress,
    ) -> None:
        """What a search begins with, before weights and gates take turns; nothing by default.

        Args:
            supernet: trained in place.
            weights: batches that weights learn from.
            gates: batches that gates learn from.
            fit: of the search.
            config: of this phase.
            seed: of the search.
            progress: called after every step.
        """

    def start_share(self, config: LocalConfig) -> float:
        """Share of a search's time, roughly, that `start_search` takes."""
        return 0.0

    # Evaluation

    def on_items(self, teacher: Callable[[Tensor], Tensor], batch_size: int) -> Callable[[Tensor], Tensor]:
        """A teacher as a function of whole items, as `read` gives them.

        Args:
            teacher: the model.
            batch_size: inputs that it sees at once, at most, where an item has several.
        """
        return teacher

    def evaluate_student(
        self,
        student: nn.Module,
        loader: ClipLoader,
        task: Task,
        space: SearchSpace,
        knobs: Mapping[str, Choice],
        scored: Scored | None = None,
    ) -> dict[str, float]:
        """Metrics of a student, or of a supernet with its most probable candidates, over a split.

        Args:
            student: in evaluation mode.
            loader: the split, unshuffled.
            task: metrics.
            space: of the student.
            knobs: of the student.
            scored: called with what the evaluation rests on.
        """
        with torch.random.fork_rng(devices=[]):  # a space may choose frames at random: the same ones each time
            torch.manual_seed(0)
            return evaluate(
                lambda inputs: student(space.fit_input(inputs, knobs)), loader, task, self.read, scored=scored
            )

    def student_offsets(self, space: SearchSpace) -> dict[int, list[int]]:
        """Interval between key frames -> for each frame of a clip, how many frames it is after its key frame.

        One entry for each interval that students of the space have, in frames; empty where they have no key frames.
        """
        return {}

    # Cost

    def teacher_flops(self, teacher: nn.Module, example: Tensor, space: SearchSpace) -> tuple[int, tuple[str, ...]]:
        """FLOPs of a teacher for one input, and the operators that they may miss: with any, they are a lower bound.

        Args:
            teacher: the model.
            example: one input of it, with batch size 1.
            space: of the campaign.
        """
        return bounded_flops(*self.counted_teacher(teacher, example, space))

    def counted_teacher(self, teacher: nn.Module, example: Tensor, space: SearchSpace) -> tuple[nn.Module, Any]:
        """The net whose FLOPs are those of the teacher, and one input of it; arguments as of `teacher_flops`."""
        # The net alone: what it takes to bring clips to its size is the campaign's work.
        return (teacher.net, teacher.lay_out(example)) if isinstance(teacher, AdaptedTeacher) else (teacher, example)

    def frozen_teacher(self, teacher: nn.Module, space: SearchSpace) -> nn.Module:
        """The trained teacher in the form that students are compared with.

        Args:
            teacher: with its weights.
            space: of the campaign, derived from this teacher where it is derived from one.
        """
        return teacher

    def student_cost(self, student: nn.Module, example: Tensor, flops: int, params: int) -> dict[str, Any]:
        """The fields of `nas_kd.trials.Cost`.

        Args:
            student: in evaluation mode.
            example: `space.example_input`, with batch size 1.
            flops: of the example.
            params: number of parameters.
        """
        return {"flops": flops, "params": params}

    def latency_passes(self, student: nn.Module, example: Tensor) -> Passes:
        """What is timed for the latency of a student.

        Args:
            student: in evaluation mode.
            example: its input, with batch size 1.
        """
        return Passes.whole(lambda: student(example))

    def latency_table(self, space: SearchSpace, knobs: Mapping[str, Choice], device: torch.device) -> CostTable:
        """Measured nanoseconds of every candidate, where a budget of latency is possible.

        Raises:
            ValueError: it is not.
        """
        raise ValueError(f"space {space.name!r} has no latency table; give budget.max_flops")

    def fallback_warning(self, knob: str, asked: object, taken: object) -> str:
        """The sentence of a trial that took another value of its fallback knob than the one proposed."""
        return f"no student with {knob} {asked} meets the budget; took {taken}"

    # Bundles

    def bundle_fields(self, cost: Mapping[str, Any]) -> dict[str, Any]:
        """What a bundle must know to prepare its input, and what is particular about its cost.

        Args:
            cost: fields of `nas_kd.trials.Cost`.
        """
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def space_settings(cls, shape: Sequence[int], frames: int) -> dict[str, Any]:
        """What the data decide about a space, as `registry.space_settings` gives it, from a bundle.

        Args:
            shape: of the student's input, without the batch dimension.
            frames: of an item of the data.
        """
        return {}

    @classmethod
    def student_in_form(cls, student: nn.Module, form: str) -> nn.Module:
        """A student in another form that computes the same, as its bundle has it.

        Args:
            student: as its space builds it.
            form: of the bundle.

        Raises:
            ValueError: students of this kind have no such form.
        """
        raise ValueError(f"the bundle has the form {form!r}, but students of its input have one form only")

    @classmethod
    @abstractmethod
    def prepare(
        cls,
        items: Tensor,
        shape: Sequence[int],
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
    ) -> Tensor:
        """Items of the data as `read` gives them to nets.

        Args:
            items: as the data hold them.
            shape: of the student's input, without the batch dimension.
            mean: of the bundle.
            std: of the bundle.

        Raises:
            ValueError: items of another kind or shape.
        """
