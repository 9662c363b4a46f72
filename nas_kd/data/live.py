"""Frames of a camera, as FFmpeg's capture devices give them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import av

from nas_kd.data.geometry import Turn
from nas_kd.data.sample import DecodeError
from nas_kd.data.video import ShownFrame

_DEVICES = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}


def camera(name: str) -> tuple[str, str]:
    """FFmpeg's format and address of a camera.

    Args:
        name: its number, or on Windows its name; an address with a format before it, such as `v4l2:/dev/video2`.

    Raises:
        ValueError: this system has no known capture device.
    """
    kind, colon, address = name.partition(":")
    if colon:
        return kind, address
    if sys.platform not in _DEVICES:
        raise ValueError(f"cameras of the system {sys.platform!r} are not known; give FFmpeg's format and the address")
    kind, pattern = _DEVICES[sys.platform]
    return kind, pattern.format(name or "0")


def live_frames(kind: str, address: str) -> Iterator[ShownFrame]:
    """The frames of a capture device, for as long as it gives some.

    Args:
        kind: FFmpeg's name of the format, such as `v4l2` or `lavfi`.
        address: of the device.

    Raises:
        DecodeError: it cannot be opened.
    """
    try:
        container = av.open(address, format=kind)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DecodeError(f"the camera {address} cannot be opened ({kind}: {reason})") from error
    with container:
        stream = container.streams.video[0]
        first: float | None = None
        for frame in container.decode(stream):
            time = frame.time
            if time is not None and first is None:
                first = time
            since = None if time is None or first is None else time - first
            yield ShownFrame(since, frame, float(stream.sample_aspect_ratio or 0), Turn())
