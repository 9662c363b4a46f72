"""Options of the `data` section of a campaign on labelled frames of videos, see `nas_kd.data.sequences`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from nas_kd.data.camera import CameraConfig
from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.geometry import Fit
from nas_kd.data.label_form import LabelImages
from nas_kd.data.label_image import values_in
from nas_kd.data.sample import IGNORE, DataInfo
from nas_kd.data.source import CachedConfig, Recognised, labels_in
from nas_kd.data.spelling import unfit_names
from nas_kd.settings.names import names_as_text

LOOKED_AT = 50  # label images whose values say which classes there are


class SequenceOptions(CachedConfig):
    """The options; `SequencesConfig` adds how they are loaded."""

    source: Literal["sequences"] = "sequences"
    root: Path = Field(description="The folder; paths in the csv are relative to it and may not leave it.")
    labels: str = Field(default="labels.csv", description="The csv or Parquet file, relative to `root`.")
    frames: int = Field(default=8, ge=1, description="Frames a window.")
    stored_frames: PositiveInt | None = Field(
        default=None,
        description="Frames of a training window, of which nets see `frames`, for windows in time "
        "(`augment.temporal`); by default `frames`.",
    )
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        default=112, description="Side, or (height, width), in pixels."
    )
    fit: Fit = Field(default="crop", description="crop: cover and cut the middle; stretch: change the aspect ratio.")
    sequence: str = Field(default="sequence", description="Column of the csv with the name of the video.")
    order: str = Field(default="frame", description="Column of the csv with the frame number.")
    max_gap: int = Field(
        default=1, ge=1, description="Largest difference of the numbers of neighbouring frames inside a window."
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Frames from one training window to the next, half a window by default; windows of val and test "
        "never overlap.",
    )
    classes: tuple[str, ...] = Field(
        default=(), max_length=IGNORE, description="Names of the label values 0, 1, …; binary labels have names."
    )
    ignore: tuple[int, ...] = Field(default=(), description="Label values that no loss and no metric looks at.")
    binary: bool = Field(
        default=False, description="Every label value above 0 is the object, as in masks of 0 and 255."
    )
    points: bool = Field(
        default=False,
        description="Label values above 0 are fixation points, such as those of tracked eyes; none is lost where "
        "frames are scaled down. Labels are then binary.",
    )
    maps: dict[str, Path] = Field(
        default={},
        description="Name to folder, relative to `root`, of maps computed before, such as a teacher's: one a frame, at "
        "the frame's path therein, as grey .png or .jpg of 8 or 16 bits or as .npy of floats in [0, 1].",
    )
    boxes: bool = Field(default=False, description="Whether to give the tight box of each class but the first.")
    min_box_pixels: int = Field(
        default=16, ge=1, description="A class with fewer pixels in a frame, after scaling, has no box there."
    )
    val_share: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="Share of the training windows, by whole sequences, that validates where the csv has no val.",
    )
    flip_safe: bool = Field(default=True, description="Whether a mirrored clip keeps its labels.")
    camera: CameraConfig | None = Field(
        default=None, description="Clips out of single frames by a simulated camera; none by default."
    )
    decode_threads: int = Field(default=0, ge=0, description="Files decoded at once; 0: as many as cores, up to 8.")

    @field_validator("classes", mode="before", json_schema_input_type=tuple[str | int, ...])
    @classmethod
    def _names_are_text(cls, value: object) -> object:
        return names_as_text(value)

    @model_validator(mode="before")
    @classmethod
    def _frames_are_seen_whole(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("stored_size") is not None:
            raise ValueError(
                "stored_size is a key of source folder: nets that answer for each pixel are evaluated on whole frames, "
                "and what they find is drawn over these, so frames are stored as nets see them; raise size, and let "
                "augment take windows of a frame (crop)"
            )
        return value

    @model_validator(mode="after")
    def _classes_make_sense(self) -> SequenceOptions:
        if self.is_binary and len(self.classes) not in (0, 2):
            raise ValueError(
                f"classes must name background and object where labels are binary, but it is {self.classes}"
            )
        if not self.is_binary and len(self.classes) < 2:
            raise ValueError(
                f"classes must name at least 2 label values, but it names {len(self.classes)}; list the names of the "
                "values 0, 1, … or set binary: true"
            )
        if problem := unfit_names(self.classes):
            raise ValueError(f"classes must be names that differ, but {problem}")
        return self

    @model_validator(mode="after")
    def _stores_what_is_seen(self) -> SequenceOptions:
        if self.stored_frames is not None and self.stored_frames < self.frames:
            raise ValueError(
                f"stored_frames must be at least frames, {self.frames}, but is {self.stored_frames}; raise it or leave "
                "it out"
            )
        return self

    @model_validator(mode="after")
    def _points_and_maps_make_sense(self) -> SequenceOptions:
        if self.points and self.boxes:
            raise ValueError("boxes are tight around objects, but points: true makes labels points; drop one of both")
        for key in ("points", "maps"):
            if getattr(self, key) and self.camera is not None:
                raise ValueError(
                    f"{key} belong to frames as they are, but a camera moves them; leave out {key} or camera"
                )
        for name, folder in self.maps.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"names of maps must be of letters, digits, _ and -, but one is {name!r}")
            if folder.is_absolute() or ".." in folder.parts:
                raise ValueError(
                    f"the folder of the maps {name!r} must lie inside of root and be relative to it, but it is {folder}"
                )
        return self

    @classmethod
    def recognise(cls, root: Path) -> Recognised | None:
        found = labels_in(root, ("path", "label", "split", "sequence", "frame"))
        if found is None:
            return None
        labels, rows = found
        data: dict[str, Any] = {"root": str(root), "labels": labels, "frames": 8, "size": 112}
        step = max(len(rows) // LOOKED_AT, 1)
        values = values_in(root / row["label"] for row in rows[::step])
        if len(values) <= 2:
            data["binary"] = True
        else:
            ignore = [value for value in values if value == IGNORE]
            data["classes"] = [f"class_{value}" for value in range(max(set(values) - {IGNORE}) + 1)]
            data |= {"ignore": ignore} if ignore else {}
        return Recognised(data, "segmentation")

    @property
    def is_binary(self) -> bool:
        """Whether every label value above 0 means the same."""
        return self.binary or self.points

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def window_of(self, split: str) -> int:
        """Frames of a window of a split: more than nets see in training alone."""
        return self.stored_frames or self.frames if split == "train" else self.frames

    @property
    def decoding(self) -> FileDecoding:
        """How files become clips."""
        return FileDecoding(sampling="consecutive", fit=self.fit)

    @property
    def label_form(self) -> LabelImages:
        """How label images are written."""
        return LabelImages(
            values=self.mask_names,
            ignore=self.ignore,
            binary=self.binary,
            points=self.points,
            min_box_pixels=self.min_box_pixels if self.boxes else None,
            sequence=self.sequence,
            order=self.order,
            max_gap=self.max_gap,
            camera=self.camera_of("val") or self.camera_of("test"),
        )

    @property
    def mask_names(self) -> tuple[str, ...]:
        """Names of the values of masks."""
        return self.classes or ("background", "fixated" if self.points else "object")

    @property
    def info(self) -> DataInfo:
        """What a model must know. All clips have the same label; the classes are those of the masks."""
        height, width = self.frame_size
        return DataInfo(
            num_classes=len(self.mask_names),
            class_names=self.mask_names,
            frames=self.frames,
            height=height,
            width=width,
            name=self.root.resolve().name,
            flip_safe=self.flip_safe,
            mask_names=self.mask_names,
            box_names=self.mask_names[1:] if self.boxes else (),
            map_names=tuple(self.maps),
            points=self.points,
            stored_frames=self.window_of("train"),
            consecutive=True,
        )

    def camera_of(self, split: str) -> CameraConfig | None:
        """The camera of a split, if it has one."""
        return self.camera if self.camera is not None and split in self.camera.splits else None
