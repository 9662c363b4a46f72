"""Decode clips from a video, one image, or a folder of images: upright RGB frames of one size, uniform in time.

`nas_kd.data.video` reads videos and `nas_kd.data.still_image` images; docs/data.md has the rules.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np

from nas_kd.data.frame_times import positions_in_time, sample_positions
from nas_kd.data.geometry import Fit, Frames, Scaler, Turn
from nas_kd.data.sample import DecodeError
from nas_kd.data.still_image import IMAGE_SUFFIXES, read_frames, read_rgb
from nas_kd.data.video import ShownFrame, StillImageError, every_frame, read_video

POLICY = 2
"""Raise it when the same file and settings would decode to other bytes; part of the key of cached clips."""


def frame_files(folder: Path) -> list[Path]:
    """The images in a folder, in the order of the numbers in their names (frame2 before frame10)."""
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    # Hidden files beside images are a file manager's, not frames.
    return sorted((path for path in images if not path.name.startswith(".")), key=_natural_key)


def read_clip(path: Path, frames: int, height: int, width: int, fit: Fit) -> Frames:
    """Decode one clip.

    Args:
        path: A video, an image (a still clip, unless it is animated), or a folder of images.
        frames: T, how many frames to take.
        height: H of the result in pixels.
        width: W of the result in pixels.
        fit: "crop" scales until the frame is covered and cuts the middle, "stretch" changes the aspect ratio.

    Returns:
        uint8 [3, T, H, W], RGB.

    Raises:
        PartlyReadableError: More than 2 % of a video's frames are lost.
        DecodeError: The file is missing, empty, damaged, or no video or image.
    """
    scaler = Scaler(height, width, fit)
    with _readable(path):
        if path.is_dir():
            return _read_folder(path, frames, scaler)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return _read_image(path, frames, scaler)
        try:
            return read_video(path, frames, scaler)
        except StillImageError:
            return _read_image(path, frames, scaler)


def read_all_frames(path: Path) -> Iterator[ShownFrame]:
    """All frames of a video, an image or a folder of images, one at a time, in the order in which they are shown.

    Args:
        path: As for `read_clip`.

    Raises:
        PartlyReadableError: After the last frame, where more than 2 % of a video's frames are lost.
        DecodeError: As by `read_clip`.
    """
    with _readable(path):
        if path.is_dir():
            files = _single_images(path)
            for file in files:
                yield _shown(_named(file))
            return
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            try:
                yield from every_frame(path)
                return
            except StillImageError:
                pass
        for pixels in read_frames(path, lambda times, last_duration: range(len(times))):
            yield _shown(pixels)


def _shown(pixels: Frames) -> ShownFrame:
    return ShownFrame(None, av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"), 1.0, Turn())


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file is told as a `DecodeError`."""
    try:
        if not path.exists():
            raise DecodeError("no such file")
        if path.is_file() and path.stat().st_size == 0:
            raise DecodeError("the file is empty (0 bytes)")
        yield
    except DecodeError:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        # FFmpeg's errors carry the path in their text; the reason must not, the caller names it.
        text = getattr(error, "strerror", None) or str(error)
        raise DecodeError(f"not a readable video or image ({text})") from error


def read_still(path: Path, height: int, width: int, fit: Fit) -> tuple[Frames, tuple[int, int]]:
    """Decode one image.

    Args:
        path: The image; not an animation.
        height: H of the result in pixels.
        width: W of the result in pixels.
        fit: As for `read_clip`.

    Returns:
        uint8 [3, H, W], RGB; and height and width of the upright image before it was scaled.

    Raises:
        DecodeError: The file is missing, damaged, or no single image.
    """
    pixels = read_rgb(path)
    return _scaled(pixels, Scaler(height, width, fit)), (pixels.shape[0], pixels.shape[1])


def _single_images(folder: Path) -> list[Path]:
    """The images of a folder, one a frame.

    Raises:
        DecodeError: There is none, or two are of one frame.
    """
    files = frame_files(folder)
    if not files:
        raise DecodeError(f"the folder holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    by_stem: dict[str, Path] = {}
    for file in files:
        other = by_stem.setdefault(file.stem, file)
        if other != file:  # such as masks beside photos
            raise DecodeError(
                f"each frame must be one image, but the folder holds {other.name} and {file.name}; keep those of one "
                "kind in a folder of their own"
            )
    if len(kinds := _kinds(files)) > 1:
        raise DecodeError(
            f"each frame must be one image, but the folder holds {' and '.join(file.name for file in kinds[:2])} with "
            "the same number; keep those of one kind in a folder of their own"
        )
    return files


def _kinds(files: Sequence[Path]) -> list[Path]:
    """One image of each kind, where a folder holds several of each frame, such as `3.png` and `3_mask.png`."""
    kinds: dict[tuple[str, ...], dict[tuple[str, ...], Path]] = {}  # what is no number -> number -> image
    for file in files:
        parts = re.split(r"(\d+)", file.stem)
        kinds.setdefault(tuple(parts[::2]), {})[tuple(parts[1::2])] = file
    numbers = {frozenset(images) for images in kinds.values()}
    if len(kinds) < 2 or len(numbers) > 1 or len(next(iter(numbers))) < 2:
        return []
    return [next(iter(images.values())) for images in kinds.values()]


def _named(file: Path) -> Frames:
    """The pixels of an image of a folder; errors name it."""
    try:
        return read_rgb(file)
    except DecodeError as error:
        raise DecodeError(f"{file.name}: {error}") from error


def _read_folder(folder: Path, frames: int, scaler: Scaler) -> Frames:
    files = _single_images(folder)
    positions = sample_positions(len(files), frames)
    unique: dict[int, Frames] = {}
    for position in np.unique(positions).tolist():
        unique[position] = _scaled(_named(files[position]), scaler)
    return np.stack([unique[int(position)] for position in positions], axis=1)


def _read_image(path: Path, frames: int, scaler: Scaler) -> Frames:
    def choose(times: Sequence[float], last_duration: float) -> Sequence[int]:
        seconds = [time / 1000 for time in times]
        return [int(number) for number in positions_in_time(seconds, last_duration / 1000, frames)]

    return np.stack([_scaled(pixels, scaler) for pixels in read_frames(path, choose)], axis=1)


def _scaled(pixels: Frames, scaler: Scaler) -> Frames:
    return scaler(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))


def _natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.split(r"(\d+)", path.name)
    # The name itself decides between 1.png and 01.png.
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], path.name
