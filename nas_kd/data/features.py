"""Source `features`: numpy files of frame features, listed in a csv file with the columns `path,label,split`.

A path is relative to the root and names one item [T, D], as `nas_kd.data.arrays` reads it: `train.npy#17` is row 17 of
an array [N, T, D]. `label` is the name of a class, or several names separated by `;`; classes are numbered as
`classes` lists them, by default in the order of `sort_labels`. Every item is read once, before anything is trained;
whatever cannot be used is reported then, all at once.

For studies of how much a better choice of frames can win, the data can be made harder: fewer training items, noise,
frames of other items, frames in disorder. All that is fixed by `seed`, the same in every epoch and every trial.

No split is held in memory. Items of .npy files are read from the files, which are memory-mapped; those of .npz files,
and those that are made harder, are unpacked and computed once, into the cache of decoded clips.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nas_kd.data.arrays import ArrayFiles, parse_place
from nas_kd.data.feature_config import SEPARATOR, FeatureOptions
from nas_kd.data.feature_frames import frames_of
from nas_kd.data.feature_items import FeaturesDataset, Row
from nas_kd.data.progress import track
from nas_kd.data.sample import DataError, DataInfo, DecodeError, Labelled
from nas_kd.data.spelling import first_of, foreign_labels
from nas_kd.data.splits import Splits, carve_val, make_splits, stratified_split
from nas_kd.data.table import SPLITS, UnusableRowsError, by_split, labelled_rows, locate, read_table, unknown_split
from nas_kd.data.table_classes import class_names, other_labels, unusable_label
from nas_kd.data.table_groups import groups_of, groups_where_given, notes_on_groups, shared_contents, unusable_group


class FeaturesConfig(FeatureOptions):
    """Frame features in numpy files with a csv file of labels and splits."""

    def load(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        return load_features(self, seed=seed, gate_share=gate_share)


def _named(row: Row, config: FeatureOptions) -> str:
    """The place of an item as the csv names it."""
    parts = [str(row.path.relative_to(config.root.resolve())), row.array, "" if row.row is None else str(row.row)]
    return "#".join(part for part in parts if part)


def load_features(config: FeatureOptions, *, seed: int, gate_share: float = 0.5) -> Splits:
    """Read the csv, check every item, and make the splits.

    Features are float16 where all files hold float16, else float32.

    Args:
        config: Where the data lie and how they are changed.
        seed: Seed of the split in weights and gates, and of a carved validation split.
        gate_share: Share of the training items that fits gates.

    Raises:
        UnusableRowsError: Rows cannot be used and `on_error` is "fail".
        DataError: The csv or the set as a whole cannot be used.
    """
    csv_path = config.root / config.labels
    table = read_table(csv_path, ("path", "label", "split", *([config.group] if config.group else [])))
    located, problems = _check_rows(table, config)
    rows, size, dtype, unfit = _check_items(located, config)
    problems += unfit
    if problems and config.on_error == "fail":
        raise UnusableRowsError(csv_path, len(table), problems)

    parts = by_split(rows, csv_path, len(problems), "item")
    frames = frames_of([row.length for row in rows], config.frames)
    stored = config.stored_frames or frames
    labels = {name: [label for row in part for label in row.labels] for name, part in parts.items()}
    notes: list[str] = []
    names = class_names(labels, csv_path, "items", config.listed_classes(), notes)
    if any(len(row.labels) > 1 for row in rows):
        config = config.model_copy(update={"multi_label": True})
    notes += notes_on_groups(parts, config.group, csv_path)
    if not parts["val"]:
        number = {name: index for index, name in enumerate(names)}
        classes = [[number[name] for name in row.labels] for row in parts["train"]]
        groups, contents = groups_of(parts["train"], config.group), [row.content for row in parts["train"]]
        carved = carve_val(parts, classes, groups, config.val_share, seed, "items", contents=contents)
        notes.append(f"{config.labels} has no usable val rows: {carved}")
    cache = config.open_cache()
    make = functools.partial(FeaturesDataset, class_names=names, config=config, frames=stored, size=size, dtype=dtype)
    unpacked = [entry for name in SPLITS for entry in make(parts[name], cache=cache).unpacked]
    cache.fill(unpacked, 1, "unpacking features")
    deviation = _deviation(make(parts["train"], cache=cache)) if config.noise else None
    contents_by_split = {name: {row.content: _named(row, config) for row in part} for name, part in parts.items()}
    notes += shared_contents(contents_by_split, csv_path)
    used = [row for part in parts.values() for row in part]
    notes += other_labels([(row.content, SEPARATOR.join(row.labels), _named(row, config)) for row in used], csv_path)
    _thin_out(parts, config, notes)
    if problems:
        notes.append(f"{len(problems)} of {len(table)} rows of {csv_path.name} were left out")
    for name in SPLITS:
        if config.distractors and len(parts[name]) == 1:
            raise DataError(
                f"distractors must come from other items of a split, but {name!r} holds one item only; set "
                "distractors: 0 or add rows"
            )
    train, val, test = (make(parts[name], cache=cache, deviation=deviation) for name in SPLITS)
    changed = [entry for part in (train, val, test) for entry in part.changed]
    cache.fill(changed, 1, "changing features", beside=unpacked)
    return make_splits(
        train,
        val,
        test,
        _info(config, names, frames, size),
        seed=seed,
        gate_share=gate_share,
        groups={name: groups_of(parts[name], config.group) for name in SPLITS},
        contents=[row.content for row in parts["train"]],
        skipped=problems,
        notes=notes,
    )


def load_labelled(config: FeatureOptions, split: str | None) -> Labelled:
    """The items of one split, or of all rows of a csv that needs no column `split`, to measure a student on.

    Args:
        config: Where the data lie; it lists the classes and says how many frames nets see, and does not change items. A
            column `group` is read where the csv has it.
        split: Which rows are read; None reads all.

    Raises:
        UnusableRowsError: A row cannot be used, or one of its labels is none of the classes.
        DataError: The csv cannot be used.
    """
    csv_path, names = config.root / config.labels, config.listed_classes()
    assert names is not None, "the classes are listed"
    assert config.frames is not None, "the frames are those that the student sees"
    table = labelled_rows(csv_path, ("path", "label"), split, [config.group] if config.group else [])
    located, problems = _check_rows(table, config)
    rows, size, dtype, unfit = _check_items(located, config)
    problems += unfit
    foreign = foreign_labels((label for row in rows for label in row.labels), names)
    for row in rows:
        if reasons := [foreign[label] for label in row.labels if label in foreign]:
            problems.append((_named(row, config), reasons[0]))
        elif len(row.labels) > 1 and not config.multi_label:
            problems.append((_named(row, config), "it has several labels, but the student gives one class"))
    if problems:
        raise UnusableRowsError(csv_path, len(table), problems, "mend or remove them")
    cache, stored = config.open_cache(), config.stored_frames or config.frames
    dataset = FeaturesDataset(rows, names, config, stored, size, dtype, cache)
    cache.fill(dataset.unpacked, 1, "unpacking features")
    groups = groups_where_given(rows, config.group, table)
    return Labelled(dataset, groups, _info(config, names, config.frames, size))


def _info(config: FeatureOptions, names: Sequence[str], frames: int, size: int) -> DataInfo:
    return DataInfo(
        num_classes=len(names),
        class_names=tuple(names),
        frames=frames,
        height=0,
        width=0,
        name=config.root.resolve().name,
        flip_safe=False,
        feature_size=size,
        multi_label=config.multi_label,
        stored_frames=config.stored_frames or frames,
    )


def _check_rows(
    table: Sequence[tuple[int, dict[str, str]]], config: FeatureOptions
) -> tuple[list[tuple[str, Row]], list[tuple[str, str]]]:
    """Rows, with their paths as written, that name a file inside the root, classes and a split; the others' reasons."""
    root = config.root.resolve()
    rows: list[tuple[str, Row]] = []
    problems: list[tuple[str, str]] = []
    first_line: dict[object, int] = {}
    for line, entry in table:
        text = entry["path"]
        labels = tuple(name.strip() for name in entry["label"].split(SEPARATOR))
        try:
            place = parse_place(text)
        except DecodeError as error:
            problems.append((text or f"line {line}", str(error) if text else "the path is empty"))
            continue
        path, reason = locate(root, place.file)
        item = (path, place.array, place.row)
        if reason:
            pass
        elif item in first_line:
            reason = f"line {line} names the same item as line {first_line[item]}"
        elif not all(labels):
            reason = unusable_label(entry["label"]) or f"the label {entry['label']!r} has an empty part"
        elif unusable_label(entry["label"]):
            reason = unusable_label(entry["label"])
        elif len(set(labels)) < len(labels):
            reason = f"the label {entry['label']!r} names a class twice"
        elif entry["split"] not in SPLITS:
            reason = unknown_split(entry["split"])
        elif unusable_group(entry, config.group):
            reason = unusable_group(entry, config.group)
        else:
            first_line[item] = line
            group = entry.get(config.group, "") if config.group else ""
            rows.append((text, Row(*item, labels, entry["split"], group, line)))
            continue
        problems.append((text, reason))
    return rows, problems


