"""`nas_kd.load` and `nas-kd predict`: files are read as the data of the campaign were."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from torch import nn

import nas_kd
from nas_kd.data import ClipLoader, DataInfo, FolderConfig, load
from nas_kd.data.decode import read_clip
from nas_kd.data.file_decoding import FileDecoding
from nas_kd.data.geometry import Turn
from nas_kd.data.video import ShownFrame
from nas_kd.deploy.answers import Maps, Window, colour_of
from nas_kd.deploy.bundle import BundleInfo, Measured, read_info, save_bundle
from nas_kd.deploy.export import ExportError, Format, export_student
from nas_kd.deploy.labelled_folder import labelled_folder
from nas_kd.deploy.measure import LabelledSet, measure
from nas_kd.deploy.model_card import model_card
from nas_kd.deploy.predict_files import files_to_read, predict_files
from nas_kd.deploy.pt2_archive import check_graph
from nas_kd.deploy.student_view import StudentView, view_of
from nas_kd.search_spaces import SPACES, SearchSpace, count_flops
from nas_kd.tasks import Classification
from nas_kd.training.evaluate import evaluate
from tests.data.small_sets import write_table, write_video
from tests.nas_kd.commands import cli, succeed

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def saved(folder: Path, space: SearchSpace, info: DataInfo, config: FolderConfig | None) -> nn.Module:
    """A student of random weights with two frames of 12 × 12 pixels, and its bundle."""
    torch.manual_seed(0)
    knobs = {"frames": 2, "resolution": 12}
    arch = space.sample(np.random.default_rng(0))
    student = space.student(arch).eval()
    for parameter in student.parameters():
        parameter.data.normal_(0, 0.5)
    example = space.example_input(knobs)
    save_bundle(
        folder,
        student,
        BundleInfo(
            arch=arch.as_dict(),
            arch_id=arch.arch_id,
            input_shape=tuple(example.shape[1:]),
            source_frames=info.frames,
            source_size=(info.height, info.width),
            decoding=None if config is None else config.decoding,
            view=view_of(space, knobs, info.input_shape),
            class_names=info.class_names,
            task="classification",
            seed=0,
            flops=count_flops(student, example).total,
            params=sum(p.numel() for p in student.parameters()),
            metrics={},
            mean=MEAN,
            std=STD,
        ),
    )
    return student


@pytest.fixture
def clips(tmp_path: Path) -> FolderConfig:
    """Videos of growing brightness in two classes; files of val differ in number of frames and in shape."""
    rows = []
    for number in range(12):
        split = ("train", "val", "val", "test")[number % 4]
        name = f"v{number:02d}.mp4"
        levels = [(17 * number + 9 * t) % 250 for t in range(5 + number)]
        write_video(tmp_path / "clips" / name, levels, height=32 + 4 * (number % 3), width=48)
        rows.append((name, "ab"[number // 4 % 2], split))
    write_table(tmp_path / "clips", rows)
    return FolderConfig(
        root=tmp_path / "clips", frames=4, size=16, stored_frames=6, stored_size=20, cache_dir=tmp_path / "cache"
    )


@pytest.fixture
def space() -> SearchSpace:
    settings = {"num_classes": 2, "stem_width": 4, "widths": [[4, 6]], "depths": [[1]], "strides": [1], "frames": [2]}
    return SPACES["clip_cell"].make({**settings, "resolution": [12], "ops": ["conv2d_k3", "shift_k1"]})


def test_predictions_on_files_are_those_of_the_evaluation(
    clips: FolderConfig, space: SearchSpace, tmp_path: Path
) -> None:
    splits = load(clips, seed=0)
    student = saved(tmp_path / "bundle", space, splits.info, clips)
    logits: list[torch.Tensor] = []

    def run(inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits.append(student(space.fit_input(inputs, {"frames": 2, "resolution": 12})))
        return logits[-1]

    metrics = evaluate(
        run,
        ClipLoader(splits.val, 1, seen=splits.info.seen),
        Classification(splits.info),
        lambda batch: nas_kd.data.normalize(batch["clip"], MEAN, STD),
    )
    rows = [line.split(",") for line in (clips.root / "labels.csv").read_text().split()[1:]]
    val = [(clips.root / path, label) for path, label, split in rows if split == "val"]
    predictor = nas_kd.load(tmp_path / "bundle")
    answers = [predictor.classify(path) for path, _ in val]
    for answer, expected in zip(answers, logits, strict=True):
        scores = [dict(answer.labels)[name] for name in splits.info.class_names]
        assert torch.equal(torch.tensor(scores), expected.softmax(1)[0])
    right = [answer.labels[0][0] == label for answer, (_, label) in zip(answers, val, strict=True)]
    assert metrics["accuracy"] == np.float32(sum(right) / len(right))  # the metric is computed in float32
    assert len({answer.labels[0][1] for answer in answers}) == len(answers)  # so that the comparison says something

    found = nas_kd.evaluate(tmp_path / "bundle", clips.root, split="val", batch_size=1)
    assert found.metrics == metrics
    assert found.measured.num_items == 6
    of_six = predictor.info.model_copy(update={"measured": {"val": Measured(num_items=6, views=6)}})
    assert (
        "one view of each item, where the metrics in arch.json are of 6"
        in labelled_folder(clips.root, None, of_six).name
    )
    every_row = nas_kd.evaluate(tmp_path / "bundle", clips.root)
    assert every_row.measured.num_items == 12
    table = (clips.root / "labels.csv").read_text()
    (clips.root / "labels.csv").write_text(table.replace("v01.mp4,a", "v01.mp4,dog"))
    with pytest.raises(ValueError, match=r"v01\.mp4: its label 'dog' is none of the student's classes"):
        nas_kd.evaluate(tmp_path / "bundle", clips.root)

    two = [clips.root / "v01.mp4", clips.root / "v02.mp4"]
    output = succeed("predict", tmp_path / "bundle", *two, clips.root, "--out", tmp_path / "out")
    assert output.count(" ms)") == 12  # each once
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    by_path = {Path(entry["path"]): entry["labels"][0] for entry in written["files"]}
    for answer in answers:
        assert by_path[answer.path] == {"label": answer.labels[0][0], "score": answer.labels[0][1]}
    with pytest.raises(ValueError, match="device is 'tpu', but torch cannot compute there"):
        nas_kd.load(tmp_path / "bundle", device="tpu")
    with torch.no_grad():
        list(predictor.backend.student.parameters())[-1][1] = float("nan")  # type: ignore[attr-defined]
    (unanswered,) = predict_files(predictor, {two[0]: "v01.mp4"}, None)  # argsort would make an order of NaN
    assert unanswered.labels == ()
    assert "1 of 2 outputs of safetensors are NaN or infinite" in str(unanswered.error)


def test_a_package_that_a_metric_needs_is_named(
    clips: FolderConfig, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.metrics")

    saved(tmp_path / "bundle", space, load(clips, seed=0).info, clips)
    predictor, told = nas_kd.load(tmp_path / "bundle"), []
    grouped = replace(labelled_folder(clips.root, None, predictor.info), groups=["a", "b"] * 6)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "scipy.special", None)  # intervals over groups need it
        with pytest.raises(ModuleNotFoundError):
            measure([predictor], grouped, progress=lambda share, words: told.append(words))
    assert not told  # before the items were read
    monkeypatch.setattr("nas_kd.evaluation.measure", missing)
    with pytest.raises(ValueError, match=r"classification on .* need scikit-learn, .*: pip install scikit-learn"):
        nas_kd.evaluate(tmp_path / "bundle", clips.root)


def test_names_of_what_is_written_stay_apart_and_below_their_folder(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in ("a", "b", ".hidden/c"))
    for file in (a / "x.mp4", a / ".y.mp4", b / "x.mp4", c / "z.mp4"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert files_to_read([a / "x.mp4"]) == files_to_read([a]) == {a / "x.mp4": "x.mp4"}
    assert files_to_read([c]) == {c / "z.mp4": "z.mp4"}  # a folder that is named is read, wherever it is
    assert files_to_read([a, c]) == {a / "x.mp4": "x.mp4", c / "z.mp4": "z.mp4"}
    up = a / ".." / "b"
    assert files_to_read([a / "x.mp4", up]) == {a / "x.mp4": "a/x.mp4", up / "x.mp4": "b/x.mp4"}
    Image.new("RGB", (8, 8)).save(b / "0.png")
    (b / "x.mp4").unlink()
    assert files_to_read([b]) == {b: "b"}  # a folder of images is one clip
    with pytest.raises(ValueError, match=r"nothing\.mp4"):
        files_to_read([a, tmp_path / "nothing.mp4"])


def test_a_student_of_data_without_files_is_measured_on_files_as_it_predicts(
    clips: FolderConfig, space: SearchSpace, tmp_path: Path
) -> None:
    saved(tmp_path / "bundle", space, load(clips, seed=0).info, None)
    predictor = nas_kd.load(tmp_path / "bundle")
    rows = [line.split(",") for line in (clips.root / "labels.csv").read_text().split()[1:]]
    right = [predictor.classify(clips.root / path).labels[0][0] == label for path, label, _ in rows]
    told: list[str] = []
    found = nas_kd.evaluate(tmp_path / "bundle", clips.root, progress=lambda share, words: told.append(words))
    assert found.value == np.float32(sum(right) / len(right))
    assert "not trained on files: they are read as those of source folder are, crop" in told[-1]

    (clips.root / "v00.mp4").write_bytes(b"")
    code, output = cli("predict", tmp_path / "bundle", clips.root, "--json")
    assert code == 1
    entries = json.loads(output)
    assert entries[0] == {"path": str(clips.root / "v00.mp4"), "error": "cannot be read: the file is empty (0 bytes)"}
    assert "error" not in entries[1]
    code, output = cli("predict", tmp_path / "bundle", tmp_path / "nothing.mp4")
    assert (code, output) == (2, f"nas-kd: there is no file or folder {tmp_path / 'nothing.mp4'}\n")
    for option, sentence in (
        (("--max-frames", 4), "--max-frames ends a camera, but files are named, which are read whole"),
        (("--no-overlay",), "--no-overlay is of videos of frames, but this student gives labels of clips"),
    ):
        assert cli("predict", tmp_path / "bundle", clips.root, *option) == (2, f"nas-kd: {sentence}; leave it out\n")


ROOT = Path(__file__).parents[2]


def site_with(names: list[str], folder: Path) -> Path:
    """A folder of packages that holds these distributions and what they require, and nothing else."""
    folder.mkdir()
    done: set[str] = set()
    while names:
        found = distribution(names.pop())
        if found.name in done:
            continue
        done.add(found.name)
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


RUNTIME = """
import sys
import nas_kd
from nas_kd.cli import app
bundle, clips, campaign = sys.argv[1:]
print(nas_kd.load(bundle).classify(clips + "/v01.mp4").labels[0][0])
for command, code in (("predict", 0), ("evaluate", 0), ("evaluate", 2)):
    try:
        app([command, bundle, campaign if code else clips], prog_name="nas-kd")
    except SystemExit as end:
        assert end.code == code, (command, end.code)
