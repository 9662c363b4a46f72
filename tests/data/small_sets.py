"""Tiny videos, images and tables for the tests of sources."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
import torch

from nas_kd.data import Splits

FRAME_HEADER = "path,label,split,sequence,frame"


def write_video(path: Path, levels: Sequence[int], height: int = 32, width: int = 48) -> None:
    """One grey frame a level; H.264, so neighbouring levels stay apart by some 8 steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_image(path: Path, pixels: np.ndarray) -> None:
    """[H, W, 3] bytes to a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png")
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def write_table(root: Path, rows: Iterable[Sequence[str]], header: str = "path,label,split") -> None:
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def rows_of(root: Path) -> list[tuple[str, ...]]:
    """What `write_table` wrote."""
    with (root / "labels.csv").open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def features_of(splits: Splits, name: str = "retrain") -> torch.Tensor:
    """[N, T, D] of all items of a split."""
    dataset = getattr(splits, name)
    return torch.stack([dataset[index]["features"] for index in range(len(dataset))])
