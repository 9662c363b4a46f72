"""Stored maps of frames, such as a teacher's saliency: find them, read them, and scale them like their frames.

Values are kept as whole 65,535ths, in two planes of bytes, so that they lie in the cache and in memory beside the bytes
of their frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nas_kd.data.files import load_array
from nas_kd.data.geometry import Fit, scaled_window
from nas_kd.data.sample import DecodeError
from nas_kd.data.still_image import open_image, upright
from nas_kd.data.table import locate

MAP_SUFFIXES = (".npy", ".png", ".jpg", ".jpeg")
PLANES_OF_MAP = 2

_ONE = 65535  # what 1 is kept as


def find_map(root: Path, folder: Path, frame: str) -> tuple[Path, str]:
    """The map of a frame, and what is wrong with it ("" if nothing).

    Args:
        root: The folder that no path may leave, resolved.
        folder: Where the maps lie, relative to `root`.
        frame: Path of the frame as the csv has it; that of the map differs in the suffix alone.
    """
    stem = folder / frame
    found = [locate(root, str(stem.with_suffix(suffix))) for suffix in MAP_SUFFIXES]
    usable = [path for path, reason in found if not reason]
    if len(usable) > 1:
        return usable[0], f"there must be one map, but there are {' and '.join(path.name for path in usable)}"
    if usable:
        return usable[0], ""
    reason = next((reason for _, reason in found if not reason.startswith("no such file")), "")
    return root, reason or no_map(folder, frame)


def no_map(folder: Path, frame: str) -> str:
    """What is wrong where a frame has no map, with the place that was looked at."""
    first, *others = MAP_SUFFIXES
    return f"there is no {(folder / frame).with_suffix(first)} (or {', '.join(others)}) in root"


def read_map(path: Path, frame_size: tuple[int, int], height: int, width: int, fit: Fit) -> npt.NDArray[np.uint8]:
    """Read one map and bring it to the size of the clip.

    The map shows the whole frame in any resolution. It is scaled linearly to where its frame is scaled to, over an
    accordingly wider triangle where it shrinks, and cut as its frame is.

    Args:
        path: A grey image of 8 or 16 bits, whose brightest value is 1, or a `.npy` file of floats in [0, 1].
        frame_size: Height and width of the frame.
        height: H of the result in pixels.
        width: W of the result in pixels.
        fit: As for `read_clip`.

    Returns:
        uint8 [2, H, W], lower and upper byte; `map_values` reads them.

    Raises:
        DecodeError: The file is missing or damaged, is empty, has more than one channel, or holds NaN or values outside
            of [0, 1].
    """
    values = _read_array(path) if path.suffix == ".npy" else _read_image(path)
    scaled_height, scaled_width, top, left = scaled_window(*frame_size, height, width, fit)
    scaled = F.interpolate(
        torch.from_numpy(values)[None, None],
        size=(scaled_height, scaled_width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )[0, 0, top : top + height, left : left + width]
    whole = (scaled.clamp(0, 1) * _ONE).round().to(torch.int32).numpy()
    return np.stack([whole % 256, whole // 256]).astype(np.uint8)


def map_values(planes: Tensor) -> Tensor:
    """float32 [...] in [0, 1] of two planes of bytes [2, ...], as `read_map` makes them."""
    return (planes[0].float() + 256 * planes[1].float()) / _ONE


def _read_array(path: Path) -> npt.NDArray[np.float32]:
    try:
        values: npt.NDArray[Any] = load_array(path)
    except FileNotFoundError as error:
        raise DecodeError("no such file") from error
    except (OSError, ValueError, EOFError, MemoryError) as error:  # the last where a header promises too much
        raise DecodeError("not a readable array of numpy") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
        kind = f"{values.ndim} dimensions of {values.dtype}" if isinstance(values, np.ndarray) else "several arrays"
        raise DecodeError(f"a map must have the two dimensions height and width, of floats, but it has {kind}")
    if not values.size:
        raise DecodeError(f"a map must hold values, but it is empty, of {values.shape[0]} x {values.shape[1]}")
    unknown = int(np.isnan(values).sum())
    if unknown:
        raise DecodeError(
            f"the values of a map must lie in [0, 1], but {unknown} of {values.size} are NaN; write 0 where nothing is "
            "known"
        )
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise DecodeError(f"the values of a map must lie in [0, 1], but they span {low:.4g} to {high:.4g}; scale them")
    return values.astype(np.float32)


def _read_image(path: Path) -> npt.NDArray[np.float32]:
    with open_image(path) as image:
        mode, values = image.mode, np.asarray(upright(image))
    if mode not in ("L", "I", "I;16", "I;16B") or values.max(initial=0) > _ONE or values.min(initial=0) < 0:
        raise DecodeError(f"a map must be a grey image of 8 or 16 bits, but its mode is {mode}")
    return values.astype(np.float32) / np.float32(255 if mode == "L" else _ONE)
