"""A data set of the user's of which every item is held against the contract when it is read.

A batch of items that differ in their types would become one of the wider type without a word: bytes beside floats in
[0, 1] are nearly black, and beside floats from 0 to 255 they hide a fault of the data set.
"""

from __future__ import annotations

from collections.abc import Sequence

from nas_kd.data.sample import KEYS, ClipDataset, DataError, DataInfo, MemoryDataset, Sample, check_sample
from nas_kd.settings.user_code import users_line

_ATTRIBUTES = ("labels", "identity", "fingerprint", "reads_ahead", "without_overlap")


class CheckedDataset:
    """The items of another data set, as they are.

    Args:
        base: The data set.
        info: What it promised.
        name: Of the split, for messages.

    Raises:
        DataError: When an item is read, or here for the first one: the rule that it breaks.
    """

    def __init__(self, base: ClipDataset, info: DataInfo, name: str) -> None:
        self.base, self.info, self.name = base, info, name
        for attribute in _ATTRIBUTES:  # only those that are there: what is missing means something
            if getattr(base, attribute, None) is not None:
                setattr(self, attribute, getattr(base, attribute))
        first = read_item(base, 0, f"{name}[0]")
        check_sample(first, info, f"{name}[0]")
        self._forms = _forms(first)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int, /) -> Sample:
        where = f"{self.name}[{index}]"
        sample = read_item(self.base, index, where)
        check_sample(sample, self.info, where)
        forms = _forms(sample)
        for key in self._forms | forms:
            if forms.get(key) != self._forms.get(key):
                raise DataError(
                    f"{where}[{key!r}] must be as in {self.name}[0], {self._forms.get(key, 'not there')}, but it is "
                    f"{forms.get(key, 'not there')}; the items of a data set may differ in their values alone"
                )
        labels: Sequence[int] | None = getattr(self, "labels", None)
        if labels is not None and self.info.num_classes and int(labels[index]) != int(sample["label"]):
            raise DataError(
                f"{self.name}.labels must give the classes of the items, but it gives item {index} "
                f"{int(labels[index])} and {where}['label'] is {int(sample['label'])}; correct one of them, or leave "
                "the attribute out"
            )
        return sample


def checked(dataset: ClipDataset, info: DataInfo, name: str) -> ClipDataset:
    """A data set whose items are checked: all of them here, where they are in memory, else when they are read.

    Args:
        dataset: Of the user's.
        info: What it promised.
        name: Of the split, for messages.

    Raises:
        DataError: The rule that an item breaks.
    """
    if not isinstance(dataset, MemoryDataset):
        return CheckedDataset(dataset, info, name)
    for index in range(len(dataset)):
        check_sample(dataset[index], info, f"{name}[{index}]")
    return dataset


def read_item(dataset: ClipDataset, index: int, where: str) -> Sample:
    """An item of a data set of the user's.

    Args:
        dataset: Of the user's.
        index: Of the item.
        where: Names it in messages.

    Raises:
        DataError: The data set's code raised something: what, and in which line.
    """
    try:
        return dataset[index]
    except DataError:
        raise
    except Exception as error:  # whatever a user's code raises, kept apart from failures of the package
        line = users_line(error)
        raise DataError(f"{where} could not be read: {type(error).__name__}{line}: {error}") from error


def _forms(sample: Sample) -> dict[str, str]:
    """Type and shape of what the contract knows; keys of a user's own are checked where a batch is made of them."""
    return {
        key: f"{value.dtype} {tuple(value.shape)}"
        for key, value in sample.items()
        if key in KEYS or key.startswith("map.")
    }
