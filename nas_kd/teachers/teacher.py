"""The teacher of a campaign: built from its config, frozen for good, tapped by module names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import BeforeValidator, Field, ValidationError, field_validator
from torch import Tensor, nn

from nas_kd.callbacks import Note, no_note
from nas_kd.data import Batch, DataInfo
from nas_kd.settings.imports import call_function
from nas_kd.settings.mistakes import choose, explain
from nas_kd.settings.names import names_as_text
from nas_kd.settings.normalize import NormalizeConfig
from nas_kd.settings.strict import Section
from nas_kd.taps import ModelOutput, Taps
from nas_kd.teachers.adapter import AdaptedTeacher, adapt, with_forms
from nas_kd.teachers.cache import TeacherCacheConfig
from nas_kd.teachers.input_form import InputForm
from nas_kd.teachers.layouts import Layout
from nas_kd.teachers.norm import batch_statistics
from nas_kd.teachers.output_form import OutputForm
from nas_kd.teachers.registry import TEACHERS
from nas_kd.teachers.unwrap import unwrap
from nas_kd.teachers.weights import load_weights
from nas_kd.training.settings import TrainingConfig

Side = Annotated[int, Field(ge=1)]


def _both_sides(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


@dataclass(frozen=True)
class TeacherView:
    """What a teacher sees in a campaign, and what is read of it.

    Attributes:
        examples: two inputs with values such as the data have: clips (2, 3, T, H, W), frames (2, 3, H, W) or features
            (2, T, D).
        item: what that is, for sentences.
        maps: whether maps (N, C, h, w) are read, and not logits (N, C).
        normalize: of the campaign.
        class_names: of the data, in the order of the classes.
    """

    examples: Tensor
    item: str
    maps: bool
    normalize: NormalizeConfig
    class_names: tuple[str, ...] = ()


class TeacherConfig(Section):
    """The teacher.

    Attributes:
        model: `r2plus1d`, `framenet`, `frame_sequence`, `saliency`, `maps` for maps that come with the data,
            `hugging_face` for a folder of transformers, or your own as `module:function`, called with num_classes and
            the settings as keywords.
        settings: of the model.
        weights: a file with the model's state dict: safetensors, or `.pt` and `.pth` of `torch.save`.
        train: whether the campaign trains it at its start. By default that is so where there are no weights; set it to
            false where the function returns a trained net.
        fit: how it is trained.
        input_layout: of clips, as the net wants them: `NCTHW`, `NTCHW`, `NTHWC`, `frames` (N · T, C, H, W), `stacked`
            (N, T · C, H, W), `pathways` (a list of clips with fewer and with more frames), or `auto`, the one with
            which it runs.
        pathway_strides: of the frames, for each of the `pathways`.
        input_size: side, or [height, width], that the net wants; clips are resized.
        input_frames: frames that the net wants; they are taken uniformly.
        normalize: mean and std of the net, where it is another one than the campaign's.
        output: which output is the answer, by its name or number, with dots for nested ones; needed where several
            could be.
        outputs: numbers of the net's outputs that stand for the data's classes, in their order, or by their names.
        cache: how its outputs are kept for the trainings of a campaign.

    Examples:
        >>> nas_kd.TeacherConfig(model="mymodels:heavy_net", weights="heavy.safetensors").model
        'mymodels:heavy_net'
    """

    model: str = "r2plus1d"
    settings: dict[str, Any] = Field(default_factory=dict)
    weights: Path | None = None
    train: bool | None = None
    fit: TrainingConfig = TrainingConfig(epochs=10, lr=3e-3)
    input_layout: Layout | Literal["auto"] = "auto"
    pathway_strides: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(4, 1), min_length=1)
    input_size: (
        Annotated[tuple[Side, Side], BeforeValidator(_both_sides, json_schema_input_type=Side | tuple[Side, Side])]
        | None
    ) = None
    input_frames: int | None = Field(default=None, ge=1)
    normalize: NormalizeConfig | None = None
    output: int | str | None = None
    outputs: tuple[Annotated[int, Field(ge=0)], ...] | dict[str, Annotated[int, Field(ge=0)]] | None = None
    cache: TeacherCacheConfig = TeacherCacheConfig()

    @field_validator("outputs", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        return names_as_text(value) if isinstance(value, Mapping) else value

    @field_validator("fit", mode="before")
    @classmethod
    def _epochs(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("epochs") == 0:
            raise ValueError(
                "epochs must be at least 1, but is 0; to take a teacher as it is, set teacher.train: false"
            )
        return value

    @property
    def trains(self) -> bool:
        """Whether the campaign trains it, unless its answers come with the data."""
        if self.train is not None:
            return self.train
        entry = TEACHERS.get(self.model)
        return self.weights is None and not (entry is not None and entry.has_weights(self.settings))

    @property
    def model_files(self) -> list[Path]:
        """Files that decide the model, beside `weights`."""
        entry = TEACHERS.get(self.model)
        return entry.files(self.settings) if entry is not None else []


@runtime_checkable
class MultiBranch(Protocol):
    """A teacher of several nets, each with an answer of its own that is trained on the labels."""

    def branches(self, clip: Tensor) -> Mapping[str, Tensor]:
        """Name -> outputs."""
        ...


@runtime_checkable
class Precomputed(Protocol):
    """A teacher whose answers were computed before and come with the data: it has nothing to train, and what they cost
    is not known."""

    def take(self, batch: Batch) -> Tensor:
        """Its input: what it reads of a batch."""
        ...

    def example(self, info: DataInfo) -> Tensor:
        """Zeros of its input's shape, with batch size 1."""
        ...