def _check_items(
    rows: Sequence[tuple[str, Row]], config: FeatureOptions
) -> tuple[list[Row], int, np.dtype[Any], list[tuple[str, str]]]:
    """Read every item: the usable rows with their lengths, the size of features, their type, and the others' reasons.

    Their size is that of most items, and so is whether they are bytes, which are in another range than floats.
    """
    files = ArrayFiles()
    found: list[tuple[str, Row, int, np.dtype[Any]]] = []
    reasons: dict[str, str] = {}
    for text, row in track(rows, "reading features", len(rows)):
        try:
            item = files.item(row.path, row.array, row.row)
        except DecodeError as error:
            reasons[text] = str(error)
            continue
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(item, dtype=np.float32)
        if not np.isfinite(numbers).all():
            reasons[text] = "features must be finite numbers within float32, but some are not"
            continue
        content = hashlib.blake2b(numbers.data, digest_size=16).hexdigest()
        found.append((text, replace(row, length=len(item), content=content), item.shape[1], item.dtype))
    size = Counter(entry[2] for entry in found).most_common(1)[0][0] if found else 0
    kinds = Counter(_kind(dtype) for _, _, own_size, dtype in found if own_size == size)
    kind = kinds.most_common(1)[0][0] if kinds else ""
    usable = []
    for text, row, own_size, dtype in found:
        if own_size != size:
            reasons[text] = f"its frames have {own_size} features, but most items' have {size}"
        elif _kind(dtype) != kind:
            reasons[text] = f"its features are {_kind(dtype)}, but most items' are {kind}; bring them to one range"
        else:
            usable.append(row)
    half = all(entry[3].type is np.float16 for entry in found if entry[2] == size)
    problems = [(text, reasons[text]) for text, _ in rows if text in reasons]
    return usable, size, np.dtype(np.float16 if half else np.float32), problems


