"""Bundles and exports: what is written computes what was trained, and what does not is refused."""

from __future__ import annotations

import builtins
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import nas_kd
from nas_kd.config import CampaignConfig
from nas_kd.data import DataInfo, MemoryDataset
from nas_kd.data.file_decoding import FileDecoding
from nas_kd.deploy import export as exporting
from nas_kd.deploy import measure
from nas_kd.deploy.backends import BACKENDS
from nas_kd.deploy.bundle import BundleInfo, Measured, digest_of, load_bundle, save_bundle, write_info
from nas_kd.deploy.export import ExportError, Format, export_student
from nas_kd.deploy.measure import LabelledSet
from nas_kd.deploy.preprocessed import Preprocessed
from nas_kd.deploy.record import FileMetrics, save_program
from nas_kd.deploy.student_view import view_of
from nas_kd.runs import load_run, pick
from nas_kd.search_spaces import SPACES, ArchSpec, Edge, ModuleSpace, SearchSpace, count_flops
from nas_kd.tasks import Classification, Saliency, Segmentation
from nas_kd.trials import Cost, Metric, TrialRecord
from tests.data.small_sets import write_video


def bundle(folder: Path, space: SearchSpace, seed: int = 0, arch: ArchSpec | None = None) -> nn.Module:
    """A student whose BatchNorm has seen data, saved."""
    torch.manual_seed(seed)
    arch = arch or space.sample(np.random.default_rng(seed))
    student = space.student(arch)
    example = space.example_input({name: arch.choices[name] for name in space.knobs})
    for _ in range(3):
        student.train()(torch.randn(4, *example.shape[1:]))
    student.eval()
    info = BundleInfo(
        arch=arch.as_dict(),
        arch_id=arch.arch_id,
        input_shape=tuple(example.shape[1:]),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.2, 0.2),
        source_frames=4,
        source_size=(16, 16),
        decoding=FileDecoding(stored=(5, 18, 20)),
        view=view_of(space, {name: arch.choices[name] for name in space.knobs}, (3, 4, 16, 16)),
        class_names=("a", "b", "c", "d"),
        task="classification",
        trial=3,
        seed=seed,
        flops=count_flops(student, example).total,
        params=sum(p.numel() for p in student.parameters()),
        metrics={"val": {"accuracy": 0.5}},
    )
    save_bundle(folder, student, info)
    return student


@pytest.fixture
def space(tiny: Callable[..., CampaignConfig]) -> SearchSpace:
    return tiny().space.build(4)


def test_a_bundle_gives_back_the_same_student(space: SearchSpace, tmp_path: Path) -> None:
    student = bundle(tmp_path, space)
    again, info = load_bundle(tmp_path)
    x = torch.randn(2, *info.input_shape)
    assert not again.training
    assert torch.equal(again(x), student(x))
    assert {p.name for p in tmp_path.iterdir()} == {"arch.json", "student.safetensors"}


def test_a_bundle_from_before_a_setting_of_its_space_is_read_with_the_default(tmp_path: Path) -> None:
    settings = {"num_classes": 4, "stem_width": 4, "widths": [[4, 6]], "depths": [[1]], "strides": [1], "frames": [4]}
    space = SPACES["clip_cell"].make({**settings, "resolution": [16], "ops": ["conv2d_k3", "zero"]})
    sampled = space.sample(np.random.default_rng(0))
    older = ArchSpec("clip_cell", {k: v for k, v in space.settings.items() if k != "stem_width"}, sampled.choices)
    plain = SPACES["clip_cell"].make(older.as_dict()["settings"])  # with a stem of 8, the default
    student = bundle(tmp_path, plain, arch=ArchSpec("clip_cell", plain.settings, sampled.choices))
    content = json.loads((tmp_path / "arch.json").read_text())
    weights = load_file(tmp_path / "student.safetensors")
    save_file(weights, tmp_path / "student.safetensors", metadata={"arch_id": older.arch_id})
    sealed = {**content, "arch": older.as_dict(), "arch_id": older.arch_id}
    write_info(tmp_path, BundleInfo(**{k: v for k, v in sealed.items() if k != "digest"}), ["student.safetensors"])
    again, info = load_bundle(tmp_path)
    x = torch.randn(2, *info.input_shape)
    assert torch.equal(again(x), student(x))
    with pytest.raises(ValueError, match="stem_width is missing there and 8 here"):
        load_bundle(tmp_path, plain)


