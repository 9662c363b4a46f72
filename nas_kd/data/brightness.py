"""Clips that are dark as a whole, as where numbers lost their scale when they became bytes."""

from __future__ import annotations

from nas_kd.data.fingerprint import spread
from nas_kd.data.splits import Splits

NUM_ITEMS = 8
"""Training items that are looked at."""
DARK = 15
"""Of 255: with images of 12 bits in files of 16, of which the upper 8 are kept, nothing is brighter."""


def describe_darkness(splits: Splits) -> list[str]:
    """A sentence where no pixel of some training clips is bright; none where one is, or where there are no pixels.

    Args:
        splits: of the data.
    """
    if splits.info.feature_size:
        return []
    brightest, items = 0, spread(len(splits.retrain), NUM_ITEMS)
    for index in items:
        brightest = max(brightest, int(splits.retrain[index]["clip"].max()))
        if brightest > DARK:
            return []
    return [
        f"warning: no pixel of {len(items)} training clips that were looked at is brighter than {brightest} of 255, as "
        "where numbers from 0 to 1 became bytes, or where images of 16 bits use only the lower ones; scale them to the "
        "full range first"
    ]
