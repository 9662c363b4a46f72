"""`load(bundle)`: an exported student that reads files and says what is in them.

    student = nas_kd.load("export/trial-0003")
    student.classify("video.mp4").labels[0]                  # ("walking", 0.93)
    for frame in student.frames("video.mp4"): frame.arrays   # segmentation, detection, saliency

Files are decoded and prepared as the data of the campaign were, by the same functions. Neither the campaign nor what it
needs, such as Ray and Optuna, is imported.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_kd.data.arrays import ArrayFiles, parse_place
from nas_kd.data.decode import read_all_frames
from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.frame_times import sample_positions
from nas_kd.data.geometry import Scaler
from nas_kd.data.sample import DecodeError
from nas_kd.data.video import ShownFrame
from nas_kd.deploy.answers import FRAME_ANSWERS, Arrays, FrameAnswer, Maps, has_maps, scores_of
from nas_kd.deploy.backends import Backend, open_backend
from nas_kd.deploy.bundle import BundleInfo, read_info
from nas_kd.search_spaces import SearchSpace
from nas_kd.tasks import TASKS

TOGETHER = 8  # windows of frames that a student without a state sees at once


@dataclass(frozen=True)
class ClipAnswer:
    """What a student says of a whole clip.

    Attributes:
        path: of the file.
        labels: (name, score) of every class, the highest score first.
        seconds: that the student took, without decoding.
    """

    path: Path
    labels: tuple[tuple[str, float], ...]
    seconds: float


@dataclass(frozen=True)
class FrameResult:
    """What a student says of one frame.

    Attributes:
        number: of the frame, from 0.
        time: in seconds from the first frame on; None where the file does not say.
        shown: the frame as it is stored, to be drawn on.
        arrays: see `nas_kd.deploy.answers`.
        seconds: that the student took, without decoding.
    """

    number: int
    time: float | None
    shown: ShownFrame
    arrays: Arrays
    seconds: float


class NotFiniteError(ValueError):
    """A student's outputs are NaN or infinite."""