def test_a_bundle_that_was_changed_is_refused(space: SearchSpace, tmp_path: Path) -> None:
    bundle(tmp_path, space)
    arch_file, weights_file = tmp_path / "arch.json", tmp_path / "student.safetensors"
    text, weights = arch_file.read_text(), load_file(weights_file)

    def refused(sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence) as caught:
            load_bundle(tmp_path)
        assert "\n" not in str(caught.value)

    changed = json.loads(text)
    changed["arch"]["choices"]["stages.0.width"] = 10 - changed["arch"]["choices"]["stages.0.width"]  # 4 for 6
    arch_file.write_text(json.dumps(changed))
    refused("was changed")
    arch_file.write_text("{")
    refused(r"arch\.json")
    arch_file.write_text(json.dumps({**json.loads(text), "flops": "many"}))
    refused("is damaged: flops: input should be a valid integer")
    arch_file.write_text(json.dumps({**json.loads(text), "schema_version": 99}))
    refused("schema version 99")
    newer = ArchSpec(space.name, {**space.settings, "invented": 1}, json.loads(text)["arch"]["choices"])
    of_newer = {**json.loads(text), "arch": newer.as_dict(), "arch_id": newer.arch_id}
    arch_file.write_text(json.dumps({**of_newer, "digest": digest_of(of_newer)}))
    refused("settings of space 'clip_cell' are not those of this nas_kd: invented: unknown key 'invented'")
    arch_file.write_text(text)
    name = next(key for key, value in weights.items() if value.ndim > 1)
    metadata = {"arch_id": json.loads(text)["arch_id"]}
    save_file({k: v for k, v in weights.items() if k != name}, weights_file, metadata)
    refused(f"do not fit architecture .*Missing key.*{name}")
    save_file({**weights, name: torch.zeros(1)}, weights_file, metadata)
    refused(f"do not fit architecture .*size mismatch for {name}")
    save_file({**weights, name: weights[name] + 1}, weights_file, metadata)  # of another training
    refused(r"student\.safetensors is not the file that was written with arch\.json: its SHA-256 differs")
    for key, value in {"mean": [0.0, 0.0, 0.0], "class_names": ["b", "a", "c", "d"], "task": "multilabel"}.items():
        arch_file.write_text(json.dumps({**json.loads(text), key: value}))
        refused("was changed after it was written")
    arch_file.write_text(text)
    save_file(weights, weights_file, {"arch_id": "another"})
    refused("they were trained for architecture another")
    weights_file.write_bytes(b"no safetensors")
    refused(r"student\.safetensors cannot be read, so it was damaged")
    weights_file.unlink()
    refused("has no student.safetensors")


def test_a_student_of_an_own_space_needs_the_space(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        edge = Edge({"wide": nn.Conv3d(3, 4, 3, padding=1), "thin": nn.Conv3d(3, 4, 1)})
        return nn.Sequential(edge, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 4))

    own = ModuleSpace(build, torch.zeros(1, 3, 4, 16, 16), name="mine")
    student = bundle(tmp_path, own)
    with pytest.raises(ValueError, match=r"'mine' is your own: pass it as load_bundle\(folder, space\)"):
        load_bundle(tmp_path)
    with pytest.raises(ValueError, match=r"or run the bundle's graphs, which need no code"):
        nas_kd.load(tmp_path)  # it has none
    again, info = load_bundle(tmp_path, own)
    x = torch.randn(2, *info.input_shape)
    assert torch.equal(again(x), student(x))


