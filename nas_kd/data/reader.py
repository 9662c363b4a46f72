"""Reading of batches ahead of their use: in the training's own thread, in a second thread, or in worker processes.

Which items a batch has is decided by the loader, so the way they are read changes nothing but the time. A second thread
reads data sets of which `reads_ahead` is true, since it touches no global random generator. Worker processes read any
data set that can be pickled; they come from a clean process (the start method `forkserver`), never from the training's
own, whose threads a fork would leave in an unknown state. In a worker the global random generators are seeded for each
batch, so that items with random parts depend on seed, epoch and batch alone.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import random
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nas_kd.data.ahead import map_ahead
from nas_kd.data.augment import Batch
from nas_kd.data.sample import ClipDataset, DataError, Sample, Subset

BATCHES_AHEAD = 2
"""Batches that a thread, or each worker, reads before they are needed."""

_one_at_a_time = threading.Lock()  # data sets need not be made for several threads


class Rows(NamedTuple):
    """Positions of the items of one batch, and the seed of random parts of items."""

    positions: npt.NDArray[np.int64]
    seed: tuple[int, int, int]


class Read(NamedTuple):
    """A batch, and the seconds that reading it took where it was read."""

    batch: Batch
    seconds: float


class BatchReader:
    """Reads the batches of a data set that is not in memory.

    Args:
        dataset: What to read.
        keys: Of the sample to keep; all by default.
        workers: Processes that read; 0 reads in this one.
        pin: Whether batches are put into pinned memory, for a GPU.
    """

    def __init__(self, dataset: ClipDataset, keys: tuple[str, ...] | None, workers: int, *, pin: bool) -> None:
        self.workers = workers
        self._stacked = _Stacked(dataset, keys)
        base = dataset.base if isinstance(dataset, Subset) else dataset
        self._reads_ahead = bool(getattr(base, "reads_ahead", False))
        self._pin = pin
        self._rows: list[Rows] = []  # what the workers' loader iterates over
        self._loader: DataLoader[Read | DataError] | None = None

    def read(self, rows: Sequence[Rows]) -> Iterator[Read]:
        """The batches, in order.

        Raises:
            DataError: An item cannot be read, or the data set cannot be sent to worker processes.
        """
        if self.workers:
            yield from self._by_workers(rows)
        elif self._reads_ahead:
            yield from map_ahead(self._here, rows, threads=1, most=BATCHES_AHEAD)
        else:
            for one in rows:
                yield self._here(one)

    def _here(self, rows: Rows) -> Read:
        with _one_at_a_time:
            batch, seconds = self._stacked.read(rows.positions)
        return Read(_pinned(batch) if self._pin else batch, seconds)

    def _by_workers(self, rows: Sequence[Rows]) -> Iterator[Read]:
        if self._loader is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["nas_kd.data.reader"])
            self._loader = DataLoader(
                self._stacked,
                batch_size=None,
                sampler=self._rows,
                num_workers=self.workers,
                prefetch_factor=BATCHES_AHEAD,
                collate_fn=_as_it_is,
                worker_init_fn=end_with_parent,
                multiprocessing_context=context,
                persistent_workers=True,
                pin_memory=self._pin,
                generator=torch.Generator(),  # its own: workers take no number from the training's
            )
        self._rows[:] = rows
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Got pickle error")  # torch's words for the error below
                found = iter(self._loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DataError(
                f"data.workers needs data sets that can be sent to another process, but one cannot be pickled "
                f"({error}); open files and define functions where items are read, or set data.workers: 0"
            ) from error
        for one in found:
            if isinstance(one, DataError):
                # A new error: one that this frame holds would keep it alive, and with it the worker processes.
                raise DataError(str(one))
            yield Read(*one)


class _Stacked(Dataset["Read | DataError"]):
    """Batches of a data set, by their rows; a class and not a closure, since worker processes must receive it."""

    def __init__(self, dataset: ClipDataset, keys: tuple[str, ...] | None) -> None:
        self.dataset = dataset
        self.keys = keys

    def read(self, positions: npt.NDArray[np.int64]) -> Read:
        begin = time.perf_counter()
        samples = [select(self.dataset[position], self.keys) for position in positions.tolist()]
        batch = {key: _stack(key, samples, positions) for key in samples[0]}
        return Read(batch, time.perf_counter() - begin)

    def __getitem__(self, rows: Rows) -> Read | DataError:
        """A batch in a worker process; an error of the data is returned, since torch would add a traceback to it."""
        words = np.random.SeedSequence(rows.seed).generate_state(2)
        torch.manual_seed(int(words[0]))
        random.seed(int(words[1]))
        np.random.seed(words)
        try:
            return self.read(rows.positions)
        except DataError as error:
            return DataError(str(error))


def _stack(key: str, samples: Sequence[Sample], positions: npt.NDArray[np.int64]) -> Tensor:
    """One key of the items of a batch.

    Raises:
        DataError: It is not of one type and one shape; torch would take the widest of several types.
    """
    forms = {_form(sample.get(key)): position for sample, position in zip(samples, positions.tolist(), strict=True)}
    if len(forms) > 1 or not isinstance(samples[0][key], Tensor):
        found = ", ".join(f"{form} in item {position}" for form, position in forms.items())
        raise DataError(
            f"all items of a data set must hold a tensor of one type and one shape at {key!r}, but it is {found}"
        )
    return torch.stack([sample[key] for sample in samples])


def _form(value: object) -> str:
    if value is None:
        return "missing"
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def end_with_parent(_: int) -> None:
    """End this worker process when the process that it reads for has died.

    torch's own watch looks at the parent in the sense of the system, which is the server that forks workers; and that
    server lives as long as a worker does.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a parent"

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def select(tensors: Mapping[str, Tensor], keys: tuple[str, ...] | None) -> dict[str, Tensor]:
    """Some tensors of a sample or of a batch.

    Raises:
        DataError: One of them is not there.
    """
    if keys is None:
        return dict(tensors)
    for key in keys:
        if key not in tensors:
            raise DataError(f"the data set has no {key!r}; choose from {', '.join(tensors)}")
    return {key: tensors[key] for key in keys}


def _pinned(batch: Batch) -> Batch:
    return {key: value.pin_memory() for key, value in batch.items()}


def _as_it_is(read: Any) -> Any:
    """In place of torch's own conversion, which rebuilds tuples."""
    return read
