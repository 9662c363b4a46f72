"""`FileDecoding`: how files became the items of a data set, so that other files can be read in the same way later."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nas_kd.data.decode import read_clip
from nas_kd.data.framing import cut_batch, middle_cut
from nas_kd.data.geometry import Fit


class FileDecoding(BaseModel):
    """How a video, an image or a folder of images becomes a clip; `nas_kd.data.decode` does it.

    Attributes:
        sampling: `uniform`, frames at equal distances in time over the whole file; or `consecutive`, frames that follow
            each other.
        fit: `crop`, the frame is scaled until it covers the wanted size and the middle is cut out; or `stretch`, its
            aspect ratio changes.
        resize: how frames are scaled: `area` is that of FFmpeg's swscale.
        channels: their order.
        layout: of a clip, uint8.
        stored: (T, H, W) of the decoded clip, of which nets see frames at equal distances and the middle of each; None
            where they see all of it.
        upright: frames are turned as the file says, and pixels that are not square are made so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampling: Literal["uniform", "consecutive"] = "uniform"
    fit: Fit = "crop"
    resize: Literal["area"] = "area"
    channels: Literal["RGB"] = "RGB"
    layout: Literal["CTHW"] = "CTHW"
    stored: tuple[int, int, int] | None = None
    upright: Literal[True] = True

    def read(self, path: Path, frames: int, height: int, width: int) -> Tensor:
        """A clip as nets see it, before it is normalised.

        Args:
            path: as for `read_clip`.
            frames: T.
            height: H in pixels.
            width: W in pixels.

        Returns:
            uint8 (3, T, H, W), RGB.

        Raises:
            DecodeError: as by `read_clip`.
        """
        seen = (frames, height, width)
        stored = self.stored or seen
        clip = torch.from_numpy(np.ascontiguousarray(read_clip(path, *stored, self.fit)))
        return cut_batch({"clip": clip[None]}, middle_cut(stored, seen))["clip"][0]
