"""Decode frames with PyAV from a video, one image, or a folder of images.

Sampling is uniform over the whole: of N frames, frame i of T is number ⌊(i + ½) · N / T⌋, the middle of the i-th of T
equal parts. With N < T frames repeat; a single image is a still clip. A rotation tag is not applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter

Fit = Literal["crop", "stretch"]
Frames = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_COMPLETE_SHARE = 0.9  # edit lists hide a few frames of a sound file; a cut file lacks many


class DecodeError(ValueError):
    """A file cannot be decoded into a clip; the message is the reason, without the path."""


def sample_positions(available: int, wanted: int) -> npt.NDArray[np.int64]:
    """[wanted] frame numbers, ascending, uniform over `available` ≥ 1 frames."""
    return ((np.arange(wanted) + 0.5) * available / wanted).astype(np.int64)


def frame_files(folder: Path) -> list[Path]:
    """The images in a folder, in the order of the numbers in their names (frame2 before frame10)."""
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    # Hidden files beside images are a file manager's, not frames.
    return sorted((path for path in images if not path.name.startswith(".")), key=_natural_key)


def scaled_window(
    source_height: int, source_width: int, height: int, width: int, fit: Fit
) -> tuple[int, int, int, int]:
    """How a frame comes to a size: it is scaled, then a window of height × width is cut from it.

    Args:
        source_height: Height of the frame in pixels.
        source_width: Width of the frame in pixels.
        height: H of the result in pixels.
        width: W of the result in pixels.
        fit: As for `read_clip`.

    Returns:
        Height and width of the scaled frame, and the upper and the left edge of the window in it.
    """
    if fit == "stretch":
        return height, width, 0, 0
    scale = max(height / source_height, width / source_width)
    scaled_height, scaled_width = max(height, round(source_height * scale)), max(width, round(source_width * scale))
    return scaled_height, scaled_width, (scaled_height - height) // 2, (scaled_width - width) // 2


def read_clip(path: Path, frames: int, height: int, width: int, fit: Fit) -> Frames:
    """Decode one clip.

    Args:
        path: A video, an image, or a folder of images.
        frames: T, how many frames to take.
        height: H of the result in pixels.
        width: W of the result in pixels.
        fit: "crop" scales until the frame is covered and cuts the middle, "stretch" changes the aspect ratio.

    Returns:
        uint8 [3, T, H, W], RGB.

    Raises:
        DecodeError: The file is missing, empty, damaged, cut short, or no video or image.
    """
    try:
        return (
            _read_folder(path, frames, height, width, fit)
            if path.is_dir()
            else _read_file(path, frames, height, width, fit)
        )
    except DecodeError:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        # FFmpeg's errors carry the path in their text; the reason must not, the caller names it.
        text = getattr(error, "strerror", None) or str(error)
        raise DecodeError(f"not a readable video or image ({text})") from error


def _read_folder(folder: Path, frames: int, height: int, width: int, fit: Fit) -> Frames:
    files = frame_files(folder)
    if not files:
        raise DecodeError(f"the folder holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    positions = sample_positions(len(files), frames)
    unique = {int(position): _single(files[position], height, width, fit) for position in np.unique(positions)}
    return np.stack([unique[int(position)] for position in positions], axis=1)


def _read_file(path: Path, frames: int, height: int, width: int, fit: Fit) -> Frames:
    if not path.is_file():
        raise DecodeError("no such file")
    if path.stat().st_size == 0:
        raise DecodeError("the file is empty (0 bytes)")
    positions = sample_positions(_count_frames(path), frames)
    wanted = set(positions.tolist())
    scaled: dict[int, Frames] = {}
    scaler = _Scaler(height, width, fit)
    for number, frame in enumerate(_decode(path)):
        if number in wanted:
            scaled[number] = scaler(frame)
    missing = wanted - scaled.keys()
    if missing:
        raise DecodeError(f"frame {min(missing)} cannot be decoded: the file is damaged or cut short")
    return np.stack([scaled[int(position)] for position in positions], axis=1)


def _single(path: Path, height: int, width: int, fit: Fit) -> Frames:
    """[3, H, W] of an image in a folder; its name goes into the reason."""
    try:
        return read_clip(path, 1, height, width, fit)[:, 0]
    except DecodeError as error:
        raise DecodeError(f"{path.name}: {error}") from error


def _open(path: Path) -> InputContainer:
    # A playlist dressed up as a video may name addresses on the network; only files are opened.
    return av.open(str(path), options={"protocol_whitelist": "file"})


def _count_frames(path: Path) -> int:
    """Number of frames by the packets that are really there; decodes nothing."""
    with _open(path) as container:
        if not container.streams.video:
            raise DecodeError("the file has no video stream")
        stream = container.streams.video[0]
        found = sum(1 for packet in container.demux(stream) if packet.size)
        declared = stream.frames
    if found == 0:
        raise DecodeError("the file holds no frame")
    if found < _COMPLETE_SHARE * declared:
        raise DecodeError(f"only {found} of {declared} frames are there: the file is cut short")
    return found


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # files are decoded side by side; threads within one only contend
        yield from container.decode(stream)


class _Scaler:
    """Frame to RGB of one size. One reformatter for a whole video: it keeps its conversion tables."""

    def __init__(self, height: int, width: int, fit: Fit) -> None:
        self.height, self.width, self.fit = height, width, fit
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Frames:
        """[3, H, W]."""
        height, width, top, left = scaled_window(frame.height, frame.width, self.height, self.width, self.fit)
        scaled = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.AREA, threads=1
        )
        pixels = np.asarray(scaled.to_ndarray(), dtype=np.uint8)
        return pixels[top : top + self.height, left : left + self.width].transpose(2, 0, 1)


def _natural_key(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
