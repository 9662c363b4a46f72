"""The teacher of a campaign: built from its config, frozen for good, tapped by module names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from nas_kd.data import Batch, DataInfo
from nas_kd.settings.imports import call_function
from nas_kd.settings.mistakes import choose, explain
from nas_kd.taps import ModelOutput, Taps
from nas_kd.teachers.cache import TeacherCacheConfig
from nas_kd.teachers.norm import batch_statistics
from nas_kd.teachers.registry import TEACHERS
from nas_kd.training.fit import FitConfig


class TeacherConfig(BaseModel):
    """The teacher.

    Attributes:
        model: `r2plus1d`, `framenet`, `frame_sequence`, `saliency`, `maps` for maps that come with the data, or your
            own as `module:function`, called with num_classes and the settings as keywords.
        settings: of the model.
        weights: a safetensors file with the model's state dict; without it the teacher is trained at the start of the
            campaign and kept in the run folder for all trials.
        fit: how it is trained.
        cache: how its outputs are kept for the trainings of a campaign.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "r2plus1d"
    settings: dict[str, Any] = Field(default_factory=dict)
    weights: Path | None = None
    fit: FitConfig = FitConfig(epochs=10, lr=3e-3)
    cache: TeacherCacheConfig = TeacherCacheConfig()


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


def teacher_example(model: nn.Module, info: DataInfo, example: Tensor) -> Tensor:
    """Zeros of a teacher's input shape, with batch size 1.

    Args:
        model: the teacher.
        info: of the data.
        example: of the input that nets see.
    """
    return model.example(info) if isinstance(model, Precomputed) else example


def trained_outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The outputs of a teacher that are each trained on the labels: those of its branches, or its only one."""
    return list(model.branches(inputs).values()) if isinstance(model, MultiBranch) else [model(inputs)]


def build_teacher_model(config: TeacherConfig, num_outputs: int, info: DataInfo | None = None) -> nn.Module:
    """The teacher's model, with the weights of its file if there is one.

    Args:
        config: the teacher.
        num_outputs: channels that the task needs.
        info: of the data, for what they decide about models of the package.

    Raises:
        ValueError: unknown model, settings that do not fit, maps that the data lack, or weights that do not fit the
            model.
    """
    if ":" in config.model:
        model: Any = call_function(
            config.model, {"num_classes": num_outputs, **config.settings}, purpose="teacher.model"
        )
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"teacher.model {config.model!r} must return an nn.Module, but returns {type(model).__name__}"
            )
    elif config.model in TEACHERS:
        entry = TEACHERS[config.model]
        try:
            model = entry.build(num_outputs, entry.complete(config.settings, info))
        except ValidationError as error:
            sentences = explain(error, entry.settings, config.settings)
            raise ValueError("; ".join(f"teacher.settings: {sentence}" for sentence in sentences)) from error
    else:
        raise ValueError(
            f"unknown teacher.model {config.model!r}; {choose(config.model, list(TEACHERS))}, or give your own as "
            "module:function"
        )
    if config.weights is not None:
        load_weights(model, config.weights)
    return cast(nn.Module, model)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors state dict, strictly.

    Raises:
        ValueError: the file is missing, is not safetensors, or does not fit the model.
    """
    if not path.is_file():
        raise ValueError(f"teacher.weights must be a safetensors file, but there is none at {path}")
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights of {path} do not fit {type(model).__name__}: {reason}") from error


def hash_of_weights(model: nn.Module) -> str:
    """A hash of all parameters and buffers of a model, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Teacher(nn.Module):
    """A frozen model: always in evaluation mode, without gradients, its buffers untouched.

    Args:
        model: (N, 3, T, H, W) normalised clips -> logits.
        taps: names of the modules whose maps are wanted.
        norm: BatchNorm takes its `running` statistics, or those of the `batch`; its buffers stay as they are.
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
