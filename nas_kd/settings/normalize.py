"""The section of a campaign file that says how the bytes of a clip become numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nas_kd.settings.strict import Section

Positive = Annotated[float, Field(gt=0)]


class NormalizeConfig(Section):
    """(clip / 255 − mean) / std, for each of R, G, B.

    Attributes:
        mean: of R, G, B, in shares of full brightness.
        std: standard deviation of R, G, B, in the same unit.
    """

    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[Positive, Positive, Positive] = (0.225, 0.225, 0.225)
