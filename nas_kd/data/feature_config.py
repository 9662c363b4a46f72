"""Options of the `data` section of a campaign on frame features in numpy files, see `nas_kd.data.features`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from nas_kd.data.arrays import is_array
from nas_kd.data.feature_frames import FeatureFramesConfig
from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.label_form import ClassLabels
from nas_kd.data.source import LabelledConfig, Recognised, labels_in

SEPARATOR = ";"
"""Between the classes of one item."""

LOOKED_AT = 100  # items whose lengths say whether all have equally many frames


class FeatureOptions(FeatureFramesConfig, LabelledConfig):
    """The options; `FeaturesConfig` adds how they are loaded."""

    source: Literal["features"] = "features"
    multi_label: bool = Field(
        default=False,
        description="Give `labels` although each item has one class; where a row names several, they are always given.",
    )
    on_error: Literal["fail", "skip"] = Field(
        default="fail", description="fail: refuse the data set if a row is unusable; skip: leave such rows out."
    )
    val_share: float = Field(
        default=0.15, gt=0, lt=1, description="Share of the training split that validates where the csv has no val."
    )
    group: str | None = Field(
        default=None,
        description="Column of the csv; rows that agree in it, such as parts of one recording, stay on one side where "
        "training items are parted.",
    )
    train_share: float = Field(
        default=1.0, gt=0, le=1, description="Share of the training items that is kept, the same of each class."
    )
    distractors: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of each item's frames that is replaced by frames of other items of its split.",
    )
    shuffle_frames: bool = Field(default=False, description="Put the frames of each item in a random order.")
    noise: float = Field(
        default=0.0,
        ge=0,
        description="Standard deviation of Gaussian noise on each feature, in units of that feature's own one over "
        "the frames of the training split.",
    )
    seed: int = Field(
        default=0, ge=0, description="Decides what `train_share`, `distractors`, `shuffle_frames` and `noise` do."
    )

    @property
    def decoding(self) -> FileDecoding | None:
        """Says how many frames are kept, where nets see fewer."""
        return None if self.stored_frames is None else FileDecoding(stored=(self.stored_frames, 0, 0))

    @property
    def label_form(self) -> ClassLabels:
        """One class or several for each item."""
        return ClassLabels(group=self.group)

    @property
    def changes_items(self) -> bool:
        """Whether items are made harder than their files say."""
        return bool(self.distractors or self.shuffle_frames or self.noise)

    @classmethod
    def recognise(cls, root: Path) -> Recognised | None:
        found = labels_in(root, ("path", "label", "split"))
        if found is None or not is_array(found[1][0]["path"]):
            return None
        labels, rows = found
        data: dict[str, Any] = {"root": str(root), "labels": labels}
        first = [root / row["path"] for row in rows[:LOOKED_AT] if row["path"].endswith(".npy")]
        lengths = {len(np.load(path, mmap_mode="r")) for path in first if path.is_file()}
        if len(lengths) > 1:  # then the section must say how many are taken
            data["frames"] = int(np.median(sorted(lengths)))
        several = any(SEPARATOR in row["label"] for row in rows)
        return Recognised(data, "multilabel" if several else "classification")
