"""Checkpoints that survive a kill: written beside, synced, then renamed; read without running what is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".writing")
    with beside.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part. Its mode is kept."""
    beside = path.with_name(path.name + ".writing")
    beside.touch(mode=path.stat().st_mode & 0o777 if path.exists() else 0o644)
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


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


def count_params(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())
