"""The teachers that ship with the package, one entry each. A new one is a module of this folder and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from torch import nn

from nas_kd.data import DataInfo
from nas_kd.teachers.frame_sequence import FrameSequenceTeacherSettings, build_frame_sequence, with_feature_size
from nas_kd.teachers.framenet import FrameNetSettings, build_framenet
from nas_kd.teachers.hugging_face import HuggingFaceSettings, Wanted, build_hugging_face, files, has_weights, wanted
from nas_kd.teachers.r2plus1d import R2Plus1DSettings, build_r2plus1d
from nas_kd.teachers.saliency import SaliencyTeacherSettings, build_saliency_teacher
from nas_kd.teachers.stored_maps import StoredMapsSettings, build_stored_maps, with_map_names


def _never(settings: Mapping[str, Any]) -> bool:
    return False


def _no_files(settings: Mapping[str, Any]) -> list[Path]:
    return []


def _as_given(settings: Mapping[str, Any], info: DataInfo | None) -> dict[str, Any]:
    return dict(settings)


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher of the package.

    Attributes:
        settings: model of its settings.
        build: from the channels that the task needs and the settings.
        reads: what it reads; of one whose answers come with the data, what it stands beside.
        gives: what it gives.
        complete: the settings of the campaign file with what the data decide; raises `ValueError` where they
            contradict each other.
        has_weights: whether a model with these settings comes with its weights, so that it is not trained.
        files: that decide what the model is, beside its settings.
        wants: what a model of other makers wants of its input, from the settings and the model; None where models of
            this entry take what campaigns give.
    """

    settings: type[BaseModel]
    build: Callable[[int, dict[str, Any]], nn.Module]
    reads: Literal["clips", "frames", "frame features"]
    gives: Literal["logits", "maps"]
    complete: Callable[[Mapping[str, Any], DataInfo | None], dict[str, Any]] = _as_given
    has_weights: Callable[[Mapping[str, Any]], bool] = _never
    files: Callable[[Mapping[str, Any]], list[Path]] = _no_files
    wants: Callable[[Mapping[str, Any], nn.Module], Wanted] | None = None


TEACHERS: Mapping[str, TeacherEntry] = {
    "r2plus1d": TeacherEntry(R2Plus1DSettings, build_r2plus1d, reads="clips", gives="logits"),
    "framenet": TeacherEntry(FrameNetSettings, build_framenet, reads="frames", gives="maps"),
    "frame_sequence": TeacherEntry(
        FrameSequenceTeacherSettings, build_frame_sequence, reads="frame features", gives="logits",
        complete=with_feature_size,
    ),
    "saliency": TeacherEntry(SaliencyTeacherSettings, build_saliency_teacher, reads="clips", gives="maps"),
    "hugging_face": TeacherEntry(
        HuggingFaceSettings, build_hugging_face, reads="clips", gives="logits", has_weights=has_weights, files=files,
        wants=wanted,
    ),
    "maps": TeacherEntry(StoredMapsSettings, build_stored_maps, reads="clips", gives="maps", complete=with_map_names),
}  # fmt: skip
"""Name -> entry."""
