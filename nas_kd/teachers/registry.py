"""The teachers that ship with the package, one entry each. A new one is a module of this folder and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from torch import nn

from nas_kd.data import DataInfo
from nas_kd.teachers.frame_sequence import FrameSequenceTeacherSettings, build_frame_sequence, with_feature_size
from nas_kd.teachers.framenet import FrameNetSettings, build_framenet
from nas_kd.teachers.r2plus1d import R2Plus1DSettings, build_r2plus1d
from nas_kd.teachers.saliency import SaliencyTeacherSettings, build_saliency_teacher
from nas_kd.teachers.stored_maps import StoredMapsSettings, build_stored_maps, with_map_names


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
    """

    settings: type[BaseModel]
    build: Callable[[int, dict[str, Any]], nn.Module]
    reads: Literal["clips", "frames", "frame features"]
    gives: Literal["logits", "maps"]
    complete: Callable[[Mapping[str, Any], DataInfo | None], dict[str, Any]] = _as_given


TEACHERS: Mapping[str, TeacherEntry] = {
    "r2plus1d": TeacherEntry(R2Plus1DSettings, build_r2plus1d, reads="clips", gives="logits"),
    "framenet": TeacherEntry(FrameNetSettings, build_framenet, reads="frames", gives="maps"),
    "frame_sequence": TeacherEntry(
        FrameSequenceTeacherSettings, build_frame_sequence, reads="frame features", gives="logits",
        complete=with_feature_size,
    ),
    "saliency": TeacherEntry(SaliencyTeacherSettings, build_saliency_teacher, reads="clips", gives="maps"),
    "maps": TeacherEntry(StoredMapsSettings, build_stored_maps, reads="clips", gives="maps", complete=with_map_names),
}  # fmt: skip
"""Name -> entry."""
