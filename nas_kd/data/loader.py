"""Data loader whose order and augmentation depend on seed and epoch alone, so that a training can be resumed.

The order of epoch e depends on (seed, e) alone, and the augmentation of an item on (seed, e, its index) alone: neither
on what ran before, nor on the batch size, nor on the number of workers. With a stated number of views (see `views`),
which of them an epoch shows depends on the same three. Which items are mixed with each other depends on the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nas_kd.data.augment import Batch, augment_batch
from nas_kd.data.augment_config import Augment, check_augment
from nas_kd.data.framing import Cut, cut_batch
from nas_kd.data.mix import MixConfig, mix_batch
from nas_kd.data.pace import Pace, PaceMeter
from nas_kd.data.reader import BatchReader, Read, Rows, select
from nas_kd.data.resident import stays_on
from nas_kd.data.sample import ClipDataset, DataError, MemoryDataset, Subset
from nas_kd.data.views import Views, augment_draws

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
        num_workers: Processes that read items ahead, for sets that are not in memory; 0: a thread does where the data
            set says `reads_ahead`, and else items are read when they are needed. See `reader`.
        keys: Keys of the sample to keep, such as `("clip", "label")`; all by default.
        seen: (T, H, W) that batches show of each clip, where more is stored; see `augment_batch`.
        consecutive: As for `augment_batch`.
        cuts: Parts of each stored clip that `evaluation` shows; then `seen` is not needed.
        mix: How the items of a batch are mixed, see `nas_kd.data.mix`; by default not at all.
        on_pace: Called once, with how fast the first batches were read and used.

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
        consecutive: bool = False,
        cuts: Sequence[Cut] = (),
        mix: MixConfig | None = None,
        on_pace: Callable[[Pace], None] | None = None,
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
        self.seen, self.consecutive, self.cuts = seen, consecutive, tuple(cuts)
        self.mix = mix if mix is not None and mix.is_on else None
        self.keys = None if keys is None else tuple(keys)
        self._index = (
            np.asarray(dataset.indices, dtype=np.int64) if isinstance(dataset, Subset) else np.arange(len(dataset))
        )
        self._num_items = int(self._index.max()) + 1
        self._view_draws = np.empty((0, 0, 0), np.float32) if self.views is None else self.views.draws(self._num_items)
        self._resident: dict[str, Tensor] | None = None
        self._reader: BatchReader | None = None
        self._meter = None if on_pace is None else PaceMeter(on_pace, max(num_workers, 1))

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
        asked = time.perf_counter()
        for positions, (batch, read_s) in zip(rows, self._read(rows, epoch), strict=True):
            got = time.perf_counter()
            index = self._index[positions]
            chosen = torch.from_numpy(draws[view[index], index])
            batch = augment_batch(batch, self.augment, chosen.to(self.device), self.seen, consecutive=self.consecutive)
            batch["index"] = torch.from_numpy(index).to(self.device)
            if self.mix is not None:
                batch = mix_batch(batch, self.mix, mixing)
            if self.views is not None:
                batch["view"] = torch.from_numpy(view[index]).to(self.device)
            yield batch
            if self._meter is not None:
                wait_s, asked = got - asked, time.perf_counter()
                self._meter.add(len(positions), read_s, wait_s, asked - got)

    def _read(self, rows: list[npt.NDArray[np.int64]], epoch: int) -> Iterator[Read]:
        """The items of each batch, on the device, and the seconds that reading them took."""
        base = self.dataset.base if isinstance(self.dataset, Subset) else self.dataset
        if isinstance(base, MemoryDataset):
            yield from self._read_memory(base, rows)
            return
        if self._reader is None:
            pin = self.device.type == "cuda"
            self._reader = BatchReader(self.dataset, self.keys, self.num_workers, pin=pin)
        seeded = [Rows(positions, (self.seed, epoch, number)) for number, positions in enumerate(rows)]
        for batch, seconds in self._reader.read(seeded):
            yield Read(self._to_device(batch), seconds)

    def _read_memory(self, base: MemoryDataset, rows: list[npt.NDArray[np.int64]]) -> Iterator[Read]:
        tensors = select(base.tensors, self.keys)
        if self._resident is None:
            size_bytes = sum(value[0].nbytes * len(self._index) for value in tensors.values())
            if stays_on(self.device, size_bytes):
                mine = torch.from_numpy(self._index)
                self._resident = {key: value[mine].to(self.device) for key, value in tensors.items()}
        for positions in rows:
            begin = time.perf_counter()
            if self._resident is not None:
                where = torch.from_numpy(positions).to(self.device)
                batch = {key: value[where] for key, value in self._resident.items()}
            else:
                where = torch.from_numpy(self._index[positions])
                batch = self._to_device({key: value[where] for key, value in tensors.items()})
            yield Read(batch, time.perf_counter() - begin)

    def _to_device(self, batch: Batch) -> Batch:
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
