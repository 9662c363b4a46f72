"""Clips that are dark as a whole, as where numbers lost their scale when they became bytes."""

from __future__ import annotations

from nas_kd.data.fingerprint import spread
from nas_kd.data.splits import Splits

NUM_ITEMS = 8
"""Training items that are looked at."""
DARK_MAP = 255 / 65535
"""What maps of 8 bits in files of 16 do not exceed."""
DARK = 15
"""Of 255: with images of 12 bits in files of 16, of which the upper 8 are kept, nothing is brighter."""


def describe_darkness(splits: Splits) -> list[str]:
    """Sentences where no pixel of some training clips is bright, and where no value of their maps is high.

    Args:
        splits: of the data.
    """
    if splits.info.feature_size:
        return []
    items = spread(len(splits.retrain), NUM_ITEMS)
    keys = ("clip", *(f"map.{name}" for name in splits.info.map_names))
    highest: dict[str, float] = {}
    for index in items:
        sample = splits.retrain[index]
        for key in keys:
            if key in sample:
                highest[key] = max(highest.get(key, 0.0), float(sample[key].max()))
        if all(value > (DARK if key == "clip" else DARK_MAP) for key, value in highest.items()):
            return []
    found = []
    looked_at = f"{len(items)} training clips that were looked at"
    for key, value in highest.items():
        if key == "clip" and value <= DARK:
            found.append(
                f"warning: no pixel of {looked_at} is brighter than {value:.0f} of 255, as where numbers from 0 to 1 "
                "became bytes, or where images of 16 bits use only the lower ones; scale them to the full range first"
            )
        elif key != "clip" and value <= DARK_MAP:
            found.append(
                f"warning: no value of {key} of {looked_at} is above {value:.4f} of 1, as where maps of 8 bits lie in "
                "images of 16; scale them to the full range first"
            )
    return found
