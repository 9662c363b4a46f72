"""Space `frame_sequence`: students that see few frames of a sequence of frame features."""

from __future__ import annotations

from nas_kd.search_spaces.frame_sequence.settings import FrameSequenceSettings
from nas_kd.search_spaces.frame_sequence.space import FrameSequenceSpace

__all__ = ["FrameSequenceSettings", "FrameSequenceSpace"]
