"""Space `saliency`: small nets for the saliency of video."""

from __future__ import annotations

from nas_kd.search_spaces.saliency.net import SaliencyNet
from nas_kd.search_spaces.saliency.ops import make_decoder
from nas_kd.search_spaces.saliency.settings import SaliencySettings
from nas_kd.search_spaces.saliency.space import SaliencySpace

__all__ = ["SaliencyNet", "SaliencySettings", "SaliencySpace", "make_decoder"]
