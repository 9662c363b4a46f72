"""The campaign file: what it accepts, and one sentence for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_kd.campaign import Campaign
from nas_kd.config import CampaignConfig, ConfigError, load_config, validate
from nas_kd.config.budget import parse_flops
from nas_kd.data import FolderConfig
from nas_kd.preflight.overview import overview

FLOAT = {"type": "float", "low": 0.1, "high": 1.0}


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        ("12.5M", 12_500_000),
        ("150k", 150_000),
        ("1e3k", 1_000_000),
        (" 3 g ", 3 * 10**9),
        (".5T", 5 * 10**11),
        ("7", 7),
        (2.5e6, 2_500_000),
        (9, 9),
    ],
)
def test_flops_are_read_with_suffixes_of_1000(text: object, flops: int) -> None:
    value = parse_flops(text)
    assert value == flops
    assert isinstance(value, int)


@pytest.mark.parametrize("text", ["", "M", "1.2.3M", "-3M", "3 Mi", "1,000", ".", "nan"])
def test_other_texts_are_no_flops(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a number such as 12\.5M"):
        parse_flops(text)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"budget": {"max_flops": "-5"}}, "budget.max_flops: FLOPs must be a number such as 12.5M"),
        ({"budget": {"max_flops": []}}, "budget: max_flops must name at least one budget"),
        ({"budget": {"max_flops": {"low": "3M", "high": "1M"}}}, "budget.max_flops: low must be below high"),
        ({"budget": {"max_flops": {"low": "3M"}}}, "budget.max_flops.high: missing"),
        ({"budget": "5M"}, "budget: must be a section with keys and values, but got '5M'"),
        (
            {"data": {"source": "folders"}},
            "data.source: 'folders' is unknown; choose from generated, folder, sequences, features, youtube8m, own",
        ),
        ({"data": {"motions": ["sideways"]}}, "data: unknown motion 'sideways'; choose from still, up"),
        ({"data": {"num_trains": 3}}, "data.num_trains: unknown key 'num_trains'; did you mean 'num_train'?"),
        (
            {"space": {"name": "cells"}},
            "space: unknown space 'cells'; choose from clip_cell, frame_sequence, saliency, delta_blocks, or give",
        ),
        ({"space": {"ops": "conv2d_k3"}}, "space: ops: must be a list, but got 'conv2d_k3'"),
        ({"objective": {"response": {"temperature": 2}}}, "'temperature'; did you mean 'kd_temperature'?"),
        ({"objective": {"response": {"weight": float("nan")}}}, "objective.response.weight: input should be"),
        (
            {"objective": {"task": {"weight": 0}, "response": {"weight": 0}, "feature": {"weight": 0}}},
            "objective: at least one term must have a weight above 0",
        ),
        ({"search": {"gates": {"estimator": "darts"}}}, "unknown gate estimator 'darts'; choose from straight_through"),
        ({"task": "segment"}, "task: 'segment' is unknown; did you mean 'segmentation'? choose from classification"),
        ({"name": "../elsewhere"}, "name: string should match pattern"),
        ({"knobs": {"data.size": FLOAT}}, "knobs.data.size: a knob must be a dotted path into objective, search or"),
        ({"knobs": {"search.gates.split_share": FLOAT}}, "all trials share the splits, so it cannot vary"),
        ({"knobs": {"search.lr.x": FLOAT}}, "knobs.search.lr.x: there is no 'x'"),
        ({"knobs": {"search.epochs": {**FLOAT, "low": 1.0, "high": 3.0}}}, "knobs.search.epochs may not propose 1.76"),
        ({"knobs": {"search.lr": {"type": "float", "low": 1.0}}}, "knob search.lr.float.high: Field required"),
        ({"early_stopping": {"rungs": [3]}}, "early_stopping.rungs: a rung is an epoch of the retraining, at most"),
        ({"early_stopping": {"rungs": [2, 1]}}, "early_stopping: rungs must ascend"),
        ({"resources": {"executor": "inline", "max_concurrent": 4}}, "resources: max_concurrent must be 1 or null"),
        (
            {"resources": {"executor": "ray", "gpus_per_trial": 1.5, "address": "auto"}},
            "resources.gpus_per_trial: must be `auto`, or a number from 0 to 1, but got 1.5: a",
        ),
        ({"resources": {"cpus_per_trial": True}}, "resources.cpus_per_trial: must be a number, but got true"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key_path(
    tiny: Callable[..., CampaignConfig], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(**change)
    assert str(caught.value).startswith("test: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sampler": "guess"}, "sampler: 'guess' is unknown; choose from tpe"),
        ({"resources": {"cpus_per_trial": 4096}}, "resources.cpus_per_trial: this machine has"),
        ({"resources": {"gpus_per_trial": 1}}, "resources.gpus_per_trial: torch finds "),
        ({"storage": "no URL"}, "storage: the database cannot be used"),
        ({"storage": "sqlite:////no/such/folder/x.db"}, "storage: the database cannot be used"),
        (
            {"objective": {"feature": {"pairs": [["nope", "layers.0"]]}}},
            "objective.feature.pairs: module 'nope' of the student",
        ),
        (
            {"objective": {"feature": {"pairs": [["stages.0", "nope"]]}}},
            "objective.feature.pairs: module 'nope' of the teacher",
        ),
        ({"objective": {"feature": {"pairs": [["stages.0", "classifier"]]}}}, "'classifier' gives (1, 4)"),
        (
            {"budget": {"max_params": 10}},
            "no architecture with cost of at most 150,000 has params of at most 10; the least is 264",
        ),
        ({"budget": {"max_state_bytes": "1k"}}, "budget: space 'clip_cell' has no table of state_bytes"),
        ({"budget": {"max_flops": "1k"}}, "the lowest budget is 1,000 FLOPs, but the cheapest student at resolution"),
        (
            {"data": {"motions": ["left", "right"]}, "retrain": {"augment": "flip"}},
            "retrain.augment: 'flip' mirrors clips, but in this data a mirrored clip may change its class",
        ),
        (
            {
                "data": {"motions": ["left", "right"]},
                "knobs": {"search.augment": {"type": "choice", "values": ["none", "flip+crop"]}},
            },
            "knobs.search.augment: 'flip+crop' mirrors clips",
        ),
        (
            {
                "data": {"motions": ["left", "right"]},
                "retrain": {"augment": {"color": {"hue": 0.1}}},
                "knobs": {"retrain.augment.flip": {"type": "choice", "values": [False, True]}},
            },
            "knobs.retrain.augment.flip: flip mirrors clips, but in this data a mirrored clip may change its class; "
            "set flip: false",
        ),
        (
            {"data": {"frames": 8}, "retrain": {"augment": {"temporal": {"window": [0.6, 1]}}}},
            "retrain.augment.temporal.window: 0.6 of an item of 8 stored frames has fewer than the 8 that nets see; "
            "leave temporal out: this source has no more frames than nets see",
        ),
    ],
)
def test_what_does_not_fit_is_found_before_the_teacher_is_trained(
    tiny: Callable[..., CampaignConfig], change: dict[str, Any], sentence: str
) -> None:
    config = tiny(**change)
    with Campaign(config) as campaign, pytest.raises(ConfigError) as caught:
        campaign.prepare()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (config.run_dir / "teacher").exists()
    if "sqlite" not in str(config.storage):  # a database is not connected to by `nas-kd check`
        with pytest.raises(ConfigError) as of_check:
            overview(config)
        assert str(of_check.value) == str(caught.value)


def test_two_mistakes_are_two_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"trials": 0, "seeds": 1}, source="f.yaml")
    lines = str(caught.value).splitlines()
    assert lines == [
        "f.yaml: trials: input should be greater than or equal to 1, but got 0",
        lines[1],
    ]
    assert lines[1].startswith("f.yaml: seeds: unknown key 'seeds'; did you mean 'seed'? choose from name, runs, seed")


def test_overrides_are_yaml_at_dotted_paths(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("search: {epochs: 3}\n")
    config = load_config(file, ["search.gates.lr=0.5", "budget.max_flops=[1M, 2M]", "early_stopping.rungs=[1, 2]"])
    assert config.name == "mine"  # of the file, where it says none
    assert (config.search.epochs, config.search.gates.lr) == (3, 0.5)
    assert config.budget.max_flops == (1_000_000, 2_000_000)
    assert config.early_stopping is not None
    assert config.early_stopping.rungs == (1, 2)
    for wrong, sentence in (
        ("trials", "--set takes dotted.path=value, but got 'trials'"),
        ("search.epochs.x=1", "'epochs' on the way of 'search.epochs.x' holds a value and no section"),
        ("trials=[1", "--set trials=[1: "),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(file, [wrong])
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"), [("a: [", "not valid YAML"), ("- 1", "this one is a list"), ("\x00", "not valid YAML")]
)
def test_a_file_that_is_no_campaign_is_said_to_be_none(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        load_config(file)
    with pytest.raises(ConfigError, match="there is no such campaign file"):
        load_config(tmp_path / "absent.yaml")


def test_knobs_fill_their_sections_and_leave_the_others(tiny: Callable[..., CampaignConfig]) -> None:
    config = tiny(knobs={"objective.response.weight": FLOAT})
    filled = config.with_knobs({"objective.response.weight": 0.7, "max_flops": 5, "resolution": 12})
    assert filled.objective.response.weight == 0.7
    assert filled.model_copy(update={"objective": config.objective}) == config
    assert filled.digest() != config.digest()
    assert filled.digest("teacher", "data") == config.digest("teacher", "data")
    with pytest.raises(ConfigError, match=r"knobs: objective\.response\.weight: input should be greater"):
        config.with_knobs({"objective.response.weight": -1.0})


def test_how_data_are_read_is_no_part_of_what_a_campaign_is(tiny: Callable[..., CampaignConfig]) -> None:
    changes = ({}, {"workers": 3, "cache_dir": "elsewhere", "decode_threads": 2}, {"size": 64})
    folders = [FolderConfig.model_validate({"root": "clips", **change}) for change in changes]
    one, other, smaller = (tiny().model_copy(update={"data": folder}) for folder in folders)
    assert (one.digest(), one.teacher_digest) == (other.digest(), other.teacher_digest)
    assert one.digest() != smaller.digest()
    assert one.teacher_digest != smaller.teacher_digest


def test_what_is_dumped_reads_back_equal(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    config = tiny(
        knobs={"objective.response.weight": FLOAT},
        early_stopping={"rungs": [1]},
        objective={"feature": {"pairs": [["stages.0", "layers.0"]]}},
        teacher={"weights": "some.safetensors"},
    )
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(file) == config
    assert load_config(None) == CampaignConfig()
