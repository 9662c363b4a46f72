"""Checkpoints that survive a kill: written beside, synced, then renamed; read without running what is in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.files import atomic_file


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them, atomically."""
    with atomic_file(path) as file:
        torch.save(dict(content), file)


def load_checkpoint(path: Path, *, tag: str) -> dict[str, Any] | None:
    """What was saved under the same tag, or None where there is nothing, or nothing that can be read.

    Args:
        path: the file.
        tag: content key `tag` must equal this; it names the config and the stage that the checkpoint belongs to.
    """
    if not path.is_file():
        return None
    content = _read(path)
    return content if content is not None and content.get("tag") == tag else None


def is_damaged(path: Path) -> bool:
    """Whether there is a checkpoint that cannot be read."""
    return path.is_file() and _read(path) is None


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint; None of a file that is cut, empty, or something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
    ):
        return None
    return content if isinstance(content, dict) else None


class Checkpoint:
    """Checkpoints of one training loop, at most one file.

    Args:
        path: the file, or None for a loop that keeps nothing.
        tag: of what is trained; a file with another tag is ignored.
        parts: what is saved and restored, by name; each has `state_dict` and `load_state_dict`.
    """

    def __init__(self, path: Path | str | None, tag: str, parts: Mapping[str, Any]) -> None:
        self.path, self.tag, self.parts = None if path is None else Path(path), tag, dict(parts)

    def restore(self, progress: OnProgress = no_progress) -> int:
        """Load the parts.

        Args:
            progress: told of a damaged file.

        Returns:
            The epoch to go on with; 0 where there is no file, or a damaged one.
        """
        content = load_checkpoint(self.path, tag=self.tag) if self.path else None
        if content is None:
            if self.path is not None and is_damaged(self.path):
                progress(0.0, f"starts again, since {self.path.name} is damaged")
            return 0
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        return int(content["epoch"])

    def save(self, epoch: int) -> None:
        """Save the parts after `epoch` whole epochs."""
        if self.path:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            save_checkpoint(self.path, {"tag": self.tag, "epoch": epoch, "parts": state})
