"""A fixed number of augmented views of each item, the same ones in every training of a campaign.

A training that augments without end sees another version of an item in every epoch, so a teacher's outputs cannot be
kept. With a stated number of views it sees one of them in each epoch, and the teacher's outputs for each are computed
once. View v of item i depends on the seed, v and i alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nas_kd.data.augment import NUM_DRAWS, NUM_MORE_DRAWS, Batch, augment_batch
from nas_kd.data.augment_config import Augment, AugmentConfig, check_augment
from nas_kd.data.sample import DataError

_AUGMENT = 1  # the stream of random numbers that augments; 0 is that of the order of items
_CHOICE = 2  # the stream that says which view of an item an epoch shows
_MORE = 3  # the stream of what a section varies besides


@dataclass(frozen=True)
class Views:
    """The augmented views that there are of each item.

    Attributes:
        augment: A name or a section; "none" has one view.
        seed: Of the campaign, ≥ 0: all its trainings share the views.
        count: How many there are of each item, ≥ 1.

    Raises:
        DataError: An unknown augmentation, or a count that cannot be.
    """

    augment: Augment
    seed: int
    count: int

    def __post_init__(self) -> None:
        check_augment(self.augment)
        if self.count < 1 or (self.augment == "none" and self.count > 1):
            raise DataError(
                f"the number of views must be at least 1, and 1 where nothing is augmented, but it is {self.count} "
                f"with augment: {self.augment}"
            )

    def choose(self, seed: int, epoch: int, num_items: int) -> npt.NDArray[np.int64]:
        """Which view of each item an epoch shows: [num_items], equally likely, drawn anew in every epoch.

        Args:
            seed: Of the training.
            epoch: Number of the epoch.
            num_items: Of the data set; the choice for an item does not depend on it.
        """
        draws = draws_of(seed, epoch, num_items, stream=_CHOICE, width=1)[:, 0]
        return (draws.astype(np.float64) * self.count).astype(np.int64)

    def draws(self, num_items: int) -> npt.NDArray[np.float32]:
        """The random numbers of all views, [count, num_items, …]; empty where nothing is augmented."""
        return np.stack([augment_draws(self.augment, self.seed, view, num_items) for view in range(self.count)])

    def show(
        self,
        batch: Batch,
        view: int,
        num_items: int,
        seen: tuple[int, int, int] | None = None,
        *,
        consecutive: bool = False,
    ) -> Batch:
        """One view of a batch.

        Args:
            batch: With the `index` of each item, not augmented.
            view: Which one.
            num_items: Of the data set.
            seen: As for `augment_batch`.
            consecutive: As for `augment_batch`.

        Returns:
            The batch as a loader with these views gives it, with `view`, int64 [B].
        """
        index = batch["index"]
        draws = augment_draws(self.augment, self.seed, view, num_items)[index.cpu().numpy()]
        shown = augment_batch(
            batch, self.augment, torch.from_numpy(draws).to(index.device), seen, consecutive=consecutive
        )
        return {**shown, "view": torch.full_like(index, view)}


def augment_draws(augment: Augment, seed: int, number: int, num_items: int) -> npt.NDArray[np.float32]:
    """What decides how each item is augmented, [num_items, as many as `augment_batch` reads].

    Args:
        augment: How.
        seed: Of a training, or of the views of a campaign.
        number: Of the epoch, or of the view.
        num_items: How many rows.
    """
    if augment == "none":
        return np.empty((num_items, 0), dtype=np.float32)
    draws = draws_of(seed, number, num_items)
    if not isinstance(augment, AugmentConfig):
        return draws
    return np.hstack([draws, draws_of(seed, number, num_items, stream=_MORE, width=NUM_MORE_DRAWS)])


def draws_of(
    seed: int, number: int, num_items: int, *, stream: int = _AUGMENT, width: int = NUM_DRAWS
) -> npt.NDArray[np.float32]:
    """Uniform random numbers in [0, 1) for each item, [num_items, width].

    Row i is the same however many rows follow, so what is drawn for an item depends on its index alone.

    Args:
        seed: Of a training, or of the views of a campaign.
        number: Of the epoch, or of the view.
        num_items: How many rows.
        stream: Which of the independent streams of a seed.
        width: Numbers an item.
    """
    return np.random.default_rng((seed, number, stream)).random((num_items, width), dtype=np.float32)
