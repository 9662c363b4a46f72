"""Which line of the user's code raised an exception."""

from __future__ import annotations

import traceback
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def is_ours(path: str) -> bool:
    """Whether a file belongs to this package."""
    return path.startswith(str(_PACKAGE))


def users_line(error: BaseException) -> str:
    """The innermost line that is neither of this package nor of a library; empty where there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        libraries = "site-packages" in frame.filename or "lib/python" in frame.filename
        if not is_ours(frame.filename) and not libraries:
            return f" in {Path(frame.filename).name}, line {frame.lineno} ({frame.name})"
    return ""
