"""Choose the input type of a campaign from its file, from its data, task and space, or from a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nas_kd.data import SOURCES, DataInfo
from nas_kd.inputs.clips import ClipInput
from nas_kd.inputs.features import FeatureInput
from nas_kd.inputs.frames import FrameInput
from nas_kd.inputs.input_type import InputType
from nas_kd.inputs.key_frames import KeyFrameInput
from nas_kd.search_spaces import SPACES, SearchSpace, derived_spaces
from nas_kd.tasks import TASKS, Task, find_task

INPUT_TYPES: tuple[type[InputType], ...] = (KeyFrameInput, FrameInput, FeatureInput, ClipInput)
"""All kinds; a campaign has the first one that matches."""

Rgb = tuple[float, float, float]


def choose_input_type(info: DataInfo, task: type[Task], space: SearchSpace, mean: Rgb, std: Rgb) -> InputType:
    """The kind of input of a campaign.

    Args:
        info: what is known of the data.
        task: of the campaign.
        space: of the campaign.
        mean: of R, G, B, in shares of full brightness.
        std: standard deviation of R, G, B, in the same unit.
    """
    return next(kind for kind in INPUT_TYPES if kind.matches(info, task, space))(info, mean, std)


def teacher_input_type(task: Task) -> type[InputType]:
    """The kind of input of the teacher of a task, whatever the space.

    Args:
        task: with the data.
    """
    if task.framewise:
        return FrameInput
    return FeatureInput if task.info.feature_size else ClipInput


def input_type_of_file(task: type[Task] | None, data: object) -> type[InputType]:
    """The kind of input of a campaign file, as far as the file tells; its defaults complete the file.

    Args:
        task: of the campaign; None where the file does not name one.
        data: the section of the file, not checked yet.
    """
    if task is not None and task.framewise:
        return KeyFrameInput
    if not isinstance(data, Mapping):
        return ClipInput
    source = SOURCES.get(str(data.get("source")))
    return FeatureInput if source is not None and source.gives_features(data) else ClipInput


def input_type_of_bundle(shape: Sequence[int], mean: Rgb | None, keyframe_interval: int | None) -> type[InputType]:
    """The kind of input of a bundle.

    Args:
        shape: of the student's input, without the batch dimension.
        mean: of R, G, B; None where the input is not normalised.
        keyframe_interval: of the student, if it has key frames.
    """
    if mean is None:
        return FeatureInput
    if keyframe_interval is not None:
        return KeyFrameInput
    return FrameInput if len(shape) == 3 else ClipInput


def space_settings(info: DataInfo) -> dict[str, Any]:
    """What the data decide about a space: the size of frame features and how many frames there are of them.

    Args:
        info: what is known of the data.
    """
    return {"feature_size": info.feature_size, "frames": info.frames} if info.feature_size else {}


def check_space_name(space: str, task: str) -> None:
    """Raise where students of a space, by its name, cannot have the input of a task.

    Args:
        space: as in the campaign file.
        task: as in the campaign file.

    Raises:
        ValueError: both names, and the way out.
    """
    framewise = find_task(task).framewise
    if space in derived_spaces() and not framewise:
        frames = ", ".join(name for name, kind in TASKS.items() if kind.framewise)
        raise ValueError(f"space.name: {space!r} needs a task that looks at single frames: {frames}")
    if framewise and space in SPACES and not SPACES[space].derived:
        raise ValueError(
            f"space.name: {space!r} makes students of whole clips, but task {task!r} looks at single frames; choose "
            f"{', '.join(derived_spaces())}, or give your own as module:function"
        )


def check_kind(
    key: str, name: str, kinds: Mapping[str, tuple[str, str]], task: Task, task_name: str, source: str
) -> None:
    """Raise where a teacher or a space of the package does not read what the data are or return what the task needs.

    Args:
        key: of the campaign file that names it.
        name: of the teacher or space; those of users are not judged.
        kinds: name -> what it reads, what it gives.
        task: with the data.
        task_name: of the task.
        source: of the data.

    Raises:
        ValueError: both kinds, and the names that fit.
    """
    kind = teacher_input_type(task)
    wanted = kind.reads, "maps" if kind.outputs_are_maps(type(task)) else "logits"
    if kinds.get(name, wanted) != wanted:
        (reads, gives), (have, want) = kinds[name], wanted
        others = [other for other, kind_of_other in kinds.items() if kind_of_other == wanted]
        raise ValueError(
            f"{key}: {name} reads {reads} and gives {gives}, but task {task_name} with data.source {source} needs one "
            f"that reads {have} and gives {want}; choose {', '.join(others)}{', or ' if others else ''}your own as "
            "module:function"
        )
