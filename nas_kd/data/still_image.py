"""Still images by Pillow, upright: the EXIF orientation is applied to frames, label images and maps alike."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from nas_kd.data.sample import DecodeError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".avif"}
)
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged, cut short, too large to be sane, or of another kind."""
_ANIMATED = ("PNG", "WEBP", "GIF", "TIFF")
_USUAL_MS = 100.0  # how long browsers show a frame that does not say it


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """The image as it is stored; what goes wrong while it is open becomes a `DecodeError`.

    Raises:
        DecodeError: The file is missing, damaged, or no image.
    """
    try:
        with Image.open(path) as image:
            yield image
    except DecodeError:
        raise
    except _BROKEN as error:
        raise DecodeError(_broken_reason(error)) from error


def upright(image: Image.Image) -> Image.Image:
    """The image in its stored mode (a palette stays a palette), turned as its EXIF orientation says."""
    turned: Image.Image = ImageOps.exif_transpose(image)
    return turned


def check_single(image: Image.Image) -> None:
    """Refuse an animation or a stack, of which the first frame alone would count.

    Raises:
        DecodeError: It has several frames.
    """
    count = _frame_count(image)
    if count > 1:
        raise DecodeError(f"the image must be a single frame, but it has {count}; save each as a file of its own")


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """A single image as players show it, but for transparency, which is dropped: the colours below it are taken.

    Images of 16 bits keep the upper 8, palettes become their colours, and CMYK is converted without a profile.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        DecodeError: The file is missing, damaged, no image, has several frames, or values of an unknown range (32 bits,
            floats).
    """
    with open_image(path) as image:
        check_single(image)
        return _rgb(image)


def read_frames(path: Path, choose: Callable[[Sequence[float], float], Sequence[int]]) -> list[npt.NDArray[np.uint8]]:
    """Some frames of an image, which may be an animation (PNG, WebP, GIF) or a stack of pages (TIFF).

    Args:
        path: The image.
        choose: Given the times of all frames in ms and how long the last one is shown, the numbers of those to take.
            A single image has the times [0]; pages follow each other at equal distances.

    Returns:
        Each uint8 [H, W, 3], RGB, in the order of the numbers.

    Raises:
        DecodeError: As `read_rgb`, but for the number of frames.
    """
    with open_image(path) as image:
        count = _frame_count(image)
        if count == 1:
            frame = _rgb(image)
            return [frame for _ in choose([0.0], 1.0)]
        durations = []
        for number in range(count):
            image.seek(number)
            image.load()  # some formats know how long a frame is shown only after reading it
            durations.append(float(image.info.get("duration") or _USUAL_MS))
        times = [sum(durations[:number]) for number in range(count)]
        numbers = choose(times, durations[-1])
        frames = {}
        for number in sorted(set(numbers)):
            image.seek(number)
            frames[number] = _rgb(image)
        return [frames[number] for number in numbers]


def _frame_count(image: Image.Image) -> int:
    """Frames of an animation or a stack; other formats hold previews or the second picture of a pair as "frames"."""
    return int(getattr(image, "n_frames", 1)) if image.format in _ANIMATED else 1


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """[H, W, 3] of the current frame, upright."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.asarray(upright(image)).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise DecodeError(
            f"an image must have 8 or 16 bits a channel, but its mode is {image.mode} of 32 bits, whose brightest "
            "value is unknown; convert it to 8 bits"
        )
    return np.array(upright(image).convert("RGB"))


def _broken_reason(error: BaseException) -> str:
    """What is wrong with an image that Pillow cannot read, without its path."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not a readable image (of no known format; convert it to JPEG or PNG)"
    if isinstance(error, Image.DecompressionBombError):
        return f"the image is too large: it must have at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    # Pillow's own text may name the path, which the caller does.
    return f"not a readable image ({getattr(error, 'strerror', None) or 'it is damaged or cut short'})"