for name in ("ray", "optuna", "pandas", "fvcore", "scipy", "matplotlib"):
    try:
        __import__(name)
        raise AssertionError(f"{name} is there, so nothing was tested")
    except ImportError:
        pass
"""


def test_exported_students_run_with_the_packages_that_the_docs_name(
    clips: FolderConfig, space: SearchSpace, tmp_path: Path
) -> None:
    text = (ROOT / "docs" / "export.md").read_text()
    (listed,) = re.findall(r"pip install --no-deps nas-kd\n +pip install (.*)\n", text)
    site = site_with(listed.split(), tmp_path / "site")
    saved(tmp_path / "bundle", space, load(clips, seed=0).info, clips)
    arguments = [str(tmp_path / "bundle"), str(clips.root), str(ROOT / "examples" / "demo.yaml")]
    run = subprocess.run(
        [sys.executable, "-S", "-P", "-c", RUNTIME, *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{site}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count(" ms)") == 12
    assert re.search(r"accuracy 0\.\d+ on 12 items", run.stdout)
    assert "demo.yaml is a campaign file, and reading it needs" in run.stderr


def test_an_export_states_the_metric_of_its_files_or_stops(
    clips: FolderConfig, space: SearchSpace, tmp_path: Path
) -> None:
    splits = load(clips, seed=0)
    student = saved(tmp_path / "trial", space, splits.info, clips)
    right = LabelledSet("val", splits.val, ["x", "x", "y", "y", "z", "z"], splits.info, lambda: task_of(splits.info))
    only: tuple[Format, ...] = ("safetensors",)
    (tmp_path / "out").mkdir()
    for name in ("student.int8.onnx", "delta.pt2", "student_uint8.onnx", "run.py", "notes.txt"):
        (tmp_path / "out" / name).write_bytes(b"of another student")
    record = export_student(tmp_path / "trial", tmp_path / "out", only, validation=right, license="CC BY 4.0")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"arch.json", "student.safetensors", "verification.json", "MODEL_CARD.md", "notes.txt"}
    (tmp_path / "out" / "notes.txt").unlink()
    (form,) = record.validation
    assert form.measured.num_groups == 3
    written = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert written["validation"] == [form.model_dump(mode="json")]
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert f"| student.safetensors | accuracy | {form.value:.4f} |  |" in card  # there is no other file to compare with
    assert "4 RGB frames of 16 × 16 pixels" in card
    sure = Measured(num_items=6, low=0.1, high=0.6)
    stated = {"metrics": {"val": {"f1": 0.5, "accuracy": 0.25}}, "measured": {"val": sure}}
    other = model_card(read_info(tmp_path / "out").model_copy(update=stated), record)
    assert "| val | f1 | 0.5000 |  | 6 |\n| val | accuracy | 0.2500 | 0.1000 to 0.6000 | 6 |" in other
    assert "reads frames [1, 3] of these, resampled bilinearly to 12 × 12" in card
    assert "## License of the weights\n\nCC BY 4.0" in card
    assert "## Intended use\n\nnot stated" in card
    info = read_info(tmp_path / "trial").model_copy(update={"metrics": {"val": {"accuracy": form.value - 0.4}}})
    save_bundle(tmp_path / "trial", student, info)
    with pytest.raises(ExportError, match=r"student\.safetensors on val: its accuracy is .*, but the trial measured"):
        export_student(tmp_path / "trial", tmp_path / "out", ("safetensors",), validation=right)
    assert not list((tmp_path / "out").iterdir())
    other = LabelledSet("val", splits.val, None, replace(splits.info, class_names=("a", "cat")), right.make_task)
    foreign = replace(other, make_task=lambda: task_of(other.info))
    with pytest.raises(ValueError, match=r"must be those of the student, a, b, in this order, but it has no 'cat'"):
        measure([nas_kd.load(tmp_path / "trial")], foreign)
    shorter = replace(right, info=replace(splits.info, frames=3))
    with pytest.raises(ValueError, match=r"items of 3 frames of 16 × 16 pixels, but the student was trained on 4"):
        measure([nas_kd.load(tmp_path / "trial")], shorter)


def test_maps_of_frames_are_those_of_the_windows_that_begin_there(tmp_path: Path) -> None:
    space = SPACES["saliency"].make({"net": ["fused"], "side": [32]})
    knobs = space.knobs_with()
    arch = space.sample(np.random.default_rng(0))
    torch.manual_seed(0)
    student = space.student(arch).eval()
    example = space.example_input(knobs)
    info = BundleInfo(
        arch=arch.as_dict(),
        arch_id=arch.arch_id,
        input_shape=tuple(example.shape[1:]),
        mean=MEAN,
        std=STD,
        source_frames=4,
        source_size=(24, 40),
        decoding=FileDecoding(sampling="consecutive", fit="stretch"),
        view=view_of(space, knobs, (3, 4, 24, 40)),
        class_names=("saliency",),
        task="saliency",
        seed=0,
        flops=1,
        params=1,
        metrics={},
    )
    assert info.view == StudentView(frames=(0, 1), size=(32, 32))
    save_bundle(tmp_path, student, info)
    video = tmp_path / "clip.mp4"
    write_video(video, range(10, 251, 21), height=32, width=64)  # 12 frames, more than are seen together
    frames = torch.from_numpy(read_clip(video, 12, 24, 40, "stretch"))
    found = list(nas_kd.load(tmp_path).frames(video))
    assert [frame.number for frame in found] == list(range(12))
    for frame in found:
        window = frames[:, [frame.number, min(frame.number + 1, 11)]][None]  # the last frame stands for the next one
        with torch.no_grad():
            maps = student(space.fit_input(nas_kd.data.normalize(window, MEAN, STD), knobs))
        raised = torch.nn.functional.interpolate(maps, size=(24, 40), mode="bilinear").clamp(0, 1)
        np.testing.assert_allclose(frame.arrays["saliency"], raised[0, 0], atol=2e-3)  # of 16 bits
    pixels = np.full((24, 40, 3), 200, dtype=np.uint8)
    own = ShownFrame(None, av.VideoFrame.from_ndarray(pixels, format="rgb24"), 1.0, Turn())  # as the sentence says
    (answer,) = nas_kd.load(tmp_path).frames(iter([own]))
    assert answer.arrays["saliency"].shape == (24, 40)
    with pytest.raises(
        ValueError, match=r"must be files or ShownFrame, but got ndarray; of an array of bytes \(H, W, 3"
    ):
        list(nas_kd.load(tmp_path).frames(iter([pixels])))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a student of saliency answers for each frame: take frames"):
        nas_kd.load(tmp_path).classify(video)
    with pytest.raises(ValueError, match=r"arch\.json must say under labels how label images are written, but that of"):
        labelled_folder(tmp_path, None, info)
    with pytest.raises(ValueError, match=r"but the student's is mytask:Depth, and a bundle runs no code; give a"):
        labelled_folder(tmp_path, None, info.model_copy(update={"task": "mytask:Depth"}))
    with pytest.raises(
        ValueError, match=r"a folder of clips has one class an item, but the student's task is multilabel"
    ):
        labelled_folder(tmp_path, None, info.model_copy(update={"task": "multilabel"}))


def test_maps_of_a_task_of_ones_own_are_drawn_as_heat_and_single_values_as_numbers() -> None:
    info = BundleInfo.model_construct(class_names=("head", "hand"), source_size=(8, 8))
    picture, window = np.full((240, 320, 3), 100, np.uint8), Window(0, 40, 240, 240)
    maps = np.full((2, 8, 8), -3, np.float32)
    maps[0, 2, 5], maps[1, 6, 1] = 9, -2  # of whatever range
    drawn = Maps().draw(picture, {"outputs": maps}, window, info).astype(int)
    for number, (row, column) in enumerate([(75, 40 + 165), (195, 40 + 45)]):
        tint = drawn[row, column] - 100
        assert np.abs(tint - 0.8 * (np.array(colour_of(number)) - 100)).max() < 8
    assert (drawn[120, 270] == 100).all()  # far from both
    assert (drawn[120, 20] == 45).all()  # what the student did not see
    numbers = Maps().draw(picture, {"outputs": maps[:, 2:3, 5:6]}, window, info).astype(int)
    assert (numbers[120] == drawn[120]).all()
    assert (numbers == colour_of(0)).all(-1).any()
    assert (picture == 100).all()


def test_a_graph_that_only_unpickling_could_load_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.pt2"

    def write(**entries: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("student/archive_format", "pt2")
            for name, content in entries.items():
                archive.writestr(f"student/data/{name}", content)

    plain = b'{"config": {"w": {"use_pickle": false}}}'
    write(**{"weights/model_weights_config.json": plain, "weights/weight_0": b"00"})
    check_graph(path)
    for name, content in {
        "constants/opaque_obj_0": pickle.dumps(object),
        "weights/model_weights_config.json": plain.replace(b"false", b"true"),
        "sample_inputs/model.pt": pickle.dumps(print),
    }.items():
        write(**{name: content})
        with pytest.raises(ValueError, match=rf"holds 'data/{name}', which could run code when it is loaded"):
            check_graph(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="is no graph of torch, or it was cut short"):
        check_graph(path)


def task_of(info: DataInfo) -> Classification:
    return Classification(info)
