from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nas_kd.config import CampaignConfig, ConfigError, validate
from nas_kd.data import DataInfo
from nas_kd.objectives import ObjectiveConfig
from nas_kd.preflight.checks import check_fit
from nas_kd.preparation.nets import supports_batch_size_1
from nas_kd.preparation.proposals import corner_knobs, proposals, structure_key
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.preparation.teacher_outputs import cached_taps
from nas_kd.tasks import make_task
from nas_kd.trial import CampaignContext, build_context

Make = Callable[..., CampaignConfig]
ON = {"feature": {"weight": 0}, "cross_resolution": {"weight": 1}}
TRUNK = {"widths": [[4], [4], [4], [4]], "depths": [1], "ops": ["conv_k1"]}
SALIENCY: dict[str, Any] = {
    "task": "saliency",
    "data": {"num_train": 16, "num_val": 8, "num_test": 8, "frames": 2, "size": 32, "digits": [[3], [8]],
             "motions": ["up", "down"]},
    "teacher": {"settings": {"widths": [4, 4], "depth": 1}, "fit": {"epochs": 1}},
    "space": {"name": "saliency", "net": ["fused"], "side": [32], "spatial": TRUNK, "temporal": TRUNK,
              "decoder": {"widths": [[4], [4], [4], [4], [4]], "ops": ["conv_k1"]}},
    "budget": {"max_flops": "1M"},
    "retrain": {"epochs": 2},
}  # fmt: skip


def choice(*values: Any) -> dict[str, Any]:
    return {"type": "choice", "values": list(values)}


