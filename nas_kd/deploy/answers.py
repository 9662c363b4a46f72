"""What the outputs of a student say, and how it is drawn: classes of pixels, boxes, a map of saliency, or labels.

Shape legend: F frames, C channels, h and w pixels of an output map, H and W pixels of a frame as the student saw it.
"""

from __future__ import annotations

import colorsys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nas_kd.deploy.bundle import BundleInfo
from nas_kd.tasks import TASKS, decode

Arrays = dict[str, npt.NDArray[Any]]
Picture = npt.NDArray[np.uint8]  # [height, width, 3], RGB

_TINT = 0.55  # share of the colour where a class is drawn over a picture
_HEAT = 0.8  # share of the colour where saliency is 1
_OUTSIDE = 0.45  # brightness of what the student did not see
_DRAWN_SCORE = 0.3  # boxes below are in the arrays only
_LISTED = 8  # outputs of a task of the user's that are named
_IN_LEGEND = 0.002  # share of the pixels from which a class is named
_COLOURS = (  # of Okabe and Ito, which colour-blind people tell apart
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)


class Window(NamedTuple):
    """Where in a picture the student looked, in its pixels."""

    top: int
    left: int
    height: int
    width: int


class FrameAnswer(ABC):
    """How the maps that a student gives for each frame are read, joined and drawn."""

    @abstractmethod
    def read(self, maps: Tensor, info: BundleInfo) -> list[Arrays]:
        """What maps (F, C, h, w) say of each frame, in pixels of the frame as the student saw it."""

    def join(self, frames: Sequence[Arrays]) -> Arrays:
        """One array a name for a whole video, the first dimension frames."""
        return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]} if frames else {}

    def draw(self, picture: Picture, arrays: Arrays, window: Window, info: BundleInfo) -> Picture:
        """The picture with what was found in it; what the student did not see is darker."""
        return _darkened_outside(picture, window)


