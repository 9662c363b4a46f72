"""`Learner`: a net with its objective and the teacher's outputs, which turns a batch into the terms of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.config.sections import SearchConfig
from nas_kd.data import Augment, Batch, ClipDataset, Views
from nas_kd.objectives import DistillationLoss, ObjectiveConfig
from nas_kd.search_spaces import Supernet
from nas_kd.search_spaces.arch import Choice
from nas_kd.taps import ModelOutput, Taps
from nas_kd.teachers import Teacher, teacher_input
from nas_kd.training.budget import BudgetController
from nas_kd.training.checkpoint import load_checkpoint
from nas_kd.training.fit import fit
from nas_kd.training.gate_search import search_gates
from nas_kd.training.log import Log, no_log
from nas_kd.training.precision import Precision, autocast, for_losses
from nas_kd.training.settings import TrainingConfig
from nas_kd.training.steps import trained_parameters
from nas_kd.trial.context import CampaignContext


class Learner:
    """A net under its objective, with the teacher's answers from the cache or from the teacher itself.

    Args:
        context: data and teacher.
        net: a supernet or a student.
        config: the objective.
        knobs: the student's view of a clip.
        cached: take the teacher's answers from the cache for the augmentation, if there is one with the maps that are
            needed; batches must then show its `views`.
        augment: of the training.
        varying: the net's maps may be narrower in training than now.
        precision: in which the nets run; losses are in float32.
        compiled: whether the net runs through `torch.compile` here; elsewhere, as in evaluation, it runs as it is.
        adapters: what has trained along with the supernet whose weights the net inherits.

    Attributes:
        views: that batches must show where answers are cached; None where any batch will do.
    """

    def __init__(
        self,
        context: CampaignContext,
        net: nn.Module,
        config: ObjectiveConfig,
        knobs: Mapping[str, Choice],
        *,
        cached: bool,
        augment: Augment = "none",
        varying: bool = False,
        precision: Precision = "float32",
        compiled: bool = False,
        adapters: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.context, self.net, self._knobs, self._precision = context, net, dict(knobs), precision
        example = context.student_example(self._knobs)
        teacher = None
        if config.distils:
            teacher = context.untrained_teacher() if config.co_trains_teacher else context.teacher_model
        teacher_example = context.teacher_example()
        self.objective = DistillationLoss(
            config, context.task, net, teacher, example, teacher_example, varying_width=varying, inherited=adapters
        )
        run = _compiled(net, context.device) if compiled else None
        self._student = Taps(net, self.objective.student_taps, run)
        self._teacher: Teacher | None = None
        self._co_trained_teacher: Taps | None = None
        self.views: Views | None = None
        self._answers: Callable[[Batch, Tensor], ModelOutput | None] = lambda batch, inputs: None
        if teacher is not None:
            cache = context.caches.get(augment)
            taps = self.objective.teacher_taps
            if config.co_trains_teacher:
                beside = self._co_trained_teacher = Taps(teacher.train(), taps)
                self._answers = lambda batch, inputs: beside(inputs)
            elif cached and not config.needs_online_teacher and cache is not None and cache.taps >= set(taps):
                self._answers = lambda batch, inputs: cache(batch)
                self.views = cache.views
            else:
                norm: Literal["batch", "running"] = "batch" if config.uses_batch_statistics else "running"
                live = self._teacher = Teacher(teacher, taps, norm=norm)
                self._answers = lambda batch, inputs: live(teacher_input(teacher, batch, inputs))

    @property
    def knobs(self) -> Mapping[str, Choice]:
        """Of the space: those that a supernet stands at, or those of the student."""
        return self.net.knobs if isinstance(self.net, Supernet) else self._knobs

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Unweighted terms of a batch."""
        input_type, num_items = self.context.input_type, len(batch[self.context.input_type.key])
        previous = self.objective.needs_previous_frame
        view = input_type.training_view(batch, self.context.space, self.knobs, previous_frame=previous)
        with self._autocast():
            output = for_losses(self._student(*view.student))
        student = input_type.student_output(output, num_items)
        teacher = None
        if self.objective.uses_teacher:
            answer = self._answer(view.batch, view.teacher)
            if self.objective.needs_calibration:
                assert view.key_frames is not None
                assert view.key_position is not None
                key = self._answer({**view.batch, "position": view.key_position}, view.key_frames)
                assert answer is not None
                assert key is not None
                self.objective.calibrate(key, answer)
            teacher = None if answer is None else input_type.teacher_output(answer, num_items)
        return cast(dict[str, Tensor], self.objective(student, teacher, view.batch))

    def _answer(self, batch: Batch, inputs: Tensor) -> ModelOutput | None:
        with self._autocast():
            answer = self._answers(batch, inputs)
        return None if answer is None else for_losses(answer)

    def _autocast(self) -> torch.autocast:
        return autocast(self._precision, self.context.device)

    def search(
        self,
        budget: BudgetController,
        config: SearchConfig,
        *,
        seed: int,
        checkpoint: Path | None = None,
        tag: str = "search",
        progress: OnProgress = no_progress,
        log: Log = no_log,
    ) -> None:
        """Search the gates of the net, a supernet, after what the input type starts a search with.

        Args:
            budget: penalty of the gates.
            config: how.
            seed: of order, augmentation and noise.
            checkpoint: file, or None to keep nothing; a search that it continues was started already.
            tag: names the search in the checkpoint.
            progress: called after every step.
            log: called with the mean terms after every epoch.
        """
        supernet, context = self.net, self.context
        assert isinstance(supernet, Supernet)
        weights = context.loader(context.splits.weights, config, seed=seed, train=True, views=self.views)
        gates = context.loader(context.splits.gates, config, seed=seed + 1, train=True, views=self.views)
        begun = context.input_type.start_share(config.local)
        if begun and (checkpoint is None or load_checkpoint(checkpoint, tag=tag) is None):
            context.input_type.start_search(
                supernet, weights, gates, config, config.local, seed=seed,
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

    def fit(self, dataset: ClipDataset, config: TrainingConfig, *, seed: int, **options: Any) -> int:
        """Train the net, with the objective's own parameters, on a split; returns the number of epochs it is left with.

        With `keep: best` these are the epochs after which it is best on the validation split.

        Args:
            dataset: the split.
            config: how.
            seed: of order, augmentation and noise.
            options: of `nas_kd.training.fit.fit`.
        """
        loader = self.context.loader(dataset, config, seed=seed, train=True, views=self.views)
        self.objective.check_batches(len(loader) * config.epochs)
        fast, slow, slow_scale = trained_parameters(self.net, self.net.parameters(), self.objective)
        context, metric = self.context, self.context.task.metric

        def gain() -> float:
            return context.task.gain(context.evaluate_student(self.net, context.splits.val, self._knobs)[metric])

        return fit(
            self.net,
            loader,
            self.loss,
            self.objective.total,
            config,
            seed=seed,
            validate=gain,
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
        for other in (self._teacher, self._co_trained_teacher):
            if other is not None:
                other.close()


def _compiled(net: nn.Module, device: torch.device) -> Callable[..., Any]:
    """A net through `torch.compile`; on a GPU its kernels are captured, since small nets wait for their launches."""
    torch.compiler.reset()  # torch keeps what it compiled of earlier students, and gives up after a few
    return torch.compile(net, mode="reduce-overhead" if device.type == "cuda" else None)
