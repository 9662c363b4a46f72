"""Large numbers as people write and read them: `12.5M`, `1.5 GB`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import Field

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


_PATTERN = r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?[0-9]+)?)\s*([kKmMgGtT]?)\s*"

SizeText = Annotated[float, Field(gt=0)] | Annotated[str, Field(pattern=f"^{_PATTERN}$")]
"""What such a number may be in a campaign file, for its JSON schema."""


def parse_size(value: Any, what: str, example: str) -> Any:
    """`12.5M` -> 12500000; numbers pass through. Suffixes k, M, G, T are powers of 1000.

    Args:
        value: of a campaign file.
        what: it counts, for the message.
        example: of such a number.

    Raises:
        ValueError: the text is no number with such a suffix.
    """
    if isinstance(value, bool):
        raise ValueError(f"{what} must be a number such as {example}, but got {str(value).lower()}")
    if not isinstance(value, str):
        return round(value) if isinstance(value, float) and value == value and abs(value) < 1e30 else value
    match = re.fullmatch(_PATTERN, value)
    if match is None:
        raise ValueError(f"{what} must be a number such as {example} (suffixes k, M, G, T), but got {value!r}")
    number = float(match[1]) * _FACTORS[match[2].lower()]
    return round(number) if math.isfinite(number) else number


def bytes_text(number: float) -> str:
    """Bytes with the largest unit that fits: `1.5 GB`, `320 MB`, `64 kB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"
