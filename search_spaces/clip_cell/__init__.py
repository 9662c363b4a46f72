"""Space `clip_cell`: students for clips."""

from __future__ import annotations

from nas_kd.search_spaces.clip_cell.settings import ClipCellSettings
from nas_kd.search_spaces.clip_cell.space import ClipCellSpace

__all__ = ["ClipCellSettings", "ClipCellSpace"]
