"""The teacher's outputs for every view of every item, on disk: computed once a campaign, read by all its trainings.

A cache is a folder with one file for the logits and one for each tapped map, and `cache.json`, the manifest: what the
outputs depend on, their shapes, and a checksum of each block of items. A file is an array (items, views, positions, …)
in float16 or bfloat16 without a header; it is memory-mapped, so processes on one machine share what they read of it.
`cache_files` writes and checks them.

Shape legend: N items of a batch, K positions (frames) of each that are asked for, P positions that are kept; P is 1
where the teacher sees whole items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from nas_kd.data import Augment, AugmentConfig, Batch, Views
from nas_kd.data.augment_config import read_augment
from nas_kd.data.mix import PARTNER
from nas_kd.data.resident import stays_on
from nas_kd.settings.sizes import SizeText, parse_size
from nas_kd.settings.strict import Section
from nas_kd.taps import ModelOutput

MANIFEST = "cache.json"
FORMAT = 1  # raise when the files are laid out in another way
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

Dtype = Literal["float16", "bfloat16"]


class TeacherCacheConfig(Section):
    """How the outputs of the teacher are kept.

    Attributes:
        views: augmented versions of each training item whose outputs are kept, where a training augments; it then sees
            these and no others. 0 keeps nothing: every step runs the teacher, and each epoch augments anew.
        max_bytes: of all outputs together on disk; suffixes k, M, G, T. Where more would be needed, every step runs the
            teacher.
        dtype: `float16`, or `bfloat16` where values exceed 65,504.
    """

    views: int = Field(default=4, ge=0)
    max_bytes: Annotated[
        int,
        BeforeValidator(lambda value: parse_size(value, "bytes", "8G"), json_schema_input_type=SizeText),
        Field(gt=0),
    ] = 8 * 10**9
    dtype: Dtype = "float16"


@dataclass(frozen=True)
class CacheKey:
    """What the outputs in a cache depend on.

    Attributes:
        data: fingerprint of the training items.
        num_items: how many there are.
        inputs: how items reach the teacher: the kind of input, its shape, the normalisation.
        positions: P.
        teacher: hash of its weights.
        augment: of the views.
        views: how many of each item.
        seed: of the views.
        dtype: of the files.
    """

    data: str
    num_items: int
    inputs: str
    positions: int
    teacher: str
    augment: Augment
    views: int
    seed: int
    dtype: Dtype

    def differences(self, other: CacheKey) -> tuple[str, ...]:
        """Names of the fields in which two keys differ."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))


@dataclass(frozen=True)
class Output:
    """One file of a cache.

    Attributes:
        file: its name.
        shape: of one output of the teacher, without the batch dimension.
    """

    file: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What `cache.json` says.

    Attributes:
        key: what the outputs depend on.
        outputs: `logits` and the tapped modules -> their files.
        block: items of a block; the last one may have fewer.
        checksums: CRC-32 of each block, over all files; None for one that is not there yet.
    """

    key: CacheKey
    outputs: Mapping[str, Output]
    block: int
    checksums: tuple[int | None, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all blocks are there."""
        return None not in self.checksums

    def item_bytes(self, name: str) -> int:
        """Bytes of one item, with all its views and positions, in the file of an output."""
        return 2 * self.key.views * self.key.positions * prod(self.outputs[name].shape)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return self.key.num_items * sum(self.item_bytes(name) for name in self.outputs)

    def to_json(self) -> str:
        """The text of `cache.json`."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps(content, default=lambda section: section.model_dump(mode="json")) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a cache; None where there is none, or none that can be understood."""
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        if content["format"] != FORMAT:
            return None
        outputs = {name: Output(o["file"], tuple(o["shape"])) for name, o in content["outputs"].items()}
        key = CacheKey(**{**content["key"], "augment": read_augment(content["key"]["augment"])})
        return Manifest(key, outputs, content["block"], tuple(content["checksums"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class TeacherCache:
    """Outputs of one teacher for the training items, by `index`, `view` and, where it sees frames, `position`.

    Args:
        folder: of a complete cache.

    Raises:
        ValueError: there is no complete cache in the folder, or a file of it has another size.
    """

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        if manifest is None or not manifest.is_complete:
            raise ValueError(f"no complete teacher cache in {folder}; start the campaign again to have it computed")
        key = manifest.key
        self.views = Views(key.augment, key.seed, key.views)
        self._positions, self._size_bytes = key.positions, manifest.total_bytes
        self._device = torch.device("cpu")  # of the last batch
        self._outputs: dict[str, Tensor] = {}
        for name, output in manifest.outputs.items():
            path = folder / output.file
            if not path.is_file() or path.stat().st_size != key.num_items * manifest.item_bytes(name):
                raise ValueError(f"{path} has not the size of its outputs; start the campaign again to compute them")
            shape = (key.num_items * key.views * key.positions, *output.shape)
            # Copy on write: torch wants memory that can be written to, and the file must stay as it is.
            mapped = np.memmap(path, dtype=np.int16, mode="c", shape=shape)
            self._outputs[name] = torch.from_numpy(mapped).view(DTYPES[key.dtype])

    @property
    def taps(self) -> frozenset[str]:
        """Modules whose outputs are kept."""
        return frozenset(self._outputs) - {"logits"}

    def __call__(self, batch: Batch) -> ModelOutput:
        """What the teacher gave for a batch, in float32 on the batch's device.

        Args:
            batch: with `index` and `view`, int64 [N], of a loader that shows `views`; where the teacher sees frames,
                with `position`, int64 (N, K).

        Returns:
            Outputs (N, …); of frames (K · N, …): those of all first frames, then of all second ones, and so on.

        Raises:
            ValueError: the batch does not say which views it shows, or is mixed.
        """
        if PARTNER in batch:
            raise ValueError("cached outputs are those of whole clips, but the batch is mixed; run the teacher on it")
        needed = ("view", "position") if self._positions > 1 else ("view",)
        for name in needed:
            if name not in batch:
                raise ValueError(
                    f"cached outputs are those of stated views, but the batch has no {name!r}; take batches from a "
                    "loader with the views of the cache"
                )
        device = batch["index"].device
        if device != self._device:
            self._device = device
            if stays_on(device, self._size_bytes):
                self._outputs = {name: values.to(device) for name, values in self._outputs.items()}
        rows = batch["index"] * self.views.count + batch["view"]
        if "position" in batch:
            rows = (rows * self._positions + batch["position"].to(device).T).flatten()
        read = {}
        for name, values in self._outputs.items():
            found = values.index_select(0, rows.to(values.device))
            read[name] = found.to(device).float()
        return ModelOutput(read.pop("logits"), read)


def folder_name(augment: Augment) -> str:
    """Name of the folder with the cache of an augmentation."""
    if not isinstance(augment, AugmentConfig):
        return augment
    return f"{'+'.join(augment.parts)}-{hashlib.sha256(augment.model_dump_json().encode()).hexdigest()[:8]}"


def open_caches(folder: Path) -> dict[Augment, TeacherCache]:
    """The complete caches of a run: augmentation -> cache.

    Args:
        folder: with one cache an augmentation.
    """
    found: dict[Augment, TeacherCache] = {}
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        manifest = read_manifest(path.parent)
        if manifest is not None and manifest.is_complete:
            found[manifest.key.augment] = TeacherCache(path.parent)
    return found
