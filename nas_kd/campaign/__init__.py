"""A campaign in order: checks, rehearsal, what its trials share, the trials, latencies. It composes all packages."""

from __future__ import annotations

from nas_kd.campaign.campaign import Campaign, CampaignResult, search

__all__ = ["Campaign", "CampaignResult", "search"]
