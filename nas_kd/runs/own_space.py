"""The space of a student that needs code of the user's, for the export of its bundle."""

from __future__ import annotations

from pathlib import Path

import torch

from nas_kd.config import CampaignConfig
from nas_kd.config.space import SpaceConfig
from nas_kd.deploy.bundle import BundleInfo
from nas_kd.search_spaces import SearchSpace
from nas_kd.tasks import find_task
from nas_kd.teachers import TeacherView, build_teacher_model, layers_of
from nas_kd.trial.context import load_kept_teacher


def own_space(config: CampaignConfig, run_dir: Path, info: BundleInfo) -> SearchSpace | None:
    """The space of a bundle that needs code of the user's: the space, its operators or its teacher."""
    num_outputs = len(info.class_names) + find_task(config.task).extra_outputs
    if config.space.is_own:
        return config.space.build(num_outputs, info.input_type.space_settings(info.input_shape, info.source_frames))
    settings = info.arch["settings"]
    if config.space.is_derived:
        if ":" not in config.teacher.model and not config.space.own_operators:
            return None
        frame = torch.zeros(1, 3, *settings["frame_size"])
        view = TeacherView(frame, info.input_type.item, maps=True, normalize=config.normalize)
        own = config.teacher.model_copy(update={"weights": None})  # those of the run are the ones that it had
        teacher = build_teacher_model(own, settings["teacher"]["num_outputs"], view=view)
        load_kept_teacher(teacher, run_dir)
        return config.space.derive(layers_of(teacher), tuple(settings["frame_size"]), settings["teacher"])
    trained = SpaceConfig.model_validate({"name": info.arch["space"], **settings})  # the file may have changed since
    return trained.build(num_outputs) if trained.own_operators else None
