"""Checks of a campaign file by itself and against the machine, before any data are read."""

from __future__ import annotations

import os

import torch

from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.preparation.ranking import check_metrics
from nas_kd.tasks import find_task
from nas_kd.trials import SAMPLERS, check_cluster, check_url
from nas_kd.trials.trackers import find_trackers


def check_file(config: CampaignConfig) -> None:
    """Raise where a campaign cannot work whatever its data are.

    Looked at are sampler, metrics, shared search, machine, database, cluster and trackers.

    Raises:
        ConfigError: the key and the way out.
    """
    if config.sampler not in SAMPLERS:
        raise ConfigError(f"sampler: {config.sampler!r} is unknown; choose from {', '.join(SAMPLERS)}")
    if metrics := find_task(config.task).known_metrics():
        check_metrics(config, metrics)
    check_shared(config)
    check_machine(config)
    try:
        check_url(config.storage)
        check_cluster(config.resources)
        find_trackers(config.trackers)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_machine(config: CampaignConfig) -> None:
    """Raise where a trial asks for more than this machine has; on a cluster, Ray checks this.

    Raises:
        ConfigError: the value and what there is.
    """
    resources = config.resources
    if resources.address is not None:
        return
    cores = os.cpu_count() or 1
    if resources.cpus_per_trial > cores:
        raise ConfigError(
            f"resources.cpus_per_trial: this machine has {cores} cores, but got {resources.cpus_per_trial}; lower it"
        )
    if resources.use_gpus and torch.cuda.device_count() == 0:
        raise ConfigError(
            "resources.gpus_per_trial: torch finds 0 GPUs on this machine, but got "
            f"{resources.gpus_per_trial}; set it to 0, or give the address of a cluster"
        )
    trainings = {"teacher.fit": config.teacher.fit, "search": config.search, "retrain": config.retrain}
    if not resources.use_gpus or torch.cuda.is_bf16_supported(including_emulation=False):
        return
    for name, training in trainings.items():
        if training.precision == "bfloat16":
            raise ConfigError(
                f"{name}.precision: the GPU of this machine does not compute in bfloat16; set it to float32"
            )


def check_shared(config: CampaignConfig) -> None:
    """Raise where what a campaign varies cannot vary within one search.

    Raises:
        ConfigError: the key and the way out.
    """
    if not config.search.shared:
        return
    if config.grid:
        raise ConfigError(
            "search.shared: the cells of a grid are trained as they stand, each with a search of its own; set "
            "search.shared: false, or drop the grid"
        )
    own = [path for path in config.knobs if path.startswith("search.")]
    if own:
        raise ConfigError(
            f"knobs.{own[0]}: all trials share one search, so nothing of it can vary between them; set search.shared: "
            "false, or drop the knob"
        )
