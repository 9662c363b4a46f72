"""`DistillationLoss`: the weighted sum of the task's loss and of all distillation terms."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from nas_kd.objectives.config import ObjectiveConfig
from nas_kd.objectives.term import DistillationTerm, Pairs, TermContext
from nas_kd.settings.mistakes import nearest
from nas_kd.taps import ModelOutput, TapError, Taps, shapes_given, sketch
from nas_kd.tasks import Batch, Task
from nas_kd.tasks.task import loss_of


class ModuleNameError(ValueError):
    """A key of the `objective` section names a module that cannot be distilled.

    Attributes:
        who: `student` or `teacher`.
        names: modules of that net that could be named there.
    """

    def __init__(self, who: str, term: str, key: str, found: TapError, names: tuple[str, ...]) -> None:
        self.who, self.term, self.key, self.found, self.names = who, term, key, found, names
        what = f"module {found.name!r} of the {who} {found.why}"
        choices = f"choose from {sketch(names)}, or " if names else ""
        super().__init__(f"{key}: {what}; {nearest(found.name, names)}{choices}set {term}.weight to 0")

    def among(self, names: Container[str]) -> ModuleNameError:
        """The same with fewer names to choose from."""
        common = tuple(name for name in self.names if name in names)
        return ModuleNameError(self.who, self.term, self.key, self.found, common)


class DistillationLoss(nn.Module):
    """Function of student, teacher and batch that returns named, unweighted terms; `total` weighs and sums them.

    Its own parameters (adapters, decoders of branches, a teacher that learns beside the student) train with the
    student's weights.

    Args:
        config: terms and weights.
        task: loss on the labels.
        student: the net that will be trained (a supernet or a student); must return its widest maps when `example`
            runs through it.
        teacher: the model to learn from, or None where nothing is distilled; frozen, unless the config has it trained
            beside the student.
        example: one student input.
        teacher_example: one teacher input.
        varying_width: the student's maps may be narrower later, so an adapter is always there.
        inherited: `searched_tensors` of the objective of a search whose weights the student inherits. A narrower
            student takes the leading part of a tensor, as it does of the supernet's weights. With fresh adapters the
            first losses would be large, and their gradients would take the inherited weights apart.

    Raises:
        ModuleNameError: a named module does not exist, or gives nothing that can be compared.
        ValueError: a term does not fit the task or the nets, or two maps cannot be compared.

    Examples:
        >>> student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)) for _ in range(2))
        >>> task = nas_kd.TASKS["classification"](nas_kd.load_config("demo.yaml").data.info)
        >>> config = nas_kd.ObjectiveConfig(feature={"weight": 0}, response={"weight": 0.5})
        >>> clips, labels = torch.rand(2, 3, 4, 16, 16), torch.tensor([0, 3])
        >>> objective = nas_kd.DistillationLoss(config, task, student, teacher, clips, clips)
        >>> answers = [nas_kd.ModelOutput(net(clips)) for net in (student, teacher)]
        >>> terms = objective(*answers, {"label": labels})
        >>> sorted(terms)
        ['response', 'task']
        >>> objective.total(terms).backward()
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        task: Task,
        student: nn.Module,
        teacher: nn.Module | None,
        example: Tensor,
        teacher_example: Tensor,
        *,
        varying_width: bool = False,
        inherited: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.config, self.task = config, task
        self.parts = nn.ModuleDict()
        self.progress = 0.0
        self.co_trained_teacher = teacher if config.co_trains_teacher else None
        if config.distils and teacher is None:
            raise ValueError("the objective distils, but there is no teacher; set the distillation weights to 0")
        if teacher is None:
            return
        for name, term in config.active_terms.items():
            context = TermContext(
                name=name,
                task=task,
                student=student,
                teacher=teacher,
                example=example,
                teacher_example=teacher_example,
                varying_width=varying_width or any(key.startswith(f"{_module_name(name)}.") for key in inherited),
                task_weight=config.task.weight,
                finetune_share=config.finetune_share,
            )
            try:
                part = term.build(context)
            except ValueError as error:
                raise _of_term(name, error) from error
            _check_part(name, part)
            self.parts[_module_name(name)] = part
        student_output = self._answer("student", student, example)
        teacher_output = self._answer("teacher", teacher, teacher_example)
        for part in self._parts:
            try:
                with torch.no_grad():
                    part.build(student_output, teacher_output)  # what does not fit fails here, not in training
            except ValueError as error:
                raise _of_term(part.name, error) from error
        self.to(example.device)
        self._inherit(inherited)

    def _inherit(self, searched: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parts.named_parameters():
                found = searched.get(name)
                if found is None or found.ndim != parameter.ndim:
                    continue
                if all(own <= other for own, other in zip(parameter.shape, found.shape, strict=True)):
                    parameter.copy_(found[tuple(slice(size) for size in parameter.shape)])

    def _answer(self, who: str, net: nn.Module, example: Tensor) -> ModelOutput:
        mode = net.training
        try:
            with torch.no_grad(), Taps(net, self.student_taps if who == "student" else self.teacher_taps) as taps:
                net.eval()
                return taps(example)
        except TapError as error:
            raise self._named(who, net, example, error) from error
        finally:
            net.train(mode)

    def _named(self, who: str, net: nn.Module, example: Tensor, error: TapError) -> ModuleNameError:
        """The error with the key that names the module, and the modules that could be named there."""
        for part in self._parts:
            taps, keys = part.student_taps, part.student_keys
            if who == "teacher":
                taps, keys = part.teacher_taps, part.teacher_keys
            if error.name in taps:
                break
        shapes = shapes_given(net, example)
        names = tuple(name for name, shape in shapes.items() if not part.ndims or len(shape) in part.ndims)
        return ModuleNameError(who, part.name, keys.get(error.name, part.name), error, names)

    @property
    def _parts(self) -> list[DistillationTerm]:
        return [cast(DistillationTerm, part) for part in self.parts.values()]

    @property
    def student_taps(self) -> tuple[str, ...]:
        """Modules of the student whose outputs are needed."""
        return _distinct(name for part in self._parts for name in part.student_taps)

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """Modules of the teacher whose outputs are needed."""
        return _distinct(name for part in self._parts for name in part.teacher_taps)

    @property
    def pairs(self) -> dict[str, Pairs]:
        """Term -> (module of the student, module of the teacher) for all that it compares."""
        return {part.name: part.pairs for part in self._parts if part.pairs}

    @property
    def left_out(self) -> dict[str, tuple[str, str]]:
        """Value that a term does not add -> why, and the key of the objective that names modules for it."""
        return {
            name: (reason, f"{part.name}.{key}")
            for part in self._parts
            for name, (reason, key) in part.left_out.items()
        }

    @property
    def needs_previous_frame(self) -> bool:
        """Of students with key frames, whether the frame before the compared one is needed too."""
        return any(part.needs_previous_frame for part in self._parts)

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` has to be called before a term that counts now can be computed."""
        return any(part.needs_calibration for part in self._active)

    @property
    def _active(self) -> list[DistillationTerm]:
        """Terms that count at the present progress."""
        if self.progress >= 1 - self.config.finetune_share:
            return []
        return [part for part in self._parts if part.is_active(self.progress)]

    @property
    def uses_teacher(self) -> bool:
        """Whether any term needs the teacher's answer at the present progress."""
        return any(part.needs_teacher for part in self._active)

    def check_batches(self, batches: int) -> None:
        """Raise `ValueError` where a training of so many batches has none for a stage that a term needs."""
        for part in self._parts:
            part.check_batches(batches)

    def searched_tensors(self) -> dict[str, Tensor]:
        """What has trained along with a supernet, such as adapters, for the students that inherit its weights."""
        return {name: parameter.detach().clone() for name, parameter in self.parts.named_parameters()}

    def advance(self, progress: float) -> None:
        """Say how far the training is, from 0 to 1."""
        self.progress = progress
        for part in self._parts:
            part.advance(progress)

    def calibrate(self, key: ModelOutput, frame: ModelOutput) -> None:
        """Let terms measure what they scale their values by, from the teacher's maps at key frames and later ones."""
        for part in self._active:
            if part.needs_calibration:
                part.calibrate(key, frame)

    def slow_parameters(self, net: nn.Module) -> tuple[list[nn.Parameter], float]:
        """Parameters of the net that train at a share of the learning rate, and that share; none by default."""
        for term in self.config.terms.values():
            parameters, scale = term.slow_parameters(net)
            if parameters:
                return parameters, scale
        return [], 0.0

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Tensor]:
        """Unweighted terms by name, each a scalar.

        Args:
            student: its outputs and tapped maps.
            teacher: its outputs and tapped maps; None where `uses_teacher` is false. With a gradient where it is
                trained beside the student: its own loss is the term `teacher`; all others use it without gradient.
            batch: the labels.
        """
        terms: dict[str, Tensor] = {}
        active = self._active
        if self._task_weight > 0 and not any(part.replaces_task for part in active):
            terms["task"] = loss_of(self.task, student.logits, batch)
        if self.co_trained_teacher is not None and teacher is not None:
            terms["teacher"] = loss_of(self.task, teacher.logits, batch)
            features = {name: value.detach() for name, value in teacher.features.items()}
            teacher = replace(teacher, logits=teacher.logits.detach(), features=features)
        for part in active:
            values = part(student, teacher, batch)
            if not isinstance(values, dict) or not values.keys() <= part.weights.keys():
                given = list(values) if isinstance(values, dict) else f"a {type(values).__name__}"
                raise ValueError(
                    f"{part.name}: forward must give a dict of values with the names of weights, "
                    f"{list(part.weights)}, but gives {given}"
                )
            for name, value in values.items():
                if not isinstance(value, Tensor) or value.ndim > 0:
                    shape = f"has the shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is {value!r}"
                    raise ValueError(
                        f"{part.name}: forward must give scalar tensors, but {name!r} {shape}; take its mean over the "
                        "batch"
                    )
            terms |= values
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Σ weight · term."""
        weights = {"task": self._task_weight, "teacher": 1.0}
        for part in self._parts:
            weights |= part.weights
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()

    @property
    def _task_weight(self) -> float:
        """Weight of the task's term; where nothing distils any more, or a term needs it, it counts without one too."""
        weight = self.config.task.weight
        asked = not self._active or any(part.needs_task_loss(self.progress) for part in self._parts)
        return 1.0 if weight == 0 and asked else weight


def _check_part(name: str, part: object) -> None:
    """Raise `ValueError` where what a config builds is no term."""
    if not isinstance(part, DistillationTerm):
        raise ValueError(f"{name}: build must give a DistillationTerm, but gives a {type(part).__name__}")
    if not hasattr(part, "weights"):
        raise ValueError(f"{name}: __init__ of {type(part).__name__} must call super().__init__(context.name, weight)")


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _module_name(term: str) -> str:
    """A term's name without dots, which names of submodules may not have."""
    return term.replace(".", "/")


def _of_term(name: str, error: ValueError) -> ValueError:
    """The error with the key of the term in front, where it is not there yet."""
    sentence = str(error)
    known = sentence.startswith((f"{name}:", f"{name}.", "finetune_share"))
    return error if known else ValueError(f"{name}: {sentence}")
