"""Damage of packets of a video that shows without decoding them."""

from __future__ import annotations

from typing import Any

from av.packet import Packet
from av.video.stream import VideoStream

_PREFIXED = {"h264": 4, "hevc": 21}  # codec -> byte of its configuration record that has the size of a length, less one


def length_size(track: VideoStream) -> int:
    """Bytes of the length before each unit of a packet, as MP4 and Matroska hold H.264 and H.265; 0 without lengths."""
    place = _PREFIXED.get(track.codec_context.name, 0)
    record = track.codec_context.extradata or b""
    if not place or len(record) <= place or record[0] != 1:  # not a configuration record: units begin with start codes
        return 0
    return (record[place] & 3) + 1


def is_damaged(packet: Packet[Any], prefix: int) -> bool:
    """Whether a packet cannot be right: its units do not fill it.

    Args:
        packet: with data.
        prefix: `length_size` of its track; 0 says nothing of any packet.
    """
    if not prefix:
        return False
    content, place = memoryview(packet), 0
    while place + prefix <= len(content):
        length = int.from_bytes(content[place : place + prefix], "big")
        if not length:
            return True
        place += prefix + length
    return place != len(content)
