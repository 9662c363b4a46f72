"""What an adapted teacher shows its net, what it takes of its outputs, and which axes of a map it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from own_nets import Clips, FoldsFrames, T, TwoPathways, videomae
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.objectives.default_maps import spread_maps
from nas_kd.preparation.identity import check_identity
from nas_kd.preparation.teacher import check_teacher, prepare_teacher
from nas_kd.search_spaces import SPACES
from nas_kd.settings.normalize import NormalizeConfig
from nas_kd.taps import Taps
from nas_kd.teachers import AdaptedTeacher, TeacherConfig
from nas_kd.teachers.adapter import adapt, with_forms
from nas_kd.teachers.hugging_face import wanted
from nas_kd.teachers.input_form import InputForm
from nas_kd.teachers.layouts import lay_out
from nas_kd.teachers.output_form import OutputForm
from nas_kd.teachers.teacher import TeacherView, build_teacher_model
from nas_kd.trial import build_context

Make = Callable[..., CampaignConfig]
NAMES = ("a", "b", "c")
CLIP = torch.randn(2, 3, T, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-2, 2.4)


def taken(net: str, notes: list[str] | None = None, **options: Any) -> AdaptedTeacher:
    """A net of this file or of own_nets for three classes, in evaluation mode."""
    view = TeacherView(CLIP, "an item", maps=False, normalize=NormalizeConfig(), class_names=NAMES)
    torch.manual_seed(0)
    config = TeacherConfig(model=net if ":" in net else f"own_nets:{net}", **options)
    teacher = build_teacher_model(config, 3, None, view, (notes if notes is not None else []).append)
    assert isinstance(teacher, AdaptedTeacher)
    return teacher.eval()


def test_layouts_keep_every_frame_in_its_place() -> None:
    clip = torch.arange(2 * 3 * 8, dtype=torch.float32).reshape(2, 3, 8, 1, 1)
    assert torch.equal(lay_out(clip, "NTCHW", ())[1, 5], clip[1, :, 5])
    assert torch.equal(lay_out(clip, "NTHWC", ())[1, 5, ..., 2], clip[1, 2, 5])
    assert torch.equal(lay_out(clip, "frames", ())[8 + 5], clip[1, :, 5])
    assert torch.equal(lay_out(clip, "stacked", ())[1, 3 * 5 : 3 * 6], clip[1, :, 5])
    slow, fast = lay_out(clip, "pathways", (4, 1))
    assert fast is clip
    assert torch.equal(slow, clip[:, :, [0, 7]])  # as in SlowFast: both ends


@torch.no_grad()
def test_a_net_in_another_layout_answers_as_by_itself() -> None:
    folds, paths = taken("FoldsFrames"), taken("TwoPathways", pathway_strides=(2, 1))
    assert isinstance(folds.net, FoldsFrames)
    assert isinstance(paths.net, TwoPathways)
    assert torch.equal(folds(CLIP), folds.net(CLIP.transpose(1, 2)))
    assert torch.equal(paths(CLIP), paths.net([CLIP[:, :, [0, 3]], CLIP]))
    frames = taken("Images")
    by_hand = torch.stack([frames.net(CLIP[:, :, t]) for t in range(T)]).mean(0)
    torch.testing.assert_close(frames(CLIP), by_hand)


@torch.no_grad()
def test_classes_are_picked_by_number_and_by_name() -> None:
    every = taken("Clips", settings={"num_classes": 7})  # 7 outputs for 3 classes: not what the task reads
    assert every(CLIP).shape == (2, 7)
    listed = taken("Clips", settings={"num_classes": 7}, outputs=[5, 0, 2])
    named = taken("Clips", settings={"num_classes": 7}, outputs={"b": 0, "c": 2, "a": 5})
    assert torch.equal(listed(CLIP), every(CLIP)[:, [5, 0, 2]])
    assert torch.equal(named(CLIP), listed(CLIP))


@torch.no_grad()
def test_size_frames_and_normalisation_are_those_of_the_net() -> None:
    teacher = taken("Clips", input_size=16, input_frames=2, normalize={"mean": [0.5, 0.4, 0.3], "std": [0.2] * 3})
    (shown,) = [teacher.lay_out(CLIP)]
    assert isinstance(shown, Tensor)
    assert shown.shape == (2, 3, 2, 16, 16)
    bytes_of_1 = CLIP[:, :, [1, 3]] * 0.225 + 0.45  # frames at the centres of two halves
    wanted = (bytes_of_1 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1, 1)) / 0.2
    small = F.interpolate(wanted.transpose(1, 2).flatten(0, 1), size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(shown.transpose(1, 2).flatten(0, 1), small)


@torch.no_grad()
def test_modules_of_an_adapted_net_have_their_names_in_it_and_in_the_whole() -> None:
    """A space that is made of a teacher's layers names them as the whole has them."""
    teacher = taken("Clips", outputs=[2, 0, 1])
    name = next(name for name, module in teacher.net.named_modules() if isinstance(module, nn.Conv3d))
    with Taps(teacher, [name, f"net.{name}"]) as taps:
        maps = taps(CLIP).features
    assert torch.equal(maps[name], maps[f"net.{name}"])