def _kind(dtype: np.dtype[Any]) -> str:
    return "bytes (uint8)" if dtype == np.uint8 else "floats"


def _thin_out(parts: dict[str, list[Row]], config: FeatureOptions, notes: list[str]) -> None:
    """Keep `train_share` of the training rows."""
    if config.train_share == 1:
        return
    train = parts["train"]
    kept = [train[index] for index in stratified_split(_first_classes(train), config.train_share, config.seed)[1]]
    parts["train"] = kept
    notes.append(f"train_share {config.train_share}: {len(kept)} of {len(train)} training items are kept")
    lost = sorted({name for row in train for name in row.labels} - {name for row in kept for name in row.labels})
    if lost:
        notes.append(
            f"train_share {config.train_share} leaves no training item of {len(lost)} classes: {first_of(lost)}"
        )


def _first_classes(rows: Sequence[Row]) -> list[int]:
    number = {name: index for index, name in enumerate(sorted({row.labels[0] for row in rows}))}
    return [number[row.labels[0]] for row in rows]


def _deviation(train: FeaturesDataset) -> npt.NDArray[np.float64]:
    """[D] standard deviation of each feature over all frames, without Bessel's correction; in two passes."""
    count = len(train) * train.frames
    mean = sum(train.clean(index).sum(axis=0, dtype=np.float64) for index in range(len(train))) / count
    squares = sum(((train.clean(index) - mean) ** 2).sum(axis=0) for index in range(len(train)))
    deviation: npt.NDArray[np.float64] = np.sqrt(squares / count)
    return deviation
