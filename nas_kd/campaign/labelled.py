"""Labelled data on which exported students are measured: a split of a campaign, or a folder of labelled clips."""

from __future__ import annotations

from pathlib import Path

from nas_kd.campaign.campaign import CONFIG_NAME
from nas_kd.config import CampaignConfig, load_config
from nas_kd.data import DataInfo, FolderConfig, load
from nas_kd.data.folder import load_labelled
from nas_kd.deploy.bundle import BundleInfo
from nas_kd.deploy.measure import LabelledSet
from nas_kd.tasks import Task, make_task
from nas_kd.trials import Split


def campaign_split(config: CampaignConfig, split: Split) -> LabelledSet:
    """A split of a campaign's data, with its task.

    Raises:
        ValueError: the data cannot be read.
    """
    splits = load(config.data, seed=config.seed, gate_share=config.search.gates.split_share)

    def make() -> Task:
        task = make_task(config.task, splits.info, config.task_options)
        task.prepare(splits)
        return task

    name = {"val": "the validation split", "test": "the test split"}[split]
    cuts = config.evaluation.cuts(splits.info)
    return LabelledSet(name, getattr(splits, split), splits.groups.get(split), splits.info, make, cuts)


def labelled_set(data: Path, split: Split | None, info: BundleInfo) -> LabelledSet:
    """The labelled data that a path names.

    Args:
        data: a campaign file or the folder of a run, whose split is taken; or a folder with labels.csv of the columns
            `path,label`, which is read as the student's own clips were.
        split: `val` or `test`; None is `test` of a campaign, and all rows of a folder.
        info: of the student.

    Raises:
        ValueError: it is none of them, or the data cannot be read.
    """
    if split not in (None, "val", "test"):
        raise ValueError(f"split must be val or test, but is {split!r}")
    if data.is_file():
        return campaign_split(load_config(data), split or "test")
    if (data / CONFIG_NAME).is_file():
        return campaign_split(load_config(data / CONFIG_NAME), split or "test")
    if not (data / "labels.csv").is_file():
        raise ValueError(
            f"{data} is no campaign file, no folder of a run and no folder with a labels.csv (columns path,label); "
            "name one of them"
        )
    if ":" in info.task or info.decoding is None or info.decoding.sampling != "uniform":
        raise ValueError(
            f"a folder with labels.csv holds classes of clips, but the student's task is {info.task}, on data of "
            "another kind; give a campaign file whose section data names the labelled data"
        )
    stored = info.decoding.stored or (info.source_frames, *info.source_size)
    config = FolderConfig(
        root=data,
        frames=info.source_frames,
        size=info.source_size,
        fit=info.decoding.fit,
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
        name=data.resolve().name,
        stored_frames=stored[0],
        stored_size=stored[1:],
    )
    return LabelledSet(str(data), dataset, None, known, lambda: make_task(info.task, known, info.task_options))