def test_graphs_for_any_number_of_frames_are_refused_where_the_student_takes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frames_as_channels() -> nn.Module:
        torch.manual_seed(0)
        edge = Edge({"wide": nn.Conv2d(12, 4, 3, padding=1), "thin": nn.Conv2d(12, 4, 1)})
        return nn.Sequential(nn.Flatten(1, 2), edge, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))

    class Halves(nn.Module):
        """Longer clips are cut to their first half: another path than that of the frames in training."""

        def __init__(self) -> None:
            super().__init__()
            self.edge = Edge({"wide": nn.Conv3d(3, 4, 3, padding=1), "thin": nn.Conv3d(3, 4, 1)})

        def forward(self, clip: Tensor) -> Tensor:
            half = clip.shape[2] // 2 if clip.shape[2] > 5 else 2  # a number that a graph would freeze
            result: Tensor = self.edge(clip[:, :, :half]).mean((2, 3, 4))
            return result

    one = ModuleSpace(frames_as_channels, torch.zeros(1, 3, 4, 16, 16), name="one")
    bundle(tmp_path / "one", one)
    with pytest.raises(ValueError, match=r"takes 4 frames and no other number \(.*\); leave out dynamic_frames"):
        export_student(tmp_path / "one", tmp_path / "out", ("pt2",), space=one, dynamic_frames=True)
    assert not (tmp_path / "out").exists()

    frozen = ModuleSpace(Halves, torch.zeros(1, 3, 4, 16, 16), name="frozen")
    bundle(tmp_path / "frozen", frozen)
    with pytest.raises(ExportError, match=r"exporter fixes the number of frames .*; leave out dynamic_frames"):
        export_student(tmp_path / "frozen", tmp_path / "out", ("pt2",), space=frozen, dynamic_frames=True)
    assert not (tmp_path / "out" / "student.pt2").exists()
    with pytest.raises(ValueError, match="dynamic_frames is of graphs, but none is written; add pt2 or onnx"):
        export_student(tmp_path / "frozen", tmp_path / "out", ("safetensors",), space=frozen, dynamic_frames=True)

    def fixed(_: nn.Module, __: BundleInfo, folder: Path, *options: object) -> tuple[Path, Callable[..., Tensor], None]:
        def run(clip: Tensor) -> Tensor:
            raise RuntimeError("Got invalid dimensions for input")  # as ONNX Runtime does

        (folder / "student.onnx").touch()
        return folder / "student.onnx", run, None

    monkeypatch.setitem(exporting.WRITERS, "onnx", fixed)  # an exporter that fixes the number without a word
    with pytest.raises(ExportError, match=r"exporter fixes the number of frames"):
        export_student(tmp_path / "frozen", tmp_path / "out", ("onnx",), space=frozen, dynamic_frames=True)
    assert not (tmp_path / "out" / "student.onnx").exists()
    export_student(tmp_path / "frozen", tmp_path / "out", ("pt2",), space=frozen)


FRESH = """
import sys
import torch
folder = sys.argv[1]
x, y = torch.load(folder + "/pair.pt")
torch.testing.assert_close(torch.export.load(folder + "/student.pt2").module()(x), y, atol=1e-4, rtol=1e-4)
import onnxruntime
session = onnxruntime.InferenceSession(folder + "/student.onnx")
torch.testing.assert_close(torch.from_numpy(session.run(None, {"clip": x.numpy()})[0]), y, atol=1e-4, rtol=1e-4)
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("nas_kd", "search_spaces")))
"""


ALONE = """
import runpy, sys
for name in ("torch", "ray", "optuna", "nas_kd", "pandas", "scipy", "PIL"):
    sys.modules[name] = None  # importing it fails
folder, video = sys.argv[1:]
sys.argv = ["run.py", video]
runpy.run_path(folder + "/run.py", run_name="__main__")
"""


class NotFinite:
    """A session of a graph that gives NaN."""

    def __init__(self, *options: object, **named: object) -> None: ...

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="clip")]

    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.full((1, 4), np.nan, dtype=np.float32)]


