"""Run a student on files and write what it finds: `predictions.json`, and for each video arrays and an overlay."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nas_kd.callbacks import Note, OnProgress, no_progress
from nas_kd.data.decode import frame_files
from nas_kd.data.sample import DecodeError, PartlyReadableError
from nas_kd.data.video import ShownFrame
from nas_kd.deploy.answers import Arrays, Window
from nas_kd.deploy.overlay import Canvas, VideoWriter
from nas_kd.deploy.predictor import FrameResult, NotFiniteError, Predictor
from nas_kd.files import atomic_file, write_text_atomically

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv", ".3gp")
)


@dataclass
class FileResult:
    """What became of one file.

    Attributes:
        path: of the file.
        labels: (name, score) of a clip, the highest score first; empty for students that answer for frames.
        num_frames: frames that were answered for.
        seconds: for all of it, with decoding and writing.
        student_seconds: of the student alone.
        picture: height and width of the pictures of the overlay; None where there are none.
        window: where in these pictures the student looked.
        written: files that were written.
        note: what is wrong with the file, although something could be read of it.
        error: why there is no answer; None where there is one.
    """

    path: Path
    labels: tuple[tuple[str, float], ...] = ()
    num_frames: int = 0
    seconds: float = 0.0
    student_seconds: float = 0.0
    picture: tuple[int, int] | None = None
    window: Window | None = None
    written: list[Path] = field(default_factory=list)
    note: str = ""
    error: str | None = None

    @property
    def rate(self) -> str:
        """Frames a second, in words."""
        if not self.num_frames:
            return ""
        alone = self.num_frames / max(self.student_seconds, 1e-9)
        return f"{self.num_frames / max(self.seconds, 1e-9):.1f} frames a second, the student alone {alone:.1f}"

    def lines(self, top: int) -> Iterator[str]:
        """What is printed of it."""
        if self.error is not None:
            yield f"{self.path}: {self.error}"
            return
        if self.labels:
            shown = ", ".join(f"{name} {score:.3f}" for name, score in self.labels[:top])
            yield f"{self.path}: {shown} ({1000 * self.student_seconds:.1f} ms)"
        if self.num_frames:
            yield f"{self.path}: {self.num_frames} frames, {self.rate}"
        yield from (f"  {path}" for path in self.written)
        if self.note:
            yield f"  {self.note}"

    def as_dict(self, top: int | None = None) -> dict[str, Any]:
        """For JSON."""
        entry: dict[str, Any] = {"path": str(self.path)}
        if self.error is not None:
            return {**entry, "error": self.error}
        if self.labels:
            entry["labels"] = [{"label": name, "score": score} for name, score in self.labels[:top]]
        if self.num_frames:
            entry |= {"frames": self.num_frames, "student_fps": self.num_frames / max(self.student_seconds, 1e-9)}
        if self.picture is not None and self.window is not None:
            entry |= {"picture": list(self.picture), "window": self.window._asdict()}
        entry |= {"seconds": round(self.seconds, 4), "written": [str(path) for path in self.written]}
        return {**entry, "note": self.note} if self.note else entry


def files_to_read(sources: Sequence[Path]) -> dict[Path, str]:
    """The clips that sources name -> what is written of each is called.

    That is its name, or its path below a folder that was named; where these are not all different, its path below the
    deepest folder that holds all of them.

    Args:
        sources: a file, a folder of images, or a folder with videos and folders of images below it, each.

    Raises:
        ValueError: there is nothing, or nothing that looks like a video or an image.
    """
    found = {file: source for source in sources for file in _below(source)}
    places = {file: Path(os.path.normpath(file.absolute())) for file in found}  # without `..`, so that names stay below
    names = {file: str(file.relative_to(top)) if file != top else places[file].name for file, top in found.items()}
    if len(set(names.values())) == len(names):
        return names
    root = os.path.commonpath([place.parent for place in places.values()])
    return {file: str(place.relative_to(root)) for file, place in places.items()}


def _below(path: Path) -> list[Path]:
    """The clips that one source names."""
    if "#" in path.name or path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"there is no file or folder {path}")
    below = sorted(
        entry for entry in path.rglob("*") if not any(part.startswith(".") for part in entry.relative_to(path).parts)
    )
    found = [entry for entry in below if entry.suffix.lower() in {*VIDEO_SUFFIXES, ".npy", ".npz"} and entry.is_file()]
    with_videos = {entry.parent for entry in found}  # images beside videos are their covers, and no clip
    folders = [e for e in (path, *below) if e.is_dir() and e not in with_videos and frame_files(e)]
    if not found and not folders:
        raise ValueError(f"{path} holds no video and no image; name a file to read it whatever its ending is")
    return sorted([*found, *folders])


def predict_files(
    predictor: Predictor,
    files: Mapping[Path, str],
    out: Path | None,
    *,
    overlay: bool = True,
    progress: OnProgress = no_progress,
) -> list[FileResult]:
    """Run a student on files; one without an answer does not keep the others from being read.

    Args:
        predictor: the student.
        files: see `files_to_read`.
        out: where `predictions.json`, arrays (`NAME.npz`) and overlays (`NAME.overlay.mp4`) go; None writes nothing.
        overlay: whether videos with what was found are written.
        progress: called after each file, and often in a long one.
    """
    results = []
    for number, (path, name) in enumerate(files.items()):

        def report(words: str, number: int = number, path: Path = path) -> None:
            progress(number / len(files), f"predicting, {path.name}{words}")

        report("")
        begin = time.perf_counter()
        result = FileResult(path)
        try:
            if predictor.has_maps:
                _predict_frames(predictor, predictor.frames(path), result, out, name, overlay, report)
            else:
                answer = predictor.classify(path)
                result.labels, result.student_seconds = answer.labels, answer.seconds
        except DecodeError as error:
            result.error = f"cannot be read: {error}"
        except NotFiniteError as error:
            result.error = str(error)
        result.seconds = time.perf_counter() - begin
        results.append(result)
    progress(1.0, "predicting")
    if out is not None:
        _write_list(predictor, results, out)
    return results


def _write_list(predictor: Predictor, results: Sequence[FileResult], out: Path) -> None:
    info = predictor.info
    content = {
        "bundle": str(predictor.folder),
        "arch_id": info.arch_id,
        "trial": info.trial,
        "task": info.task,
        "backend": predictor.backend.name,
        "files": [result.as_dict() for result in results],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out / "predictions.json", json.dumps(content, indent=2) + "\n")


def predict_live(
    predictor: Predictor,
    shown: Iterator[ShownFrame],
    name: str,
    out: Path | None,
    *,
    overlay: bool,
    max_frames: int | None,
) -> FileResult:
    """The same for frames that come one by one, such as those of a camera; Ctrl-C ends it and keeps what is there."""
    result, begin = FileResult(Path(name)), time.perf_counter()
    frames = predictor.frames(islice(shown, max_frames))
    _predict_frames(predictor, frames, result, out, name, overlay, lambda words: None)
    result.seconds = time.perf_counter() - begin
    if out is not None:
        _write_list(predictor, [result], out)
    return result


def _predict_frames(
    predictor: Predictor,
    frames: Iterator[FrameResult],
    result: FileResult,
    out: Path | None,
    name: str,
    overlay: bool,
    report: Note,
) -> None:
    found: list[Arrays] = []
    canvas: Canvas | None = None
    begin = time.perf_counter()
    video = out / f"{name}.overlay.mp4" if out is not None and overlay else None
    writer = None if video is None else VideoWriter(video)
    try:
        for each in frames:
            result.num_frames += 1
            result.student_seconds += each.seconds
            if out is not None:
                found.append(each.arrays)
            if canvas is None:
                canvas = Canvas(each.shown, predictor.info, predictor.decoding.fit)
                result.picture, result.window = (canvas.height, canvas.width), canvas.window
            if writer is not None:
                drawn = predictor.answer.draw(canvas.picture(each.shown), each.arrays, canvas.window, predictor.info)
                writer.write(drawn, each.time)
            if result.num_frames % 10 == 0:
                rate = result.num_frames / (time.perf_counter() - begin)
                report(f": {result.num_frames} frames, {rate:.1f} a second")
    except PartlyReadableError as error:
        if not result.num_frames:
            raise
        result.note = str(error)
    except KeyboardInterrupt:
        result.note = "interrupted"
    finally:
        if writer is not None:
            writer.close()
    if out is not None and found:
        arrays = out / f"{name}.npz"
        with atomic_file(arrays) as file:
            joined: dict[str, Any] = predictor.answer.join(found)
            np.savez_compressed(file, **joined)
        result.written = [arrays, *([video] if video is not None else [])]
