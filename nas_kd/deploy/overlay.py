"""A video with what a student found in it, written frame by frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from nas_kd.data.geometry import Scaler, scaled_window
from nas_kd.data.video import ShownFrame
from nas_kd.deploy.answers import Picture, Window
from nas_kd.deploy.bundle import BundleInfo

LONGEST_SIDE = 960  # of the pictures, in pixels; larger videos are scaled down
SHORTEST_SIDE = 240  # smaller ones are scaled up, so that what is drawn can be read
_TICKS = 90_000  # a second


class Canvas:
    """Upright pictures of the frames of a video, and where in them the student looks.

    Args:
        frame: the first one; all have its size.
        info: of the student.
        fit: how frames are brought to the student's size.
    """

    def __init__(self, frame: ShownFrame, info: BundleInfo, fit: str) -> None:
        aspect = frame.pixel_aspect if frame.pixel_aspect > 0 else 1.0
        width, height = max(1, round(frame.image.width * aspect)), frame.image.height
        if frame.turn.transpose:
            width, height = height, width
        scale = min(1.0, LONGEST_SIDE / max(width, height))
        scale = max(scale, SHORTEST_SIDE / min(width, height))
        self.height, self.width = _even(height * scale), _even(width * scale)
        self._scaler = Scaler(self.height, self.width, "stretch")
        seen_height, seen_width = info.source_size
        assert fit in ("crop", "stretch")
        tall, wide, top, left = scaled_window(height, width, seen_height, seen_width, fit)  # type: ignore[arg-type]
        rows, columns = self.height / tall, self.width / wide
        edges = round(top * rows), round(left * columns)
        end = min(self.height, round((top + seen_height) * rows)), min(self.width, round((left + seen_width) * columns))
        self.window = Window(edges[0], edges[1], end[0] - edges[0], end[1] - edges[1])

    def picture(self, frame: ShownFrame) -> Picture:
        """uint8 [height, width, 3], RGB."""
        pixels = self._scaler(frame.image, frame.pixel_aspect, frame.turn)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))


class VideoWriter:
    """Writes an MP4 file, which is there from the first frame on; `close` ends it.

    Args:
        path: of the file.
        rate: frames a second where the frames have no times.
    """

    def __init__(self, path: Path, rate: Fraction | int = 25) -> None:
        self._path, self._rate = path, rate
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def write(self, picture: Picture, time: float | None) -> None:
        """Append a frame.

        Args:
            picture: uint8 [height, width, 3], RGB, of even sides.
            time: when it is shown, in seconds; None for the usual distance after the one before.
        """
        if self._container is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._path), "w")
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            stream: Any = self._container.add_stream(codec, rate=self._rate)
            stream.height, stream.width = picture.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, _TICKS)
            self._stream = stream
        usual = self._last + max(1, round(_TICKS / self._rate)) if self._last >= 0 else 0
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.time_base = Fraction(1, _TICKS)
        frame.pts = usual if time is None else max(round(time * _TICKS), self._last + 1)
        self._last = frame.pts
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left and the end of the file."""
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()


def _even(pixels: float) -> int:
    """The nearest even number of pixels, which video codecs need."""
    return max(2, round(pixels / 2) * 2)
