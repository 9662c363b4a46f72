"""Single frames of clips, for tasks that look at each frame on its own and students that run on every frame.

A training step draws one frame of each clip; evaluation runs the nets on all frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from nas_kd.data import Batch, ClipLoader, DataInfo
from nas_kd.data.frame_sampling import random_frames
from nas_kd.inputs.clips import ClipInput, check_bytes
from nas_kd.inputs.input_type import TrainingView
from nas_kd.search_spaces import SearchSpace
from nas_kd.search_spaces.arch import Choice
from nas_kd.taps import ModelOutput
from nas_kd.tasks import Task
from nas_kd.training.evaluate import Scored, evaluate


def on_frames(model: Callable[[Tensor], Tensor], *, chunk: int) -> Callable[[Tensor], Tensor]:
    """A model of frames as one of clips: (N, 3, T, H, W) -> (N, T, ...).

    Args:
        model: (N, 3, H, W) -> (N, ...).
        chunk: frames at once.
    """

    def run(clip: Tensor) -> Tensor:
        frames = clip.transpose(1, 2).flatten(0, 1)
        outputs = torch.cat([model(part) for part in torch.split(frames, chunk)])
        return outputs.reshape(len(clip), -1, *outputs.shape[1:])

    return run


class FrameInput(ClipInput):
    """Nets read normalised frames (N, 3, H, W) and give maps (N, C, h, w); a task gets those of a clip's frames."""

    reads: ClassVar[str] = "frames"
    item: ClassVar[str] = "a frame"
    unit: ClassVar[str] = "frame"
    eval_batch_size: ClassVar[int] = 8
    students_fit_items: ClassVar[bool] = False  # frames are seen as they are

    @classmethod
    def matches(cls, info: DataInfo, task: type[Task], space: SearchSpace) -> bool:
        return task.framewise

    @classmethod
    def outputs_are_maps(cls, task: type[Task]) -> bool:
        return True

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.info.height, self.info.width)

    def check_space(self, space: SearchSpace, knobs: Mapping[str, Choice]) -> None:
        """Frames are seen as they are, so there is nothing to compare."""

    def training_view(
        self, batch: Batch, space: SearchSpace, knobs: Mapping[str, Choice], *, previous_frame: bool = False
    ) -> TrainingView:
        batch = random_frames(batch)
        clip = self.read(batch)
        return TrainingView((clip.transpose(1, 2).flatten(0, 1),), frame_by_frame(clip), batch)

    def student_output(self, output: ModelOutput, num_items: int) -> ModelOutput:
        return replace(output, logits=output.logits.reshape(num_items, -1, *output.logits.shape[1:]))

    def teacher_output(self, output: ModelOutput, num_items: int) -> ModelOutput:
        maps = output.logits.reshape(-1, num_items, *output.logits.shape[1:]).transpose(0, 1)
        return replace(output, logits=maps)

    @property
    def positions(self) -> int:
        return self.info.frames

    def teacher_inputs(self, batch: Batch) -> Tensor:
        return self.read(batch).transpose(1, 2).flatten(0, 1)

    def teacher_training_view(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], Batch]:
        batch = random_frames(batch)
        return [on_frames(model, chunk=len(batch[self.key]))(self.read(batch))], batch

    def on_items(self, teacher: Callable[[Tensor], Tensor], batch_size: int) -> Callable[[Tensor], Tensor]:
        return on_frames(teacher, chunk=batch_size)

    def evaluate_student(
        self,
        student: nn.Module,
        loader: ClipLoader,
        task: Task,
        space: SearchSpace,
        knobs: Mapping[str, Choice],
        scored: Scored | None = None,
    ) -> dict[str, float]:
        return evaluate(on_frames(student, chunk=loader.batch_size), loader, task, self.read, scored=scored)

    @classmethod
    def prepare(
        cls,
        items: Tensor,
        shape: Sequence[int],
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
    ) -> Tensor:
        if items.ndim != 4:
            return super().prepare(items, shape, mean, std)
        check_bytes(items, ndim=4)
        return super().prepare(items.unsqueeze(2), shape, mean, std).squeeze(2)


def frame_by_frame(clip: Tensor) -> Tensor:
    """(N, 3, T, H, W) -> (T · N, 3, H, W): all first frames, then all second ones, and so on."""
    return clip.permute(2, 0, 1, 3, 4).flatten(0, 1).contiguous(memory_format=torch.channels_last)
