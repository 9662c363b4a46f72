"""Augmentation of a batch of clips: one draw a clip, the same for all its frames and all its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

import torch
from torch import Tensor

from nas_kd.data.augment_config import Augment, AugmentConfig, ResizedCropConfig, check_augment, section_of
from nas_kd.data.color import jitter
from nas_kd.data.framing import (
    Cut,
    cut_batch,
    middle_cut,
    of_pixels,
    pick_frames,
    stored_shape,
    window_frames,
    with_area,
)
from nas_kd.data.sample import IGNORE, DataError

Batch = dict[str, Tensor]

NUM_DRAWS = 4
"""Random numbers an item for the named augmentations: flip, size of the window, its vertical and horizontal place."""
NUM_MORE_DRAWS = 7
"""Those that follow for what a section may vary besides: shape of the window, four of colour, length and place
of the window in time."""

ZOOM = (0.75, 1.1)  # side of the cropped window in shares of the frame; above 1 it is padded
SHIFT = 0.125  # largest offset of the window's centre, in shares of the frame


def augment_batch(
    batch: Batch,
    how: Augment,
    draws: Tensor,
    seen: tuple[int, int, int] | None = None,
    *,
    consecutive: bool = False,
) -> Batch:
    """Flip a batch, take a window of it and change its colours.

    Where nothing else is asked for, nets see T frames uniform over the stored ones (or, where frames are consecutive,
    those in their middle), and the middle of the frame. A random window is resampled to what they see: linearly for
    `clip` and `map.<name>`, by the nearest pixel for `mask`, which may lose points. Beyond the frame, `clip` repeats
    its border, `mask` is `IGNORE` and maps are 0; boxes are cut at the frame and those left without area become absent.

    Args:
        batch: Stacked samples; keys that are not of the contract pass through.
        how: A name or a section of `augment_config`.
        draws: float [B, NUM_DRAWS], of a section [B, NUM_DRAWS + NUM_MORE_DRAWS], uniform in [0, 1); decides
            everything.
        seen: (T, H, W) that nets see of a clip, at most what is stored; by default all of it. (T, 0, 0) of frame
            features, of which only frames are chosen.
        consecutive: Whether frames are shown as they follow each other where no window in time is drawn.

    Returns:
        A new dict; the tensors of `batch` are not written to.

    Raises:
        DataError: `how` is unknown, or changes pixels, which frame features lack.
    """
    check_augment(how)
    section = section_of(how)
    if "clip" not in batch and section is not None and not fits_features(section):
        raise DataError(refusal_of_features(section))
    if not {"clip", "features"} & batch.keys():  # nothing that nets see was asked for
        return dict(batch)
    stored = stored_shape(batch)
    cut = middle_cut(stored, seen or stored, consecutive=consecutive)
    if section is None:
        return cut_batch(batch, cut)
    if section.temporal is not None:
        least, largest = section.temporal.window
        share = least + (largest - least) * draws[:, NUM_DRAWS + 5]
        picks = window_frames(stored[0], len(cut.frames), share, draws[:, NUM_DRAWS + 6])
        batch, cut = pick_frames(batch, picks), replace(cut, frames=tuple(range(len(cut.frames))))
    if "clip" not in batch:
        return dict(batch)
    windows = _windows(section, draws, stored[1:], cut)
    if windows is None:
        result = cut_batch(batch, cut)
    else:
        result = cut_batch(batch, replace(cut, top=0, left=0, height=stored[1], width=stored[2]))
    if section.flip:
        _flip(result, draws[:, 0] < 0.5)
    if windows is not None:
        _crop(result, *windows)
    if section.color is not None:
        result["clip"] = jitter(result["clip"], section.color, draws[:, NUM_DRAWS + 1 : NUM_DRAWS + 5])
    return result


def fits_features(section: AugmentConfig) -> bool:
    """Whether frame features can be augmented so: by windows in time alone."""
    return section.parts == ("temporal",)


def refusal_of_features(section: AugmentConfig) -> str:
    """Why frame features cannot be augmented so."""
    unfit = [part for part in section.parts if part != "temporal"]
    does = "changes colours" if unfit == ["color"] else "changes pixels"
    return f"augmentation {', '.join(unfit)} {does}, which frame features lack; set augment: none, or temporal alone"


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


@dataclass(frozen=True)
class _Window:
    """What becomes of one side of the frame, of each clip.

    Attributes:
        centre: [B], in pixels of the source, from its edge.
        scale: [B], pixels of the source for each pixel of the result.
        size: of the source.
        seen: of the result.
    """

    centre: Tensor
    scale: Tensor
    size: int
    seen: int

    @property
    def positions(self) -> Tensor:
        """[B, seen] position in the source, in pixel indices, of each pixel of the result."""
        centred = torch.arange(self.seen, device=self.scale.device) + 0.5 - self.seen / 2
        return centred * self.scale[:, None] + self.centre[:, None] - 0.5

    def to(self, device: torch.device) -> _Window:
        """The same on a device."""
        return replace(self, centre=self.centre.to(device), scale=self.scale.to(device))


def _windows(section: AugmentConfig, draws: Tensor, size: Sequence[int], middle: Cut) -> tuple[_Window, _Window] | None:
    """Of rows and of columns; None where nothing is cropped at random.

    Args:
        section: What is varied.
        draws: As of `augment_batch`.
        size: (H', W') of the stored frame.
        middle: What nets see where nothing is varied.
    """
    height, width = middle.height, middle.width
    if section.resized_crop is not None:
        return _resized(section.resized_crop, draws, size, (height, width))
    if not section.crop:
        return None
    zoom = ZOOM[0] + (ZOOM[1] - ZOOM[0]) * draws[:, 1]
    shift_y, shift_x = ((2 * draws[:, column] - 1) * SHIFT for column in (2, 3))
    return (
        _Window(middle.top + height / 2 + shift_y * height, zoom, size[0], height),
        _Window(middle.left + width / 2 + shift_x * width, zoom, size[1], width),
    )


def _resized(
    config: ResizedCropConfig, draws: Tensor, size: Sequence[int], seen: tuple[int, int]
) -> tuple[_Window, _Window]:
    """Windows of random size, shape and place within the frame."""
    (height, width), (seen_height, seen_width), draws = size, seen, draws.double()
    area = config.area[0] + (config.area[1] - config.area[0]) * draws[:, 1]
    least, largest = (log(value) for value in config.ratio)
    ratio = (least + (largest - least) * draws[:, 4]).exp() * seen_width / seen_height
    side = (area * height * width).sqrt()
    windows = []
    for whole, cut, length, place in (
        (height, seen_height, side / ratio.sqrt(), draws[:, 2]),
        (width, seen_width, side * ratio.sqrt(), draws[:, 3]),
    ):
        length = length.clamp_max(whole)
        windows.append(_Window(length / 2 + place * (whole - length), length / cut, whole, cut))
    return windows[0], windows[1]


def _flip(batch: Batch, flipped: Tensor) -> None:
    width = batch["clip"].shape[-1]
    for key in of_pixels(batch):
        value = batch[key]
        chosen = flipped.to(value.device).view(-1, *(1,) * (value.ndim - 1))
        batch[key] = torch.where(chosen, value.flip(-1), value)
    if "boxes" in batch:
        batch["boxes"] = _flip_boxes(batch["boxes"], flipped.to(batch["boxes"].device), width)


def _flip_boxes(boxes: Tensor, flipped: Tensor, width: int) -> Tensor:
    mirrored = boxes.clone()
    mirrored[..., 0] = width - boxes[..., 2]
    mirrored[..., 2] = width - boxes[..., 0]
    chosen = flipped.view(-1, 1, 1, 1) & (boxes[..., 4:] >= 0)
    return torch.where(chosen, mirrored, boxes)


def _crop(batch: Batch, rows: _Window, columns: _Window) -> None:
    """Replace the values of `batch` by the window of each clip."""
    for key in of_pixels(batch):
        value = batch[key]
        source_y, source_x = rows.positions.to(value.device), columns.positions.to(value.device)
        if key == "mask":
            source_y, source_x = source_y.round(), source_x.round()
        scale_y, scale_x = (torch.ones(()) if key == "mask" else each.scale for each in (rows, columns))
        weights_y = _weights(source_y, rows.size, scale_y.to(value.device))
        weights_x = _weights(source_x, columns.size, scale_x.to(value.device))
        # [B, everything but the frame, H, W]; two small matrix products a clip beat gathers on CPU and on GPU.
        flat = value.float().flatten(1, -3)
        moved = weights_y[:, None] @ flat @ weights_x[:, None].mT
        moved = moved.view(*value.shape[:-2], *moved.shape[-2:])
        if key != "clip":
            inside = _inside(source_y, rows.size)[:, :, None] & _inside(source_x, columns.size)[:, None, :]
            inside = inside.view(len(inside), *(1,) * (value.ndim - 3), *inside.shape[1:])
            moved = torch.where(inside, moved, float(IGNORE) if key == "mask" else 0.0)
        batch[key] = moved.to(value.dtype) if value.is_floating_point() else moved.round_().to(value.dtype)
    if "boxes" in batch:
        device = batch["boxes"].device
        batch["boxes"] = _crop_boxes(batch["boxes"], rows.to(device), columns.to(device))


def _weights(positions: Tensor, size: int, scale: Tensor) -> Tensor:
    """[B, out, size] matrix of linear interpolation at the positions; one-hot where they are whole.

    Args:
        positions: [B, out].
        size: Of the source.
        scale: [B] or a scalar, source pixels a pixel. Where the source is larger than the result and the scale above
            that of `ZOOM`, the triangle of the filter is as many times wider.
    """
    clamped = positions.clamp(0, size - 1)
    distance = (clamped[..., None] - torch.arange(size, device=positions.device)).abs()
    if positions.shape[1] >= size:
        return (1.0 - distance).clamp_min(0.0).float()
    width = torch.where(scale > ZOOM[1], scale, 1.0).view(-1, 1, 1)
    weights = (1.0 - distance / width).clamp_min(0.0).float()
    return weights / weights.sum(-1, keepdim=True)


def _inside(positions: Tensor, size: int) -> Tensor:
    return (positions >= -0.5) & (positions < size - 0.5)


def _crop_boxes(boxes: Tensor, rows: _Window, columns: _Window) -> Tensor:
    moved = boxes.clone()
    for first, window in ((0, columns), (1, rows)):
        for corner in (first, first + 2):
            centred = boxes[..., corner] - window.centre.view(-1, 1, 1)
            moved[..., corner] = (centred / window.scale.view(-1, 1, 1) + window.seen / 2).clamp(0, window.seen)
    return with_area(moved, boxes)
