"""Windows of videos with one label image a frame, described by a csv file.

Columns: `path` of a frame, `label` of its label image, `split`, the sequence it belongs to, and its frame number; more
are allowed and ignored. Frames of one sequence and split whose numbers lie at most `max_gap` apart make a run, and
windows of T frames are cut from runs. Each frame is decoded once, with its labels, into the cache of clips, from which
windows are read; those that overlap share frames.

With a `camera`, the clips of its splits are made of single frames instead, see `nas_kd.data.camera`, and are kept in
the cache, too, as their motions do not change from epoch to epoch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from nas_kd.data.cache import Entry
from nas_kd.data.file_identity import KnownFiles
from nas_kd.data.fingerprint import contents_of
from nas_kd.data.frame_maps import find_map, no_map
from nas_kd.data.frame_store import PLANES, Frame, FrameStore
from nas_kd.data.sample import ClipDataset, DataError, DecodeError, Labelled
from nas_kd.data.sequence_config import SequenceOptions
from nas_kd.data.sequence_items import CameraDataset, WindowDataset, windows
from nas_kd.data.spelling import first_of
from nas_kd.data.splits import Splits, grouped_split, joined_groups, make_splits
from nas_kd.data.table import SPLITS, UnusableRowsError, labelled_rows, locate, read_table, unknown_split
from nas_kd.data.table_classes import other_labels
from nas_kd.data.table_groups import shared_contents, shared_groups

_DIGITS = 18  # of a frame number, at most
_MAKING = "making clips of a simulated camera"
_REMEDY = "mend the files or remove the rows"


class SequencesConfig(SequenceOptions):
    """A folder of labelled frames of videos with a csv file."""

    decodes: ClassVar[bool] = True
    stored_by: ClassVar[str] = "data.stored_frames"

    def decoded_bytes(self, splits: Splits) -> int:
        frames = len(splits.weights.base) * self.window_of("train") + (len(splits.val) + len(splits.test)) * self.frames
        return PLANES * frames * math.prod(self.frame_size)

    def load(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        return load_sequences(self, seed=seed, gate_share=gate_share)

    def outline(self, *, seed: int, gate_share: float = 0.5) -> Splits:
        return load_sequences(self, seed=seed, gate_share=gate_share, decode=False)


def load_sequences(config: SequenceOptions, *, seed: int, gate_share: float = 0.5, decode: bool = True) -> Splits:
    """Read the csv, check and decode every frame and its labels, and make the splits.

    Training sequences stay whole where there are at least two: each fits either weights or gates.

    Args:
        config: Where the data lie and how windows are taken from them.
        seed: Seed of the split in weights and gates, and of a carved validation split.
        gate_share: Share of the training windows that fits gates.
        decode: Whether all files are decoded now; else each when it is read.

    Raises:
        UnusableRowsError: Frames or label images cannot be used.
        DataError: The csv or the set as a whole cannot be used.
    """
    csv_path = config.root / config.labels
    table = read_table(csv_path, ("path", "label", "split", config.sequence, config.order))
    cache = config.open_cache()
    known = KnownFiles(cache.folder, config.root)
    frames, problems = _check_rows(table, config, known)
    frames.sort(key=lambda frame: (frame.sequence, frame.number))
    sequences = {name: [frame.sequence for frame in frames if frame.split == name] for name in SPLITS}
    notes = shared_groups(sequences, config.sequence, csv_path)
    if not problems:
        frames = _with_val(frames, config, seed, notes)
    notes += _shared_frames(frames, config, csv_path)
    by_split = {name: [frame for frame in frames if frame.split == name] for name in SPLITS}
    # Before the decoding, which takes long; but a row that is wrong is the better explanation.
    starts = {} if problems else {name: _starts(by_split[name], name, config, notes) for name in SPLITS}
    stores = {name: FrameStore(by_split[name], config, name, cache, known) for name in SPLITS}
    frame_entries = [entry for store in stores.values() for entry in store.entries]
    failed = cache.fill(frame_entries, config.decode_threads, "decoding frames") if decode else {}
    if decode:
        known.save()
    problems += [problem for store in stores.values() for problem in _undecoded(store, failed, config)]
    if problems:
        raise UnusableRowsError(csv_path, len(table), problems, _REMEDY)

    sets: dict[str, ClipDataset] = {}
    moving: list[Entry] = []
    for name, store in stores.items():
        if config.camera_of(name) is None:
            sets[name] = WindowDataset(store, starts[name], config.window_of(name), config)
        else:
            of_camera = CameraDataset(store, config, name, cache)
            moving += of_camera.entries
            sets[name] = of_camera
    if decode and moving:
        cache.fill(moving, config.decode_threads, _MAKING, beside=frame_entries)
    sequences_of: dict[str, list[str] | None] = {}
    for name in stores:
        camera = config.camera_of(name)
        copies = 1 if camera is None else camera.clips_per_image
        sequences_of[name] = [by_split[name][start].sequence for start in starts[name] for _ in range(copies)]
    sequences_of["train"] = _joined(sequences_of["train"] or [], by_split["train"])
    if len(set(sequences_of["train"] or ())) < 2:
        sequences_of["train"] = None
        notes.append(
            f"{csv_path.name} has one training sequence with windows: weights and gates share it, and windows of both "
            "may overlap"
        )
    return make_splits(
        sets["train"],
        sets["val"],
        sets["test"],
        config.info,
        seed=seed,
        gate_share=gate_share,
        groups=sequences_of,
        notes=notes,
    )


def load_labelled(config: SequenceOptions, split: str | None) -> Labelled:
    """The windows of one split, or of all rows of a csv that needs no column `split`, to measure a student on.

    They are made as those of that split of a campaign, all rows as those of `test`: none shares a frame with another,
    or a camera makes clips of single frames.

    Args:
        config: Where the data lie and how clips are taken from them.
        split: Which rows are read; None reads all.

    Raises:
        UnusableRowsError: A frame or its label image cannot be used.
        DataError: The csv cannot be used, or no window fits.
    """
    csv_path = config.root / config.labels
    table = labelled_rows(csv_path, ("path", "label", config.sequence, config.order), split)
    cache = config.open_cache()
    known = KnownFiles(cache.folder, config.root)
    frames, problems = _check_rows(table, config, known)
    frames.sort(key=lambda frame: (frame.sequence, frame.number))
    name = split or "test"
    camera = config.camera_of(name)
    starts = list(range(len(frames))) if camera else _windows(frames, name, config, config.max_gap)[0]
    if not starts and not problems:
        raise DataError(
            f"{csv_path} must hold at least one window of {config.frames} frames of a {config.sequence} whose numbers "
            f"are at most {config.max_gap} apart, but its {len(frames)} rows hold none; add the frames between, or "
            f"number neighbouring frames so in the column {config.order}"
        )
    store = FrameStore(frames, config, name, cache, known)
    failed = cache.fill(store.entries, config.decode_threads, "decoding frames")
    known.save()
    problems += _undecoded(store, failed, config)
    if problems:
        raise UnusableRowsError(csv_path, len(table), problems, _REMEDY)
    if camera is None:
        windows_of = WindowDataset(store, starts, config.frames, config)
        return Labelled(windows_of, [frames[start].sequence for start in starts], config.info)
    clips = CameraDataset(store, config, name, cache)
    cache.fill(clips.entries, config.decode_threads, _MAKING, beside=store.entries)
    groups = [frame.sequence for frame in frames for _ in range(camera.clips_per_image)]
    return Labelled(clips, groups, config.info)


def _undecoded(store: FrameStore, failed: Mapping[str, DecodeError], config: SequenceOptions) -> list[tuple[str, str]]:
    """(path, reason) of the frames of a store that could not be decoded."""
    root, pairs = config.root.resolve(), zip(store.entries, store.frames, strict=True)
    return [
        (str(frame.path.relative_to(root)), str(failed[entry.key])) for entry, frame in pairs if entry.key in failed
    ]


def _starts(frames: Sequence[Frame], split: str, config: SequenceOptions, notes: list[str]) -> list[int]:
    """First frames of the clips of a split; frames that are left out are noted."""
    length = config.window_of(split)
    key = "frames" if length == config.frames else "stored_frames"
    if config.camera_of(split) is not None:
        starts, left_out = list(range(len(frames))), 0
    else:
        starts, left_out = _windows(frames, split, config, config.max_gap)
    if not starts:
        gaps = {b.number - a.number for a, b in pairwise(frames) if a.sequence == b.sequence}
        enough = next((gap for gap in sorted(gaps) if _windows(frames, split, config, gap)[0]), None)
        advice = (
            f"set max_gap: {enough}"
            if enough is not None
            else f"lower {key}, add rows with split={split}, or make clips of single frames with camera"
        )
        raise DataError(
            f"the split {split!r} must hold at least one window of {length} frames whose numbers are at most "
            f"{config.max_gap} apart (max_gap), but its {len(frames)} frames hold none; {advice}"
        )
    if left_out:
        notes.append(
            f"{left_out} of {len(frames)} {split} frames fill no window of {length} frames (max_gap "
            f"{config.max_gap}) and are left out"
        )
    return starts


def _windows(frames: Sequence[Frame], split: str, config: SequenceOptions, max_gap: int) -> tuple[list[int], int]:
    length = config.window_of(split)
    if split != "train":
        return windows(frames, length, length, max_gap, to_end=False)
    return windows(frames, length, config.stride or max(1, length // 2), max_gap, to_end=True)


def _with_val(frames: list[Frame], config: SequenceOptions, seed: int, notes: list[str]) -> list[Frame]:
    """The frames, in the same order; some training sequences are moved to val where there is none."""
    if any(frame.split == "val" for frame in frames):
        return frames
    train = [frame for frame in frames if frame.split == "train"]
    sequences = [train[start].sequence for start in _starts(train, "train", config, [])]
    names = sorted(set(sequences))
    if len(names) < 2:
        raise DataError(
            f"val must have rows where fewer than 2 training sequences have windows, but {config.labels} has none and "
            f"{len(names)} such sequences; add rows with split=val"
        )
    groups = _joined(sequences, train)
    chosen = {groups[index] for index in grouped_split([0] * len(groups), groups, config.val_share, seed)[1]}
    if not chosen:  # every group is larger than twice the share
        chosen = {min(sorted(set(groups)), key=groups.count)}
    carved = {sequence for sequence, group in zip(sequences, groups, strict=True) if group in chosen}
    notes.append(
        f"{config.labels} has no val rows: {len(carved)} of {len(names)} training sequences validate (seed {seed}): "
        f"{first_of(sorted(carved))}"
    )
    return [
        replace(frame, split="val") if frame.split == "train" and frame.sequence in carved else frame
        for frame in frames
    ]


def _joined(sequences: Sequence[str], frames: Sequence[Frame]) -> list[str]:
    """The group of each window, which stays on one side: its sequence, with all others that share a frame with it.

    Args:
        sequences: Of each window.
        frames: Of one split.

    Returns:
        Groups; the sequences as they are where all would be one group.
    """
    names = [frame.sequence for frame in frames]
    group_of = dict(zip(names, joined_groups(names, [frame.content for frame in frames]), strict=True))
    groups = [group_of[sequence] for sequence in sequences]
    return groups if len(set(groups)) > 1 else list(sequences)


def _shared_frames(frames: Sequence[Frame], config: SequenceOptions, csv_path: Path) -> list[str]:
    """Sentences where frames of one content are in several splits, or have several label images."""
    root = config.root.resolve()
    contents: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    labels: dict[tuple[str, str], str] = {}  # frames with equal pixels and equal labels have one name for the latter
    labelled = []
    for frame in frames:
        name, label = str(frame.path.relative_to(root)), str(frame.label_path.relative_to(root))
        contents[frame.split].setdefault(frame.content, name)
        labelled.append((frame.content, labels.setdefault((frame.content, frame.label_content), label), name))
    # Of a picture that was shown twice, people look at other points.
    return shared_contents(contents, csv_path) + ([] if config.points else other_labels(labelled, csv_path))


def _check_rows(
    table: Sequence[tuple[int, dict[str, str]]], config: SequenceOptions, known: KnownFiles
) -> tuple[list[Frame], list[tuple[str, str]]]:
    """Rows whose files lie inside the root, with a known split, a sequence and a number of its own; others' reasons."""
    root = config.root.resolve()
    frames: list[Frame] = []
    problems: list[tuple[str, str]] = []
    first_line: dict[object, int] = {}
    tried: list[str] = []
    mapless: Counter[str] = Counter()
    for line, entry in table:
        path, reason = locate(root, entry["path"])
        label_path, label_reason = locate(root, entry["label"])
        name, number = entry[config.sequence], entry[config.order]
        place = (entry["split"], name, number.lstrip("0") or "0")
        if reason:
            pass
        elif not entry["label"]:
            reason = "the label is empty, but every frame needs a label image"
        elif label_reason:
            reason = f"label image {entry['label']}: {label_reason}"
        elif entry["split"] not in SPLITS:
            reason = unknown_split(entry["split"])
        elif not name:
            reason = f"the column {config.sequence} is empty"
        elif not (number.isascii() and number.isdigit() and len(number) <= _DIGITS):
            reason = f"the column {config.order} must hold a whole number ≥ 0, but it holds {number[:50]!r}"
        elif path in first_line:
            reason = f"line {line} names the same file as line {first_line[path]}"
        elif place in first_line:
            reason = f"line {line} has the same split, sequence and frame number as line {first_line[place]}"
        else:
            first_line[path] = first_line[place] = line
            maps = {key: find_map(root, folder, entry["path"]) for key, folder in config.maps.items()}
            reason = "; ".join(f"map {key}: {words}" for key, (_, words) in maps.items() if words)
            tried.append(entry["path"])
            mapless.update(key for key, (_, words) in maps.items() if words == no_map(config.maps[key], entry["path"]))
            if not reason:
                paths = tuple(map_path for map_path, _ in maps.values())
                try:
                    contents = [contents_of([file], known.content_of) for file in (path, label_path)]
                except OSError as error:
                    reason = f"the path or that of its label image cannot be read ({error.strerror or error})"
                else:
                    frames.append(Frame(path, label_path, entry["split"], name, int(number), paths, *contents))
                    continue
        problems.append((entry["path"] or f"line {line}", reason))
    for key, count in mapless.items():
        if count == len(tried):  # one mistake, not one a row
            raise DataError(
                f"data.maps must name folders that hold a map at each frame's path, but no frame has one in "
                f"data.maps.{key}: for {tried[0]}, {no_map(config.maps[key], tried[0])}; move the maps or mend the "
                "folder"
            )
    return frames, problems