class Maps(FrameAnswer):
    """Of a task that is not one of the package: `outputs`, float32 (C, h, w), the maps as they are.

    Only the task knows what they mean, so they are drawn without it: maps as heat from their lowest to their highest
    value in the frame, a colour each, the one with the larger share of its range over the others; single values (maps
    of 1 × 1) as numbers, the highest first.
    """

    def read(self, maps: Tensor, info: BundleInfo) -> list[Arrays]:
        return [{"outputs": frame.numpy()} for frame in maps]

    def draw(self, picture: Picture, arrays: Arrays, window: Window, info: BundleInfo) -> Picture:
        maps, drawn = arrays["outputs"].astype(np.float32), _darkened_outside(picture, window)
        names = info.class_names if len(info.class_names) == len(maps) else [f"output {n}" for n in range(len(maps))]
        if maps[0].size == 1:
            values = maps.ravel()
            order = np.argsort(-values, kind="stable")[:_LISTED]
            return _with_legend(drawn, [(f"{names[n]}: {values[n]:.3g}", colour_of(int(n))) for n in order])
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        grey = (255 * (maps - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
        shares = np.stack([_resized(each, window, Image.Resampling.BILINEAR) for each in grey]) / 255
        strongest = shares.argmax(0)
        colours = np.array([colour_of(number) for number in range(len(maps))])
        covered = _HEAT * shares.max(0)[..., None] ** 2  # what is far below the highest value hides nothing
        inside = _inside(drawn, window)
        inside[:] = (inside * (1 - covered) + covered * colours[strongest]).astype(np.uint8)
        return _with_legend(drawn, [(name, colour_of(number)) for number, name in enumerate(names[:_LISTED])])


class PixelClasses(FrameAnswer):
    """`classes`, uint8 (H, W): the class of each pixel, from maps upsampled bilinearly as for the metric."""

    def read(self, maps: Tensor, info: BundleInfo) -> list[Arrays]:
        raised = F.interpolate(maps, size=info.source_size, mode="bilinear", align_corners=False)
        return [{"classes": frame.numpy()} for frame in raised.argmax(1).to(torch.uint8)]

    def draw(self, picture: Picture, arrays: Arrays, window: Window, info: BundleInfo) -> Picture:
        classes = _resized(arrays["classes"], window, Image.Resampling.NEAREST)
        colours = np.array([colour_of(number) for number in range(len(info.class_names))])
        drawn = _darkened_outside(picture, window)
        inside = _inside(drawn, window)
        tinted = (1 - _TINT) * inside + _TINT * colours[classes]
        is_background = np.array([name.lower() == "background" for name in info.class_names])
        inside[:] = np.where(is_background[classes][..., None], inside, tinted).astype(np.uint8)
        shares = np.bincount(classes.ravel(), minlength=len(info.class_names)) / classes.size
        named = [n for n in np.argsort(-shares) if shares[n] >= _IN_LEGEND and not is_background[n]]
        return _with_legend(drawn, [(info.class_names[n], colour_of(int(n))) for n in named])


class Boxes(FrameAnswer):
    """`boxes` float32 (K, 4) of x0, y0, x1, y1, `scores` (K,) and `classes` (K,), the highest score first."""

    def read(self, maps: Tensor, info: BundleInfo) -> list[Arrays]:
        options = {name: info.task_options[name] for name in _BOX_OPTIONS if name in info.task_options}
        found = decode(maps, *info.source_size, **options)
        return [
            {"boxes": each.boxes.numpy(), "scores": each.scores.numpy(), "classes": each.classes.numpy()}
            for each in found
        ]

    def join(self, frames: Sequence[Arrays]) -> Arrays:
        """All boxes in a row; `frame` says which frame each is of."""
        if not frames:
            return {}
        numbers = [np.full(len(frame["boxes"]), number) for number, frame in enumerate(frames)]
        joined = {name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]}
        return {"frame": np.concatenate(numbers), **joined}

    def draw(self, picture: Picture, arrays: Arrays, window: Window, info: BundleInfo) -> Picture:
        image = Image.fromarray(_darkened_outside(picture, window))
        pen, font = ImageDraw.Draw(image), _font(image.height)
        height, width = info.source_size
        scale = np.array([window.width / width, window.height / height] * 2)
        shift = np.array([window.left, window.top] * 2)
        for box, score, number in zip(arrays["boxes"], arrays["scores"], arrays["classes"], strict=True):
            if score < _DRAWN_SCORE:
                break
            x0, y0, x1, y1 = (box * scale + shift).tolist()
            colour = colour_of(int(number))
            pen.rectangle((x0, y0, x1, y1), outline=colour, width=max(2, image.height // 200))
            _write(pen, (x0, y0), f"{info.class_names[int(number)]}: {score:.2f}", colour, font)
        return np.asarray(image)


class SaliencyMap(FrameAnswer):
    """`saliency`, float16 (H, W) in [0, 1]: how much each pixel is looked at."""

    def read(self, maps: Tensor, info: BundleInfo) -> list[Arrays]:
        raised = F.interpolate(maps, size=info.source_size, mode="bilinear", align_corners=False)
        return [{"saliency": frame[0].numpy().astype(np.float16)} for frame in raised.clamp(0, 1)]

    def draw(self, picture: Picture, arrays: Arrays, window: Window, info: BundleInfo) -> Picture:
        grey = (arrays["saliency"].astype(np.float32) * 255).astype(np.uint8)
        share = _resized(grey, window, Image.Resampling.BILINEAR).astype(np.float32) / 255
        drawn = _darkened_outside(picture, window)
        inside = _inside(drawn, window)
        heat = np.stack([np.full_like(share, 255), 255 * share**2, np.zeros_like(share)], axis=-1)  # red to yellow
        covered = _HEAT * share[..., None]
        inside[:] = (inside * (1 - covered) + covered * heat).astype(np.uint8)
        return drawn


_BOX_OPTIONS = ("max_detections", "score_threshold")

FRAME_ANSWERS: Mapping[str, FrameAnswer] = {
    "segmentation": PixelClasses(),
    "detection": Boxes(),
    "saliency": SaliencyMap(),
}
"""Task -> how its maps are read; those of other tasks are given as they are."""


def has_maps(info: BundleInfo) -> bool:
    """Whether a student answers for frames, and not for a clip as a whole."""
    return info.task in FRAME_ANSWERS or info.input_type.reads == "frames"


def scores_of(outputs: Tensor, info: BundleInfo) -> Tensor:
    """Scores (N, C) of the outputs (N, C) for whole clips: probabilities, where the task is one of the package."""
    kind = TASKS[info.task].outputs if info.task in TASKS else "other"
    if kind == "multiclass":
        return outputs.softmax(1)
    return outputs.sigmoid() if kind == "multilabel" else outputs


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of a class."""
    if number < len(_COLOURS):
        return _COLOURS[number]
    value = (0.95, 0.6)[number % 2]  # neighbouring hues differ in brightness
    red, green, blue = colorsys.hsv_to_rgb((number * 0.618 + 0.3) % 1, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _inside(picture: Picture, window: Window) -> Picture:
    return picture[window.top : window.top + window.height, window.left : window.left + window.width]


def _darkened_outside(picture: Picture, window: Window) -> Picture:
    """A copy."""
    drawn = (picture * _OUTSIDE).astype(np.uint8)
    _inside(drawn, window)[:] = _inside(picture, window)
    return drawn


def _resized(values: npt.NDArray[Any], window: Window, how: Image.Resampling) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(values).resize((window.width, window.height), how))


def _font(height: int) -> Any:
    return ImageFont.load_default(size=max(11, height // 32))


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: Any, font: Any) -> None:
    """Text on its colour, above a place, or below where there is no room."""
    left, _, right, bottom = font.getbbox(text)
    width, height = right - left + 6, bottom + 4
    x = min(max(0.0, place[0]), max(0.0, pen.im.size[0] - width))
    y = place[1] - height if place[1] >= height else place[1]
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    brightness = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]
    pen.text((x + 3, y + 1), text, fill=(0, 0, 0) if brightness > 110 else (255, 255, 255), font=font)


def _with_legend(picture: Picture, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> Picture:
    image = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(image), _font(image.height)
    y = 4.0
    for name, colour in entries:
        height = font.getbbox(name)[3] + 4
        if y + height > image.height:
            break
        _write(pen, (4, y + height), name, colour, font)
        y += height + 2
    return np.asarray(image)
