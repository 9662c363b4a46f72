"""How trainings show the data: what is refused, and what teacher and student see of mixed clips."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.data import FolderConfig
from nas_kd.preflight.view_checks import check_views
from nas_kd.preparation.teacher_outputs import cached_taps
from nas_kd.trial import Learner, build_context

Make = Callable[..., CampaignConfig]


def test_teacher_and_student_see_the_same_mixed_clip(tiny: Make) -> None:
    mix = {"mixup": 0.4, "cutmix": 1}
    config = tiny(retrain={"mix": mix}, search={"mix": mix})
    context = build_context(config, "cpu")
    words = "mix: teacher outputs of mixed clips are not kept; each step runs the teacher"
    assert check_views(config, context) == [f"search.{words}", f"retrain.{words}"]
    assert cached_taps(context) == {}
    knobs = context.space.knobs_with()
    first = {name: values[0] for name, values in context.space.variables.items()}
    student = context.space.student(context.space.arch({**knobs, **first}))
    seen: dict[str, torch.Tensor] = {}
    context.freeze_teacher()
    with closing(Learner(context, student, config.objective, knobs, cached=False)) as learner:
        for name, net in (("teacher", context.teacher_model), ("student", student)):
            net.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        batch = next(context.loader(context.splits.retrain, config.retrain, seed=0, train=True).epoch(0))
        terms = learner.loss(batch)
    mixed = context.input_type.read(batch)
    assert not torch.equal(batch["mix_partner"], torch.arange(len(mixed)))
    assert torch.equal(seen["teacher"], mixed)
    assert torch.equal(seen["student"], context.space.fit_input(mixed, knobs))
    plain = context.task.loss(student(seen["student"]), {"label": batch["label"]})
    assert terms["task"].item() != pytest.approx(plain.item())


@pytest.mark.parametrize(
    ("mix", "info", "mixes", "sentence"),
    [
        ({"mixup": 1}, {}, False, "retrain.mix: the task classification cannot mix its labels; leave mix out"),
        ({"mixup": 1}, {"map_names": ("seen",)}, True, "retrain.mix: maps that come with the data are those of whole"),
        ({"cutmix": 1}, {"height": 0, "width": 0}, True, "retrain.mix.cutmix: it pastes pixels"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, mix: dict[str, Any], info: dict[str, Any], mixes: bool, sentence: str
) -> None:
    config = tiny(retrain={"mix": mix})
    context = build_context(config, "cpu")
    monkeypatch.setattr(type(context.task), "mixes", mixes)
    context.splits = replace(context.splits, info=replace(context.splits.info, **info))
    with pytest.raises(ConfigError, match=sentence):
        check_views(config, context)


def test_views_of_the_evaluation_are_checked_and_kept(tiny: Make) -> None:
    config = tiny(evaluation={"clips": 2, "crops": 3})
    context = build_context(config, "cpu")
    info = context.splits.info
    needed = rf"evaluation: 2 clips of {info.frames} frames .* need {2 * info.frames} stored frames, but .*; "
    with pytest.raises(ConfigError, match=needed + "this source stores no more than nets see, so leave out clips"):
        check_views(config, context)
    folder = FolderConfig(root=Path())
    with pytest.raises(ConfigError, match=needed + r"store more \(by data\.stored_frames and data\.stored_size\), or"):
        check_views(config.model_copy(update={"data": folder}), context)
    stored = replace(info, stored_frames=2 * info.frames, stored_size=(info.height, info.width + 3))
    context.splits = replace(context.splits, info=stored)
    assert check_views(config, context) == [
        "evaluation: the logits of 6 views of each item are averaged, 2 clips × 3 crops; FLOPs and latencies are those "
        "of one view"
    ]
    assert [cut.left for cut in config.evaluation.cuts(stored)] == [0, 1, 3] * 2
    assert context.evaluated("val", []).views == 6
    features = replace(info, height=0, width=0, feature_size=4, mask_names=(), box_names=())
    context.splits = replace(context.splits, info=features)
    with pytest.raises(
        ConfigError, match="evaluation: frame features are seen whole; leave out clips, window and crops"
    ):
        check_views(config, context)
