"""Space `clip_cell`: students for clips."""

from __future__ import annotations

from search_spaces.clip_cell.settings import ClipCellSettings
from search_spaces.clip_cell.space import ClipCellSpace

__all__ = ["ClipCellSettings", "ClipCellSpace"]
