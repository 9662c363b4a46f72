"""Frames with key frames: every K-th frame runs the teacher's layers, the other frames run the student's.

A training step draws a key frame and a later one of each clip. The student runs both, the teacher the later one, and
every term compares the two there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.data import Batch, ClipLoader, DataInfo
from nas_kd.data.frame_sampling import random_pairs, take_frames
from nas_kd.inputs.frames import FrameInput, frame_by_frame
from nas_kd.inputs.input_type import Passes, TrainingView
from nas_kd.search_spaces import CostTable, DeltaBlocksSpace, DeltaNet, SearchSpace, Supernet
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.delta_blocks import delta_net_of
from nas_kd.search_spaces.delta_blocks.latency import latency_table
from nas_kd.search_spaces.delta_blocks.residual import residual_form
from nas_kd.search_spaces.key_frame_net import KeyFrameNet
from nas_kd.taps import ModelOutput
from nas_kd.tasks import Task
from nas_kd.training.evaluate import Scored, evaluate
from nas_kd.training.local_search import start_locally
from nas_kd.training.settings import FitConfig, LocalConfig
from nas_kd.training.streaming_cost import streaming_cost

LOCAL_SHARE = 0.2  # of a search's time, roughly, that its local start takes

_DELTA = {"feature": {"weight": 0.0}, "response": {"weight": 0.0}, "delta": {"weight": 1.0}}
_BUNDLE_FIELDS = ("keyframe_interval", "keyframe_flops", "delta_flops", "state_bytes")


class KeyFrameInput(FrameInput):
    """The teacher reads frames (N, 3, H, W); students read clips (N, 3, T, H, W), frame by frame.

    The defaults are those of all campaigns whose task looks at single frames.
    """

    students_give_what_the_teacher_gives: ClassVar[bool] = True
    students_keep_a_state: ClassVar[bool] = True
    always_searches: ClassVar[bool] = True  # delta layers are brought near to the teacher's before their search
    frame_knobs: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"keyframe_interval": "an interval between key frames takes"}
    )
    fallback_knob: ClassVar[str | None] = "keyframe_interval"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "teacher": {"model": "framenet"},
        "space": {"name": "delta_blocks"},
        "budget": {"max_flops": ["4M", "6M", "8M"]},
        "objective": _DELTA,
        "search": {"objective": {**_DELTA, "delta": {"weight": 1.0, "active_share": 1.0}}},
    }

    @classmethod
    def matches(cls, info: DataInfo, task: type[Task], space: SearchSpace) -> bool:
        return task.framewise and isinstance(space, DeltaBlocksSpace)

    def student_example(self, space: SearchSpace, knobs: Mapping[str, Choice]) -> Tensor:
        """One pair of frames: (1, 3, 2, H, W)."""
        return torch.zeros(1, 3, 2, self.info.height, self.info.width)

    def training_view(
        self, batch: Batch, space: SearchSpace, knobs: Mapping[str, Choice], *, previous_frame: bool = False
    ) -> TrainingView:
        batch = random_pairs(batch, int(knobs["keyframe_interval"]), previous=previous_frame)
        clip = self.read(batch)
        # The order of rows in which students of key frames have their maps.
        later_frames = frame_by_frame(clip[:, :, 1:])
        later = torch.arange(1, clip.shape[2]).expand(len(clip), -1)
        key_position = batch["position"][:, :1]
        return TrainingView((clip, clip.shape[2]), later_frames, take_frames(batch, later), clip[:, :, 0], key_position)

    def student_output(self, output: ModelOutput, num_items: int) -> ModelOutput:
        return ModelOutput(output.logits[:, 1:], output.features)

    def start_search(
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
        start_locally(self.read, supernet, weights, gates, fit, config, seed=seed, progress=progress)

    def start_share(self, config: LocalConfig) -> float:
        return LOCAL_SHARE if config.steps > 0 else 0.0

    def evaluate_student(
        self,
        student: nn.Module,
        loader: ClipLoader,
        task: Task,
        space: SearchSpace,
        knobs: Mapping[str, Choice],
        scored: Scored | None = None,
    ) -> dict[str, float]:
        net = delta_net_of(student)
        assert net is not None, "students with key frames have delta layers"
        return evaluate(student, loader, task, self.read, net.offsets(self.info.frames), scored=scored)

    def student_offsets(self, space: SearchSpace) -> dict[int, list[int]]:
        frames = range(self.info.frames)
        intervals = sorted(int(value) for value in space.knobs["keyframe_interval"])
        return {interval: [t % interval for t in frames] for interval in intervals}

    def teacher_flops(self, teacher: nn.Module, example: Tensor, space: SearchSpace) -> tuple[int, tuple[str, ...]]:
        """Of a frame with BatchNorm folded, as the students have it."""
        return cast(DeltaBlocksSpace, space).plan.teacher_flops, ()

    def counted_teacher(self, teacher: nn.Module, example: Tensor, space: SearchSpace) -> tuple[nn.Module, Any]:
        return cast(DeltaBlocksSpace, space).teacher, example.cpu()

    def frozen_teacher(self, teacher: nn.Module, space: SearchSpace) -> nn.Module:
        """With BatchNorm folded: it computes the same, and its layers are those of the students."""
        return cast(DeltaBlocksSpace, space).teacher

    def student_cost(self, student: nn.Module, example: Tensor, flops: int, params: int) -> dict[str, Any]:
        """Amortised a frame; `flops` is that of a whole key-frame interval."""
        return dict(streaming_cost(cast(DeltaNet, student), example[:, :, 0], flops, params))

    def latency_passes(self, student: nn.Module, example: Tensor) -> Passes:
        """A key frame and a frame after it; the latency is amortised a frame."""
        net = cast(KeyFrameNet, student)
        frame = example[:, :, 0].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            _, state = net.key(frame)
        return Passes.interval(
            lambda: net.key(frame)[0], lambda: net.delta(frame, state)[0], frames=net.keyframe_interval
        )

    def latency_table(self, space: SearchSpace, knobs: Mapping[str, Choice], device: torch.device) -> CostTable:
        return latency_table(cast(DeltaBlocksSpace, space), knobs, device=device)

    def fallback_warning(self, knob: str, asked: object, taken: object) -> str:
        return f"no student with key frames every {asked} frames meets the budget; took {taken}"

    @classmethod
    def student_in_form(cls, student: nn.Module, form: str) -> nn.Module:
        return residual_form(cast(DeltaNet, student)) if form == "residual" else student

    def bundle_fields(self, cost: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().bundle_fields(cost), **{name: cost[name] for name in _BUNDLE_FIELDS}}
