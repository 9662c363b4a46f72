"""Students that start from a file, matched by name and shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.preflight.start_checks import check_start
from nas_kd.preparation.identity import identity
from nas_kd.teachers.weights import match_weights
from nas_kd.trial import build_context

Make = Callable[..., CampaignConfig]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))


def test_tensors_of_equal_name_and_shape_are_taken(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(2, 2))
    path, notes = tmp_path / "start.pt", []
    torch.save({"state_dict": {f"module.{name}": value for name, value in other.state_dict().items()}}, path)
    match = match_weights(net(), path, "retrain.weights", notes.append)
    assert {name: value.tolist() for name, value in match.tensors.items()} == {
        "0.weight": other[0].weight.tolist(),
        "0.bias": other[0].bias.tolist(),
    }
    assert match.share == 40 / 67
    assert (match.other_shape, match.missing) == (("1.weight", "1.bias"), ())
    assert match.text == "2 tensors, 60% of the parameters; 2 of another shape (1.weight, 1.bias)"
    assert notes[-1].startswith("retrain.weights: stripped 'module.' from the names")
    with pytest.raises(ValueError, match=r"retrain.weights must be a file with a state dict, but there is none at"):
        match_weights(net(), tmp_path / "none", "retrain.weights")


def test_a_campaign_says_what_fits_and_knows_the_file_by_content(tiny: Make, tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    config = tiny(retrain={"weights": str(path)}, space={"resolution": [8], "frames": [2]})
    assert config.retrain.init == "fresh"
    context = build_context(config, "cpu")
    knobs = context.space.knobs_with()
    first = {name: values[0] for name, values in context.space.variables.items()}
    student = context.space.student(context.space.arch({**knobs, **first}))
    save_file(student.state_dict(), path)
    (sentence,) = check_start(config, context)
    assert sentence.startswith(f"retrain.weights: students start from {path}, which has ")
    assert " to 100% of their parameters by name and shape" in sentence
    before = identity(context)["start"]
    save_file(net().state_dict(), path)
    assert identity(context)["start"] != before
    with pytest.raises(
        ConfigError, match=r"has the name and the shape of one of a student's .* give the weights of such"
    ):
        check_start(config, context)


def test_a_file_and_inherited_weights_exclude_each_other(tiny: Make) -> None:
    with pytest.raises(ConfigError, match="weights start students from a file, and init: inherit from the search"):
        tiny(retrain={"weights": "a.pt", "init": "inherit"})
    knob = {"retrain.weights": {"type": "choice", "values": ["a.pt", "b.pt"]}}
    with pytest.raises(ConfigError, match=r"knobs.retrain.weights: all trials start from one file, so it cannot vary"):
        tiny(knobs=knob)
