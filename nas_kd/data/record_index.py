"""Index of TFRecord files: place, id, labels, sizes and errors of each record, read once and kept on disk.

Each record is one video: its id and `labels` in its context, and for each frame a string of bytes in each list of
features. A file that has changed since (`state_of`) is read again, and so is one that is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nas_kd.data.file_identity import state_of
from nas_kd.data.files import written_whole
from nas_kd.data.sample import DataError
from nas_kd.data.table import printable
from nas_kd.data.tfrecord import SequenceExample, WireError, parse_sequence_example, records

_VERSION = 2
_IDS = ("id", "video_id")  # of the published files of 2018, and of those before


class Video(NamedTuple):
    """The content of a record: its id ("" without one), its labels as written, and uint8 frames [T, D] of each list."""

    id: str
    labels: list[int]
    lists: dict[str, npt.NDArray[np.uint8]]


def parse_video(message: bytes) -> Video:
    """Read one record.

    Raises:
        WireError: It is no SequenceExample with frames of equal size; the message goes on after "the record …: ".
    """
    try:
        example = parse_sequence_example(message)
    except WireError as error:
        raise WireError(f"it is no SequenceExample ({error})") from error
    return Video(_id(example), _labels(example), _lists(example))


@dataclass(frozen=True)
class FileIndex:
    """The content of one file, by record that could be read.

    Attributes:
        path: The file.
        names: Names of the lists of features.
        offsets: int64 [R].
        ids: str [R], "" for a record without one.
        lengths: int64 [R, names], numbers of frames; 0 for an absent list.
        widths: int64 [R, names], features a frame; 0 for an absent or empty list.
        counts: int64 [R], numbers of labels.
        labels: int64, those of all records one after the other.
        broken: int64, offsets of the records that could not be read.
        reasons: str, what is wrong with each of those.
        is_damaged: Whether bytes of the file are wrong.
    """

    path: Path
    names: npt.NDArray[np.str_]
    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[np.str_]
    lengths: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    broken: npt.NDArray[np.int64]
    reasons: npt.NDArray[np.str_]
    is_damaged: bool = False


_TEXTS = ("names", "ids", "reasons")
_NUMBERS = ("offsets", "lengths", "widths", "counts", "labels", "broken")


def index_file(path: Path) -> FileIndex:
    """Read a whole file with all its check sums.

    Raises:
        DataError: The file cannot be opened.
    """
    offsets: list[int] = []
    videos: list[tuple[str, list[int], dict[str, tuple[int, ...]]]] = []
    damaged: list[tuple[int, str]] = []
    unfit: list[tuple[int, str]] = []
    for offset, message in records(path, damaged):
        try:
            video = parse_video(message)
        except WireError as error:
            unfit.append((offset, str(error)))
            continue
        offsets.append(offset)
        videos.append((video.id, video.labels, {name: frames.shape for name, frames in video.lists.items()}))
    names = sorted({name for _, _, shapes in videos for name in shapes})
    sizes = np.array([[shapes.get(name, (0, 0)) for name in names] for _, _, shapes in videos], dtype=np.int64)
    sizes = sizes.reshape(len(offsets), len(names), 2)
    problems = sorted(damaged + unfit)
    return FileIndex(
        path,
        names=_texts(names),
        offsets=_numbers(offsets),
        ids=_texts([name for name, _, _ in videos]),
        lengths=sizes[:, :, 0],
        widths=sizes[:, :, 1],
        counts=_numbers([len(labels) for _, labels, _ in videos]),
        labels=_numbers([label for _, labels, _ in videos for label in labels]),
        broken=_numbers([offset for offset, _ in problems]),
        reasons=_texts([reason for _, reason in problems]),
        is_damaged=bool(damaged),
    )


def kept_index(path: Path, folder: Path) -> FileIndex:
    """The index of a file, from the folder where it is kept, or made and kept there.

    That of a damaged file is not kept: a sound copy may come in its place with the same size and time.

    Raises:
        DataError: The file cannot be opened, or the folder not written.
    """
    try:
        identity = f"{_VERSION} {state_of(path)}"
    except OSError as error:
        raise DataError(f"{path} must be a TFRecord file, but it cannot be read: {error.strerror or error}") from error
    kept = folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.npz"
    # Whatever damaged a kept index, it can be made again.
    with contextlib.suppress(Exception), kept.open("rb") as kept_file, np.load(kept_file, allow_pickle=False) as found:
        parts: dict[str, Any] = {key: np.asarray(found[key], dtype=np.int64) for key in _NUMBERS}
        parts |= {key: np.asarray(found[key], dtype=np.str_) for key in _TEXTS}
        return FileIndex(path, **parts)
    index = index_file(path)
    if not index.is_damaged:
        with written_whole(kept, folder, "index_dir") as file:
            np.savez(file, **{key: getattr(index, key) for key in (*_NUMBERS, *_TEXTS)})
    return index


def _numbers(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _texts(values: list[str]) -> npt.NDArray[np.str_]:
    return np.array(values, dtype=np.str_)


def _id(example: SequenceExample) -> str:
    """Control characters are escaped; numpy would drop a zero at the end."""
    values = next((example.context[key] for key in _IDS if example.context.get(key)), [""])
    first = values[0]
    return printable(first.decode(errors="backslashreplace") if isinstance(first, bytes) else str(first))


def _labels(example: SequenceExample) -> list[int]:
    labels = example.context.get("labels", [])
    whole = [label for label in labels if isinstance(label, int)]
    if len(whole) < len(labels):
        raise WireError("its labels must be whole numbers, but are strings")
    return whole


def _lists(example: SequenceExample) -> dict[str, npt.NDArray[np.uint8]]:
    """Frames [T, D] of each list; [0, 0] of an empty one."""
    found = {}
    for name, steps in example.lists.items():
        for number, values in enumerate(steps):
            if len(values) != 1:
                raise WireError(f"frame {number} of {name!r} must be one string, but it has {len(values)}")
            if not values[0] or len(values[0]) != len(steps[0][0]):
                raise WireError(
                    f"the frames of {name!r} must have equally many features, but frame {number} has {len(values[0])} "
                    f"and the first {len(steps[0][0])}"
                )
        joined = np.frombuffer(b"".join(values[0] for values in steps), dtype=np.uint8)
        found[name] = joined.reshape(len(steps), -1) if steps else joined.reshape(0, 0)
    return found
