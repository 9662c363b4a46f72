"""The shared cache of a teacher's outputs: computed once a campaign, read by every trial.

Safe only where a training clip is the same each time it is seen, so a trial that augments asks the teacher itself.
Logits are kept as float32, feature maps as float16, both memory-mapped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nas_kd.data import Batch, ClipLoader
from nas_kd.files import write_text_atomically
from nas_kd.taps import ModelOutput
from nas_kd.teachers.teacher import Teacher


class TeacherCache:
    """Outputs of one teacher over one split, by the `index` of the clip.

    Args:
        folder: where `write` put them.

    Raises:
        ValueError: there is no complete cache in the folder.
    """

    def __init__(self, folder: Path) -> None:
        if not self.is_complete(folder):
            raise ValueError(f"no complete teacher cache in {folder}; delete the folder to have it made again")
        names: Mapping[str, str] = json.loads((folder / "cache.json").read_text())["files"]
        self._arrays: dict[str, npt.NDArray[np.generic]] = {
            name: np.load(folder / file, mmap_mode="r", allow_pickle=False) for name, file in names.items()
        }

    @property
    def taps(self) -> frozenset[str]:
        """Modules whose maps are kept."""
        return frozenset(self._arrays) - {"logits"}

    def __call__(self, batch: Batch) -> ModelOutput:
        """What the teacher gave for these clips, on the batch's device."""
        device = batch["index"].device
        rows = batch["index"].cpu().numpy()
        read = {name: torch.from_numpy(np.asarray(a[rows])).to(device).float() for name, a in self._arrays.items()}
        return ModelOutput(read.pop("logits"), read)

    @staticmethod
    def is_complete(folder: Path) -> bool:
        """Whether a whole cache is in the folder: its manifest is written last."""
        return (folder / "cache.json").is_file()

    @staticmethod
    def size_bytes(output: ModelOutput, num_clips: int) -> int:
        """What a cache of `num_clips` clips takes, judged by one batch's output."""
        each = output.logits[0].numel() * 4 + sum(f[0].numel() * 2 for f in output.features.values())
        return each * num_clips

    @staticmethod
    def write(
        folder: Path,
        teacher: Teacher,
        loader: ClipLoader,
        clip: Callable[[Batch], Tensor],
        num_clips: int,
        progress: Callable[[float, str], None],
    ) -> None:
        """Run the teacher over a split and keep what it gives; a cache that is complete is left as it is."""
        if TeacherCache.is_complete(folder):
            return
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[str, str] = {}
        arrays: dict[str, np.memmap] = {}
        for i, batch in enumerate(loader.epoch(0)):
            output = teacher(clip(batch))
            rows = batch["index"].cpu().numpy()
            for k, (name, value) in enumerate({"logits": output.logits, **output.features}.items()):
                if name not in arrays:
                    files[name] = f"{k}.npy"
                    dtype = np.float32 if name == "logits" else np.float16
                    shape = (num_clips, *value.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(folder / files[name], "w+", dtype=dtype, shape=shape)
                arrays[name][rows] = value.cpu().numpy()
            progress((i + 1) / len(loader), "teacher's outputs")
        for array in arrays.values():
            array.flush()
        # The manifest comes last: without it the folder counts as unfinished and is written again.
        write_text_atomically(folder / "cache.json", json.dumps({"files": files}) + "\n")
