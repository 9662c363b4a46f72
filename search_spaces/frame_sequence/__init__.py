"""Space `frame_sequence`: students that see few frames of a sequence of frame features."""

from __future__ import annotations

from search_spaces.frame_sequence.settings import FrameSequenceSettings
from search_spaces.frame_sequence.space import FrameSequenceSpace

__all__ = ["FrameSequenceSettings", "FrameSequenceSpace"]
