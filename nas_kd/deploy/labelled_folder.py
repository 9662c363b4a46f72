"""A folder of labelled clips, on which an exported student is measured without the campaign that trained it."""

from __future__ import annotations

from pathlib import Path

from nas_kd.data import DataInfo, FolderConfig
from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.folder import load_labelled
from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.measure import LabelledSet
from nas_kd.tasks import make_task

TABLE_NAME = "labels.csv"


def labelled_folder(folder: Path, split: str | None, info: BundleInfo) -> LabelledSet:
    """The clips of a folder with labels.csv of the columns `path,label`, read as the student's own were.

    They are read as `source: folder` reads them where the student was not trained on files.

    Args:
        folder: with the table.
        split: rows of this value in the column `split`; None takes all rows.
        info: of the student.

    Raises:
        ValueError: the table cannot be read, or the student answers for something else.
    """
    decoding, name = info.decoding or FileDecoding(), str(folder)
    if info.task != "classification" or info.mean is None or decoding.sampling != "uniform":
        reads = "frame features" if info.mean is None else "videos"
        raise ValueError(
            f"a folder with {TABLE_NAME} holds one class for each clip, but this student ({info.task} of {reads}) "
            "answers for something else; give a campaign file whose section data names the labelled data (to read it, "
            "nas-kd must be installed with all that it depends on)"
        )
    if info.decoding is None:
        name += f" (the student was not trained on files: they are read as those of source folder are, {decoding.fit})"
    stored = decoding.stored or (info.source_frames, *info.source_size)
    config = FolderConfig(
        root=folder,
        frames=info.source_frames,
        size=info.source_size,
        fit=decoding.fit,
        stored_frames=stored[0],
        stored_size=stored[1:],
        classes=info.class_names,
    )
    dataset = load_labelled(config, split)
    known = DataInfo(
        num_classes=len(info.class_names),
        class_names=info.class_names,
        frames=info.source_frames,
        height=info.source_size[0],
        width=info.source_size[1],
        name=folder.resolve().name,
        stored_frames=stored[0],
        stored_size=stored[1:],
    )
    return LabelledSet(name, dataset, None, known, lambda: make_task(info.task, known, info.task_options))
