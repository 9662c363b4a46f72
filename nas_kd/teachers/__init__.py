"""Teachers: any `nn.Module`, frozen and tapped by module name, and the small ones that ship with the package."""

from __future__ import annotations

from nas_kd.teachers.adapter import AdaptedTeacher, bare, layers_of
from nas_kd.teachers.framenet import FrameNet, FrameNetSettings
from nas_kd.teachers.r2plus1d import R2Plus1D, R2Plus1DSettings
from nas_kd.teachers.registry import TEACHERS, TeacherEntry
from nas_kd.teachers.stored_maps import StoredMaps
from nas_kd.teachers.teacher import (
    MultiBranch,
    Precomputed,
    Teacher,
    TeacherConfig,
    TeacherView,
    build_teacher_model,
    is_precomputed,
    teacher_examples,
    teacher_input,
    trained_outputs,
)

__all__ = [
    "TEACHERS",
    "AdaptedTeacher",
    "FrameNet",
    "FrameNetSettings",
    "MultiBranch",
    "Precomputed",
    "R2Plus1D",
    "R2Plus1DSettings",
    "StoredMaps",
    "Teacher",
    "TeacherConfig",
    "TeacherEntry",
    "TeacherView",
    "bare",
    "build_teacher_model",
    "is_precomputed",
    "layers_of",
    "teacher_examples",
    "teacher_input",
    "trained_outputs",
]
