"""Teachers and spaces that do not fit the data or the task: said in a sentence, before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_kd import export, load, search
from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.deploy.bundle import read_info
from nas_kd.deploy.labelled_folder import labelled_folder
from nas_kd.deploy.measure import measure
from nas_kd.preparation.teacher import check_teacher
from nas_kd.runs.own_space import own_space
from nas_kd.trial import build_context

OWN = """
from torch import nn

def flat(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(50, num_classes))

def frames(num_classes):
    return nn.Flatten()
"""


OWN_SPACE = """
import torch
from torch import nn
from nas_kd.search_spaces import ModuleSpace

class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)

def space(num_classes, feature_size):
    def net(choose):
        width = choose.number("width", (2, 4))
        first, last = choose.layer(nn.Linear, feature_size, width), choose.layer(nn.Linear, width, num_classes)
        return nn.Sequential(Mean(), first, nn.ReLU(), last)
    return ModuleSpace(net, torch.zeros(1, 4, feature_size), "of_features")
"""


@pytest.fixture
def features(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> Callable[..., CampaignConfig]:
    """A campaign on sequences of 4 frames and 12 features."""
    root = tmp_path / "features"
    root.mkdir()
    np.save(root / "all.npy", np.random.default_rng(0).normal(size=(12, 4, 12)).astype(np.float32))
    rows = [f"all.npy#{i},{'ab'[i % 2]},{('train', 'val', 'test')[i // 4]},{i // 2}" for i in range(12)]
    (root / "labels.csv").write_text("\n".join(["path,label,split,recording", *rows]) + "\n")

    def make(**changes: Any) -> CampaignConfig:
        config = tiny().model_dump(mode="json", include={"runs", "resources"})
        config |= {"data": {"source": "features", "root": str(root), "group": "recording"}, **changes}
        return CampaignConfig.model_validate(config)

    return make


def test_what_reads_or_gives_something_else_is_refused_with_those_that_fit(
    features: Callable[..., CampaignConfig], tiny: Callable[..., CampaignConfig]
) -> None:
    saliency = tiny(trials=1).model_dump(mode="json", include={"runs", "data", "resources"}) | {"task": "saliency"}
    needs = "task saliency with data.source generated needs one that reads clips and gives maps; choose saliency"
    cases: list[tuple[CampaignConfig, str]] = [
        (
            features(teacher={"model": "r2plus1d"}),
            "teacher.model: r2plus1d reads clips and gives logits, but task classification with data.source features "
            "needs one that reads frame features and gives logits; choose frame_sequence, or your own as "
            "module:function",
        ),
        (features(space={"name": "clip_cell"}), "space.name: clip_cell reads clips"),
        (tiny(teacher={"model": "frame_sequence", "settings": {}}), "teacher.model: frame_sequence reads frame feat"),
    ]
    for model, reads in (("framenet", "frames and gives maps"), ("r2plus1d", "clips and gives logits")):
        config = CampaignConfig.model_validate({**saliency, "teacher": {"model": model}})
        cases.append((config, f"teacher.model: {model} reads {reads}, but {needs}, maps, or your own"))
    for space, reads in (
        ("clip_cell", "clips and gives logits"),
        ("frame_sequence", "frame features and gives logits"),
    ):
        config = CampaignConfig.model_validate({**saliency, "space": {"name": space}})
        cases.append((config, f"space.name: {space} reads {reads}, but {needs}, or your own"))
    for config, sentence in cases:
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            build_context(config, "cpu")


def test_a_size_of_the_data_is_not_for_the_teacher_to_change(features: Callable[..., CampaignConfig]) -> None:
    small = {"h_rnn": {"lower": 4, "upper": 4, "block_length": 2}}
    build_context(features(teacher={"settings": {"feature_size": 12, **small}}), "cpu")
    with pytest.raises(ValueError, match=r"teacher\.settings\.feature_size: the data have 12 .* but it is 13; leave"):
        build_context(features(teacher={"settings": {"feature_size": 13, **small}}), "cpu")


def test_an_own_teacher_that_cannot_read_the_data_is_named_with_their_shape(
    features: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "feature_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"teacher\.model: feature_nets:flat cannot read an item of the data, of shape \(4, 12\); change its .* "
        r"another teacher \(it stopped with RuntimeError",
    ):
        build_context(features(teacher={"model": "feature_nets:flat"}), "cpu")
    context = build_context(features(teacher={"model": "feature_nets:frames"}), "cpu")
    with pytest.raises(ValueError, match=r"teacher\.model: feature_nets:frames must .* \(1, 2\) .* \(1, 48\); pick"):
        check_teacher(context)


def test_a_student_of_an_own_space_of_features_is_exported(
    features: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_feature_space.py").write_text(OWN_SPACE)
    monkeypatch.syspath_prepend(tmp_path)
    logits = {"fewer_frames": {"weight": 0}, "response": {"weight": 1}}
    settings = {"h_rnn": {"lower": 4, "upper": 4, "block_length": 2}}
    config = features(
        trials=1,
        teacher={"settings": settings, "fit": {"epochs": 1}},
        space={"name": "own_feature_space:space"},
        budget={"max_flops": [60]},
        search={"epochs": 1, "objective": logits},
        objective=logits,
        retrain={"epochs": 1},
    )
    (record,) = search(config).records
    assert record.state == "complete", record.error
    folder, proof = export(config.run_dir, trial=0, formats=("safetensors",))
    assert proof.flops == 12 * 4 + 4 * 2
    info = read_info(folder)
    assert info.input_shape == (4, 12)
    space = own_space(config, config.run_dir, info)
    (found,) = measure([load(folder, space=space)], labelled_folder(tmp_path / "features", "test", info))
    assert found.metrics == record.metrics["retrained"]["test"]
    assert found.measured == info.measured["test"]
    assert found.measured.num_groups == 2


def test_keys_that_the_program_fills_in_are_not_offered(tiny: Callable[..., CampaignConfig]) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'sides'.*choose from net, side") as caught:
        tiny(task="saliency", space={"name": "saliency", "sides": [32]})
    assert "num_classes" not in str(caught.value)
