"""The campaign file: its sections as typed models, checks across sections, and reading it."""

from __future__ import annotations

from nas_kd.config.campaign_file import (
    LATENCY_OBJECTIVE,
    TEACHER_SECTIONS,
    CampaignConfig,
    ConfigError,
    validate,
)
from nas_kd.config.paths import read_path, set_path, split_path
from nas_kd.config.reading import load_config

__all__ = [
    "LATENCY_OBJECTIVE",
    "TEACHER_SECTIONS",
    "CampaignConfig",
    "ConfigError",
    "load_config",
    "read_path",
    "set_path",
    "split_path",
    "validate",
]