def test_exports_run_without_us_at_any_batch_size_and_number_of_frames(
    tiny: Callable[..., CampaignConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "trial", tmp_path / "out"
    # Of one cell with each kind of convolution: exporters take seconds a cell.
    space = tiny(space={"widths": [[4]], "depths": [[1]], "strides": [2]}).space.build(4)
    edges = {"0_1": "separable3d_k3_e1", "0_2": "shift_k1", "1_2": "conv2d_k3"}
    choices = {f"stages.0.cells.0.edges.{edge}": op for edge, op in edges.items()}
    sizes = {"stages.0.width": 4, "stages.0.depth": 1, "resolution": 12, "frames": 4}
    student = bundle(source, space, seed=1, arch=space.arch({**choices, **sizes}))
    clips = torch.randint(0, 256, (3, 3, 4, 16, 16), dtype=torch.uint8)
    formats: tuple[Format, ...] = ("safetensors", "pt2", "onnx", "onnx-int8", "onnx-fp16")
    with pytest.raises(ValueError, match="onnx-int8 is calibrated on training clips; give the data, or leave it out"):
        export_student(source, out, formats)
    _, info = load_bundle(source)
    labels = student(info.prepare(clips)).argmax(1) + torch.tensor([0, 0, 1])  # two of three right: .5 but for an item
    seen = DataInfo(4, info.class_names, 4, 16, 16, "random")
    items = MemoryDataset({"clip": clips, "label": labels % 4})
    labelled = LabelledSet("val", items, None, seen, lambda: Classification(seen))
    monkeypatch.setattr(measure, "NOTABLE_LOSS", -1.0)  # so that files that lose nothing are told of too
    record = export_student(
        source, out, formats, calibration=clips, validation=labelled, with_preprocessing=True, dynamic_frames=True
    )
    assert record.compared_frames == (2, 5, 8)  # the student has 4
    files = ["student.safetensors", "student.pt2", "student.onnx", "student_uint8.onnx"]
    assert [p.file for p in record.parity if p.is_exact] == files
    assert [p.file for p in record.parity[4:]] == ["student.int8.onnx", "student.fp16.onnx"]
    tensors = onnx.load(out / "student.int8.onnx").graph.initializer
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8]
    largest_weights = {int(np.abs(weight.astype(int)).max()) for weight in weights if weight.ndim > 1}
    assert largest_weights == {64}  # 7 bits: products of 8-bit weights may saturate
    card = (out / "MODEL_CARD.md").read_text()
    assert card.count("its metric is above") == 2
    assert [warning.partition(" of accuracy (")[0] for warning in record.warnings] == [
        "rounding costs student.int8.onnx 0.0 points",
        "rounding costs student.fp16.onnx 0.0 points",
    ]
    assert all(f"- **Warning:** {warning}.\n" in card for warning in record.warnings)
    assert "on a GPU it was not measured" in " ".join(card.split())
    assert record.parity[3].max_abs_difference < 1e-5
    assert record.parity[0].flops == record.parity[1].flops == record.flops
    assert record.parity[2].flops is None
    assert all(p.bytes == (out / p.file).stat().st_size for p in record.parity)
    program = torch.export.load(out / "student.pt2")
    with pytest.raises(OSError, match="No space left"):  # torch writing to a path ends the process there
        save_program(program, Path("/dev/full"), {})
    (example,) = program.example_inputs[0]
    assert example.untyped_storage().nbytes() == 4  # an example of the input could be most of the file
    assert json.loads((out / "verification.json").read_text()) == record.model_dump(mode="json")
    _, info = load_bundle(out)
    x = torch.randn(5, 3, 7, *info.input_shape[2:])
    torch.save((x, student(x).detach()), out / "pair.pt")
    command = [sys.executable, "-c", FRESH, str(out)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == []

    scores = Preprocessed(student, info)(clips)
    assert torch.equal(scores.argmax(1), student(info.prepare(clips)).argmax(1))
    torch.testing.assert_close(scores.sum(1), torch.ones(3))
    expected = student(info.prepare(clips)).detach()
    apart = {name: float((nas_kd.load(out, backend=name).outputs(clips) - expected).abs().max()) for name in BACKENDS}
    largest = float(expected.abs().max())
    assert max(apart[name] for name in ("safetensors", "pt2", "onnx")) < 1e-4
    assert 1e-5 < apart["onnx-fp16"] / largest < 0.01  # less precise, and near
    assert 1e-4 < apart["onnx-int8"] / largest < 0.2
    with pytest.raises(ValueError, match="no backend 'tflite'; choose from safetensors, pt2, onnx"):
        nas_kd.load(out, backend="tflite")
    video = tmp_path / "clip.mp4"
    write_video(video, range(20, 240, 11), height=40, width=32)
    result = subprocess.run(
        [sys.executable, "-c", ALONE, str(out), str(video)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    scores = json.loads(result.stdout)["scores"]
    labels = nas_kd.load(out, backend="onnx").classify(video).labels
    assert list(scores) == [name for name, _ in labels]
    assert list(scores.values()) == pytest.approx([score for _, score in labels], abs=1e-5)

    script = runpy.run_path(str(out / "run.py"))
    script["graph"]("student")
    monkeypatch.setattr(onnxruntime, "InferenceSession", NotFinite)
    monkeypatch.setattr(sys, "argv", ["run.py", str(video), str(video)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(out / "run.py"), run_name="__main__")
    assert end.value.code == 1
    told = {"path": str(video), "error": "the student gives no answer: outputs of student.onnx are NaN or infinite"}
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [told, told]
    for file in ("student.onnx", "student.pt2"):
        (out / file).write_bytes((out / file).read_bytes()[:-100])
        with pytest.raises(ValueError, match=rf"{file} is not the file that was written .* cut short or exchanged"):
            nas_kd.load(out, backend=file.rpartition(".")[2])
    with pytest.raises(SystemExit, match=r"student\.onnx is not the file that was written with arch\.json: damaged"):
        script["graph"]("student")


def test_files_that_lose_much_by_rounding_are_told() -> None:
    def form(backend: str, value: float, metric: str = "miou") -> FileMetrics:
        found = {"metrics": {metric: value}, "measured": Measured(num_items=40), "largest_output": 1.0}
        return FileMetrics(backend=backend, files=(f"{backend}.onnx",), metric=metric, **found)

    class Error(Saliency):
        maximize = False

    exact = [form("safetensors", 0.732), form("onnx", 0.732)]
    (told,) = measure.losses([*exact, form("onnx-int8", 0.479), form("onnx-fp16", 0.713)], Segmentation)
    assert told == (
        "rounding costs onnx-int8.onnx 25.3 points of miou (0.4790, the weights 0.7320, on 40 items); deploy the "
        "float32 graph (--format onnx), or the 16-bit one (--format onnx-fp16) if its metric holds"
    )
    assert not measure.losses([*exact, form("onnx-int8", 0.9)], Segmentation)  # it gained
    (told,) = measure.losses([*exact, form("onnx-int8", 0.72), form("onnx-fp16", 0.715)], Saliency)  # -1.6, -2.3 %
    assert told.startswith("rounding costs onnx-fp16.onnx 2.3 % of miou")
    assert told.endswith("deploy the float32 graph (--format onnx)")
    (told,) = measure.losses([form("safetensors", 2.0, "error"), form("onnx-int8", 2.1, "error")], Error)
    assert "5.0 % of error" in told


@pytest.mark.parametrize(
    ("change", "flops", "sentence"),
    [
        (0.01, 0, r"student\.pt2 differs from the trained student by 1; it was not kept"),
        (0.0, 7, "costs .* FLOPs, but the trained"),
    ],
)
def test_a_wrong_export_is_not_kept(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float, flops: int, sentence: str
) -> None:
    bundle(tmp_path / "trial", space)
    right = exporting.WRITERS["safetensors"]

    def wrong(student: nn.Module, info: BundleInfo, folder: Path, *how: Any) -> Any:
        path = folder / "student.pt2"
        path.write_text("graph")
        _, run, counted = right(student, info, folder, *how)

        def off_at_three(x: Tensor) -> Tensor:  # as a graph with a frozen batch size
            return run(x) + (change * 100 if len(x) == 3 else 0.0)

        return path, off_at_three, (counted or 0) + flops

    monkeypatch.setitem(exporting.WRITERS, "pt2", wrong)
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=sentence):
        export_student(tmp_path / "trial", out, ("pt2",))
    assert not (out / "student.pt2").exists()
    assert not (out / "verification.json").exists()


def test_a_missing_package_and_an_unknown_format_are_named(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle(tmp_path / "trial", space)
    with pytest.raises(ValueError, match="unknown format 'tflite'; choose from safetensors, pt2, onnx"):
        export_student(tmp_path / "trial", tmp_path / "out", ("tflite",))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxscript":
            raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExportError, match=r"needs onnxscript; install it with: pip install 'nas-kd\[onnx\]'"):
        export_student(tmp_path / "trial", tmp_path / "out", ("onnx",))


def record(
    number: int, flops: int, accuracy: float, state: Any = "complete", latency_ms: float | None = None
) -> TrialRecord:
    done = state == "complete"
    return TrialRecord(
        number=number,
        state=state,
        seed=0,
        config_hash="",
        knobs={"max_flops": flops},
        metric=Metric(name="accuracy", maximize=True),
        cost=Cost(flops=flops, params=1, predicted_latency_ms=latency_ms) if done else None,
        metrics={"retrained": {"val": {"accuracy": accuracy}, "test": {"accuracy": 1 - accuracy}}} if done else {},
        error=None if done else "ValueError: no",
    )


def test_pick_takes_the_trial_the_budget_the_knee_or_what_the_report_recommends() -> None:
    records = [record(0, 100, 0.3), record(1, 200, 0.8), record(2, 300, 0.7), record(3, 1000, 0.85)]
    records.append(record(4, 50, 0.99, "failed"))
    assert pick(records, trial=2).number == 2
    assert pick(records, limits={"max_flops": 999}).number == 1  # not trial 2, which costs more and is worse
    assert pick(records, limits={"max_flops": 199}).number == 0
    assert pick(records).number == 3  # as in the report: no cheaper one is within a point of the best
    assert pick(records, tolerance=0.05).number == 1
    assert pick(records, knee=True).number == 1
    for arguments, sentence in (
        ({"limits": {"max_flops": 99}}, "no complete trial costs at most 99 FLOPs; the cheapest costs 100"),
        ({"trial": 4}, "trial 4 is not among the complete ones: 0, 1, 2, 3"),
        (
            {"trial": 1, "limits": {"max_flops": 999}},
            "decides which trial is picked, but got trial = 1 and max_fl",
        ),
        ({"limits": {"max_latency_ms": 2.0}}, "no student has a latency: none was measured .* or pick by max_flops"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pick(records, **arguments)
    with pytest.raises(ValueError, match="no complete trial to export"):
        pick(records[4:])


def test_pick_takes_the_best_trial_within_a_latency() -> None:
    # Latencies order the trials in another way than FLOPs do.
    records = [record(0, 300, 0.3, latency_ms=1.0), record(1, 100, 0.7, latency_ms=2.0)]
    records += [record(2, 200, 0.8, latency_ms=4.5), record(3, 50, 0.6, latency_ms=3.0)]
    assert pick(records, limits={"max_latency_ms": 3.5}).number == 1  # not trial 3, which is slower and worse
    assert pick(records, limits={"max_latency_ms": 4.5}).number == 2
    assert pick(records, limits={"max_flops": 100}).number == 1
    with pytest.raises(ValueError, match=r"no complete trial costs at most 0\.5 ms; the cheapest costs 1; raise"):
        pick(records, limits={"max_latency_ms": 0.5})


def test_a_folder_without_a_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the folder of a run: it has no campaign\.yaml"):
        load_run(tmp_path)
