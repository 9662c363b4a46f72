"""A campaign in order: checks, rehearsal, what its trials share, the trials, latencies. It composes all packages."""

from __future__ import annotations

from nas_kd.campaign.campaign import Campaign, CampaignResult, search
from nas_kd.campaign.reproduction import Reproduction, reproduce

__all__ = ["Campaign", "CampaignResult", "Reproduction", "reproduce", "search"]
