"""How the labels of files are written, as bundles keep it, so that a student can be measured on other files later.

The files themselves are read as `nas_kd.data.file_decoding` says.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from nas_kd.data.camera import CameraConfig
from nas_kd.data.sample import IGNORE


class ClassLabels(BaseModel):
    """A class for each clip or sequence of features, by its name: the column `label` of a table, beside `path`.

    The task says whether an item may have several, separated by `;`.

    Attributes:
        form: `classes`.
        group: column of items that belong together, such as windows of one recording, over which an interval is
            computed; None where items are independent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["classes"] = "classes"
    group: str | None = None


class LabelImages(BaseModel):
    """A label image for each frame: the column `label` of a table, beside `path` and those that order the frames.

    Attributes:
        form: `images`.
        values: meaning of the pixel values 0, 1, …
        ignore: pixel values that no metric looks at.
        binary: whether every other value above 0 is the second of `values`, as in masks of 0 and 255.
        points: whether pixels of the second of `values` are single points, of which none is lost by scaling.
        min_box_pixels: each of `values` but the first has its tight box in a frame where it has at least so many
            pixels, after scaling; None where no boxes are made.
        sequence: column with the name of the video.
        order: column with the number of the frame.
        max_gap: largest difference of the numbers of neighbouring frames of a clip.
        camera: makes the clips of its splits out of single frames; None where all are windows of videos.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["images"] = "images"
    values: tuple[str, ...] = Field(min_length=2, max_length=IGNORE)
    ignore: tuple[int, ...] = ()
    binary: bool = False
    points: bool = False
    min_box_pixels: int | None = Field(default=None, ge=1)
    sequence: str = "sequence"
    order: str = "frame"
    max_gap: int = Field(default=1, ge=1)
    camera: CameraConfig | None = None


LabelForm = Annotated[ClassLabels | LabelImages, Field(discriminator="form")]
