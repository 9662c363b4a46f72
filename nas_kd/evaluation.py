"""The metrics of an exported student on labelled data: a split of a campaign, or a folder of labelled files.

On a folder it runs without the packages that searches need, such as Ray and Optuna: what reads campaign files is
imported where one is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.labelled_folder import TABLE_NAME, labelled_folder
from nas_kd.deploy.measure import LabelledSet, measure
from nas_kd.deploy.predictor import load
from nas_kd.deploy.record import FileMetrics
from nas_kd.files import CONFIG_NAME

Split = Literal["val", "test"]  # as in nas_kd.trials

_PACKAGES = {"sklearn": "scikit-learn"}  # where a module has not the name of its package


def evaluate(
    bundle: Path | str,
    data: Path | str,
    *,
    split: Split | None = None,
    backend: str | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
    progress: OnProgress = no_progress,
) -> FileMetrics:
    """The metrics of an exported student on labelled data.

    Args:
        bundle: folder of the student.
        data: a campaign file or the folder of a run, whose split is taken; or a folder with labels.csv, as the student
            was trained on: columns `path,label`, and `sequence,frame` where frames have label images.
        split: `val` or `test`; by default `test` of a campaign, and all rows of a folder.
        backend: as for `nas_kd.load`.
        device: such as `cpu` or `cuda`.
        batch_size: items at once; as in a campaign by default.
        progress: called after each batch.

    Raises:
        ValueError: the bundle or the data cannot be read, or they do not fit.

    Examples:
        >>> found = nas_kd.evaluate("runs/demo/export/trial-0000", "demo.yaml", split="val")
        >>> found.metric, found.measured.num_items
        ('accuracy', 24)
    """
    student = load(bundle, backend=backend, device=device)
    labelled = labelled_set(Path(data), split, student.info)
    try:
        return measure([student], labelled, batch_size=batch_size, progress=progress)[0]
    except ModuleNotFoundError as error:  # metrics and intervals of some tasks use packages that students do without
        name = (error.name or "").partition(".")[0]
        package = _PACKAGES.get(name, name)
        raise ValueError(
            f"the metrics of {student.info.task} on {labelled.name} need {package}, which is not installed: "
            f"pip install {package}"
        ) from error


def labelled_set(data: Path, split: Split | None, info: BundleInfo) -> LabelledSet:
    """The labelled data that a path names.

    Args:
        data: as for `evaluate`.
        split: as for `evaluate`.
        info: of the student.

    Raises:
        ValueError: it is no labelled data, or they cannot be read.
    """
    if split not in (None, "val", "test"):
        raise ValueError(f"split must be val or test, but is {split!r}")
    file = data if data.is_file() else data / CONFIG_NAME
    if file.is_file():
        return _split_of(file, split or "test")
    if (data / TABLE_NAME).is_file():
        return labelled_folder(data, split, info)
    raise ValueError(
        f"{data} is no campaign file, no folder of a run and no folder with a {TABLE_NAME} (columns path,label, and "
        "sequence,frame where frames have label images); name one of them"
    )


def _split_of(file: Path, split: Split) -> LabelledSet:
    """A split of the campaign of a file."""
    try:
        from nas_kd.config import load_config
        from nas_kd.runs.labelled import campaign_data, labelled_split
    except ImportError as error:
        raise ValueError(
            f"{file} is a campaign file, and reading it needs {error.name or error}, which is not installed: "
            f"pip install nas-kd with all that it depends on, or give a folder with {TABLE_NAME} instead"
        ) from error
    config = load_config(file)
    return labelled_split(config, campaign_data(config), split)
