"""The base of the `data` section of each source."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from nas_kd.data.splits import Splits


class SourceConfig(BaseModel):
    """The `data` section of a source. Subclasses add a literal `source`, the name, and its options.

    Attributes:
        gives_features: whether items are frame features instead of clips.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gives_features: ClassVar[bool] = False

    @abstractmethod
    def load(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        """The splits that the section describes.

        Args:
            seed: Seed of the campaign, ≥ 0: which training items fit weights and which gates.
            gate_share: Share of the training items that fits gates, in (0, 1).

        Raises:
            DataError: The data cannot be used; one sentence says why and what to do.
        """
