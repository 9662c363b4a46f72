"""Nets of users as teachers: every kind of `own_nets` at default settings, and what their answers and maps mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from own_nets import T
from torch import nn

from nas_kd.config import CampaignConfig, validate
from nas_kd.preparation.teacher import check_teacher
from nas_kd.search_spaces.arch import Choice
from nas_kd.taps import Taps
from nas_kd.teachers import AdaptedTeacher
from nas_kd.teachers.map_forms import _Observer
from nas_kd.trial import CampaignContext, build_context
from nas_kd.trial.learner import Learner

Make = Callable[..., CampaignConfig]
KNOBS: dict[str, Choice] = {"resolution": 16, "frames": T}
DATA = {"frames": T, "size": 32, "num_train": 8, "num_val": 4, "num_test": 4}
STAGES = [("stages.0", "stages.0"), ("stages", "stages.1")]
# Net of own_nets -> layout, modules (teacher, student) that are distilled.
NETS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "Clips": ("NCTHW", STAGES),
    "R2Plus1D": ("NCTHW", [("layer1", "stages.0"), ("layer2", "stages.1")]),
    "Images": ("frames", STAGES),
    "FoldsFrames": ("NTCHW", STAGES),
    "Tsm": ("NTCHW", [("stages.0", "stages.0"), ("stages.1", "stages.1")]),
    "CnnLstm": ("NTCHW", STAGES),
    "TimeSformer": ("NCTHW", [("blocks.0", "stages.0"), ("blocks.1", "stages.1")]),
    "Tubelets": ("NTCHW", [("blocks.1", "stages.0"), ("blocks.3", "stages.1")]),
    "TwoPathways": ("pathways", [("slow.0", "stages.0"), ("slow", "stages.1")]),
    "ConvNeXt": ("frames", STAGES),
    "TupleInTraining": ("NCTHW", STAGES),
    "GivesTuple": ("NCTHW", STAGES),
    "GivesObject": ("NCTHW", STAGES),
    "Checkpointed": ("NCTHW", [("stages.0", "stages.0"), ("stages.1", "stages.1")]),
    "CheckpointedAnew": ("NCTHW", [("stages.0", "stages.0"), ("stages.1", "stages.1")]),
    "Tied": ("NCTHW", STAGES),
    "LateBuffer": ("NCTHW", STAGES),
    "MatrixVector": ("NCTHW", STAGES),
    "NoMaps": ("NCTHW", []),
    "compiled": ("NCTHW", STAGES),
    "compiled_inside": ("NCTHW", STAGES),
    "parallel": ("NCTHW", STAGES),
    "half": ("NCTHW", STAGES),
    "videomae": ("NTCHW", [("videomae.encoder.layer.1", "stages.0"), ("videomae.encoder.layer.2", "stages.1")]),
    "timesformer": (
        "NTCHW", [("timesformer.encoder.layer.1", "stages.0"), ("timesformer.encoder.layer.2", "stages.1")],
    ),
    "vivit": ("NTCHW", [("vivit.layers.1", "stages.0"), ("vivit.layers.2", "stages.1")]),
}  # fmt: skip
BLOCKS_OF_STAGES = [("layers.1.blocks.1", "stages.0"), ("norm", "stages.1")]
# Of multiscale_nets, and small nets of images from transformers.
MULTISCALE: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "MViT": ("NCTHW", [("blocks.2", "stages.0"), ("norm", "stages.1")]),
    "VideoSwin": ("NCTHW", [("features.2", "stages.0"), ("norm", "stages.1")]),
    "VideoSwinOfMaps": ("NCTHW", BLOCKS_OF_STAGES),
    "Swin": ("frames", [("layers.0.blocks.1", "stages.0"), ("norm", "stages.1")]),
    "swin": ("frames", [("swin.encoder.layers.0.blocks.1", "stages.0"), ("swin", "stages.1")]),
    "hiera": ("frames", [("hiera.encoder.stages.1", "stages.0"), ("hiera", "stages.1")]),
    "VideoHiera": ("NCTHW", [("blocks.2", "stages.0"), ("norm", "stages.1")]),
    "hiera_pooled_once": ("NCTHW", [("blocks.0", "stages.0"), ("norm", "stages.1")]),
    "pvt": ("frames", [("pvt.encoder.block.0.1", "stages.0"), ("pvt", "stages.1")]),
}
# Of published_nets.
PUBLISHED: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "SlowFast": ("pathways", [("slow1", "stages.0"), ("slow2", "stages.1")]),
    "X3D": ("NCTHW", [("stem", "stages.0"), ("depthwise", "stages.1")]),
    "I3D": ("NCTHW", [("conv1", "stages.0"), ("conv2", "stages.1")]),
    "S3D": ("NCTHW", [("temporal", "stages.0"), ("conv", "stages.1")]),
    "ImagesVit": ("frames", [("blocks.0", "stages.0"), ("blocks.1", "stages.1")]),
    "ChannelsLast": ("NTHWC", [("conv1", "stages.0"), ("conv2", "stages.1")]),
}
# Of recent_nets.
RECENT: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "AuxiliaryHead": ("NCTHW", [("stages.0", "stages.0"), ("stages.1", "stages.1")]),
    "ConvLstm": ("NTCHW", STAGES),
    "FlowInside": ("NCTHW", [("appearance.0", "stages.0"), ("appearance", "stages.1")]),
    "DividedAttention": ("NCTHW", [("blocks.0", "stages.0"), ("blocks.1", "stages.1")]),
    "Scan": ("NCTHW", [("layers.0", "stages.0"), ("layers.1", "stages.1")]),
    "PoolingAttention": ("NCTHW", [("blocks.0", "stages.0"), ("blocks.1", "stages.1")]),
    "Normed": ("NCTHW", STAGES),
    "TakesBytes": ("NCTHW", STAGES),
}
REFUSED = {
    "own_nets:NotFinite": "teacher.model: own_nets:NotFinite gives values that are not finite .* divides by zero",
    "own_nets:scripted": "teacher.model: it is scripted by torch.jit, .* return the net as it was before torch.jit.scr",
    "recent_nets:MixesBatch": "another answer for an item when another one is in the batch, so that all figures",
    "recent_nets:SortsBatch": "another answer for an item when another one is in the batch, .* do not mix or sort the",
    "recent_nets:StaysInTraining": "another answer for an item when another one is in the batch, .* let BatchNorm have",
    "recent_nets:ComplexNumbers": r"must give logits of shape \(1, 4\) .*, but gives \(1, 4\) of torch.complex64; pick",
    "recent_nets:WholeNumbers": r"but gives \(1, 4\) of torch.int64; pick them with teacher.output",
    "recent_nets:Sparse": r"but gives \(1, 4\) of torch.sparse_coo; pick them with teacher.output",
    "recent_nets:UnderInference": "UnderInference runs under torch.inference_mode, .*; use torch.no_grad in its",
    "published_nets:DropsAlways": "DropsAlways in evaluation mode gives another answer at each pass .* training=self",
}
TABLES = {"own_nets": NETS, "multiscale_nets": MULTISCALE, "published_nets": PUBLISHED, "recent_nets": RECENT}


def taken(tiny: Make, net: str, **teacher: Any) -> CampaignContext:
    config = tiny(data=DATA, teacher={"model": net, "settings": {}, **teacher}, seed=2)
    return build_context(config, "cpu")


@lru_cache(maxsize=1)
def student_of(space: str) -> nn.Module:
    """The widest student of the tiny space, built once."""
    config = validate({**TINY, "space": json.loads(space)}, source="test")
    built = config.space.build(4)
    return built.student(built.widest(KNOBS))


@torch.no_grad()
def share_in_place(teacher: AdaptedTeacher, names: list[str]) -> float:
    """The share of changed regions of a clip whose maps change most at their own place, or beside it."""
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(1, 3, T, 32, 32, generator=generator)
    places = torch.randint(4, (8, 3), generator=generator)  # of a grid of 4 x 4 x 4
    clips = clip.repeat(1 + len(places), 1, 1, 1, 1)
    for changed, (t, h, w) in zip(clips[1:], places.tolist(), strict=True):
        region = changed[:, :, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
        region += 1  # of all frames, since a slow pathway sees few
        region[:, t] += 4
    with Taps(teacher.eval(), names) as taps:
        maps = taps(clips).features.values()
    found = []
    for features in maps:
        sizes = torch.tensor(features.shape[2:])
        for place, change in zip(places, (features[1:] - features[:1]).abs().sum(1), strict=True):
            at = torch.stack(torch.unravel_index(change.argmax(), change.shape))
            found.append(bool(((at + 0.5 - (place + 0.5) * sizes / 4).abs() <= (sizes / 4).clamp(min=1) + 0.5).all()))
    return sum(found) / max(len(found), 1)


@pytest.mark.parametrize("shape", [(7, T, 2, 1, 1), (7, 3, 1, 1, 2), (7 * T, 2, 1, 1)])
def test_what_is_pooled_to_a_point_is_no_map_of_few_pixels(shape: tuple[int, ...]) -> None:
    assert list(_Observer(7, T, (32, 32))._options(torch.zeros(shape), several=False)) == []


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of a checkpoint around the first layer
@pytest.mark.parametrize("net", [f"{module}:{name}" for module, nets in TABLES.items() for name in nets])
def test_every_net_is_checked_counted_trained_and_distilled_at_default_settings(tiny: Make, net: str) -> None:
    module, _, name = net.partition(":")
    layout, pairs = TABLES[module][name]
    context = taken(tiny, net)
    teacher, config = context.teacher_model, context.config
    assert isinstance(teacher, AdaptedTeacher)
    assert teacher.inputs.layout == layout
    check_teacher(context)
    assert context.input_type.teacher_flops(teacher, context.teacher_example(), context.space)[1] == ()
    batch = next(context.loader(context.splits.retrain, config.retrain, seed=0, train=True).epoch(0))
    outputs, _ = context.input_type.teacher_training_view(teacher.train(), batch)
    context.task.loss(outputs[0], batch).backward()
    context.freeze_teacher()
    learner = Learner(context, student_of(json.dumps(TINY["space"])), config.objective, KNOBS, cached=False)
    assert learner.objective.pairs.get("feature", ()) == tuple((student, teacher) for teacher, student in pairs)
    assert bool(learner.objective.left_out) == (not pairs)
    assert not pairs or share_in_place(teacher, [module for module, _ in pairs]) > 0.75
    terms = learner.loss(batch)
    learner.objective.total(terms).backward()
    assert set(terms) == ({"task", "feature"} if pairs else {"task"})
    assert all(bool(value.isfinite()) for value in terms.values())
    learner.close()


def test_a_net_with_connections_past_the_small_maps_is_a_teacher_of_maps(tmp_path: Path) -> None:
    sections = {"task": "segmentation", "data": {**TINY["data"], "size": 32}, "teacher": {"model": "recent_nets:UNet"}}
    context = build_context(validate({"runs": str(tmp_path), **sections}, source="test"), "cpu")
    check_teacher(context)
    pixels = {1: 32 * 32, 2: 16 * 16, 4: 8 * 8}
    convolutions = 9 * (3 * 8 * pixels[1] + 8 * 16 * pixels[2] + 16 * 24 * pixels[4] + 32 * 16 * pixels[2])
    convolutions += 9 * 16 * 8 * pixels[1] + 8 * 3 * pixels[1]
    transposed = 4 * (24 * 16 * pixels[4] + 16 * 8 * pixels[2])
    counted = context.input_type.teacher_flops(context.teacher_model, context.teacher_example(), context.space)
    assert counted == (convolutions + transposed, ())  # BatchNorm is folded
    assert set(context.space.left_out) == {"down1.0", "out"}


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("net", REFUSED)
def test_what_cannot_be_a_teacher_is_refused_with_a_way_out(tiny: Make, net: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[net]):
        check_teacher(taken(tiny, net))
