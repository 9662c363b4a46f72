"""Data sources: generated clips, a folder, labelled frames, frame features, or a function of the user's own.

`load` turns a `DataConfig` into `Splits`; `ClipLoader` turns a data set into batches. A new source is a module with a
config, which loads its splits, and one member of `DataConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import Field

from nas_kd.data.augment import Batch, augment_batch, normalize
from nas_kd.data.augment_config import Augment, AugmentConfig
from nas_kd.data.camera import CameraConfig
from nas_kd.data.features import FeaturesConfig, load_features
from nas_kd.data.folder import FolderConfig, load_folder
from nas_kd.data.generated import GeneratedConfig, GeneratedDataset, load_generated
from nas_kd.data.loader import ClipLoader
from nas_kd.data.mix import MixConfig
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
from nas_kd.data.sequences import SequencesConfig, load_sequences
from nas_kd.data.source import SourceConfig
from nas_kd.data.splits import Splits, grouped_split, make_splits, stratified_split
from nas_kd.data.table import UnusableRowsError
from nas_kd.data.views import Views
from nas_kd.data.youtube8m import YouTube8MConfig, load_youtube8m

DataConfig = Annotated[
    GeneratedConfig | FolderConfig | SequencesConfig | FeaturesConfig | YouTube8MConfig | OwnConfig,
    Field(discriminator="source"),
]
"""The `data` section of a campaign file, one member a source; `source` says which one it is."""


SOURCES: Mapping[str, type[SourceConfig]] = {
    config.model_fields["source"].default: config for config in get_args(get_args(DataConfig)[0])
}
"""Name of a source -> its config."""


def load(config: SourceConfig, *, seed: int, gate_share: float = 0.5) -> Splits:
    """The splits that a config describes.

    Args:
        config: One of the members of `DataConfig`.
        seed: Seed of the campaign, ≥ 0: which training clips fit weights and which gates.
        gate_share: Share of the training clips that fits gates, in (0, 1).

    Raises:
        DataError: The data cannot be used; one sentence says why and what to do.
    """
    return config.load(seed=seed, gate_share=gate_share)


__all__ = [
    "IGNORE",
    "SOURCES",
    "Augment",
    "AugmentConfig",
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
    "MixConfig",
    "OwnConfig",
    "Sample",
    "SequencesConfig",
    "SourceConfig",
    "Splits",
    "Subset",
    "UnusableRowsError",
    "Views",
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
