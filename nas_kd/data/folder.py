"""Source `folder`: clips in a folder, listed in a csv file with the columns `path,label,split` (others are ignored).

A path is relative to the root and names a video, an image (a still clip), or a folder of images (a clip). `label` is
the name of a class; classes are numbered as `classes` lists them, by default in the order of `sort_labels`. Every file
is decoded once, before anything is trained, into a cache on disk; whatever cannot be read is reported then, all at
once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator

from nas_kd.data.arrays import is_array
from nas_kd.data.cache import Entry, cache_key
from nas_kd.data.decode import read_clip
from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.file_identity import KnownFiles
from nas_kd.data.fingerprint import contents_of
from nas_kd.data.geometry import Fit
from nas_kd.data.label_form import ClassLabels
from nas_kd.data.sample import (
    DataInfo,
    DecodeError,
    Labelled,
    PartlyReadableError,
    Sample,
    became_unreadable,
)
from nas_kd.data.sequence_config import SequenceOptions
from nas_kd.data.shards import Clip
from nas_kd.data.source import LabelledConfig, Recognised, labels_in
from nas_kd.data.spelling import foreign_labels
from nas_kd.data.splits import Splits, carve_val, make_splits
from nas_kd.data.table import SPLITS, UnusableRowsError, by_split, labelled_rows, locate, read_table, unknown_split
from nas_kd.data.table_classes import class_names, other_labels, unusable_label
from nas_kd.data.table_groups import groups_of, groups_where_given, notes_on_groups, shared_contents, unusable_group


class FolderConfig(LabelledConfig):
    """A folder of videos or frame images with a csv file of labels and splits."""

    decodes: ClassVar[bool] = True
    stored_by: ClassVar[str] = "data.stored_frames"

    source: Literal["folder"] = "folder"
    frames: int = Field(default=8, ge=1, description="Frames a clip, taken uniformly over the whole video.")
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        default=112, description="Side, or (height, width), in pixels."
    )
    stored_frames: PositiveInt | None = Field(
        default=None,
        description="Frames of a clip that are kept, for temporal crops and several clips in evaluation; "
        "by default `frames`.",
    )
    stored_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, description="Side, or (height, width), of the frames that are kept, for crops; by default `size`."
    )
    fit: Fit = Field(default="crop", description="crop: cover and cut the middle; stretch: change the aspect ratio.")
    on_error: Literal["fail", "skip"] = Field(
        default="fail", description="fail: refuse the data set if a row is unusable; skip: leave such rows out."
    )
    val_share: float = Field(
        default=0.15, gt=0, lt=1, description="Share of the training split that validates where the csv has no val."
    )
    group: str | None = Field(
        default=None,
        description="Column of the csv; rows that agree in it, such as windows of one recording, stay on one side "
        "where training clips are parted.",
    )
    flip_safe: bool = Field(default=True, description="Whether a mirrored clip keeps its label.")
    decode_threads: int = Field(default=0, ge=0, description="Files decoded at once; 0: as many as cores, up to 8.")

    @classmethod
    def recognise(cls, root: Path) -> Recognised | None:
        found = labels_in(root, ("path", "label", "split"))
        if found is None or is_array(found[1][0]["path"]) or SequenceOptions.recognise(root) is not None:
            return None
        labels, _ = found
        return Recognised({"root": str(root), "labels": labels, "frames": 8, "size": 112}, "classification")

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def decoded_bytes(self, splits: Splits) -> int:
        items = sum(map(len, (splits.weights, splits.gates, splits.val, splits.test)))
        return 3 * math.prod(self.stored) * items

    @property
    def stored(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips that are kept."""
        size = self.stored_size or self.size
        height, width = (size, size) if isinstance(size, int) else size
        return (self.stored_frames or self.frames, height, width)

    @model_validator(mode="after")
    def _stores_what_is_seen(self) -> Self:
        if self.stored[0] < self.frames:
            raise ValueError(
                f"stored_frames must be at least frames, {self.frames}, but is {self.stored_frames}; raise it or leave "
                "it out"
            )
        if self.stored[1] < self.frame_size[0] or self.stored[2] < self.frame_size[1]:
            raise ValueError(
                f"stored_size must be at least size in height and width, {self.frame_size}, but is {self.stored[1:]}; "
                "raise it or leave it out"
            )
        return self

    @property
    def decoding(self) -> FileDecoding:
        """How files become clips."""
        stored = None if self.stored == (self.frames, *self.frame_size) else self.stored
        return FileDecoding(fit=self.fit, stored=stored)

    @property
    def label_form(self) -> ClassLabels:
        """A class for each clip."""
        return ClassLabels(group=self.group)

    def load(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        return load_folder(self, seed=seed, gate_share=gate_share)

    def outline(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        return load_folder(self, seed=seed, gate_share=gate_share, decode=False)


@dataclass(frozen=True)
class Row:
    """One usable row: the file, the text of its label, its split, its group, and the key of its decoded clip.

    Rows of equal files share a key, and so the clip.
    """

    path: Path
    label: str
    split: str
    group: str
    key: str


class FolderDataset:
    """Clips of a folder, read from the cache of decoded clips.

    Args:
        rows: Its items.
        class_names: By class index; a row's label is one of them.
        decoder: What reads and decodes the files.
    """

    reads_ahead = True

    def __init__(self, rows: Sequence[Row], class_names: Sequence[str], decoder: Decoder) -> None:
        self.rows = tuple(rows)
        number = {name: index for index, name in enumerate(class_names)}
        self.labels = [number[row.label] for row in self.rows]
        self._decoder = decoder

    @property
    def identity(self) -> str:
        """Changes with the content of the files and with their order, not with their places."""
        return contents_of((row.path for row in self.rows), self._decoder.known.content_of)

    @property
    def fingerprint(self) -> str:
        """Changes with the files and their order; the key of a row has the content of its file."""
        return " ".join(row.key for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Sample:
        clip = torch.from_numpy(self._decoder.read(self.rows[index]))
        return {"clip": clip, "label": torch.tensor(self.labels[index])}


class Decoder:
    """Files to clips of one shape, by way of the cache."""

    def __init__(self, config: FolderConfig) -> None:
        self.config = config
        frames, *size = config.stored
        self.shape = (3, *config.stored)
        self.settings = f"clip {frames} {tuple(size)} {config.fit}"
        self.cache = config.open_cache()
        self.known = KnownFiles(self.cache.folder, config.root)

    def read(self, row: Row) -> Clip:
        """The clip of a row that could be decoded before; decoded again should the cache have lost it."""
        try:
            return self.cache.read(row.key, self.shape, functools.partial(self.decode, row))
        except DecodeError as error:
            raise became_unreadable(row.path, error) from error

    def decode(self, row: Row) -> Clip:
        return read_clip(row.path, *self.config.stored, self.config.fit)

    def decode_all(self, rows: Sequence[Row]) -> dict[str, DecodeError]:
        """Bring every row into the cache; returns what is wrong with each that failed, by key."""
        entries = [Entry(row.key, self.shape, functools.partial(self.decode, row)) for row in rows]
        failed = self.cache.fill(entries, self.config.decode_threads)
        self.known.save()
        return failed


def load_folder(config: FolderConfig, *, seed: int, gate_share: float = 0.5, decode: bool = True) -> Splits:
    """Read the csv, check and decode every file, and make the splits.

    Args:
        config: Where the data lie and how clips are taken from them.
        seed: Seed of the split in weights and gates, and of a carved validation split.
        gate_share: Share of the training clips that fits gates.
        decode: Whether all files are decoded now; else each when it is read.

    Raises:
        UnusableRowsError: Rows cannot be used and `on_error` is "fail".
        DataError: The csv or the set as a whole cannot be used.
    """
    csv_path = config.root / config.labels
    table = read_table(csv_path, ("path", "label", "split", *([config.group] if config.group else [])))
    decoder = Decoder(config)
    rows, problems = _check_rows(table, decoder)
    failed = decoder.decode_all(rows) if decode else {}
    unreadable = [(row, failed[row.key]) for row in rows if row.key in failed]
    problems += [(_relative(row.path, config), str(error)) for row, error in unreadable]
    if problems and config.on_error == "fail":
        raise UnusableRowsError(csv_path, len(table), problems)
    parts = by_split([row for row in rows if row.key not in failed], csv_path, len(problems), "clip")
    labels_by_split = {name: [row.label for row in part] for name, part in parts.items()}
    notes: list[str] = []
    names = class_names(labels_by_split, csv_path, "clips", config.listed_classes(), notes)
    notes += notes_on_groups(parts, config.group, csv_path)
    contents = {name: {row.key: _relative(row.path, config) for row in part} for name, part in parts.items()}
    if not parts["val"]:
        number = {name: index for index, name in enumerate(names)}
        labels = [[number[row.label]] for row in parts["train"]]
        groups, keys = groups_of(parts["train"], config.group), [row.key for row in parts["train"]]
        carved = carve_val(parts, labels, groups, config.val_share, seed, "clips", contents=keys)
        notes.append(f"{csv_path.name} has no usable val rows: {carved}")
    if problems:
        partly = sum(isinstance(error, PartlyReadableError) for _, error in unreadable)
        damaged = f", {partly} of them because only a part of the video can be decoded" if partly else ""
        notes.append(f"{len(problems)} of {len(table)} rows of {csv_path.name} were left out{damaged}")
    notes += shared_contents(contents, csv_path)
    used = [row for part in parts.values() for row in part]
    notes += other_labels([(row.key, row.label, _relative(row.path, config)) for row in used], csv_path)
    train, val, test = (FolderDataset(parts[name], names, decoder) for name in SPLITS)
    return make_splits(
        train,
        val,
        test,
        _info(config, names),
        seed=seed,
        gate_share=gate_share,
        groups={name: groups_of(parts[name], config.group) for name in SPLITS},
        contents=[row.key for row in parts["train"]],
        skipped=problems,
        notes=notes,
    )


def load_labelled(config: FolderConfig, split: str | None) -> Labelled:
    """The clips of one split, or of all rows of a csv that needs no column `split`, to measure a student on.

    Args:
        config: Where the data lie and how clips are taken from them; it lists the classes. A column `group` is read
            where the csv has it.
        split: Which rows are read; None reads all.

    Raises:
        UnusableRowsError: A row cannot be used, or its label is none of the classes.
        DataError: The csv cannot be used.
    """
    csv_path, names = config.root / config.labels, config.listed_classes()
    assert names is not None, "the classes are listed"
    table = labelled_rows(csv_path, ("path", "label"), split, [config.group] if config.group else [])
    decoder = Decoder(config)
    rows, problems = _check_rows(table, decoder)
    failed = decoder.decode_all(rows)
    foreign = foreign_labels((row.label for row in rows), names)
    for row in rows:
        if row.label in foreign:
            problems.append((_relative(row.path, config), foreign[row.label]))
        elif row.key in failed:
            problems.append((_relative(row.path, config), str(failed[row.key])))
    if problems:
        raise UnusableRowsError(csv_path, len(table), problems, "mend or remove them")
    groups = groups_where_given(rows, config.group, table)
    return Labelled(FolderDataset(rows, names, decoder), groups, _info(config, names))


def _info(config: FolderConfig, names: Sequence[str]) -> DataInfo:
    height, width = config.frame_size
    return DataInfo(
        num_classes=len(names),
        class_names=tuple(names),
        frames=config.frames,
        height=height,
        width=width,
        name=config.root.resolve().name,
        flip_safe=config.flip_safe,
        stored_frames=config.stored[0],
        stored_size=config.stored[1:],
    )


def _check_rows(
    table: Sequence[tuple[int, dict[str, str]]], decoder: Decoder
) -> tuple[list[Row], list[tuple[str, str]]]:
    """Rows that name a file inside the root, once, with a label and a known split; and the others with reasons."""
    config = decoder.config
    root = config.root.resolve()
    rows: list[Row] = []
    problems: list[tuple[str, str]] = []
    first_line: dict[Path, int] = {}
    for line, entry in table:
        name = entry["path"] or f"line {line}"
        path, reason = locate(root, entry["path"])
        if not reason or reason.startswith("no such file"):
            if path in first_line:
                reason = f"line {line} names the same file as line {first_line[path]}"
            elif unusable_label(entry["label"]):
                reason = unusable_label(entry["label"])
            elif entry["split"] not in SPLITS:
                reason = unknown_split(entry["split"])
            else:
                reason = reason or unusable_group(entry, config.group)
        if not reason:
            try:
                key = cache_key(path, decoder.settings, decoder.known.content_of)
            except OSError as error:  # a folder that may not be listed
                reason = f"the path cannot be read ({error.strerror or error})"
            else:
                first_line[path] = line
                group = entry.get(config.group, "") if config.group else ""
                rows.append(Row(path, entry["label"], entry["split"], group, key))
                continue
        problems.append((name, reason))
    return rows, problems


def _relative(path: Path, config: FolderConfig) -> str:
    return str(path.relative_to(config.root.resolve()))
