"""The kinds of input: each is chosen where it belongs, and what nets see in training, evaluation and bundles agrees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_kd.data import DataInfo
from nas_kd.inputs import (
    INPUT_TYPES,
    InputType,
    check_space_name,
    choose_input_type,
    input_type_of_bundle,
    input_type_of_file,
    space_settings,
)
from nas_kd.search_spaces import (
    ClipCellSettings,
    ClipCellSpace,
    DeltaBlocksSettings,
    DeltaBlocksSpace,
    FrameSequenceSettings,
    FrameSequenceSpace,
    ModuleSpace,
    SearchSpace,
)
from nas_kd.search_spaces.cells import Edge
from nas_kd.taps import ModelOutput
from nas_kd.tasks import Classification, Saliency, Segmentation, Task, find_task

N, T, H, W, D = 3, 5, 16, 20, 8
CLIPS = DataInfo(2, ("a", "b"), T, H, W, name="clips", mask_names=("background", "a"))
FEATURES = DataInfo(2, ("a", "b"), T, 0, 0, name="features", feature_size=D)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def clip_space() -> SearchSpace:
    settings: dict[str, Any] = {"num_classes": 2, "stem_width": 4, "widths": [[4]], "depths": [[1]], "strides": [1]}
    return ClipCellSpace(ClipCellSettings(**settings, resolution=(12,), frames=(2,)))


def feature_space() -> SearchSpace:
    return FrameSequenceSpace(FrameSequenceSettings(num_classes=2, feature_size=D, frames=(2,)))


def frame_space() -> SearchSpace:
    def build() -> nn.Module:
        return nn.Sequential(Edge({"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 3, padding=1)}), nn.Conv2d(4, 2, 1))

    return ModuleSpace(build, torch.zeros(1, 3, H, W))


def stream_space() -> SearchSpace:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    settings = DeltaBlocksSettings(keyframe_interval=(3,), candidates=("pointwise2", "full"))
    return DeltaBlocksSpace(settings, nn.Sequential(*layers), (H, W))


CASES: dict[str, tuple[DataInfo, type[Task], Any]] = {
    "clips": (CLIPS, Classification, clip_space),
    "features": (FEATURES, Classification, feature_space),
    "frames": (CLIPS, Segmentation, frame_space),
    "key frames": (CLIPS, Segmentation, stream_space),
}
NAMES = {"clips": "ClipInput", "features": "FeatureInput", "frames": "FrameInput", "key frames": "KeyFrameInput"}


def made(case: str) -> tuple[InputType, SearchSpace]:
    info, task, build = CASES[case]
    space: SearchSpace = build()
    return choose_input_type(info, task, space, MEAN, STD), space


def batch_of(input_type: InputType) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = {"label": torch.zeros(N, dtype=torch.int64), "index": torch.arange(N)}
    if input_type.key == "features":
        return batch | {"features": torch.randn(N, T, D, generator=generator).half()}
    clip = torch.randint(0, 256, (N, 3, T, H, W), dtype=torch.uint8, generator=generator)
    # The mask tells which frame of which clip a pixel is of.
    mask = (10 * torch.arange(N)[:, None] + torch.arange(T))[..., None, None].expand(N, T, H, W).to(torch.uint8)
    return batch | {"clip": clip, "mask": mask}


@pytest.mark.parametrize("case", CASES)
def test_the_kind_follows_from_data_task_and_space_and_is_the_one_of_the_bundle(case: str) -> None:
    input_type, space = made(case)
    assert type(input_type).__name__ == NAMES[case]
    assert input_type.outputs_are_maps(CASES[case][1]) == (case in ("frames", "key frames"))
    assert input_type.key in batch_of(input_type)
    cost = dict.fromkeys(("keyframe_interval", "keyframe_flops", "delta_flops", "state_bytes"), 3)
    fields = input_type.bundle_fields(cost)
    shape = space.example_input(space.knobs_with({})).shape[1:]
    assert input_type_of_bundle(shape, fields["mean"], fields.get("keyframe_interval")) is type(input_type)


@pytest.mark.parametrize("case", CASES)
def test_a_bundle_prepares_what_nets_read(case: str) -> None:
    input_type, space = made(case)
    batch = batch_of(input_type)
    fields = input_type.bundle_fields(
        dict.fromkeys(("keyframe_interval", "keyframe_flops", "delta_flops"), 3) | {"state_bytes": 9}
    )
    shape = space.example_input(space.knobs_with({})).shape[1:]
    read = input_type.read(batch)
    assert read.dtype == torch.float32
    assert torch.equal(type(input_type).prepare(batch[input_type.key], shape, fields["mean"], fields["std"]), read)
    with pytest.raises(ValueError, match="the student reads"):
        type(input_type).prepare(torch.zeros(2, 7), shape, fields["mean"], fields["std"])


@pytest.mark.parametrize("case", CASES)
def test_examples_are_of_the_shapes_that_nets_see(case: str) -> None:
    input_type, space = made(case)
    knobs = space.knobs_with({})
    input_type.check_space(space, knobs)
    view = input_type.training_view(batch_of(input_type), space, knobs)
    examples = input_type.example(2)
    assert view.teacher.shape[1:] == examples.shape[1:]
    assert torch.equal(made(case)[0].example(2), examples)
    low, high = (0.0, 1.0) if case == "features" else ((0 - MEAN[0]) / STD[0], (1 - MEAN[0]) / STD[0])
    colors = examples if case == "features" else examples.select(1, 0)
    assert low <= float(colors.min()) < low + 0.1
    assert high - 0.1 < float(colors.max()) <= high + 1e-6  # some nets refuse what no pixel can be
    assert not torch.equal(examples[0], examples[1])
    assert view.student[0].shape[1:] == input_type.student_example(space, knobs).shape[1:]
    assert (view.key_frames is not None) == (case == "key frames")


@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_a_step_shows_the_teacher_is_among_what_it_may_be_shown(case: str, previous: bool) -> None:
    input_type, space = made(case)
    batch = batch_of(input_type)
    whole = input_type.teacher_inputs(batch)
    whole = whole.reshape(N, input_type.positions, *whole.shape[1:])
    view = input_type.training_view(batch, space, space.knobs_with({}), previous_frame=previous)
    positions = view.batch.get("position", torch.zeros(N, 1, dtype=torch.int64))
    expected = torch.cat([whole[torch.arange(N), column] for column in positions.T])
    assert torch.equal(view.teacher, expected)
    assert len(view.teacher) == N * (2 if previous and case == "key frames" else 1)
    if view.key_frames is not None:
        assert view.key_position is not None
        assert torch.equal(view.key_frames, whole[torch.arange(N), view.key_position[:, 0]])


def test_whole_items_are_fitted_for_students_alone() -> None:
    for case in ("clips", "features"):
        input_type, space = made(case)
        batch, knobs = batch_of(input_type), space.knobs_with({})
        view = input_type.training_view(batch, space, knobs)
        assert torch.equal(view.teacher, input_type.read(batch))
        assert torch.equal(view.student[0], space.fit_input(view.teacher, knobs))
        assert view.batch is batch
        output = ModelOutput(torch.randn(N, 2))
        assert input_type.student_output(output, N) is output
        assert input_type.teacher_output(output, N) is output
        wrong = made("features" if case == "clips" else "clips")[1]
        with pytest.raises(ValueError, match=r"space.name: students of space .* read .*, but the data are"):
            input_type.check_space(wrong, wrong.knobs_with({}))


@pytest.mark.parametrize("previous", [False, True])
def test_labels_of_pairs_are_those_of_the_frames_that_are_compared(previous: bool) -> None:
    input_type, space = made("key frames")
    batch = batch_of(input_type)
    view = input_type.training_view(batch, space, space.knobs_with({}), previous_frame=previous)
    clip, interval = view.student
    later = interval - 1
    assert clip.shape == (N, 3, later + 1, H, W)
    assert later == 1 + previous
    assert view.key_frames is not None
    assert torch.equal(view.key_frames, clip[:, :, 0])
    assert torch.equal(view.batch["clip"].shape[2] * torch.ones(1), torch.tensor([float(later)]))
    # Rows of the teacher are all first frames, then all second ones; its answer has the clips first again.
    answers = ModelOutput(view.teacher.mean((2, 3), keepdim=True))
    frames = input_type.teacher_output(answers, N).logits
    assert torch.allclose(frames[:, :, :, 0, 0], clip[:, :, 1:].mean((3, 4)).transpose(1, 2))
    student = ModelOutput(torch.randn(N, later + 1, 2, H, W))
    assert torch.equal(input_type.student_output(student, N).logits, student.logits[:, 1:])
    clips = view.batch["mask"][:, :, 0, 0].long() // 10
    assert torch.equal(clips, torch.arange(N)[:, None].expand(N, later))


def test_single_frames_are_drawn_with_their_labels() -> None:
    input_type, space = made("frames")
    batch = batch_of(input_type)
    view = input_type.training_view(batch, space, {})
    assert torch.equal(view.student[0], view.teacher)
    picked = view.batch["mask"][:, 0, 0, 0].long() - 10 * torch.arange(N)
    read = input_type.read(batch)
    for clip, frame in enumerate(picked.tolist()):
        assert torch.equal(view.student[0][clip], read[clip, :, frame])
    assert input_type.student_output(ModelOutput(torch.randn(N, 2, H, W)), N).logits.shape == (N, 1, 2, H, W)


def test_teachers_of_frames_run_on_every_frame_of_a_clip() -> None:
    for case in ("frames", "key frames"):
        input_type, _ = made(case)
        clip = input_type.read(batch_of(input_type))
        assert torch.equal(
            input_type.on_items(lambda frames: frames.mean((2, 3)), 5)(clip)[:, 1], clip[:, :, 1].mean((2, 3))
        )
    whole, _ = made("clips")
    model = nn.Identity()
    assert whole.on_items(model, 5) is model


def test_a_file_tells_which_defaults_it_has() -> None:
    for task, data, name in (
        ("segmentation", {"source": "generated"}, "KeyFrameInput"),
        ("segmentation", {"source": "features"}, "KeyFrameInput"),
        ("classification", {"source": "youtube8m"}, "FeatureInput"),
        ("classification", {"source": "own"}, "ClipInput"),
        ("multilabel", {"source": "own", "items": "features"}, "FeatureInput"),
        (None, {"source": []}, "ClipInput"),
        (None, None, "ClipInput"),
    ):
        assert input_type_of_file(None if task is None else find_task(task), data).__name__ == name
    assert Saliency.defaults["space"] == {"name": "saliency"}
    assert space_settings(CLIPS) == {}
    assert space_settings(FEATURES) == {"feature_size": D, "frames": T}
    assert len(set(INPUT_TYPES)) == len(CASES)


def test_a_space_by_name_fits_the_task() -> None:
    check_space_name("delta_blocks", "segmentation")
    check_space_name("own:space", "segmentation")
    check_space_name("clip_cell", "classification")
    with pytest.raises(ValueError, match="'delta_blocks' needs a task that looks at single frames: segmentation"):
        check_space_name("delta_blocks", "classification")
    with pytest.raises(ValueError, match="'clip_cell' makes students of whole clips, but task 'segmentation'"):
        check_space_name("clip_cell", "segmentation")