def test_layers_of_a_teacher_of_the_package_are_taken_as_they_are() -> None:
    data = {"source": "generated", "num_train": 8, "num_val": 8, "num_test": 8, "frames": 2, "size": 32}
    config = CampaignConfig.model_validate(
        {"task": "segmentation", "data": data, "space": {"name": "delta_blocks"}, "teacher": {"outputs": [3, 2, 1, 0]}}
    )
    with pytest.raises(ValueError, match=r"'delta_blocks' is made of the layers .* teacher\.outputs, .* a function of"):
        build_context(config, "cpu")


class Reshapes(nn.Module):
    """Takes anything and tells frames from channels by nothing but the order of memory."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(2, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        flat = clip.reshape(len(clip), -1)
        return self.head(torch.stack([flat[:, :2048].mean(1), flat[:, 2048:].std(1)], 1))


class TwoHeads(Clips):
    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        logits = super().forward(clip)
        return {"main": logits, "aux": -logits}


class PerFrame(Clips):
    """Logits of each frame, (N, T, C), or as (N, C, T)."""

    def __init__(self, num_classes: int, last: bool) -> None:
        super().__init__(num_classes)
        self.last = last

    def forward(self, clip: Tensor) -> Tensor:
        logits = self.head(self.stages(clip).mean((3, 4)).transpose(1, 2))
        return logits if self.last else logits.transpose(1, 2)


@pytest.mark.parametrize("last", [True, False])
@torch.no_grad()
def test_answers_for_each_frame_are_averaged(last: bool) -> None:
    notes: list[str] = []
    teacher = taken(f"{__name__}:PerFrame", notes, settings={"last": last})
    torch.testing.assert_close(teacher(CLIP), teacher.net(CLIP).mean(1 if last else 2))
    assert teacher(CLIP).shape == (2, 3)
    shape = f"(2, {T}, 3)" if last else f"(2, 3, {T})"
    assert f"gives {shape} for two clips; the mean over frames and places is its answer" in notes[-1]
    four = taken(f"{__name__}:PerFrame", settings={"last": last, "num_classes": T}, outputs=[0, 2, 3])
    assert four(CLIP).ndim == 3  # as many classes as frames: which axis is which is not known, and the check refuses it


class WritesInput(Clips):
    def forward(self, clip: Tensor) -> Tensor:
        clip -= 1
        return super().forward(clip)


@torch.no_grad()
def test_a_net_that_takes_bytes_gets_those_of_the_clip() -> None:
    class Brightness(nn.Module):
        def forward(self, clip: Tensor) -> Tensor:
            assert clip.dtype == torch.uint8
            return clip.double().mean((3, 4))[:, :, 0].float()

    notes: list[str] = []
    normalize = NormalizeConfig(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    form, clip = InputForm(given=normalize), torch.zeros(2, 3, 2, 8, 8)
    teacher = adapt(Brightness(), "bright", form, OutputForm(None, None, 3), clip, "a clip", notes.append)
    pixels = torch.randint(0, 256, (2, 3, 2, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shape = (3, 1, 1, 1)
    mean, std = (torch.tensor(values).view(shape) for values in (normalize.mean, normalize.std))
    torch.testing.assert_close(teacher((pixels / 255 - mean) / std), pixels.double().mean((3, 4))[:, :, 0].float())
    assert notes == [
        "teacher.model: bright takes bytes, so pixels reach it as uint8 from 0 to 255, whatever `normalize`"
    ]


class Picky(nn.Module):
    """As published nets are: a list of one clip, pixels from 0 to 1 alone, a train() that returns nothing."""

    def __init__(self, num_classes: int, kind: str) -> None:
        super().__init__()
        self.net, self.kind = Clips(num_classes), kind

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def forward(self, given: Any) -> Any:
        clip = given[0] if "list" in self.kind else given
        assert clip.ndim == 5
        assert self.kind != "from 0 to 1" or 0 <= clip.min() < clip.max() <= 1
        return self.net(clip)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("", None),
        ("list", "takes a list of one clip, pathways with teacher.pathway_strides: [1]"),
        ("from 0 to 1", "refuses normalised pixels and takes those from 0 to 1, which it gets"),
    ],
)
def test_what_a_net_takes_alone_is_found_and_said(kind: str, sentence: str | None) -> None:
    notes: list[str] = []
    teacher = taken(f"{__name__}:Picky", notes, settings={"kind": kind})
    assert teacher.training is False
    assert [note.endswith(str(sentence)) for note in notes] == [True] * (sentence is not None)
    shown = CLIP * 0.225 + 0.45 if kind == "from 0 to 1" else CLIP
    torch.testing.assert_close(teacher(CLIP), teacher.net.net(shown))


class Extra(Clips):
    def get_extra_state(self) -> dict[str, int]:
        return {"scale": 1}


class Exported(Clips):
    def train(self, mode: bool = True) -> Exported:
        raise NotImplementedError("Calling train() is not supported yet.")  # as programs of torch.export do


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        ("Extra", "must be tensors, but '_extra_state' in its state dict is a dict, .* let get_extra_state give a ten"),
        ("Exported", "it has no mode of training .*; return the net as it was before torch.export"),
    ],
)
def test_modules_that_no_campaign_can_keep_are_refused(net: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"teacher.model: .*{sentence}"):
        taken(f"{__name__}:{net}")


def for_inference(num_classes: int) -> nn.Module:
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    return Clips(num_classes)


def test_what_a_function_changes_of_torch_is_undone() -> None:
    notes: list[str] = []
    assert taken(f"{__name__}:for_inference", notes)(CLIP).requires_grad
    assert torch.get_default_dtype() == torch.float32
    assert notes == ["teacher.model: its float64 was cast to float32"]


def test_a_net_of_clips_is_no_teacher_of_frames() -> None:
    form = OutputForm(None, None, 3, maps=True)
    with pytest.raises(
        ValueError,
        match=r"takes clips, but this task .* look at single frames, .*; take a net of frames, or let",
    ):
        adapt(Clips(3), "clips", InputForm(), form, torch.zeros(2, 3, 32, 32), "a frame", lambda text: None)


def test_a_net_that_writes_into_its_input_leaves_that_of_the_student_as_it_is() -> None:
    teacher, given = taken(f"{__name__}:WritesInput"), CLIP.clone()
    first = teacher(given)
    assert torch.equal(given, CLIP)
    assert torch.equal(teacher(given), first)


class Bytes(Clips):
    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.pooled(clip)[:, :3])  # a mistake in the net


class TakesLengths(nn.Module):
    """Wants more than a clip."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(1, num_classes)

    def forward(self, clip: Tensor, lengths: Tensor) -> Tensor:
        return self.head(clip.mean((1, 2, 3, 4))[:, None])  # type: ignore[no-any-return]


