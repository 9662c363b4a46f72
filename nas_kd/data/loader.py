"""Data loader whose order and augmentation depend on seed and epoch alone, so that a training can be resumed.

The order of epoch e depends on (seed, e) alone, and the augmentation of an item on (seed, e, its index) alone: neither
on what ran before, nor on the batch size, nor on the number of workers. With a stated number of views (see `views`),
which of them an epoch shows depends on the same three. Which items are mixed with each other depends on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nas_kd.data.augment import Batch, augment_batch
from nas_kd.data.augment_config import Augment, check_augment
from nas_kd.data.framing import Cut, cut_batch
from nas_kd.data.mix import MixConfig, mix_batch
from nas_kd.data.sample import ClipDataset, DataError, MemoryDataset, Sample, Subset
from nas_kd.data.views import Views, augment_draws

_RESIDENT_BYTES = 2 * 2**30
"""Sets up to this size are copied to an accelerator once, instead of batch by batch."""

_MIX = 4  # the stream of random numbers that mixes items of a batch
_ORDER = 0  # the stream of random numbers of the order; `views` has the others


class ClipLoader:
    """Batches of a data set, epoch by epoch.

    A batch is a dict of stacked tensors on `device`, with `index` int64 [B] beside the keys of the sample: the position
    of each item in the source split, that is in the base where `dataset` is a `Subset`. So what is cached by `index`
    over `Splits.retrain` serves `weights` and `gates` too.

    Args:
        dataset: What to read. A `MemoryDataset`, or a `Subset` of one, is indexed a batch at a time.
        batch_size: Items a batch; the last batch may be smaller.
        seed: Decides order and augmentation, ≥ 0.
        shuffle: Whether the items change order each epoch.
        augment: A name or a section, see `augment_batch`: another version of an item in each epoch. Or `Views`: one of
            a stated number of versions in each epoch, and `view`, int64 [B], says which.
        drop_last: Leave out a last batch that is not full.
        device: Where batches go; augmentation happens there.
        num_workers: Processes that read items, for sets that are not in memory; 0 reads here.
        keys: Keys of the sample to keep, such as `("clip", "label")`; all by default.
        seen: (T, H, W) that batches show of each clip, where more is stored; see `augment_batch`.
        cuts: Parts of each stored clip that `evaluation` shows; then `seen` is not needed.
        mix: How the items of a batch are mixed, see `nas_kd.data.mix`; by default not at all.

    Raises:
        DataError: A batch size below 1, an empty data set, `drop_last` with fewer items than one batch, an unknown
            augmentation; and, when batches are read, a key that the samples lack.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augment | Views = "none",
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        keys: Sequence[str] | None = None,
        seen: tuple[int, int, int] | None = None,
        cuts: Sequence[Cut] = (),
        mix: MixConfig | None = None,
    ) -> None:
        self.views = augment if isinstance(augment, Views) else None
        self.augment: Augment = augment.augment if isinstance(augment, Views) else augment
        check_augment(self.augment)
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, but it is {batch_size}")
        if len(dataset) == 0:
            raise DataError("a loader needs at least one item, but the data set is empty")
        if drop_last and len(dataset) < batch_size:
            raise DataError(
                f"drop_last leaves no batch of {len(dataset)} items at batch_size {batch_size}; lower batch_size"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.device = torch.device(device)
        self.num_workers = num_workers
        self.seen, self.cuts = seen, tuple(cuts)
        self.mix = mix if mix is not None and mix.is_on else None
        self.keys = None if keys is None else tuple(keys)
        self._index = (
            np.asarray(dataset.indices, dtype=np.int64) if isinstance(dataset, Subset) else np.arange(len(dataset))
        )
        self._num_items = int(self._index.max()) + 1
        self._view_draws = np.empty((0, 0, 0), np.float32) if self.views is None else self.views.draws(self._num_items)
        self._resident: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        """Number of batches an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def evaluation(self) -> Iterator[list[Batch]]:
        """The batches of the first epoch, each as all views of its items: one for each of `cuts`, or one."""
        for batch in self.epoch(0):
            yield [cut_batch(batch, cut) for cut in self.cuts] or [batch]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            epoch: Number of the epoch, ≥ 0; the same number gives the same batches, bit by bit.
        """
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch, _ORDER)).permutation(order)
        rows = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        rows = rows[: len(self)]
        if self.views is None:  # another version of each item in every epoch
            view = np.zeros(self._num_items, dtype=np.int64)
            draws = augment_draws(self.augment, self.seed, epoch, self._num_items)[None]
        else:
            view, draws = self.views.choose(self.seed, epoch, self._num_items), self._view_draws
        mixing = np.random.default_rng((self.seed, epoch, _MIX))
        for positions, batch in zip(rows, self._read(rows), strict=True):
            index = self._index[positions]
            chosen = torch.from_numpy(draws[view[index], index])
            batch = augment_batch(batch, self.augment, chosen.to(self.device), self.seen)
            batch["index"] = torch.from_numpy(index).to(self.device)
            if self.mix is not None:
                batch = mix_batch(batch, self.mix, mixing)
            if self.views is not None:
                batch["view"] = torch.from_numpy(view[index]).to(self.device)
            yield batch

    def _read(self, rows: list[npt.NDArray[np.int64]]) -> Iterator[Batch]:
        base = self.dataset.base if isinstance(self.dataset, Subset) else self.dataset
        if isinstance(base, MemoryDataset):
            yield from self._read_memory(base, rows)
        elif self.num_workers > 0:
            reader: DataLoader[Batch] = DataLoader(
                self.dataset,  # type: ignore[arg-type]  # map-style by its methods, not by inheritance
                batch_sampler=[positions.tolist() for positions in rows],
                num_workers=self.num_workers,
                collate_fn=_Collate(self.keys),
                pin_memory=self.device.type == "cuda",
            )
            for batch in reader:
                yield self._to_device(batch)
        else:
            collate = _Collate(self.keys)
            for positions in rows:
                yield self._to_device(collate([self.dataset[int(position)] for position in positions]))

    def _read_memory(self, base: MemoryDataset, rows: list[npt.NDArray[np.int64]]) -> Iterator[Batch]:
        tensors = _select(base.tensors, self.keys)
        if self.device.type != "cpu" and self._resident is None:
            size_bytes = sum(value[0].nbytes * len(self._index) for value in tensors.values())
            if size_bytes <= _RESIDENT_BYTES:
                mine = torch.from_numpy(self._index)
                self._resident = {key: value[mine].to(self.device) for key, value in tensors.items()}
        for positions in rows:
            if self._resident is not None:
                where = torch.from_numpy(positions).to(self.device)
                yield {key: value[where] for key, value in self._resident.items()}
            else:
                where = torch.from_numpy(self._index[positions])
                yield self._to_device({key: value[where] for key, value in tensors.items()})

    def _to_device(self, batch: Batch) -> Batch:
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}


class _Collate:
    """Stacks samples; a class and not a closure, since worker processes must receive it."""

    def __init__(self, keys: tuple[str, ...] | None) -> None:
        self.keys = keys

    def __call__(self, samples: list[Sample]) -> Batch:
        chosen = [_select(sample, self.keys) for sample in samples]
        return {key: torch.stack([sample[key] for sample in chosen]) for key in chosen[0]}


def _select(tensors: Mapping[str, Tensor], keys: tuple[str, ...] | None) -> dict[str, Tensor]:
    if keys is None:
        return dict(tensors)
    for key in keys:
        if key not in tensors:
            raise DataError(f"the data set has no {key!r}; choose from {', '.join(tensors)}")
    return {key: tensors[key] for key in keys}
