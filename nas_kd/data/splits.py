"""The splits of a campaign: one half of the training clips fits weights, the other half fits gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from nas_kd.data.sample import ClipDataset, DataError, DataInfo, Subset, labels_of
from nas_kd.data.spelling import notes_on_names

T = TypeVar("T")


@dataclass(frozen=True)
class Splits:
    """Everything a trial reads.

    Attributes:
        weights: Training items that fit the weights while gates are searched.
        gates: Training items that fit the gates; shares none with `weights`.
        val: Picks among students.
        test: Looked at once, at the end.
        info: What a model must know.
        skipped: (path, reason) of each item that was left out.
        notes: What the loader decided by itself and a report should say, such as a carved validation split.
        groups: Of `val` and `test`, the group of each item, such as the recording that it was cut from; a split is left
            out where its items are independent.
    """

    weights: Subset
    gates: Subset
    val: ClipDataset
    test: ClipDataset
    info: DataInfo
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights.base is not self.gates.base:
            raise DataError("weights and gates must be subsets of one training data set; build them with make_splits")
        if set(self.weights.indices) & set(self.gates.indices):
            raise DataError("weights and gates must share no item, but they do; build them with make_splits")
        for name in ("weights", "gates", "val", "test"):
            if len(getattr(self, name)) == 0:
                raise DataError(
                    f"the split {name!r} of {self.info.name!r} must not be empty; give it at least one clip"
                )
        for name, groups in self.groups.items():
            if len(groups) != len(getattr(self, name)):
                raise DataError(
                    f"groups must name the group of each of {len(getattr(self, name))} items of {name!r}, but name "
                    f"{len(groups)}"
                )

    @property
    def remarks(self) -> list[str]:
        """The notes, and what is to be said of the names of classes, of whatever source."""
        info = self.info
        return [*self.notes, *notes_on_names((info.class_names, info.mask_names, info.box_names), info.name)]

    @property
    def retrain(self) -> Subset:
        """The union of `weights` and `gates`, on which a derived student is trained."""
        return Subset(self.weights.base, sorted((*self.weights.indices, *self.gates.indices)))

    @property
    def compared(self) -> Subset:
        """Of `gates`, the items on which architectures are compared: of windows that overlap, as far as the data set
        tells them, those that share no frame. The others would cost many times as much and say little more."""
        without_overlap = getattr(self.gates.base, "without_overlap", None)
        return self.gates if without_overlap is None else Subset(self.gates.base, without_overlap(self.gates.indices))


def stratified_split(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Part items in two, each class by the same share.

    The second part gets round(share · len) items; classes whose share is not whole round up by the largest remainder,
    ties broken by the seed.

    Args:
        labels: Class of each item.
        share: Share of the second part, in (0, 1).
        seed: Decides which items go where.

    Returns:
        The positions of the first and of the second part, ascending.
    """
    rng = np.random.default_rng(seed)
    array = np.asarray(labels, dtype=np.int64)
    classes, counts = np.unique(array, return_counts=True)
    wanted = counts * share
    taken = np.floor(wanted).astype(np.int64)
    missing = round(len(array) * share) - int(taken.sum())
    order = np.lexsort((rng.random(len(classes)), taken - wanted))
    taken[order[:missing]] += 1
    second: list[int] = []
    for label, count in zip(classes, taken, strict=True):
        members = rng.permutation(np.flatnonzero(array == label))
        second.extend(int(index) for index in members[:count])
    chosen = set(second)
    return [index for index in range(len(array)) if index not in chosen], sorted(chosen)