@torch.no_grad()
def test_which_maps_are_read_does_not_depend_on_the_weights() -> None:
    """Another seed, or weights of a file, would otherwise distil other modules."""
    teacher = taken("multiscale_nets:MViT")
    found = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        own = {
            name: torch.randn(value.shape, generator=generator) / 5 for name, value in teacher.net.named_parameters()
        }
        teacher.net.load_state_dict(own)
        found.append((with_forms(teacher, CLIP[:1]).forms, spread_maps(teacher, CLIP, 2)))
        assert all(torch.equal(value, own[name]) for name, value in teacher.net.named_parameters())
    assert found[0] == found[1]
    assert any(form.axes == ("N", "t", "h", "w", "C") for form in found[0][0].values())


@torch.no_grad()
def test_what_is_ambiguous_is_refused_and_the_advice_works() -> None:
    here = __name__
    with pytest.raises(ValueError, match=r"teacher.input_layout: .* with other answers; set it to NCTHW or NTCHW"):
        taken(f"{here}:Reshapes")
    assert taken(f"{here}:Reshapes", input_layout="NTCHW").inputs.layout == "NTCHW"
    with pytest.raises(ValueError, match=r"teacher.input_layout: .* with other answers; set it to NCTHW or NTCHW"):
        taken("Clips", input_frames=3)  # as many frames as colours
    assert taken("Clips", input_frames=3, input_layout="NCTHW").inputs.layout == "NCTHW"
    with pytest.raises(ValueError, match=r"several outputs .* \(main, aux\); name .* teacher.output: main"):
        taken(f"{here}:TwoHeads")
    main, aux = taken(f"{here}:TwoHeads", output="main"), taken(f"{here}:TwoHeads", output=1)
    assert torch.equal(main(CLIP), -aux(CLIP))
    with pytest.raises(ValueError, match=r"has no output 'logits' .* it gives dict \(main: \(2, 3\); aux: \(2, 3\)\)"):
        taken(f"{here}:TwoHeads", output="logits")
    with pytest.raises(ValueError, match=r"cannot read an item .* set teacher.input_layout.* RuntimeError: "):
        taken(f"{here}:Bytes")
    with pytest.raises(ValueError, match=r"TakesLengths must take one input, .* but takes \(clip: .*, lengths"):
        taken(f"{here}:TakesLengths")
    for outputs, sentence in (
        ([0, 1], "names 2 outputs, but the task needs 3"),
        ([0, 1, 1], "output 1 is named twice"),
        ({"a": 0, "b": 1, "x": 2}, "must name the data's classes, a, b, c, each once, but differs at c, x"),
    ):
        with pytest.raises(ValueError, match=sentence):
            taken("Clips", settings={"num_classes": 7}, outputs=outputs)


