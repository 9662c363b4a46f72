"""Checkpoints that survive a kill: written beside, synced, then renamed; read without running what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nas_kd.files import atomic_file


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them, atomically."""
    with atomic_file(path) as file:
        torch.save(dict(content), file)


def load_checkpoint(path: Path, *, tag: str) -> dict[str, Any] | None:
    """What was saved under the same tag, or None where there is nothing.

    Args:
        path: the file.
        tag: content key `tag` must equal this; it names the config and the stage that the checkpoint belongs to.
    """
    if not path.is_file():
        return None
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content if content.get("tag") == tag else None


class Checkpoint:
    """Checkpoints of one training loop, at most one file.

    Args:
        path: the file, or None for a loop that keeps nothing.
        tag: of what is trained; a file with another tag is ignored.
        parts: what is saved and restored, by name; each has `state_dict` and `load_state_dict`.
    """

    def __init__(self, path: Path | str | None, tag: str, parts: Mapping[str, Any]) -> None:
        self.path, self.tag, self.parts = None if path is None else Path(path), tag, dict(parts)

    def restore(self) -> int:
        """Load the parts; returns the epoch to go on with, 0 where there is no file."""
        content = load_checkpoint(self.path, tag=self.tag) if self.path else None
        if content is None:
            return 0
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        return int(content["epoch"])

    def save(self, epoch: int) -> None:
        """Save the parts after `epoch` whole epochs."""
        if self.path:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            save_checkpoint(self.path, {"tag": self.tag, "epoch": epoch, "parts": state})
