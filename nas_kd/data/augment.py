"""Augmentation of a batch of clips: one flip and one crop a clip, the same for all its frames and all its targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from nas_kd.data.sample import IGNORE, DataError

Augment = Literal["none", "flip", "flip+crop"]
Batch = dict[str, Tensor]

NUM_DRAWS = 4
"""Random numbers an item: flip, zoom, vertical shift, horizontal shift."""

ZOOM = (0.75, 1.1)  # side of the cropped window in shares of the frame; above 1 it is padded
SHIFT = 0.125  # largest offset of the window's centre, in shares of the frame


def check_augment(how: str) -> None:
    """Refuse an unknown augmentation.

    Raises:
        DataError: With the known ones.
    """
    if how not in get_args(Augment):
        raise DataError(f"unknown augmentation {how!r}; choose from {', '.join(get_args(Augment))}")


def augment_batch(batch: Batch, how: Augment, draws: Tensor) -> Batch:
    """Flip and crop a batch.

    The cropped window is resampled to the full frame: linearly for `clip` and `map.<name>`, by the nearest pixel
    for `mask`, which may lose points. Beyond the frame, `clip` repeats its border, `mask` is `IGNORE` and maps are 0;
    boxes are cut at the frame and those left without area become absent.

    Args:
        batch: Stacked samples; keys that are not of the contract pass through.
        how: "none", "flip" (half of the clips) or "flip+crop".
        draws: float [B, NUM_DRAWS], uniform in [0, 1); decides everything.

    Returns:
        A new dict; the tensors of `batch` are not written to.

    Raises:
        DataError: `how` is unknown, or the items are frame features, which nothing but "none" fits.
    """
    check_augment(how)
    if how == "none":
        return dict(batch)
    if "clip" not in batch:
        raise DataError(f"augmentation {how!r} moves pixels, which frame features lack; set augment: none")
    result = dict(batch)
    flipped = draws[:, 0] < 0.5
    width, height = batch["clip"].shape[-1], batch["clip"].shape[-2]
    for key in _of_pixels(result):
        value = result[key]
        chosen = flipped.to(value.device).view(-1, *(1,) * (value.ndim - 1))
        result[key] = torch.where(chosen, value.flip(-1), value)
    if "boxes" in result:
        result["boxes"] = _flip_boxes(result["boxes"], flipped.to(result["boxes"].device), width)
    if how == "flip+crop":
        zoom = ZOOM[0] + (ZOOM[1] - ZOOM[0]) * draws[:, 1]
        shift_y = (2 * draws[:, 2] - 1) * SHIFT * height
        shift_x = (2 * draws[:, 3] - 1) * SHIFT * width
        _crop(result, zoom, shift_y, shift_x)
    return result


def normalize(clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes to what a network reads: (clip / 255 − mean) / std, on the device of `clip`.

    Args:
        clip: uint8 [..., 3, T, H, W].
        mean: Three numbers, in shares of full brightness.
        std: Three numbers > 0, in the same unit.

    Returns:
        float32, same shape.
    """
    scale = torch.tensor([1.0 / (255.0 * value) for value in std], device=clip.device).view(3, 1, 1, 1)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=clip.device).view(3, 1, 1, 1)
    return clip.float() * scale + offset


def _of_pixels(batch: Batch) -> list[str]:
    """Keys of values [B, ..., H, W]."""
    return [key for key in batch if key in ("clip", "mask") or key.startswith("map.")]


def _flip_boxes(boxes: Tensor, flipped: Tensor, width: int) -> Tensor:
    mirrored = boxes.clone()
    mirrored[..., 0] = width - boxes[..., 2]
    mirrored[..., 2] = width - boxes[..., 0]
    chosen = flipped.view(-1, 1, 1, 1) & (boxes[..., 4:] >= 0)
    return torch.where(chosen, mirrored, boxes)


def _crop(batch: Batch, zoom: Tensor, shift_y: Tensor, shift_x: Tensor) -> None:
    """Replace the values of `batch` by the window of each clip; zoom and shifts are [B]."""
    height, width = batch["clip"].shape[-2:]
    rows, columns = _sources(height, zoom, shift_y), _sources(width, zoom, shift_x)
    for key in _of_pixels(batch):
        value = batch[key]
        source_y, source_x = rows.to(value.device), columns.to(value.device)
        if key == "mask":
            source_y, source_x = source_y.round(), source_x.round()
        # [B, everything but the frame, H, W]; two small matrix products a clip beat gathers on CPU and on GPU.
        flat = value.float().flatten(1, -3)
        moved = _weights(source_y, height)[:, None] @ flat @ _weights(source_x, width)[:, None].mT
        moved = moved.view(value.shape)
        if key != "clip":
            inside = _inside(source_y, height)[:, :, None] & _inside(source_x, width)[:, None, :]
            inside = inside.view(len(inside), *(1,) * (value.ndim - 3), height, width)
            moved = torch.where(inside, moved, float(IGNORE) if key == "mask" else 0.0)
        batch[key] = moved.to(value.dtype) if value.is_floating_point() else moved.round_().to(value.dtype)
    if "boxes" in batch:
        device = batch["boxes"].device
        batch["boxes"] = _crop_boxes(
            batch["boxes"], zoom.to(device), shift_y.to(device), shift_x.to(device), height, width
        )


def _sources(size: int, zoom: Tensor, shift: Tensor) -> Tensor:
    """[B, size] position in the source, in pixel indices, of each pixel of the result."""
    centred = torch.arange(size, device=zoom.device) + 0.5 - size / 2
    return centred * zoom[:, None] + shift[:, None] + size / 2 - 0.5


def _weights(positions: Tensor, size: int) -> Tensor:
    """[B, size, size] matrix of linear interpolation at the positions; one-hot where they are whole."""
    clamped = positions.clamp(0, size - 1)
    distance = (clamped[..., None] - torch.arange(size, device=positions.device)).abs()
    return (1.0 - distance).clamp_min(0.0).float()


def _inside(positions: Tensor, size: int) -> Tensor:
    return (positions >= -0.5) & (positions < size - 0.5)


def _crop_boxes(boxes: Tensor, zoom: Tensor, shift_y: Tensor, shift_x: Tensor, height: int, width: int) -> Tensor:
    moved = boxes.clone()
    for first, size, shift in ((0, width, shift_x), (1, height, shift_y)):
        for corner in (first, first + 2):
            centred = boxes[..., corner] - size / 2 - shift.view(-1, 1, 1)
            moved[..., corner] = (centred / zoom.view(-1, 1, 1) + size / 2).clamp(0, size)
    has_area = (moved[..., 2] > moved[..., 0]) & (moved[..., 3] > moved[..., 1])
    kept = (boxes[..., 4] >= 0) & has_area
    return torch.where(kept[..., None], moved, -1.0)