class Predictor:
    """An exported student, ready to read files.

    Args:
        folder: of the bundle.
        info: what stands in it.
        backend: what runs it.
        space: the student's, where it was given.

    Attributes:
        decoding: how files become clips; the default where the student was trained on data that were no files.
        notes: sentences on what was decided about it.

    Examples:
        >>> stream = nas_kd.load("runs/streams/export/trial-0000")
        >>> for frame in stream.frames("video.mp4"):
        ...     print(frame.number, frame.arrays["classes"].shape)
        0 (16, 24)
        1 (16, 24)
        2 (16, 24)
    """

    def __init__(self, folder: Path, info: BundleInfo, backend: Backend, space: SearchSpace | None = None) -> None:
        self.folder, self.info, self.backend, self._space = folder, info, backend, space
        self.decoding = info.decoding or FileDecoding()
        self.notes: tuple[str, ...] = ()
        if info.decoding is None and info.mean is not None:
            how = self.decoding.fit if self.has_maps else f"frames uniform over the whole file, {self.decoding.fit}"
            self.notes = (f"the student was not trained on files: they are read as those of source folder are ({how})",)
        self.answer: FrameAnswer = FRAME_ANSWERS.get(info.task, Maps())

    @property
    def has_maps(self) -> bool:
        """Whether it answers for frames (`frames`), and not for a clip as a whole (`classify`)."""
        return has_maps(self.info)

    def outputs(self, items: Tensor) -> Tensor:
        """The student's outputs for items of the data, as its task reads them.

        Args:
            items: uint8 (N, 3, T, H, W), or frame features (N, T, D).

        Returns:
            (N, C); (N, C, h, w); or, of a student that sees single frames, (N, T, C, h, w).
        """
        inputs = self.info.prepare(items, self._space)
        if self.info.input_type.students_keep_a_state:
            return self.backend.clips(inputs)
        if self.info.input_type.reads != "frames":
            return self.backend(inputs)
        frames = inputs.transpose(1, 2).flatten(0, 1)
        maps = torch.cat([self.backend(part) for part in torch.split(frames, TOGETHER)])
        return maps.reshape(len(inputs), -1, *maps.shape[1:])

    def classify(self, path: Path | str) -> ClipAnswer:
        """Labels and scores of one clip.

        Args:
            path: a video, an image or a folder of images; of a student of frame features a `.npy` of (T, D), or an
                array of a file as in the csv of source `features`.

        Raises:
            DecodeError: it cannot be read.
            NotFiniteError: its outputs are NaN or infinite.
            ValueError: the student answers for frames.
        """
        if self.has_maps:
            raise ValueError(f"a student of {self.info.task} answers for each frame: take frames(path)")
        item = self._read(Path(path))[None]
        begin = time.perf_counter()
        scores = scores_of(self._finite(self.outputs(item)), self.info)[0]
        seconds = time.perf_counter() - begin
        names = self.info.class_names
        if len(names) != len(scores):
            if self.info.task in TASKS:
                raise ValueError(
                    f"the student of {self.folder} gives {len(scores)} scores, but arch.json names {len(names)} "
                    "classes; take the bundle from its trial again"
                )
            names = tuple(f"output {number}" for number in range(len(scores)))
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        return ClipAnswer(Path(path), tuple((names[n], float(scores[n])) for n in order), seconds)

    def frames(self, source: Path | str | Iterator[ShownFrame]) -> Iterator[FrameResult]:
        """What the student says of each frame, in order; a student with a state keeps it from frame to frame.

        Where a student sees several frames from the one on that it answers for, the last frame stands for those after
        the end.

        Args:
            source: a video, an image or a folder of images; or frames of your own, such as those of a camera.

        Raises:
            PartlyReadableError: after the last frame, where more than 2 % of a video's frames are lost.
            DecodeError: it cannot be read.
            NotFiniteError: its outputs are NaN or infinite.
            ValueError: the student answers for whole clips.
        """
        if not self.has_maps:
            raise ValueError(
                f"a student of {self.info.task} answers for whole clips and not for frames, such as those of a camera; "
                "name videos, or call classify(path)"
            )
        shown = read_all_frames(Path(source)) if isinstance(source, Path | str) else map(_checked, source)
        if self.info.input_type.reads == "frames":
            yield from self._single_frames(shown)
        else:
            yield from self._windows(shown)

    def _finite(self, outputs: Tensor) -> Tensor:
        """The outputs; raises where they are not finite, since sorting and arg-max would make answers of them."""
        wrong = int((~torch.isfinite(outputs)).sum())
        if wrong:
            raise NotFiniteError(
                f"the student gives no answer: {wrong} of {outputs.numel()} outputs of {self.backend.name} are NaN or "
                "infinite; run another file of the bundle (--backend), or export it again"
            )
        return outputs

    def _read(self, path: Path) -> Tensor:
        """uint8 (3, T, H, W), or features (T, D)."""
        info = self.info
        if info.mean is None:
            place = parse_place(str(path))
            features = ArrayFiles().item(Path(place.file), place.array, place.row)
            if self.decoding.stored is not None:  # nets see some of the frames that are kept of an item
                features = features[sample_positions(len(features), self.decoding.stored[0])]
            taken = features[sample_positions(len(features), info.source_frames)]
            return torch.from_numpy(taken if taken.dtype == np.float16 else taken.astype(np.float32))
        return self.decoding.read(path, info.source_frames, *info.source_size)

    def _single_frames(self, shown: Iterator[ShownFrame]) -> Iterator[FrameResult]:
        scaler, step = Scaler(*self.info.source_size, self.decoding.fit), self.backend.start()
        for number, frame in enumerate(shown):
            pixels = scaler(frame.image, frame.pixel_aspect, frame.turn)
            begin = time.perf_counter()
            frames = self.info.prepare(torch.from_numpy(np.ascontiguousarray(pixels))[None])
            arrays = self.answer.read(self._finite(step(frames)), self.info)[0]
            yield FrameResult(number, frame.time, frame, arrays, time.perf_counter() - begin)

    def _windows(self, shown: Iterator[ShownFrame]) -> Iterator[FrameResult]:
        scaler, view = Scaler(*self.info.source_size, self.decoding.fit), self.info.view
        length = self.info.source_frames if view is None else max(view.frames) + 1
        waiting: list[tuple[int, ShownFrame, Tensor]] = []
        for number, frame in enumerate(shown):
            pixels = scaler(frame.image, frame.pixel_aspect, frame.turn)
            waiting.append((number, frame, torch.from_numpy(np.ascontiguousarray(pixels))))
            if len(waiting) == TOGETHER + length - 1:
                yield from self._of_windows(waiting, length, TOGETHER)
                del waiting[:TOGETHER]
        if waiting:
            number, frame, last = waiting[-1]
            padded = waiting + [(number, frame, last)] * (length - 1)
            yield from self._of_windows(padded, length, len(waiting))

    def _of_windows(
        self, frames: Sequence[tuple[int, ShownFrame, Tensor]], length: int, count: int
    ) -> Iterator[FrameResult]:
        clips = torch.stack([torch.stack([each[2] for each in frames[n : n + length]], 1) for n in range(count)])
        if length < self.info.source_frames:  # the frames after those that the student sees do not matter
            missing = self.info.source_frames - length
            clips = torch.cat([clips, clips[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)
        begin = time.perf_counter()
        answers = self.answer.read(self._finite(self.outputs(clips)), self.info)
        seconds = (time.perf_counter() - begin) / count
        for (number, frame, _), arrays in zip(frames, answers, strict=False):
            yield FrameResult(number, frame.time, frame, arrays, seconds)


def _checked(frame: ShownFrame) -> ShownFrame:
    """Raise `ValueError` where a frame of the caller's is an array."""
    if not isinstance(frame, ShownFrame):
        raise ValueError(
            f"frames must be files or ShownFrame, but got {type(frame).__name__}; of an array of bytes (H, W, 3) in R, "
            "G, B, give ShownFrame(None, av.VideoFrame.from_ndarray(array, format='rgb24'), 1.0, Turn())"
        )
    return frame


def load(
    bundle: Path | str, *, backend: str | None = None, device: str = "cpu", space: SearchSpace | None = None
) -> Predictor:
    """An exported student, ready to read files. Runs no code of the bundle.

    Args:
        bundle: its folder, as `nas-kd export` writes it.
        backend: `safetensors` builds the net and loads its weights, `pt2` runs the graph of torch, `onnx` that of ONNX
            Runtime. By default the first one, or a graph where the net needs code of your own.
        device: such as `cpu` or `cuda`.
        space: for `safetensors`, of a net that needs code of your own; see `load_bundle`.

    Raises:
        ValueError: a file is missing, damaged or exchanged, or code is needed; the sentence says which.

    Examples:
        >>> student = nas_kd.load("runs/demo/export/trial-0000")
        >>> label, score = student.classify("video.mp4").labels[0]  # the highest score first
        >>> 0 <= score <= 1
        True
    """
    folder = Path(bundle)
    info = read_info(folder)
    return Predictor(folder, info, open_backend(folder, info, backend, device, space), space)


__all__ = ["ClipAnswer", "DecodeError", "FrameResult", "Predictor", "load"]
