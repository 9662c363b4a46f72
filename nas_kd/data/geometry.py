"""How a stored frame becomes an upright one of the wanted size: aspect ratio, turn, scale and crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

Fit = Literal["crop", "stretch"]
Frames = npt.NDArray[np.uint8]

_ODDEST_ASPECT = 10  # a wider or narrower pixel is a mistake of the file


class Turn(NamedTuple):
    """What makes a stored frame upright: rows and columns exchanged, then mirrored in x or y."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False


def turn_of(matrix: Sequence[float]) -> Turn:
    """The turn that a display matrix asks for, to the nearest right angle.

    Args:
        matrix: At least its numbers m0 to m4, as FFmpeg keeps them (libavutil/display.h): the stored pixel (x, y) is
            shown at (m0·x + m3·y, m1·x + m4·y), with y downwards, but for a shift.
    """
    if abs(matrix[0]) + abs(matrix[4]) >= abs(matrix[1]) + abs(matrix[3]):
        return Turn(False, matrix[0] < 0, matrix[4] < 0)
    return Turn(True, matrix[3] < 0, matrix[1] < 0)


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


class Scaler:
    """Stored frames to upright RGB frames of one size.

    One for a whole video: its reformatter keeps the conversion tables.

    Args:
        height: H of the result in pixels.
        width: W of the result in pixels.
        fit: As for `read_clip`.
    """

    def __init__(self, height: int, width: int, fit: Fit) -> None:
        self.height, self.width, self.fit = height, width, fit
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, pixel_aspect: float = 1.0, turn: Turn | None = None) -> Frames:
        """Scale, crop and turn one frame.

        Args:
            frame: Of any size and pixel format; its colour space and range are those it is tagged with.
            pixel_aspect: Width of a stored pixel divided by its height; 0 where it is not known.
            turn: What makes the frame upright; None where it is.

        Returns:
            uint8 [3, H, W], RGB.
        """
        turn = turn or Turn()
        height, width = (self.width, self.height) if turn.transpose else (self.height, self.width)
        shown_width = frame.width
        if 1 / _ODDEST_ASPECT <= pixel_aspect <= _ODDEST_ASPECT:
            shown_width = max(1, round(frame.width * pixel_aspect))
        scaled_height, scaled_width, top, left = scaled_window(frame.height, shown_width, height, width, self.fit)
        scaled = self._reformatter.reformat(
            frame, width=scaled_width, height=scaled_height, format="rgb24", interpolation=Interpolation.AREA, threads=1
        )
        pixels = np.asarray(scaled.to_ndarray(), dtype=np.uint8)
        pixels = pixels[top : top + height, left : left + width].transpose(2, 0, 1)
        if turn.transpose:
            pixels = pixels.swapaxes(1, 2)
        if turn.mirror_x:
            pixels = pixels[:, :, ::-1]
        if turn.mirror_y:
            pixels = pixels[:, ::-1]
        return pixels
