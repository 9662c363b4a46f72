"""Exports of students that run frame by frame: two graphs that compute and cost what was trained."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nas_kd
from nas_kd.data.decode import read_clip
from nas_kd.deploy import export_stream as exporting
from nas_kd.deploy.bundle import BundleInfo, load_bundle, save_bundle
from nas_kd.deploy.export import ExportError, export_student
from nas_kd.deploy.export_stream import Exported
from nas_kd.deploy.predict_files import files_to_read, predict_files
from nas_kd.deploy.predictor import Predictor
from nas_kd.deploy.record import ExportRecord, Format, third_party_warnings
from nas_kd.deploy.streaming import StreamingStudent
from nas_kd.search_spaces import ArchSpec, DeltaBlocksSettings, DeltaBlocksSpace, DeltaNet, count_flops, flops
from nas_kd.search_spaces.delta_blocks.net import DeltaLayer, PassContext
from nas_kd.search_spaces.delta_blocks.ops import LinearDelta
from nas_kd.search_spaces.delta_blocks.residual import ResidualLayer, residual_form
from nas_kd.teachers import FrameNet, FrameNetSettings
from tests.data.small_sets import write_video
from tests.nas_kd.commands import cli, succeed

SIZE = (16, 24)
SETTINGS: dict[str, Any] = {"widths": [8], "depths": [2], "head_width": 8}
FORMATS: tuple[Format, ...] = ("safetensors", "pt2", "onnx", "onnx-int8", "onnx-fp16")
IDENTITY: dict[str, Any] = {"model": "framenet", "settings": SETTINGS, "num_outputs": 3}


def space_of(identity: dict[str, Any]) -> DeltaBlocksSpace:
    torch.manual_seed(0)
    teacher = FrameNet(3, FrameNetSettings(**SETTINGS)).eval()
    return DeltaBlocksSpace(DeltaBlocksSettings(keyframe_interval=(3,)), teacher, SIZE, identity)


@pytest.fixture(scope="module")
def space() -> DeltaBlocksSpace:
    return space_of(IDENTITY)


def student_of(space: DeltaBlocksSpace, arch: ArchSpec) -> DeltaNet:
    student = space.student(arch)
    assert isinstance(student, DeltaNet)
    for p in student.student_parameters():
        p.data.normal_(0, 0.3)
    return student.eval()


def bundle(folder: Path, space: DeltaBlocksSpace, seed: int = 0, form: Any = None, **changes: Any) -> DeltaNet:
    arch = space.sample(np.random.default_rng(seed))
    student = student_of(space, arch)
    if form == "residual":
        student = residual_form(student)
    example = space.example_input({"keyframe_interval": 3})
    info = BundleInfo(
        arch=arch.as_dict(),
        arch_id=arch.arch_id,
        input_shape=tuple(example.shape[1:]),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.2, 0.2),
        source_frames=3,
        source_size=SIZE,
        class_names=("a", "b", "c"),
        task="segmentation",
        seed=seed,
        flops=-(-count_flops(student, example).total // 3),
        params=sum(p.numel() for p in student.parameters()),
        metrics={"val": {"miou": 0.5}},
        keyframe_interval=3,
        form=form,
    )
    save_bundle(folder, student, info.model_copy(update=changes))
    return student


def test_a_bundle_rebuilds_the_space_of_our_teachers(space: DeltaBlocksSpace, tmp_path: Path) -> None:
    clip = torch.randn(2, 3, 5, *SIZE)
    for form in (None, "residual"):
        student = bundle(tmp_path, space, form=form)
        again, info = load_bundle(tmp_path)
        assert isinstance(again, DeltaNet)
        assert any(isinstance(m, ResidualLayer) for m in again.modules()) == (form == "residual")
        assert (info.keyframe_interval, again.keyframe_interval) == (3, 3)
        with torch.no_grad():
            torch.testing.assert_close(again(clip), student(clip))
        runtime, pixels = StreamingStudent(again), torch.full((1, 3, *SIZE), 255, dtype=torch.uint8)
        assert again.pixel_range == pytest.approx((-3, 3))
        runtime.step(info.prepare(pixels), runtime.start())
        with pytest.raises(ValueError, match=r"they lie from -3 to 3, but this one reaches 255; give \(frame /"):
            runtime.step(pixels.float(), runtime.start())


def test_a_teacher_of_your_own_needs_the_space(tmp_path: Path) -> None:
    own = space_of({"model": "mine:net", "settings": {}, "num_outputs": 3})
    student = bundle(tmp_path, own)
    with pytest.raises(ValueError, match=r"a teacher of your own, 'mine:net': build its space .* load_bundle\(folder"):
        load_bundle(tmp_path)
    again, _ = load_bundle(tmp_path, own)
    clip = torch.randn(1, 3, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(again(clip), student(clip))


FRESH = """
import json, sys
import onnxruntime, torch
folder = sys.argv[1]
clip, expected = torch.load(folder + "/pair.pt")
record = json.load(open(folder + "/verification.json"))["stream"]
names = [tensor["name"] for tensor in record["state"]]
key, delta = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("key", "delta"))
key_onnx, delta_onnx = (onnxruntime.InferenceSession(f"{folder}/{name}.onnx") for name in ("key", "delta"))
for t in range(clip.shape[2]):
    frame = clip[:, :, t]
    if t % record["keyframe_interval"] == 0:
        output, *state = key(frame)
        other, *kept = key_onnx.run(["output", *names], {"frame": frame.numpy()})
    else:
        output = delta(frame, *state)
        (other,) = delta_onnx.run(["output"], {"frame": frame.numpy(), **dict(zip(names, kept))})
    for result in (output, torch.from_numpy(other)):
        torch.testing.assert_close(result, expected[:, t], atol=1e-3, rtol=1e-3)
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("nas_kd", "search_spaces")))
"""


@pytest.fixture(scope="module")
def exported(space: DeltaBlocksSpace, tmp_path_factory: pytest.TempPathFactory) -> tuple[DeltaNet, ExportRecord, Path]:
    """A student, and what is written of it in all formats."""
    folder = tmp_path_factory.mktemp("exported")
    student = bundle(folder / "trial", space, seed=4)
    clips = torch.randint(0, 256, (4, 3, 5, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return student, export_student(folder / "trial", folder / "out", FORMATS, calibration=clips), folder / "out"


def test_the_two_graphs_run_without_us(exported: tuple[DeltaNet, ExportRecord, Path], tmp_path: Path) -> None:
    student, record, out = exported
    stream = record.stream
    assert stream is not None
    files = ["student.safetensors", "key.pt2", "delta.pt2", "key.onnx", "delta.onnx"]
    assert [p.file for p in record.parity if p.is_exact] == files
    assert (record.parity[1].flops, record.parity[2].flops) == (stream.keyframe_flops, stream.delta_flops)
    assert stream.keyframe_flops + 2 * stream.delta_flops == stream.interval_flops
    assert record.flops == record.parity[0].flops == -(-stream.interval_flops // 3)
    assert stream.form == "delta"
    with torch.no_grad():
        _, state = student.key(torch.zeros(1, 3, *SIZE))
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for parts in state.values() for t in parts}
    assert stream.state_bytes == sum(t.bytes for t in stream.state) == sum(sizes.values())
    assert all(p.bytes == (out / p.file).stat().st_size for p in record.parity)
    assert json.loads((out / "verification.json").read_text()) == record.model_dump(mode="json")
    clip = torch.randn(2, 3, 5, *SIZE)
    with torch.no_grad():
        torch.save((clip, student(clip)), out / "pair.pt")
    command = [sys.executable, "-c", FRESH, str(out)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == []

    clips = torch.randint(0, 256, (2, 3, 5, *SIZE), dtype=torch.uint8)  # 5 frames at K = 3: two key frames
    _, info = load_bundle(out)
    with torch.no_grad():
        expected = student(info.prepare(clips))
    for name in ("safetensors", "pt2", "onnx"):
        predictor = nas_kd.load(out, backend=name)
        torch.testing.assert_close(predictor.outputs(clips), expected, atol=1e-3, rtol=1e-3)
        check_video(predictor, tmp_path / name)
    video, expected = tmp_path / "onnx" / "clip.mp4", tmp_path / "onnx" / "out" / "clip.mp4.npz"
    subprocess.run([sys.executable, str(out / "run.py"), str(video)], check=True, capture_output=True)
    maps = torch.from_numpy(np.load(f"{video}.npz")["outputs"])
    camera = "camera:lavfi:testsrc=size=64x48:rate=10"
    assert "camera: 4 frames" in succeed("predict", out, camera, "--max-frames", 4, "--out", tmp_path / "live")
    assert np.load(tmp_path / "live" / "camera.npz")["classes"].shape == (4, *SIZE)
    with contextlib.chdir(tmp_path):
        assert cli("predict", out, "camera:lavfi:nothing")[0] == 2
        assert "--top is of labels of clips" in cli("predict", out, video, "--top", 2)[1]
        assert not Path("predictions").exists()  # nothing was written, so there is no folder for it either
    raised = torch.nn.functional.interpolate(maps, size=SIZE, mode="bilinear", align_corners=False)
    assert (raised.argmax(1).numpy() == np.load(expected)["classes"]).mean() > 0.999


def test_without_fvcore_the_graphs_run(
    exported: tuple[DeltaNet, ExportRecord, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, out = exported
    monkeypatch.setattr(flops, "_analysis_class", flops._analysis_class.__wrapped__)
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    assert nas_kd.load(out).backend.name == "pt2"
    with pytest.raises(ValueError, match=r"need fvcore, .* pip install fvcore, .*backend pt2 or onnx"):
        nas_kd.load(out, backend="safetensors")


def check_video(predictor: Predictor, folder: Path) -> None:
    """A student reads a video frame by frame with its state, and writes what it finds."""
    path = folder / "clip.mp4"
    write_video(path, [20, 80, 140, 200, 90, 30, 250], height=32, width=64)
    clip = torch.from_numpy(read_clip(path, 7, *SIZE, "crop"))[None]
    maps = predictor.outputs(clip)[0]
    raised = torch.nn.functional.interpolate(maps, size=SIZE, mode="bilinear", align_corners=False)
    (result,) = predict_files(predictor, files_to_read([path]), folder / "out")
    with np.load(folder / "out" / "clip.mp4.npz") as arrays:
        share = (torch.from_numpy(arrays["classes"]) == raised.argmax(1)).float().mean()
    assert result.num_frames == 7
    assert share > 0.999  # a pixel between two classes may be either
    with av.open(str(folder / "out" / "clip.mp4.overlay.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [(frame.height, frame.width) for frame in frames] == [(240, 480)] * 7
    assert [round(frame.time * 25) for frame in frames] == list(range(7))
    (entry,) = json.loads((folder / "out" / "predictions.json").read_text())["files"]
    assert (entry["frames"], entry["picture"]) == (7, [240, 480])
    assert entry["window"] == {"top": 0, "left": 60, "height": 240, "width": 360}  # 2:3 out of 1:2


def test_the_residual_form_is_exported_with_its_own_costs(space: DeltaBlocksSpace, tmp_path: Path) -> None:
    student = bundle(tmp_path / "trial", space, seed=4, form="residual")
    record = export_student(tmp_path / "trial", tmp_path / "out", ("pt2",))
    assert record.stream is not None
    assert record.stream.form == "residual"
    assert record.stream.delta_flops == record.parity[2].flops == student.delta_flops(torch.zeros(1, 3, *SIZE))
    total = count_flops(student, torch.zeros(1, 3, 3, *SIZE))
    assert record.stream.keyframe_flops == record.parity[1].flops == total.total - 2 * record.stream.delta_flops
    assert total.by_operator["counted_elementwise"] > 0
    assert {tensor.name.rpartition("#")[2] for tensor in record.stream.state} == {"0"}


def test_files_of_less_precision_run_as_a_stream(exported: tuple[DeltaNet, ExportRecord, Path]) -> None:
    student, record, out = exported
    names = ["key.int8.onnx", "delta.int8.onnx", "key.fp16.onnx", "delta.fp16.onnx"]
    assert [entry.file for entry in record.parity if not entry.is_exact] == names
    assert b"QuantizeLinear" in (out / "delta.int8.onnx").read_bytes()
    _, info = load_bundle(out)
    seeded = torch.Generator().manual_seed(1)
    clips = torch.randint(0, 256, (2, 3, 5, *SIZE), dtype=torch.uint8, generator=seeded)  # 5 frames at K = 3
    with torch.no_grad():
        expected = student(info.prepare(clips))
    apart = {}
    for name in FORMATS[2:]:
        found = nas_kd.load(out, backend=name).outputs(clips)
        assert found.dtype == torch.float32
        apart[name] = float((found - expected).abs().max() / expected.abs().max())
    assert apart["onnx"] < 1e-4 < apart["onnx-fp16"] < 1e-2 < apart["onnx-int8"] < 0.3
    assert record.latency is not None
    assert set(record.latency.forms) == set(FORMATS)
    for form in record.latency.forms.values():
        assert form.keyframe_ms is not None
        assert form.delta_ms is not None
        assert 0 < form.low <= form.ms <= form.high


def test_the_graphs_run_as_the_page_on_streams_shows(
    exported: tuple[DeltaNet, ExportRecord, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()
    (block,) = re.findall(r"```python\n((?:(?!```).)*import onnxruntime.*?)```", page, flags=re.S)
    monkeypatch.chdir(exported[2])
    names: dict[str, Any] = {"frames": np.zeros((4, 2, 3, *SIZE), np.float32)}
    exec(block, names)
    assert names["t"] == 3
    assert names["output"].shape[0] == 2


def test_a_file_holds_the_weights_of_its_graph_and_no_states(exported: tuple[DeltaNet, ExportRecord, Path]) -> None:
    student, _, out = exported
    kept = Exported(student, (3, 3, *SIZE))
    for name, module in (("key", kept.key), ("delta", kept.delta)):
        with zipfile.ZipFile(out / f"{name}.pt2") as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        weights = sum(size for file, size in sizes.items() if "/weights/weight_" in file)
        expected = sum(p.numel() * 4 for p in module.parameters())
        assert 0 < weights <= expected
        assert sum(size for file, size in sizes.items() if "sample_inputs" in file) < 4000
    assert sum(t.numel() * 4 for t in kept.tensors) > 20_000


def programs(student: DeltaNet, folder: Path) -> tuple[Exported, Any, Any]:
    """Both graphs, written and read again."""
    pair = Exported(student, (3, 3, *SIZE))
    frame, path = pair.frame, folder / "graph.pt2"
    loaded = []
    with third_party_warnings(), torch.no_grad():
        for module, inputs, shapes in (
            (pair.key, (frame,), pair.key_shapes()),
            (pair.delta, (frame, *pair.tensors), pair.delta_shapes()),
        ):
            torch.export.save(torch.export.export(module, inputs, dynamic_shapes=shapes), path)
            loaded.append(torch.export.load(path).module())
    return pair, loaded[0], loaded[1]


def test_the_delta_graph_holds_no_layer_that_was_replaced(exported: tuple[DeltaNet, ExportRecord, Path]) -> None:
    student, _, out = exported
    key, delta = (torch.export.load(out / f"{name}.pt2").module() for name in ("key", "delta"))
    replaced = {
        (tuple(p.shape), float(p.sum()))
        for layer in student.layers().values()
        if layer.teacher is not None
        for p in layer.teacher.parameters()
        if p.any()
    }

    def held(graph: nn.Module) -> set[tuple[tuple[int, ...], float]]:
        return {(tuple(t.shape), float(t.sum())) for t in graph.state_dict().values()} & replaced

    assert held(key) == replaced != set()
    assert held(delta) == set()


class Tokens(nn.Module):
    """A delta layer on rows of pixels: 16 rows a stream."""

    def __init__(self, context: PassContext) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        student = LinearDelta(nn.Linear(4, 4, bias=False))
        self.mix = DeltaLayer(nn.Linear(4, 4), student, "mix", context, (SIZE[1], 4))

    def forward(self, frames: Tensor) -> Tensor:
        x = self.stem(frames).permute(0, 2, 3, 1)
        rows = self.mix(x.reshape(-1, SIZE[1], 4))
        return self.head(rows.reshape(x.shape).permute(0, 3, 1, 2))  # type: ignore[no-any-return]


def test_layers_that_see_several_rows_a_stream(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = DeltaNet(Tokens(PassContext()), 3).eval()
    pair, key, delta = programs(student, tmp_path)
    assert [(t.name, t.rows, t.shape, t.bytes) for t in pair.state] == [
        ("mix#0", 16, (24, 4), 16 * 24 * 4 * 4),
        ("mix#1", 16, (24, 4), 16 * 24 * 4 * 4),
    ]
    for streams in (1, 3):
        clip = torch.randn(streams, 3, 3, *SIZE)
        with torch.no_grad():
            expected = student(clip)
            output, *state = key(clip[:, :, 0])
            torch.testing.assert_close(output, expected[:, 0])
            torch.testing.assert_close(delta(clip[:, :, 2], *state), expected[:, 2])


class Windows(nn.Module):
    """A delta layer on windows of 4 × 4 pixels, in five dimensions."""

    def __init__(self, context: PassContext) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        student = LinearDelta(nn.Linear(4, 4, bias=False))
        self.mix = DeltaLayer(nn.Linear(4, 4), student, "mix", context, (4, 6, 4, 4, 4))

    def forward(self, frames: Tensor) -> Tensor:
        x = self.stem(frames).permute(0, 2, 3, 1)
        windows = self.mix(x.reshape(-1, 4, 4, 6, 4, 4).transpose(2, 3))
        return self.head(windows.transpose(2, 3).reshape(x.shape).permute(0, 3, 1, 2))  # type: ignore[no-any-return]


def test_a_state_has_at_most_four_dimensions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = DeltaNet(Windows(PassContext()), 3).eval()
    pair, key, delta = programs(student, tmp_path)
    assert [(t.name, t.shape, t.bytes) for t in pair.state] == [
        ("mix#0", (4, 6, 64), 6144),
        ("mix#1", (4, 6, 64), 6144),
    ]
    clip = torch.randn(3, 3, 3, *SIZE)
    with torch.no_grad():
        expected = student(clip)
        output, *state = key(clip[:, :, 0])
        assert [tensor.ndim for tensor in state] == [4, 4]
        torch.testing.assert_close(output, expected[:, 0])
        torch.testing.assert_close(delta(clip[:, :, 2], *state), expected[:, 2])


def test_no_graph_gives_back_what_it_got(exported: tuple[DeltaNet, ExportRecord, Path]) -> None:
    onnx = pytest.importorskip("onnx")
    for name, num_outputs in (("key", 1 + len(exported[1].stream.state)), ("delta", 1)):  # type: ignore[union-attr]
        graph = onnx.load(exported[2] / f"{name}.onnx").graph
        makers = {output: node.op_type for node in graph.node for output in node.output}
        found = [makers.get(output.name) for output in graph.output]
        assert len(found) == num_outputs
        assert not {None, "Identity"} & set(found)


def test_a_wrong_export_is_not_kept(space: DeltaBlocksSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(tmp_path / "trial", space)
    out = tmp_path / "out"
    right = exporting._write_pt2
    fault: dict[str, float] = {}
    written: list[Any] = []

    def write(*arguments: Any) -> Any:
        if not written:
            written.append(right(*arguments))
        for path in arguments[2:]:
            path.touch()
        (key, delta), flops = written[0]

        def off_at_three(frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:  # as a graph with a frozen batch size
            (output,) = delta(frame, *state)
            return (output + (fault["change"] if len(frame) == 3 else 0.0),)

        return (key, off_at_three), (flops[0], flops[1] + int(fault["flops"]))

    monkeypatch.setattr(exporting, "_write_pt2", write)
    for change, more, sentence in (
        (1.0, 0, r"delta\.pt2 differs from the trained student by 1; it was not kept"),
        (0.0, 7, r"key\.pt2 and delta\.pt2 cost .* FLOPs, but the trained student .*; not kept"),
    ):
        fault.update(change=change, flops=more)
        with pytest.raises(ExportError, match=sentence):
            export_student(tmp_path / "trial", out, ("pt2",))
        assert not (out / "delta.pt2").exists()
        assert not (out / "verification.json").exists()
    bundle(tmp_path / "trial", space, flops=1)
    with pytest.raises(ExportError, match=r"student\.safetensors cost .* FLOPs, but the trained student 1; not kept"):
        export_student(tmp_path / "trial", out, ("pt2",))


def test_a_layer_that_reads_the_frame_itself_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = FrameNet(3, FrameNetSettings(**SETTINGS)).eval()
    space = DeltaBlocksSpace(DeltaBlocksSettings(keyframe_interval=(3,), skip_first=0), teacher, SIZE, IDENTITY)
    student = student_of(space, space.widest({"keyframe_interval": 3}))
    _, key, delta = programs(student, tmp_path)
    clip = torch.randn(2, 3, 3, *SIZE)
    with torch.no_grad():
        _, *state = key(clip[:, :, 0])
        frame = clip[:, :, 0].flatten(2)  # of another shape, so that no graph gives back an input as it is
        assert any(torch.equal(tensor, frame) for tensor in state), "the first layer keeps the frame"
        torch.testing.assert_close(delta(clip[:, :, 2], *state), student(clip)[:, 2])