def is_precomputed(model: nn.Module) -> bool:
    """Whether the answers of a teacher come with the data, so that it is neither trained nor counted."""
    return isinstance(model, Precomputed)


def teacher_input(model: nn.Module, batch: Batch, inputs: Tensor) -> Tensor:
    """What a teacher takes of a batch: the input that nets see, unless it reads answers that come with the data.

    Args:
        model: the teacher.
        batch: of the data.
        inputs: what nets see of the batch.
    """
    return model.take(batch) if isinstance(model, Precomputed) else inputs


def teacher_examples(model: nn.Module, info: DataInfo, examples: Tensor) -> Tensor:
    """Inputs of a teacher: the given ones, or zeros where its answers come with the data.

    Args:
        model: the teacher.
        info: of the data.
        examples: of the input that nets see.
    """
    if not isinstance(model, Precomputed):
        return examples
    zeros = model.example(info)
    return zeros.expand(len(examples), *zeros.shape[1:])


def trained_outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The outputs of a teacher that are each trained on the labels: those of its branches, or its only one."""
    return list(model.branches(inputs).values()) if isinstance(model, MultiBranch) else [model(inputs)]


def build_teacher_model(
    config: TeacherConfig,
    num_outputs: int,
    info: DataInfo | None = None,
    view: TeacherView | None = None,
    note: Note = no_note,
) -> nn.Module:
    """The teacher's model, with the weights of its file if there is one.

    A net of the user's comes as an `AdaptedTeacher`, which takes and gives what campaigns do.

    Args:
        config: the teacher.
        num_outputs: channels that the task needs.
        info: of the data, for what they decide about models of the package.
        view: what it sees and what is read of it; without it, a net of the user's stays as it is.
        note: called with a sentence on what was decided about it.

    Raises:
        ValueError: unknown model, settings that do not fit, maps that the data lack, a net that cannot read the data,
            or weights that do not fit the model.
    """
    model = _built(config, num_outputs, info)
    foreign = ":" in config.model or TEACHERS[config.model].wants is not None
    adapted: AdaptedTeacher | None = None
    if foreign:
        model = unwrap(model, note)
    if isinstance(model, MultiBranch | Precomputed):
        _check_not_adapted(config, "it has inputs or outputs of its own (branches, take)")
    elif view is not None:
        inputs = _input_form(config, model, view, note)
        if foreign or inputs != InputForm(strides=config.pathway_strides, given=view.normalize) or _picks(config):
            if not foreign and inputs.layout == "auto":
                inputs = replace(inputs, layout="NCTHW")
            outputs = _output_form(config, num_outputs, view)
            adapted = adapt(model, config.model, inputs, outputs, view.examples, view.item, note)
    if config.weights is not None:
        load_weights(model, config.weights, note)
    if adapted is None or view is None:
        return model
    return with_forms(adapted, view.examples[:1]) if foreign else adapted


def _built(config: TeacherConfig, num_outputs: int, info: DataInfo | None) -> nn.Module:
    """The model of a config, without the weights of a file."""
    if ":" in config.model:
        settings = {"num_classes": num_outputs, **config.settings}
        try:
            model: Any = call_function(config.model, settings, purpose="teacher.model")
        except (RuntimeError, TypeError, AttributeError, KeyError, ImportError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"teacher.model {config.model!r}: calling it with {', '.join(settings)} failed with "
                f"{type(error).__name__}: {reason}; change teacher.settings or the function"
            ) from error
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"teacher.model {config.model!r} must return an nn.Module, but returns {type(model).__name__}"
            )
        return model
    if config.model not in TEACHERS:
        raise ValueError(
            f"unknown teacher.model {config.model!r}; {choose(config.model, list(TEACHERS))}, or give your own as "
            "module:function"
        )
    entry = TEACHERS[config.model]
    try:
        return entry.build(num_outputs, entry.complete(config.settings, info))
    except ValidationError as error:
        sentences = explain(error, entry.settings, config.settings)
        raise ValueError("; ".join(f"teacher.settings: {sentence}" for sentence in sentences)) from error


def _picks(config: TeacherConfig) -> bool:
    return config.output is not None or config.outputs is not None


def _check_not_adapted(config: TeacherConfig, why: str) -> None:
    default = TeacherConfig()
    for name in ("input_layout", "input_size", "input_frames", "normalize", "output", "outputs"):
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"teacher.{name}: the model {config.model} cannot have it, since {why}; leave it out")


def _input_form(config: TeacherConfig, model: nn.Module, view: TeacherView, note: Note) -> InputForm:
    """What the config says about the input, completed by what the model itself says."""
    form = InputForm(
        layout=config.input_layout, strides=config.pathway_strides, size=config.input_size,
        frames=config.input_frames, normalize=config.normalize, given=view.normalize,
    )  # fmt: skip
    wants = None if ":" in config.model else TEACHERS[config.model].wants
    if wants is None:
        return form
    asked = wants(config.settings, model)
    if form.layout == "auto":
        form = replace(form, layout=asked.layout)
    if form.size is None and asked.size is not None and asked.size != tuple(view.examples.shape[-2:]):
        note(f"teacher.input_size: {config.model} wants {asked.size[0]} x {asked.size[1]} pixels; clips are resized")
        form = replace(form, size=asked.size)
    if form.frames is None and asked.frames is not None and asked.frames != view.examples.shape[2]:
        note(f"teacher.input_frames: {config.model} wants {asked.frames} frames; they are taken uniformly")
        form = replace(form, frames=asked.frames)
    if form.normalize is None and asked.normalize is not None and asked.normalize != view.normalize:
        note(f"teacher.normalize: as in the model's {asked.source}, {asked.normalize.model_dump()}")
        form = replace(form, normalize=asked.normalize)
    elif form.normalize is None and asked.normalize is None and not config.trains:
        note(
            f"teacher.normalize: the model's folder has {asked.source} that says how its input is normalised, so it is "
            f"as in the campaign, {view.normalize.model_dump()}; set it where the model learned from another one"
        )
    return form


def _output_form(config: TeacherConfig, num_outputs: int, view: TeacherView) -> OutputForm:
    path = None if config.output is None else tuple(str(config.output).split("."))
    picked = config.outputs
    if isinstance(picked, Mapping):
        names = view.class_names
        if set(picked) != set(names):
            odd = sorted(set(picked) ^ set(names))
            listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise ValueError(
                f"teacher.outputs: must name the data's classes, {listed}, each once, but differs at "
                f"{', '.join(odd[:4])}"
            )
        picked = tuple(picked[name] for name in names)
    return OutputForm(path, picked, num_outputs, view.maps)


class Teacher(nn.Module):
    """A frozen model: always in evaluation mode, without gradients, its buffers untouched.

    Args:
        model: (N, 3, T, H, W) normalised clips -> logits.
        taps: names of the modules whose maps are wanted.
        norm: BatchNorm takes its `running` statistics, or those of the `batch`; its buffers stay as they are.

    Examples:
        >>> teacher = nas_kd.Teacher(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), taps=["0"])
        >>> teacher(torch.zeros(2, 3, 8, 8)).features["0"].shape
        torch.Size([2, 8, 6, 6])
    """

    def __init__(
        self, model: nn.Module, taps: Iterable[str] = (), *, norm: Literal["running", "batch"] = "running"
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.norm = norm
        self._taps = Taps(self.model, taps)

    def train(self, mode: bool = True) -> Teacher:
        """A teacher stays in evaluation mode."""
        return super().train(False)

    def close(self) -> None:
        """Remove the hooks from the model, which others may share."""
        self._taps.close()

    @torch.no_grad()
    def forward(self, clip: Tensor) -> ModelOutput:
        """Logits and tapped maps."""
        with batch_statistics(self.model) if self.norm == "batch" else nullcontext():
            return self._taps(clip)
