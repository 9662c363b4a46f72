"""What turns a batch into the terms of a loss: a net, its objective, and the teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas_kd.data import Batch, ClipDataset
from nas_kd.frames import ClipOfFrames, random_frames, random_pairs, take_frames
from nas_kd.objectives import Objective, ObjectiveConfig
from nas_kd.sections import SearchConfig
from nas_kd.taps import ModelOutput, Taps
from nas_kd.teachers import Teacher
from nas_kd.training.budget import BudgetController
from nas_kd.training.checkpoint import load_checkpoint
from nas_kd.training.fit import FitConfig, Log, Progress, fit, no_log, no_progress
from nas_kd.training.gate_search import search_gates, trained_parameters
from nas_kd.training.local_search import start_locally
from nas_kd.workbench import Workbench
from search_spaces import Supernet
from search_spaces.arch import Choice

LOCAL_SHARE = 0.2  # of a search's time, roughly, that its local start takes


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
        self.bench, self.net, self.knobs = bench, net, dict(knobs)
        example = bench.student_example(self.knobs)
        teacher = None
        if config.distils:
            teacher = bench.untrained_teacher() if config.trains_teacher else bench.teacher_model
        theirs = bench.teacher_example()
        self.objective = Objective(config, bench.task, net, teacher, example, theirs, varying_width=varying)
        self.objective.to(bench.device)
        seen = ClipOfFrames(net) if bench.task.framewise and not bench.has_keyframes else net
        prefix = "net." if seen is not net else ""
        self._student = Taps(seen, [f"{prefix}{name}" for name in self.objective.student_taps])
        self._prefix = prefix
        self._teacher: Teacher | None = None
        self._companion: Taps | None = None
        self._answers: Callable[[Batch, Tensor], ModelOutput | None] = lambda batch, clip: None
        if teacher is not None:
            cache = bench.cache
            taps = self.objective.teacher_taps
            if config.trains_teacher:
                beside = self._companion = Taps(teacher.train(), taps)
                self._answers = lambda batch, clip: beside(clip)
            elif cached and not config.asks_live and cache is not None and cache.taps >= set(taps):
                self._answers = lambda batch, clip: cache(batch)
            else:
                norm = config.cross_resolution.teacher_norm if config.asks_live else "running"
                live = self._teacher = Teacher(teacher, taps, norm=norm)
                self._answers = lambda batch, clip: live(bench.teacher_input(batch, clip))

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Unweighted terms of a batch."""
        if self.bench.task.framewise:
            return self._loss_of_frames(batch)
        inputs = self.bench.input(batch)
        student = self._student(self.bench.space.fit_input(inputs, self.knobs))
        teacher = self._answers(batch, inputs) if self.objective.uses_teacher else None
        return self._terms(student, teacher, batch)

    def _loss_of_frames(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of one random frame of each clip; with key frames, of those after the first one of a random pair."""
        keys = 0
        if self.bench.has_keyframes:
            previous = self.objective.config.delta.weight > 0 and self.objective.config.delta.reference == "previous"
            batch, keys = random_pairs(batch, int(self.knobs["keyframe_interval"]), previous=previous), 1
        else:
            batch = random_frames(batch)
        clip = self.bench.input(batch)
        # All first frames, then all second ones: the order of rows in which students of key frames have their maps.
        frames = clip[:, :, keys:].permute(2, 0, 1, 3, 4).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        teacher = self._answers(batch, frames) if self.objective.uses_teacher else None
        delta = self.objective.delta
        if delta is not None and not delta.ready:
            assert self._teacher is not None
            assert teacher is not None
            self.objective.calibrate(self._teacher(clip[:, :, 0]), teacher)
        output = self._student(clip, *([clip.shape[2]] if keys else []))
        features = {name.removeprefix(self._prefix): value for name, value in output.features.items()}
        student = ModelOutput(output.logits[:, keys:], features)
        if teacher is not None:
            maps = teacher.logits.reshape(-1, len(clip), *teacher.logits.shape[1:]).transpose(0, 1)
            teacher = ModelOutput(maps, teacher.features)
        rest = torch.arange(keys, clip.shape[2]).expand(len(clip), -1)
        return self._terms(student, teacher, take_frames(batch, rest))

    def _terms(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.objective(student, teacher, batch))

    def search(
        self,
        budget: BudgetController,
        config: SearchConfig,
        *,
        seed: int,
        checkpoint: Path | None = None,
        tag: str = "search",
        progress: Progress = no_progress,
        log: Log = no_log,
    ) -> None:
        """Search the gates of the net, a supernet; with key frames, after a local start.

        Args:
            budget: penalty of the gates.
            config: how.
            seed: of order, augmentation and noise.
            checkpoint: file, or None to keep nothing; a search that it continues was started already.
            tag: names the search in the checkpoint.
            progress: told after every step.
            log: told the mean terms after every epoch.
        """
        supernet, bench = self.net, self.bench
        assert isinstance(supernet, Supernet)
        weights = bench.loader(bench.splits.weights, config, seed=seed, train=True)
        gates = bench.loader(bench.splits.gates, config, seed=seed + 1, train=True)
        begun = LOCAL_SHARE if bench.has_keyframes and config.local.steps > 0 else 0.0
        if begun and (checkpoint is None or load_checkpoint(checkpoint, tag=tag) is None):
            start_locally(
                bench, supernet, weights, gates, config, config.local, seed=seed,
                progress=lambda done, words: progress(begun * done, words),
            )  # fmt: skip
        search_gates(
            supernet,
            self.objective,
            self.loss,
            weights,
            gates,
            budget,
            config,
            config.gates,
            seed=seed,
            checkpoint=checkpoint,
            tag=tag,
            progress=lambda done, words: progress(begun + (1 - begun) * done, words),
            log=log,
        )

    def fit(self, dataset: ClipDataset, config: FitConfig, *, seed: int, **options: Any) -> None:
        """Train the net, with the objective's own parameters, on a split.

        Args:
            dataset: the split.
            config: how.
            seed: of order, augmentation and noise.
            options: of `nas_kd.training.fit.fit`.
        """
        loader = self.bench.loader(dataset, config, seed=seed, train=True)
        self.objective.check_steps(len(loader) * config.epochs)
        fast, slow, slow_scale = trained_parameters(self.net, self.net.parameters(), self.objective)
        fit(
            self.net,
            loader,
            self.loss,
            self.objective.total,
            config,
            seed=seed,
            parameters=fast,
            slow=slow,
            slow_scale=slow_scale,
            advance=self.objective.advance,
            extra_parts={"objective": self.objective},
            **options,
        )

    def close(self) -> None:
        """Remove all hooks."""
        self._student.close()
        for other in (self._teacher, self._companion):
            if other is not None:
                other.close()