class Places(nn.Module):
    """Tokens whose channels say where they are, in an order of axes that is chosen."""

    def __init__(self, num_classes: int, order: str, special: int = 0, first: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv3d(3, 6, (1, 8, 8), (1, 8, 8))
        self.tokens, self.order, self.special, self.first = nn.Identity(), order, special, first
        self.head = nn.Linear(6, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.patch(clip)  # (N, C, t, h, w)
        names = "NCthw"
        if self.order == "pooled":  # the order of windows of 2 x 2, then that of their places
            x = x.unflatten(4, (2, 2)).unflatten(3, (2, 2)).permute(0, 4, 6, 2, 3, 5, 1).flatten(1, 3)
        else:
            x = x.permute([names.index(axis) for axis in (*self.order, "C")])
        if self.order in ("Nthw", "Nhwt", "pooled"):
            x = x.flatten(1, 3)
            x = torch.cat([100 * torch.ones_like(x[:, :1]).expand(-1, self.special, -1), x], 1)
            x = x if self.first else x.transpose(0, 1)
        else:  # rows of two axes and the other ones as tokens
            rows = 3 if self.order.startswith("Nhw") else 2
            x = x.flatten(0, rows - 1)
            x = x.flatten(1, -2)
        x = self.tokens(x)
        return self.head(x.flatten(0, 1).mean(0, keepdim=True)).expand(len(clip), -1)


@pytest.mark.parametrize(
    ("order", "special", "first"),
    [("Nthw", 0, True), ("Nthw", 1, True), ("Nhwt", 1, True), ("Nthw", 5, False), ("Nthw", 0, False),
     ("tNhw", 0, True), ("Nhwt", 0, False), ("pooled", 0, True), ("pooled", 1, False)],
)  # fmt: skip
@torch.no_grad()
def test_the_axes_of_tokens_are_found_by_measurement(order: str, special: int, first: bool) -> None:
    settings = {"order": order, "special": special, "first": first}
    teacher = taken(f"{__name__}:Places", settings=settings, input_layout="NCTHW")
    with Taps(teacher, ["patch", "tokens"]) as taps:
        maps = taps(CLIP).features
    assert maps["patch"].shape == (2, 6, T, 4, 4)
    assert torch.equal(maps["tokens"], maps["patch"])


class Frozen(Clips):
    @torch.no_grad()
    def forward(self, clip: Tensor) -> Tensor:
        return super().forward(clip)


def test_a_teacher_without_gradients_is_taken_as_it_is_alone(tiny: Make) -> None:
    data = {"frames": T, "size": 32, "num_train": 8, "num_val": 4, "num_test": 4}
    teacher = {"model": f"{__name__}:Frozen", "settings": {}}
    with pytest.raises(
        ValueError, match=r"teacher.train: .*Frozen has answers without a gradient.* teacher.train: false"
    ):
        check_teacher(build_context(tiny(data=data, teacher=teacher), "cpu"))
    check_teacher(build_context(tiny(data=data, teacher={**teacher, "train": False}), "cpu"))


def test_a_teacher_as_it_is_keeps_its_weights_and_another_code_is_told(tiny: Make, tmp_path: Path) -> None:
    data = {"frames": T, "size": 32, "num_train": 8, "num_val": 4, "num_test": 4}
    config = tiny(data=data, teacher={"model": "own_nets:Tied", "settings": {}, "train": False, "cache": {"views": 0}})
    context = build_context(config, "cpu")
    before = {name: value.clone() for name, value in context.teacher_model.state_dict().items()}
    known = prepare_teacher(context, config.run_dir)
    assert all(torch.equal(value, before[name]) for name, value in context.teacher_model.state_dict().items())
    notes: list[str] = []
    again = build_context(config, "cpu")
    assert prepare_teacher(again, config.run_dir, note=notes.append)["answers"] == known["answers"]
    assert notes == []
    changed = build_context(config, "cpu")
    head = changed.teacher_model.net.head
    head.register_forward_hook(lambda module, inputs, output: output.flip(1))
    assert prepare_teacher(changed, config.run_dir, note=notes.append)["answers"] != known["answers"]
    assert "gives other answers to a fixed input than when the run began: its code changed" in notes[0]
    with pytest.raises(
        ConfigError, match=r"epochs must be at least 1, but is 0; to take a teacher as it is, set teacher"
    ):
        tiny(teacher={"fit": {"epochs": 0}})
    with pytest.raises(ValueError, match=r"begun with other files of teacher\.model"):
        check_identity(tmp_path, {"model": {"config.json": "a"}}, {"model": {"config.json": "b"}})


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_a_folder_of_transformers_is_a_teacher(tiny: Make, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra transformers is not installed")
    torch.manual_seed(0)
    saved = videomae(4)
    saved.save_pretrained(tmp_path / "model")
    preprocessor = tmp_path / "model/video_preprocessor_config.json"
    preprocessor.write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}')
    data = {"frames": 2 * T, "size": 48, "num_train": 8, "num_val": 4, "num_test": 4}
    teacher = {"model": "hugging_face", "settings": {"folder": str(tmp_path / "model")}}
    config = tiny(data=data, space={"frames": [4]}, teacher=teacher)
    assert not config.teacher.trains
    context = build_context(config, "cpu")
    check_teacher(context)
    assert any("wants 32 x 32 pixels" in note for note in context.notes)
    assert any("as in the model's video_preprocessor_config.json" in note for note in context.notes)
    clip = torch.randn(1, 3, 2 * T, 48, 48)
    with torch.no_grad():
        shown = context.teacher_model.lay_out(clip)
        assert shown.shape == (1, T, 3, 32, 32)
        torch.testing.assert_close(context.teacher_model.eval()(clip), saved.eval()(shown).logits)
    values = {"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [1] * 3}
    for changes, mean, std in (({}, 0, 1), ({"do_rescale": False}, 0, 1 / 255), ({"offset": True}, 1, 1)):
        preprocessor.write_text(json.dumps(values | changes))
        assert wanted(teacher["settings"], saved).normalize == NormalizeConfig(mean=(mean,) * 3, std=(std,) * 3)
    preprocessor.rename(preprocessor.with_name("processor_config.json")).write_text(
        json.dumps({"video_processor": values | {"do_normalize": True}})
    )
    assert wanted(teacher["settings"], saved).normalize == NormalizeConfig(mean=(0.5,) * 3, std=(1,) * 3)
    preprocessor.with_name("processor_config.json").unlink()
    (note,) = [note for note in build_context(config, "cpu").notes if "teacher.normalize" in note]
    assert "folder has no video_preprocessor_config.json or preprocessor_config.json" in note
    (tmp_path / "model/model.safetensors").unlink()
    assert config.teacher.trains  # a config alone gives random weights
    for folder, sentence in ((tmp_path, "there is no config.json in"), (tmp_path / "model", "")):
        fresh = tiny(data=data, teacher={**teacher, "settings": {"folder": str(folder)}})
        if sentence:
            with pytest.raises(ValueError, match=sentence):
                build_context(fresh, "cpu")


class CheckpointedFrames(nn.Module):
    def __init__(self, num_classes: int, reentrant: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, num_classes, 1))
        self.reentrant = reentrant

    def forward(self, frames: Tensor) -> Tensor:
        return self.convs[2](checkpoint(self.convs[:2], frames, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_delta_layers_refuse_a_teacher_with_checkpoints(reentrant: bool) -> None:
    with pytest.raises(ValueError, match=r"uses torch.utils.checkpoint, .* switch checkpointing off where teacher.mod"):
        SPACES["delta_blocks"].make({}, CheckpointedFrames(4, reentrant), (32, 32), {"model": "own"})
