"""Where data come from: generated clips, a folder, labelled frames, frame features, or a function of the user's own.

`load` turns a `DataConfig` into `Splits`; `ClipLoader` turns a data set into batches. A new source is a module with a
config and a loader, one entry in `SOURCES` and one member of `DataConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import Field

from nas_kd.data.augment import Augment, Batch, augment_batch, normalize
from nas_kd.data.camera import CameraConfig
from nas_kd.data.features import FeaturesConfig, load_features
from nas_kd.data.folder import FolderConfig, load_folder
from nas_kd.data.generated import GeneratedConfig, GeneratedDataset
from nas_kd.data.loader import ClipLoader
from nas_kd.data.own import OwnConfig, load_own
from nas_kd.data.sample import (
    IGNORE,
    ClipDataset,
    DataError,
    DataInfo,
    MemoryDataset,
    Sample,
    Subset,
    check_sample,
    labels_of,
)
from nas_kd.data.sequence_config import SequencesConfig
from nas_kd.data.sequences import load_sequences
from nas_kd.data.splits import Splits, grouped_split, make_splits, stratified_split
from nas_kd.data.table import UnusableRowsError
from nas_kd.data.youtube8m import YouTube8MConfig, load_youtube8m

DataConfig = Annotated[
    GeneratedConfig | FolderConfig | SequencesConfig | FeaturesConfig | YouTube8MConfig | OwnConfig,
    Field(discriminator="source"),
]
"""The `data` section of a campaign file; `source` says which one it is."""


class SourceLoader(Protocol):
    """What a source is: its own config in, splits out."""

    def __call__(self, config: Any, /, *, seed: int, gate_share: float) -> Splits:
        """The splits of `config`."""
        ...


def load_generated(config: GeneratedConfig, *, seed: int, gate_share: float = 0.5) -> Splits:
    """Splits of moving digits; `seed` parts weights and gates, `config.seed` makes the clips."""
    train, val, test = (GeneratedDataset(config, split) for split in ("train", "val", "test"))
    return make_splits(train, val, test, config.info, seed=seed, gate_share=gate_share)


SOURCES: Mapping[str, SourceLoader] = {
    "generated": load_generated,
    "folder": load_folder,
    "sequences": load_sequences,
    "features": load_features,
    "youtube8m": load_youtube8m,
    "own": load_own,
}
"""Name of a source to its loader."""


FEATURE_SOURCES = ("features", "youtube8m")
"""Names of the sources that give frame features instead of clips."""


def load(
    config: GeneratedConfig | FolderConfig | SequencesConfig | FeaturesConfig | YouTube8MConfig | OwnConfig,
    *,
    seed: int,
    gate_share: float = 0.5,
) -> Splits:
    """The splits that a config describes.

    Args:
        config: One of the members of `DataConfig`.
        seed: Seed of the campaign, ≥ 0: which training clips fit weights and which gates.
        gate_share: Share of the training clips that fits gates, in (0, 1).

    Raises:
        DataError: The data cannot be used; one sentence says why and what to do.
    """
    return SOURCES[config.source](config, seed=seed, gate_share=gate_share)


__all__ = [
    "FEATURE_SOURCES",
    "IGNORE",
    "SOURCES",
    "Augment",
    "Batch",
    "CameraConfig",
    "ClipDataset",
    "ClipLoader",
    "DataConfig",
    "DataError",
    "DataInfo",
    "FeaturesConfig",
    "FolderConfig",
    "GeneratedConfig",
    "GeneratedDataset",
    "MemoryDataset",
    "OwnConfig",
    "Sample",
    "SequencesConfig",
    "Splits",
    "Subset",
    "UnusableRowsError",
    "YouTube8MConfig",
    "augment_batch",
    "check_sample",
    "grouped_split",
    "labels_of",
    "load",
    "load_features",
    "load_folder",
    "load_generated",
    "load_own",
    "load_sequences",
    "load_youtube8m",
    "make_splits",
    "normalize",
    "stratified_split",
]
