"""Whether what a bundle states about itself can be true, before memory is taken or a net is built for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.label_form import ClassLabels, LabelForm
from nas_kd.deploy.student_view import StudentView
from nas_kd.tasks import TASKS

MAX_ARCH_BYTES = 32 * 2**20  # of arch.json; a thousand classes and a hundred layers take less than 1 MB
MAX_INPUT = 2**28  # numbers of one input: 1 GB
MAX_CLIP = 2**31  # bytes of one decoded clip
MAX_IGNORED = 2**16  # pixel values without a class, each of at most 32 bits, as label images have them


class Claims(Protocol):
    """The entries of `nas_kd.deploy.bundle.BundleInfo` that are checked."""

    input_shape: tuple[int, ...]
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    source_frames: int
    source_size: tuple[int, int]
    decoding: FileDecoding | None
    labels: LabelForm | None
    view: StudentView | None
    class_names: tuple[str, ...]
    task: str
    flops: int
    params: int
    keyframe_interval: int | None


def check_claims(path: Path, info: Claims) -> None:
    """Refuse an `arch.json` whose entries contradict each other or ask for more memory than a student can need.

    Args:
        path: of the file, for messages.
        info: what stands in it.

    Raises:
        ValueError: the entry, and what it must be.
    """
    for key, is_true, rule in _rules(info):
        if not is_true:
            value = repr(_entry(info, key))
            raise ValueError(
                f"{path} cannot be that of a student: {key} is {value if len(value) < 80 else value[:77] + '…'}, but "
                f"{rule}; take the bundle from its trial again"
            )


def _entry(info: Claims, key: str) -> object:
    value: object = info
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _printable(names: Iterable[str]) -> bool:
    return not any(ord(letter) < 32 or ord(letter) == 127 for name in names for letter in name)


def _rules(info: Claims) -> list[tuple[str, bool, str]]:
    """(entry, whether it holds, the rule), the more basic ones first."""
    frames, (height, width) = info.source_frames, info.source_size
    is_video = info.mean is not None
    rules = [
        ("std", (info.std is None) == (info.mean is None), "mean and std are given together"),
        (
            "input_shape",
            min(info.input_shape) > 0 and math.prod(info.input_shape) <= MAX_INPUT,
            f"its sizes are at least 1, and an input has at most {MAX_INPUT:,} numbers",
        ),
        ("source_frames", frames > 0, "it is at least 1"),
        ("params", info.params >= 0, "it is no negative number"),
        ("flops", info.flops >= 0, "it is no negative number"),
        ("keyframe_interval", (info.keyframe_interval or 1) > 0 and info.keyframe_interval != 0, "it is at least 1"),
        ("task", info.task in TASKS or ":" in info.task, f"tasks are {', '.join(TASKS)}, or your own (module:name)"),
        ("class_names", _printable(info.class_names), "names have no control characters"),
        ("class_names", len(set(info.class_names)) == len(info.class_names), "each class has a name of its own"),
    ]
    if is_video:
        rules += [
            ("mean", all(map(math.isfinite, info.mean or ())), "it is finite"),
            ("std", all(0 < value < math.inf for value in info.std or ()), "it is above 0 and finite"),
            ("input_shape", info.input_shape[0] == 3, "a student of video reads three channels"),
            (
                "source_size",
                min(height, width) > 0 and 3 * frames * height * width <= MAX_CLIP,
                f"its sizes are at least 1, and a clip has at most {MAX_CLIP:,} bytes",
            ),
        ]
    if info.decoding is not None and info.decoding.stored is not None:
        stored = info.decoding.stored
        fits = all(own >= seen for own, seen in zip(stored, (frames, height, width), strict=True))
        rules.append(
            (
                "decoding.stored",
                fits and 3 * math.prod(stored) <= MAX_CLIP,
                f"it is at least {frames} frames of {height} × {width} pixels, and at most {MAX_CLIP:,} bytes",
            )
        )
    if isinstance(info.labels, ClassLabels):
        rules.append(("labels.group", _printable([info.labels.group or ""]), "names have no control characters"))
    elif info.labels is not None:
        ignored = info.labels.ignore
        rules += [
            (f"labels.{key}", _printable(names), "names have no control characters")
            for key, names in (
                ("values", info.labels.values),
                ("sequence", [info.labels.sequence]),
                ("order", [info.labels.order]),
            )
        ]
        rules.append(
            (
                "labels.ignore",
                len(ignored) <= MAX_IGNORED and all(abs(value) < 2**31 for value in ignored),
                f"it lists at most {MAX_IGNORED:,} values of 32 bits",
            )
        )
    if info.view is not None:
        along = 1 if is_video else 0
        rules += [
            (
                "view.frames",
                all(0 <= number < frames for number in info.view.frames)
                and len(info.view.frames) == info.input_shape[along],
                f"it names as many frames as the input has ({info.input_shape[along]}), below source_frames ({frames})",
            ),
            (
                "view.size",
                (info.view.size or ()) == (info.input_shape[2:] if is_video else ()),
                "it is that of the input",
            ),
        ]
    return rules