def grouped_split(labels: Sequence[int], groups: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Part items in two and keep the items of a group together, such as overlapping windows of one recording.

    Groups are placed one by one, large ones first and equal ones in an order of the seed's, each where it leaves the
    class counts of the second part nearer to their share: exact balance is given up for whole groups.

    Args:
        labels: Class of each item.
        groups: Group of each item.
        share: Share of the second part that is aimed at, in (0, 1).
        seed: Decides which groups go where.

    Returns:
        The positions of the first and of the second part, ascending.
    """
    rng = np.random.default_rng(seed)
    classes, label_index = np.unique(np.asarray(labels), return_inverse=True)
    names, group_index = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), len(classes)), dtype=np.int64)
    np.add.at(counts, (group_index, label_index), 1)
    missing = counts.sum(axis=0) * share
    chosen = np.zeros(len(names), dtype=bool)
    for group in np.lexsort((rng.random(len(names)), -counts.sum(axis=1))):
        after = missing - counts[group]
        if np.square(after).sum() < np.square(missing).sum():
            chosen[group], missing = True, after
    second = chosen[group_index]
    return np.flatnonzero(~second).tolist(), np.flatnonzero(second).tolist()


def keep_classes(
    first: Sequence[int], second: Sequence[int], classes: Sequence[Sequence[int]], groups: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Move items from the second part to the first until the first has an item of every class that the second has.

    Args:
        first: Positions of the items that must not lose a class.
        second: Those of the others.
        classes: All classes of each item.
        groups: Group of each item; one moves as a whole.

    Returns:
        Both parts, ascending.
    """
    held = {name for index in first for name in classes[index]}
    moved: set[int] = set()
    for index in second:
        if index in moved or held.issuperset(classes[index]):
            continue
        together = [index] if groups is None else [other for other in second if groups[other] == groups[index]]
        moved.update(together)
        held.update(name for other in together for name in classes[other])
    return sorted({*first, *moved}), [index for index in second if index not in moved]


def joined_groups(groups: Sequence[str], contents: Sequence[str]) -> list[str]:
    """Groups of which those that share a content are one.

    Args:
        groups: Group of each item.
        contents: Content of each item, by any identity.

    Returns:
        Group of each item, named as the first of those that were joined.
    """
    joined = {group: group for group in groups}

    def name_of(group: str) -> str:
        while joined[group] != group:
            group = joined[group]
        return group

    first: dict[str, str] = {}
    for group, content in zip(groups, contents, strict=True):
        joined[name_of(group)] = name_of(first.setdefault(content, group))
    return [name_of(group) for group in groups]


def carve_val(
    by_split: dict[str, list[T]],
    classes: Sequence[Sequence[int]],
    groups: Sequence[str] | None,
    share: float,
    seed: int,
    what: str,
    *,
    contents: Sequence[str] | None = None,
    every_class: bool = True,
) -> str:
    """Move a share of the training items to val, which has none.

    Args:
        by_split: Items of each split; changed.
        classes: All classes of each training item; the first of them is stratified by.
        groups: Group of each training item, where groups stay whole.
        share: Share that is moved, in (0, 1).
        seed: Decides which.
        what: What items are called.
        contents: Content of each training item, by any identity: items of one content stay together, too.
        every_class: Whether every class must keep a training item.

    Returns:
        What a report should say of it.

    Raises:
        DataError: No item can be moved.
    """
    train = by_split["train"]
    first_class = [names[0] if names else 0 for names in classes]
    contents = _that_differ(contents)
    kept, carved = _part(first_class, groups, share, seed, contents)
    if every_class:
        together = contents if groups is None or contents is None else joined_groups(groups, contents)
        kept, carved = keep_classes(kept, carved, classes, groups if together is None else together)
    if not carved and every_class:
        raise DataError(
            f"a validation split needs training {what} whose classes others have too, but of {len(train)} none can be "
            "moved to it without a class losing its last one; add rows with split=val, or raise val_share"
        )
    by_split["train"], by_split["val"] = [train[index] for index in kept], [train[index] for index in carved]
    unseen = len({c for names in classes for c in names} - {c for index in carved for c in classes[index]})
    without = f"; {unseen} classes have none there" if unseen else ""
    return f"{len(carved)} of {len(train)} training {what} validate (stratified, seed {seed}{without})"


NO_GROUPS: Mapping[str, Sequence[str] | None] = MappingProxyType({})


def make_splits(
    train: ClipDataset,
    val: ClipDataset,
    test: ClipDataset,
    info: DataInfo,
    *,
    seed: int,
    gate_share: float = 0.5,
    groups: Mapping[str, Sequence[str] | None] = NO_GROUPS,
    contents: Sequence[str] | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> Splits:
    """Part the training data in `weights` and `gates`, stratified by class.

    Args:
        train: All training items.
        val: Validation items.
        test: Test items.
        info: What a model must know.
        seed: Seed of the parting, ≥ 0.
        gate_share: Share of `train` that fits the gates, in (0, 1).
        groups: Split -> group of each item, where it has groups. Training items of one group fit either weights or
            gates, see `grouped_split`.
        contents: Content of each training item, by any identity: those of one content fit either of both, too.
        skipped: Passed on.
        notes: Passed on.

    Raises:
        DataError: A split would be empty, or `gate_share` lies outside (0, 1).
    """
    if not 0.0 < gate_share < 1.0:
        raise DataError(f"gate_share must lie between 0 and 1, both excluded, but it is {gate_share}; 0.5 is usual")
    if len(train) < 2:
        raise DataError(
            f"the training split of {info.name!r} must hold at least 2 clips, one for weights and one for gates, "
            f"but it holds {len(train)}"
        )
    labels = labels_of(train)
    of_train, contents = groups.get("train"), _that_differ(contents)
    weights, gates = _part(labels, of_train, gate_share, seed, contents)
    if of_train is None:  # a class of one item trains weights, unless nothing would be left for gates
        with_classes = keep_classes(weights, gates, [[label] for label in labels], contents)
        weights, gates = with_classes if with_classes[1] else (weights, gates)
    if not weights or not gates:
        raise DataError(
            f"gate_share {gate_share} leaves {len(weights)} clips for weights and {len(gates)} for gates of "
            f"{len(train)}; choose a share nearer to 0.5 or give more clips (or groups, where they are kept together)"
        )
    return Splits(
        Subset(train, weights),
        Subset(train, gates),
        val,
        test,
        info,
        tuple(skipped),
        tuple(notes),
        {name: tuple(names) for name, names in groups.items() if names is not None and name != "train"},
    )


def _that_differ(contents: Sequence[str] | None) -> Sequence[str] | None:
    """The contents; None where all items have one, as in a first try with copies of a single clip."""
    return None if contents is None or len(set(contents)) < 2 else contents


def _part(
    labels: Sequence[int], groups: Sequence[str] | None, share: float, seed: int, contents: Sequence[str] | None
) -> tuple[list[int], list[int]]:
    """As `grouped_split` where there are groups, else as `stratified_split`.

    Items of one content stay together, unless nothing would be left for one of both parts.
    """
    if contents is not None:
        parts = _part_contents(labels, groups, share, seed, contents)
        if all(parts):
            return parts
    if groups is not None:
        return grouped_split(labels, groups, share, seed)
    return stratified_split(labels, share, seed)


def _part_contents(
    labels: Sequence[int], groups: Sequence[str] | None, share: float, seed: int, contents: Sequence[str]
) -> tuple[list[int], list[int]]:
    if groups is not None:
        return grouped_split(labels, joined_groups(groups, contents), share, seed)
    first: dict[str, int] = {}
    for index, content in enumerate(contents):
        first.setdefault(content, index)
    distinct = list(first)
    chosen = stratified_split([labels[index] for index in first.values()], share, seed)[1]
    second = {distinct[position] for position in chosen}
    places = range(len(contents))
    return [i for i in places if contents[i] not in second], [i for i in places if contents[i] in second]
