"""A folder of labelled files, on which an exported student is measured without the campaign that trained it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nas_kd.data import FeaturesConfig, FolderConfig, SequencesConfig, features, folder, sequences
from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.label_form import ClassLabels, LabelForm, LabelImages
from nas_kd.data.sample import Labelled
from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.measure import LabelledSet
from nas_kd.settings.mistakes import explain
from nas_kd.tasks import TASKS, make_task

_Options = TypeVar("_Options", bound=BaseModel)

TABLE_NAME = "labels.csv"

_OF_CLASSES = ("label", "labels")  # keys of samples of tasks whose labels are names of classes
_AGAIN = "take the bundle from its trial again"
_CAMPAIGN = (
    "give a campaign file whose section data names the labelled data (to read it, nas-kd must be installed with all "
    "that it depends on)"
)


def labelled_folder(root: Path, split: str | None, info: BundleInfo) -> LabelledSet:
    """The items of a folder with labels.csv, read as the student's own were, with labels in the form of its own.

    Clips are read as `source: folder` reads them where the student was not trained on files.

    Args:
        root: with the table.
        split: rows of this value in the column `split`; None takes all rows.
        info: of the student.

    Raises:
        ValueError: the table cannot be read, or the bundle does not say what labels are.
    """
    form, decoding, name = _form_of(info), info.decoding or FileDecoding(), str(root)
    if isinstance(form, LabelImages):
        found = _frames(root, split, info, form, decoding)
    elif info.mean is None:
        found = _features(root, split, info, form, decoding)
    else:
        found = _clips(root, split, info, form, decoding)
        if info.decoding is None:
            how = "the student was not trained on files: they are read as those of source folder are"
            name += f" ({how}, {decoding.fit})"
    views = max((each.views for each in info.measured.values()), default=1)
    if views > 1:
        name += f" (one view of each item, where the metrics in arch.json are of {views} views)"
    known = found.info
    return LabelledSet(name, found.dataset, found.groups, known, lambda: make_task(info.task, known, info.task_options))


def _form_of(info: BundleInfo) -> LabelForm:
    """The form of the student's labels; names of classes where they stood in no table and it gives classes.

    Raises:
        ValueError: it gives something else, the labels are not of the task's kind, or the task is the user's.
    """
    if info.task not in TASKS:
        raise ValueError(
            f"a folder is measured for tasks of the package, {', '.join(TASKS)}, but the student's is {info.task}, and "
            f"a bundle runs no code; {_CAMPAIGN}"
        )
    if info.mean is not None and "labels" in TASKS[info.task].keys:
        raise ValueError(f"a folder of clips has one class an item, but the student's task is {info.task}; {_CAMPAIGN}")
    of_images = any(key not in _OF_CLASSES for key in TASKS[info.task].keys)
    if info.labels is not None:
        if isinstance(info.labels, LabelImages) != of_images:
            raise ValueError(
                f"arch.json cannot be that of a student: labels.form is {info.labels.form!r}, but that of "
                f"{info.task} is {'images' if of_images else 'classes'!r}; {_AGAIN}"
            )
        return info.labels
    if of_images:
        raise ValueError(
            f"arch.json must say under labels how label images are written, but that of this student ({info.task}) "
            "does not: its own labels were no files, or an earlier nas_kd trained it; "
            f"{_CAMPAIGN}"
        )
    return ClassLabels()


def _options(kind: type[_Options], root: Path, info: BundleInfo, **given: Any) -> _Options:
    """The section of data that reads a folder as the student's own files were read.

    Raises:
        ValueError: no such section could say what the arch.json says of files and labels.
    """
    try:
        return kind.model_validate({"root": root, "labels": TABLE_NAME, "frames": info.source_frames, **given})
    except ValidationError as error:
        raise ValueError(
            f"arch.json cannot be that of a student: read as data of source {kind.model_fields['source'].default}, "
            f"{'; '.join(explain(error, kind, {}))}; {_AGAIN}"
        ) from error


def _frames(root: Path, split: str | None, info: BundleInfo, form: LabelImages, decoding: FileDecoding) -> Labelled:
    config = _options(
        SequencesConfig,
        root,
        info,
        size=info.source_size,
        fit=decoding.fit,
        sequence=form.sequence,
        order=form.order,
        max_gap=form.max_gap,
        classes=form.values,
        ignore=form.ignore,
        binary=form.binary,
        points=form.points,
        boxes=form.min_box_pixels is not None,
        min_box_pixels=form.min_box_pixels or 1,
        camera=form.camera,
    )
    return sequences.load_labelled(config, split)


def _features(root: Path, split: str | None, info: BundleInfo, form: ClassLabels, decoding: FileDecoding) -> Labelled:
    config = _options(
        FeaturesConfig,
        root,
        info,
        stored_frames=None if decoding.stored is None else decoding.stored[0],
        classes=info.class_names,
        group=form.group,
        multi_label="labels" in TASKS[info.task].keys,
    )
    return features.load_labelled(config, split)


def _clips(root: Path, split: str | None, info: BundleInfo, form: ClassLabels, decoding: FileDecoding) -> Labelled:
    stored = decoding.stored or (info.source_frames, *info.source_size)
    config = _options(
        FolderConfig,
        root,
        info,
        size=info.source_size,
        fit=decoding.fit,
        stored_frames=stored[0],
        stored_size=stored[1:],
        classes=info.class_names,
        group=form.group,
    )
    return folder.load_labelled(config, split)