def refusal(config: CampaignConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_fit(config, build_context(config, "cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saliency(**changes: Any) -> CampaignConfig:
    data = {**SALIENCY}
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    return validate(data, source="test")


# What is proposed


def test_choices_are_all_combined_where_they_are_few_and_ranges_have_two_ends(tiny: Make) -> None:
    knobs: dict[str, Any] = {
        "objective.cross_resolution.student": choice("stages.0", "stages.1"),
        "objective.response.weight": {"type": "float", "low": 0.5, "high": 2},
        "search.lr": {"type": "float", "low": 0.1, "high": 1},  # nothing that could not fit depends on it
    }
    config = tiny(objective=ON, knobs=knobs)
    space = config.space.build(4)
    found = {
        (p.config.objective.cross_resolution.student, p.config.objective.response.weight)
        for p in proposals(config, space)
    }
    assert found == {("stages.0", 0.5), ("stages.0", 2), ("stages.1", 0.5), ("stages.1", 2)}
    assert all(
        p.knobs == ({"resolution": 12, "frames": 4}, {"resolution": 16, "frames": 4}) for p in proposals(config, space)
    )

    many = {f"objective.{term}.weight": choice(1, 2, 3) for term in ("task", "response", "feature", "cross_resolution")}
    listed = [p.values for p in proposals(tiny(knobs=many), space)]
    assert len(listed) == 4 * 3  # 81 combinations are too many: each value once, with the others as in the file
    assert all(len(values) <= 1 for values in listed)


def test_a_grid_alone_proposes_its_cells_and_nothing_else(tiny: Make) -> None:
    grid = [
        {"resolution": [12, 16], "max_flops": 150000, "objective.response.weight": [0, 1]},
        {"resolution": 16, "max_flops": 250000, "objective.response.weight": 2},
    ]
    config = tiny(grid=grid, trials=5)
    space = config.space.build(4)
    found = {p.config.objective.response.weight: [k["resolution"] for k in p.knobs] for p in proposals(config, space)}
    assert found == {0: [12, 16], 1: [12, 16], 2: [16]}
    assert {p.source for p in proposals(config, space)} == {"grid"}
    more = [p for p in proposals(tiny(grid=grid, trials=6), space) if p.config.objective.response.weight == 2]
    assert [k["resolution"] for p in more for k in p.knobs] == [12, 16]  # a sampler proposes too


def test_each_net_that_a_word_stands_for_is_among_the_extremes() -> None:
    space = saliency(space={"net": ["spatial", "temporal", "fused"], "side": [32, 64]}).space.build(1)
    assert [(k["net"], k["side"]) for k in corner_knobs(space)] == [("spatial", 32), ("fused", 64), ("temporal", 64)]


def test_an_outline_is_blind_to_sizes_and_not_to_what_is_there() -> None:
    base, *others = (
        structure_key(ObjectiveConfig.model_validate(terms))
        for terms in (
            {"response": {"weight": 1}},
            {"response": {"weight": 2, "kd_temperature": 9}, "cross_resolution": {"student": "x"}},
            {"response": {"weight": 0}},
            {"response": {"weight": 1}, "task": {"weight": 0}},
            {"response": {"weight": 1}, "feature": {"pairs": [["a", "b"]]}},
            {"response": {"weight": 1}, "cross_resolution": {"weight": 1}},
        )
    )
    assert [other == base for other in others] == [True, False, False, False, False]


# What is refused


@pytest.mark.parametrize("how", ["grid", "knobs"])
def test_every_value_that_can_be_proposed_is_checked(tiny: Make, how: str) -> None:
    path, values = "objective.cross_resolution.student", ["stages.1", "stage.1"]
    if how == "knobs":
        config = tiny(objective=ON, knobs={path: choice(*values)})
    else:
        config = tiny(objective=ON, grid=[{"resolution": 12, "max_flops": 150000, path: values}], trials=2)
    assert refusal(config).startswith(
        f"{how} may not propose {path} = 'stage.1': {path}: module 'stage.1' of the student does not exist; did you "
        "mean 'stages.1'? choose from"
    )
    check_fit(tiny(objective=ON, knobs={path: choice("stages.0", "stages.1")}), build_context(tiny(), "cpu"))


def test_two_values_are_checked_together(tiny: Make) -> None:
    knobs = {
        "objective.cross_resolution.form": choice("maps", "logits"),
        "objective.cross_resolution.teacher_classifier": choice("classifier", "stem.0"),
    }
    sentence = refusal(tiny(objective=ON, knobs=knobs))
    assert (
        "cross_resolution.form = 'logits' with objective.cross_resolution.teacher_classifier = 'stem.0': " in sentence
    )
    fused = {"objective.task.weight": choice(0, 1), "objective.spatiotemporal.fusion_share": choice(0.0, 0.5)}
    assert "fusion_share is 0, so the decoder" in refusal(saliency(knobs=fused))


def test_what_students_lack_is_refused_in_their_objective_alone(tiny: Make) -> None:
    name = "stages.0.0.edges.0_1.candidates.2"  # of the supernet
    pairs = {"feature": {"weight": 1, "pairs": [[name, "layers.0"]]}}
    sentence = refusal(tiny(objective=pairs))
    assert sentence.startswith(f"objective.feature.pairs: module {name!r} of the student does not exist; ")
    offered = sentence.partition("choose from ")[2].partition(", or set")[0].split(", ")
    assert {"stem", "stages.0", "stages.1"} <= set(offered)
    assert not any("candidates" in module or "edges" in module for module in offered)
    check_fit(tiny(search={"objective": pairs}), build_context(tiny(), "cpu"))

    deep = {"feature": {"weight": 1, "pairs": [["stages.1.1", "layers.1"]]}}  # of students of two cells a stage
    assert "module 'stages.1.1' of the student does not exist" in refusal(tiny(objective=deep))


def test_the_fusion_stage_has_at_least_one_step() -> None:
    assert check_fit(saliency(), build_context(saliency(), "cpu")) == []
    term = {"spatiotemporal": {"weight": 1, "fusion_share": 0.4}}
    assert "fusion_share: 0.4 of a training of 2 batches is less than one" in refusal(saliency(objective=term))
    assert "fusion_share: 0.5 of a training of 1 batches" in refusal(saliency(retrain={"epochs": 1}))
    for change in (
        {"space": {"net": ["spatial"]}},
        {"objective": {"spatiotemporal": {"weight": 1, "fusion_share": 0}}},
    ):
        config = saliency(retrain={"epochs": 1}, **change)
        check_fit(config, build_context(config, "cpu"))


def with_maps(config: CampaignConfig, *names: str) -> CampaignContext:
    context = build_context(config, "cpu")
    info: DataInfo = replace(context.splits.info, map_names=names)
    context.splits = replace(context.splits, info=info)
    context.task = make_task(config.task, info, config.task_options)
    return context


def test_a_map_that_nothing_reads_is_refused() -> None:
    config = saliency()
    with pytest.raises(ConfigError, match=r"data.maps: nothing reads the map 'spatail'; did you mean 'spatial'\?"):
        check_fit(config, with_maps(config, "spatail", "temporal"))
    check_fit(config, with_maps(config, "spatial", "temporal"))


def test_a_teacher_that_nobody_asks_is_not_cached(tmp_path: Any) -> None:
    config = saliency(runs=str(tmp_path))
    assert cached_taps(build_context(config, "cpu")) == {"none": ("spatial", "temporal")}
    assert cached_taps(with_maps(config, "spatial")) == {"none": ("temporal",)}
    context = with_maps(config, "spatial", "temporal")
    assert cached_taps(context) == {}
    context.splits = replace(context.splits, info=replace(context.splits.info, map_names=()))  # which samples lack
    prepare_teacher(context, config.run_dir)
    assert not (config.run_dir / "teacher" / "outputs").exists()
    flipped = saliency(retrain={"augment": "flip"})
    taps = ("spatial", "temporal")
    assert cached_taps(build_context(flipped, "cpu")) == {"none": taps, "flip": taps}


def test_batches_of_one_are_refused_where_a_norm_has_one_value(tiny: Make) -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in pooled.state_dict().items()}
    assert not supports_batch_size_1(pooled, torch.zeros(1, 3, 8, 8))
    assert supports_batch_size_1(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.zeros(1, 3, 8, 8))
    assert all(torch.equal(before[name], value) for name, value in pooled.state_dict().items())
    # The last maps of these students have one pixel and one frame.
    space = {"strides": [2, 2], "resolution": [4], "frames": [1]}
    for section in ("search", "retrain"):
        sentence = refusal(tiny(space=space, **{section: {"batch_size": 1}}))
        assert sentence.startswith(
            f"{section}.batch_size: a BatchNorm of this net has one value a channel for each item"
        )
        check_fit(tiny(space=space), build_context(tiny(space=space), "cpu"))
        large = tiny(**{section: {"batch_size": 1}})
        check_fit(large, build_context(large, "cpu"))
    assert "retrain.batch_size" in refusal(tiny(space=space, knobs={"retrain.batch_size": choice(1, 8)}))


def test_data_of_another_kind_are_named_before_the_budget_is(tiny: Make) -> None:
    config = tiny(space={"resolution": [12], "frames": [4]}, budget={"max_flops": "1k"})
    context = build_context(config, "cpu")
    context.space.fit_input = lambda clip, knobs: clip[..., :3]  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="space: students of space 'clip_cell' read inputs of shape"):
        check_fit(config, context)


def test_clips_may_be_enlarged_but_it_is_said(tiny: Make) -> None:
    assert check_fit(tiny(), build_context(tiny(), "cpu")) == []
    config = tiny(space={"resolution": [16, 20]})
    (sentence,) = check_fit(config, build_context(config, "cpu"))
    assert sentence.startswith("space.resolution: students at 20 see clips enlarged from the data's 16 pixels")
