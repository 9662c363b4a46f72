"""Copies of modules of the user's, which may hold what cannot be copied."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copied(module: ModuleT, what: str) -> ModuleT:
    """A copy of a module with its present weights.

    Args:
        module: any module.
        what: its name in the sentence.

    Raises:
        ValueError: it holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever a member of a user's class raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{what} must be a module that can be copied, but copy.deepcopy gives: {reason}; keep locks, "
            "open files and generators out of it, or give its class a __deepcopy__"
        ) from error
