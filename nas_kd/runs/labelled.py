"""A split of a campaign, on which exported students are measured."""

from __future__ import annotations

from torch import Tensor

from nas_kd.config import CampaignConfig
from nas_kd.data import ClipLoader, Splits, load
from nas_kd.deploy.measure import LabelledSet
from nas_kd.deploy.reduced import CALIBRATION_ITEMS
from nas_kd.tasks import Task, make_task
from nas_kd.trials import Split


def campaign_data(config: CampaignConfig) -> Splits:
    """The data of a campaign.

    Raises:
        ValueError: they cannot be read.
    """
    return load(config.data, seed=config.seed, gate_share=config.search.gates.split_share)


def labelled_split(config: CampaignConfig, splits: Splits, split: Split) -> LabelledSet:
    """A split of a campaign's data, with its task."""

    def make() -> Task:
        task = make_task(config.task, splits.info, config.task_options)
        task.prepare(splits)
        return task

    name = {"val": "the validation split", "test": "the test split"}[split]
    cuts = config.evaluation.cuts(splits.info)
    return LabelledSet(name, getattr(splits, split), splits.groups.get(split), splits.info, make, cuts)


def calibration_items(config: CampaignConfig, splits: Splits, key: str) -> Tensor:
    """Some items of the training split as the data hold them, for the ranges of activations; which, the seed says.

    Args:
        config: of the campaign.
        splits: its data.
        key: of a sample, where its items are.
    """
    train = splits.retrain
    size = min(CALIBRATION_ITEMS, len(train))
    loader = ClipLoader(train, size, seed=config.seed, shuffle=True, keys=(key,), seen=splits.info.seen)
    return next(iter(loader.epoch(0)))[key]
