"""Read video files with PyAV, showing what players show.

Number and times of frames are those that the decoder gives, not those of the packets: edit lists hide frames, VP8 and
VP9 have packets that show nothing, and a recording may begin between key frames. A file is first read without decoding
(`_scan`). Then it is decoded, and only the frames that should be the wanted ones by their packets are converted; where
other frames come out, it is decoded once more. Long files with key frames are not decoded as a whole: for each wanted
frame, decoding begins at the key frame before it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from nas_kd.data.frame_times import positions_in_time, sample_positions
from nas_kd.data.geometry import Frames, Scaler, Turn, turn_of
from nas_kd.data.packets import is_damaged, length_size
from nas_kd.data.sample import DecodeError, PartlyReadableError

_LOST_SHARE = 0.02  # of the frames; players show what is left, and so it is here up to this share (or one frame)
_ROUNDED_S = 0.25  # by which a sound file may be shorter than its header says
_LONGEST_GAP_S = 10.0  # longer ones are breaks of a recorded stream (FFmpeg's dts_delta_threshold)
_TIMES_JUMP = 0x0200  # the flag AVFMT_TS_DISCONT of a format (libavformat/avformat.h)
_SEEK_SHARE = 0.5  # of the packets; decoding from key frames must spare at least the others
_REORDERED = 4  # packets after a frame that a decoder may need before it gives it
_DECLARED = {"matroska", "flv", "asf"}  # formats whose header has the length of the whole
_STILL_BRANDS = {"heic", "heix", "heim", "heis", "mif1", "avif"}


class StillImageError(Exception):
    """The file holds a still image, whatever it is called."""


class ShownFrame(NamedTuple):
    """A frame of a video as it is stored, and what shows it upright.

    Attributes:
        time: In seconds from the first frame on; None where the file does not say.
        image: The stored frame.
        pixel_aspect: Width of a stored pixel divided by its height; 0 where it is not known.
        turn: What makes it upright.
    """

    time: float | None
    image: av.VideoFrame
    pixel_aspect: float
    turn: Turn


class _Entry(NamedTuple):
    """A packet with data: time and duration in ticks, whether decoding may begin there, whether it shows a frame."""

    time: int | None
    duration: int
    is_key: bool
    is_shown: bool


@dataclass
class _Scan:
    """What is known of the video track without decoding it.

    Attributes:
        index: Number of the stream.
        entries: Its packets, in the order of decoding.
        tick: Seconds of a unit of time.
        missing: Packets that should be there and are not, or not whole.
        has_index: Whether the file itself lists its packets.
        can_seek: Whether decoding may begin at any key frame; not where packets are lost or damaged, so that the whole
            is decoded and what is left is counted.
        has_breaks: Whether the format allows jumps of the time.
        shortfall: Seconds by which the file is shorter than its header says.
    """

    index: int
    entries: list[_Entry]
    tick: float
    missing: int
    has_index: bool
    can_seek: bool
    has_breaks: bool
    shortfall: float


@dataclass
class _Decoded:
    """Frames in the order in which they are shown; `pixels` by number, of those that were converted."""

    times: list[int | None] = field(default_factory=list)
    last_duration: int = 0
    errors: int = 0
    corrupt: int = 0
    pixels: dict[int, Frames] = field(default_factory=dict)


def read_video(path: Path, frames: int, scaler: Scaler) -> Frames:
    """Frames of a video, uniform in time (`positions_in_time`).

    Args:
        path: The file.
        frames: T, how many to take.
        scaler: What makes them upright and brings them to one size.

    Returns:
        uint8 [3, T, H, W], RGB.

    Raises:
        StillImageError: It is a still image.
        PartlyReadableError: More than 2 % of the frames are missing or damaged; the message says how many are left.
        DecodeError: It has no video track, or no frame can be decoded.
        av.FFmpegError: FFmpeg cannot open it.
    """
    scan = _scan(path)
    times = sorted({entry.time for entry in scan.entries if entry.is_shown and entry.time is not None})
    by_time: set[int] = set()
    if times:
        duration = max(entry.duration for entry in scan.entries if entry.time == times[-1])
        expected = [times[number] for number in _positions(times, duration, frames, scan)]
        clip = _read_from_key_frames(path, scan, times, expected, scaler) if scan.can_seek else None
        if clip is not None:
            return clip
        by_time = set(expected)
    by_number = sample_positions(sum(entry.is_shown for entry in scan.entries) or 1, frames).tolist()
    decoded = _decode(path, scan, by_time, set(by_number), scaler)
    _check_complete(decoded, scan)
    numbers = _positions(decoded.times, decoded.last_duration, frames, scan).tolist()
    if not set(numbers) <= decoded.pixels.keys():
        decoded = _decode(path, scan, (), set(numbers), scaler)
    return np.stack([decoded.pixels[number] for number in numbers], axis=1)


def every_frame(path: Path) -> Iterator[ShownFrame]:
    """All frames of a video in the order in which they are shown, one at a time.

    Raises:
        StillImageError: It is a still image.
        PartlyReadableError: After the last frame, where more than 2 % of the frames are missing or damaged.
        DecodeError: It has no video track, or no frame can be decoded.
        av.FFmpegError: FFmpeg cannot open it.
    """
    scan = _scan(path)
    decoded = _Decoded()
    first: int | None = None
    with _open(path) as container:
        stream = _track(container, scan)
        for number, frame in enumerate(_frames(_packets(container, [stream]), stream, scan, decoded)):
            decoded.times.append(frame.pts)
            decoded.corrupt += frame.is_corrupt and number > 0
            if first is None:
                first = frame.pts
            time = None if frame.pts is None or first is None else (frame.pts - first) * scan.tick
            yield ShownFrame(time, frame, float(stream.sample_aspect_ratio or 0), _turn(frame))
    _check_complete(decoded, scan)


def _positions(times: Iterable[int | None], last_duration: int, wanted: int, scan: _Scan) -> npt.NDArray[np.int64]:
    """Numbers of the wanted frames; by their number alone where they have no times."""
    listed = list(times)
    known = [time for time in listed if time is not None]
    if len(known) < len(listed):
        return sample_positions(len(listed), wanted)
    seconds = np.asarray(known, dtype=np.float64) * scan.tick
    distances = np.diff(seconds)
    if scan.has_breaks and distances.size and distances.min() >= 0:
        distances[distances > _LONGEST_GAP_S] = np.median(distances)
        seconds = seconds[0] + np.concatenate([[0.0], np.cumsum(distances)])
    return positions_in_time(seconds.tolist(), last_duration * scan.tick, wanted, scan.tick)


def _open(path: Path) -> InputContainer:
    # A playlist dressed up as a video may name addresses on the network; only files are opened.
    return av.open(str(path), options={"protocol_whitelist": "file"})


def _track(container: InputContainer, scan: _Scan) -> VideoStream:
    stream = next(track for track in container.streams.video if track.index == scan.index)
    stream.codec_context.thread_count = 1  # files are decoded side by side; threads within one only contend
    return stream


def _packets(container: InputContainer, streams: Iterable[Stream]) -> Iterator[Packet[Any]]:
    """Packets with data, up to the end or to where the file cannot be read on.

    Empty ones are left out: they end a decoder, but some AVI files have them in the middle, for "as before".
    """
    found = container.demux(*streams)
    while True:
        try:
            packet = next(found)
        except (StopIteration, av.FFmpegError):
            return
        if packet.size:
            yield packet


def _scan(path: Path) -> _Scan:
    with _open(path) as container:
        names = set(container.format.name.split(","))
        if container.format.name == "image2" or container.format.name.endswith("_pipe"):
            raise StillImageError
        if container.metadata.get("major_brand", "").strip() in _STILL_BRANDS:
            raise StillImageError
        tracks = _video_tracks(container)
        is_fragmented = "mov" in names and not any(track.frames for track in tracks)
        declared = (container.duration or 0) / av.time_base if names & _DECLARED or is_fragmented else 0.0
        ticks = {stream.index: float(stream.time_base or 0) for stream in container.streams}
        entries: dict[int, list[_Entry]] = {track.index: [] for track in tracks}
        cut = dict.fromkeys(entries, 0)
        prefixes = {track.index: length_size(track) for track in tracks}
        damaged: set[int] = set()
        latest = 0.0
        for packet in _packets(container, list(container.streams) if declared else tracks):
            duration = packet.duration or 0
            if packet.pts is not None:
                latest = max(latest, (packet.pts + duration) * ticks[packet.stream_index])
            if packet.stream_index in entries:
                entry = _Entry(packet.pts, duration, packet.is_keyframe, not packet.is_discard)
                entries[packet.stream_index].append(entry)
                cut[packet.stream_index] += packet.is_corrupt
                if packet.stream_index not in damaged and is_damaged(packet, prefixes[packet.stream_index]):
                    damaged.add(packet.stream_index)
        track = _main_track(container, tracks, entries)
        found = entries[track.index]
        has_index = "mov" in names
        missing = cut[track.index] if has_index else 0
        if has_index and len(track.index_entries) > len(found):  # there may be empty ones, for "as before"
            missing += max(0, sum(entry.size > 0 for entry in track.index_entries) - len(found))
        shortfall = declared - latest
        return _Scan(
            index=track.index,
            entries=found,
            tick=ticks[track.index],
            missing=missing,
            has_index=has_index,
            can_seek=bool(names & {"mov", "matroska"})
            and not missing
            and track.index not in damaged
            and shortfall <= _ROUNDED_S,
            has_breaks=bool(container.format.flags & _TIMES_JUMP),
            shortfall=shortfall,
        )


def _video_tracks(container: InputContainer) -> list[VideoStream]:
    """Tracks that may be the video: no cover pictures, and only those that can be decoded.

    Raises:
        DecodeError: There is none.
    """
    tracks = list(container.streams.video)
    if not tracks:
        raise DecodeError("the file has no video track" + (", only sound" if container.streams.audio else ""))
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    tracks = [track for track in tracks if not track.disposition & pictures]
    if not tracks:
        raise DecodeError("the file has no video track, only a cover picture")
    tracks = [track for track in tracks if track.codec_context is not None]
    if not tracks:
        raise DecodeError("FFmpeg has no decoder for the video track; convert the file, for example to H.264")
    return tracks


def _main_track(container: InputContainer, tracks: list[VideoStream], entries: dict[int, list[_Entry]]) -> VideoStream:
    """The track that FFmpeg takes for the best, but no single picture where another track has more."""
    longest = max(len(found) for found in entries.values())
    moving = [track for track in tracks if len(entries[track.index]) > 1 or longest < 2]
    best = container.streams.best("video")
    return next((track for track in moving if best is not None and track.index == best.index), moving[0])


def _frames(
    packets: Iterable[Packet[Any]], stream: VideoStream, scan: _Scan, decoded: _Decoded
) -> Iterator[av.VideoFrame]:
    """Frames of the packets in the order in which they are shown; packets that cannot be decoded are counted.

    Those before the first frame are not: a recording may begin anywhere.
    """
    shown = False
    for packet in packets:
        try:
            found = stream.codec_context.decode(packet)
        except av.FFmpegError:
            # Packets that end too early are counted as missing already where the file lists its packets.
            decoded.errors += shown and not (scan.has_index and packet.is_corrupt)
            continue
        shown = shown or bool(found)
        yield from found
    try:
        yield from stream.codec_context.decode(None)
    except av.FFmpegError:
        return


def _decode(path: Path, scan: _Scan, by_time: Collection[int], by_number: Collection[int], scaler: Scaler) -> _Decoded:
    """Decode the whole track; frames with one of the times or numbers are converted."""
    decoded = _Decoded()
    with _open(path) as container:
        stream = _track(container, scan)
        for number, frame in enumerate(_frames(_packets(container, [stream]), stream, scan, decoded)):
            decoded.times.append(frame.pts)
            decoded.last_duration = frame.duration or 0
            decoded.corrupt += frame.is_corrupt and number > 0
            if number in by_number or frame.pts in by_time:
                decoded.pixels[number] = _convert(frame, stream, scaler)
    return decoded


def _convert(frame: av.VideoFrame, stream: VideoStream, scaler: Scaler) -> Frames:
    return scaler(frame, float(stream.sample_aspect_ratio or 0), _turn(frame))


def _turn(frame: av.VideoFrame) -> Turn:
    try:
        side_data: Any = frame.side_data  # its type says that values are objects
        matrix = side_data.get("DISPLAYMATRIX")
    except ValueError:
        # A kind of side data that this PyAV does not know, such as the EXIF of JPEG frames, hides all the others.
        angle = math.radians(frame.rotation)
        return turn_of([math.cos(angle), -math.sin(angle), 0, math.sin(angle), math.cos(angle)])
    return Turn() if matrix is None else turn_of(np.frombuffer(bytes(matrix), dtype=np.int32).tolist())


def _check_complete(decoded: _Decoded, scan: _Scan) -> None:
    """Refuse a video of which too much is lost.

    Raises:
        DecodeError: No frame can be decoded.
        PartlyReadableError: More than 2 % of the frames, and more than one, are lost.
    """
    if not decoded.times:
        if not scan.entries:
            raise DecodeError("the file holds no frame")
        raise DecodeError(f"none of its {len(scan.entries)} frames can be decoded: the file is damaged")
    times = np.asarray([time for time in decoded.times if time is not None], dtype=np.float64) * scan.tick
    usual = float(np.median(np.abs(np.diff(times)))) if len(times) > 1 else 0.0
    lost = scan.missing + decoded.errors + decoded.corrupt
    if usual and scan.shortfall > _ROUNDED_S:
        lost += round(scan.shortfall / usual)
    good = len(decoded.times) - decoded.corrupt
    total = good + lost
    if lost > max(1.0, _LOST_SHARE * total):
        seconds = f" ({good * usual:.1f} of {total * usual:.1f} s)" if usual else ""
        raise PartlyReadableError(
            f"only {good} of {total} frames{seconds} can be decoded: the file is damaged or cut short"
        )


def _read_from_key_frames(
    path: Path, scan: _Scan, times: list[int], expected: list[int], scaler: Scaler
) -> Frames | None:
    """The frames with the `expected` times, each decoded from the key frame before it.

    None where that is not cheaper, or where a frame does not come as its packet promises. First and last frame are
    decoded too, so that the video is known to begin and end where the packets say.
    """
    needed = {*expected, times[0], times[-1]}
    ranges = _ranges(scan.entries, needed)
    if ranges is None:
        return None
    cost = sum(len(scan.entries[first : last + 1]) + _REORDERED for first, last in ranges.items())
    if cost > _SEEK_SHARE * len(scan.entries):
        return None
    pixels: dict[int, Frames] = {}
    unseen = set(needed)
    with _open(path) as container:
        stream = _track(container, scan)
        for first, last in ranges.items():
            of_range = {entry.time for entry in scan.entries[first : last + 1] if entry.time in needed}
            missing = of_range & unseen
            key = scan.entries[first].time or 0
            container.seek(key, stream=stream)
            decoded = _Decoded()
            for frame in _frames(_from(container, stream, key), stream, scan, decoded):
                if frame.is_corrupt:
                    return None
                if frame.pts in missing:
                    missing.discard(frame.pts)
                    unseen.discard(frame.pts)
                    if frame.pts in expected:
                        pixels[frame.pts] = _convert(frame, stream, scaler)
                if not missing or decoded.errors:
                    break
            if missing or decoded.errors:
                return None
    return np.stack([pixels[time] for time in expected], axis=1)


def _from(container: InputContainer, stream: VideoStream, time: int) -> Iterator[Packet[Any]]:
    """Packets after a seek; none where it did not lead to the key frame of that time, or to an earlier one."""
    packets = _packets(container, [stream])
    first = next(packets, None)
    if first is not None and first.is_keyframe and first.pts is not None and first.pts <= time:
        yield first
        yield from packets


def _ranges(entries: list[_Entry], needed: set[int]) -> dict[int, int] | None:
    """Number of a key frame's packet → that of the last packet needed after it, in ascending order.

    None where a frame has no key frame before it.
    """
    ranges: dict[int, int] = {}
    keys: list[int] = []
    for number, entry in enumerate(entries):
        if entry.time is None:
            return None
        if entry.is_key:
            keys.append(number)
        if entry.time in needed and entry.is_shown:
            # Frames shown before the key frame that they follow in the file depend on the one before.
            key = next((key for key in reversed(keys) if (entries[key].time or 0) <= entry.time), None)
            if key is None:
                return None
            ranges[key] = number
    return dict(sorted(ranges.items()))
