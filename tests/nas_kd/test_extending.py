"""Tasks, terms and operators from outside the package, as docs/extending.md shows them: whole campaigns."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nas_kd import export, load, load_bundle, load_config, report, search
from nas_kd.config import CampaignConfig, ConfigError, split_path, validate
from nas_kd.preflight.checks import check_fit
from nas_kd.search_spaces import SPACES
from nas_kd.trial import build_context

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ("attention_transfer", "ejection_fraction", "large_kernel", "pose")
TERM = "attention_transfer:AttentionTransfer"
MODULES = {"student": "stages.1", "teacher": "layers.1"}
DATA = '''
import torch
from ejection_fraction import EjectionFraction

class Hearts:
    """A disc that shrinks; by how much is what is asked."""
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def __getitem__(self, index):
        share = torch.rand((), generator=torch.Generator().manual_seed(index))
        side = torch.arange(16) - 7.5
        radius = 3 + 4 * (1 - share * torch.linspace(0, 1, 4))
        disc = (side[:, None] ** 2 + side**2).sqrt() < radius[:, None, None]
        return {"clip": (200 * disc).byte().expand(3, 4, 16, 16).clone(), "ejection_fraction": share}

def hearts(): return {"train": Hearts(24), "val": Hearts(8), "test": Hearts(8), "num_classes": 0}

class Joints:
    """Two bright dots that move, each a joint."""
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def __getitem__(self, index):
        place = torch.randint(4, 28, (2, 2), generator=torch.Generator().manual_seed(index))
        clip, mask = torch.zeros(3, 4, 32, 32, dtype=torch.uint8), torch.zeros(4, 32, 32, dtype=torch.uint8)
        for frame in range(4):
            for joint, (y, x) in enumerate((place + frame).tolist()):
                clip[joint, frame, y - 1 : y + 2, x - 1 : x + 2] = 255
                mask[frame, y, x] = joint + 1
        return {"clip": clip, "label": torch.tensor(0), "mask": mask}

def pooled(shape):
    """A candidate of delta layers: the change of 2 × 2 pixels at once, for layers that keep the size."""
    if shape.stride != (1, 1) or shape.out_size is None or shape.out_size[0] % 2:
        return None
    low = torch.nn.Conv2d(shape.in_channels, shape.out_channels, 1, bias=False)
    return torch.nn.Sequential(torch.nn.AvgPool2d(2), low, torch.nn.Tanh(), torch.nn.Upsample(scale_factor=2))

class Unknown(EjectionFraction):
    outputs = "regression"

class Unnamed(EjectionFraction):
    metric = None

class Misnamed(EjectionFraction):
    metric = "rmse"

class NoOutputs(EjectionFraction):
    class_names = ()

def joints():
    sets = {"train": Joints(16), "val": Joints(4), "test": Joints(4), "class_names": ["a", "b"]}
    return sets | {"mask_names": ["background", "head", "hand"], "points": True, "flip_safe": False}
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's with the examples and their data, which is the current one."""
    for name in EXAMPLES:
        shutil.copy(ROOT / "examples" / f"{name}.py", tmp_path)
    (tmp_path / "own_data.py").write_text(DATA)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "ops.py").write_text("from own_data import pooled\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def definitions_of(code: str) -> dict[str, str]:
    """The classes and functions of some code as text, without docstrings."""
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner) is not None:
                    del inner.body[0]
            found[node.name] = ast.unparse(node)
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_take_less_than_40_lines(name: str) -> None:
    code = "\n\n".join(definitions_of((ROOT / "examples" / f"{name}.py").read_text()).values())
    assert len([line for line in code.splitlines() if line.strip()]) < 40


def test_the_page_shows_the_examples() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    shown: dict[str, str] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        shown |= definitions_of(block)
    files: dict[str, str] = {}
    for name in EXAMPLES:
        files |= definitions_of((ROOT / "examples" / f"{name}.py").read_text())
    assert shown.keys() == {"AttentionTransfer", "AttentionTransferTerm", "EjectionFraction", "large_kernel"}
    for name, code in shown.items():
        assert code == files[name]


def regression(tiny: Callable[..., CampaignConfig], **changes: Any) -> CampaignConfig:
    """A campaign of seconds on the task and the term of the examples."""
    kept = tiny().model_dump(mode="json", include={"runs", "space", "budget", "resources", "rehearse"})
    teacher = {"settings": {"widths": [4, 8], "blocks": [1, 1], "strides": [1, 2]}, "fit": {"epochs": 1}}
    return validate(
        {
            **kept,
            "task": "ejection_fraction:EjectionFraction",
            "data": {"source": "own", "function": "own_data:hearts"},
            "teacher": teacher,
            "objective": {TERM: {"weight": 1.0, **MODULES}},
            "search": {"epochs": 1},
            "retrain": {"epochs": 1},
            **changes,
        },
        source="test",
    )


@pytest.mark.ray
def test_a_regression_with_a_term_of_ones_own_goes_all_the_way_in_processes_of_ray(
    tiny: Callable[..., CampaignConfig], outside: Path
) -> None:
    weight = f"objective.{TERM}.weight"
    knobs = {weight: {"type": "choice", "values": [1.0, 10.0]}}
    config = regression(tiny, trials=2, knobs=knobs, resources={"executor": "ray", "max_concurrent": 1})
    result = search(config)
    assert [record.state for record in result.records] == ["complete"] * 2, [each.error for each in result.records]
    assert (result.records[0].metric.name, result.records[0].metric.maximize) == ("mae", False)
    assert {record.knobs[weight] for record in result.records} <= {1.0, 10.0}
    log = (result.run_dir / "trials" / "0000" / "log.jsonl").read_text()
    assert f'"{TERM}"' in log
    saved = load_config(result.run_dir / "campaign.yaml")
    assert saved.objective == config.objective
    assert saved.digest() == config.digest()
    assert report(result.run_dir).report.is_file()
    folder, _ = export(result.run_dir, trial=0, formats=("safetensors",))
    _, info = load_bundle(folder)
    assert (info.task, info.class_names) == (config.task, ("ejection_fraction",))


def test_an_operator_of_ones_own_is_searched_and_exported(tiny: Callable[..., CampaignConfig], outside: Path) -> None:
    name = "large_kernel:large_kernel"
    ops, budget = [name, "identity", "zero"], {"max_flops": ["400k"]}
    config = tiny(trials=1, space={"ops": ops}, budget=budget, search={"epochs": 1}, retrain={"epochs": 1})
    result = search(config)
    (record,) = result.records
    assert record.state == "complete", record.error
    assert record.arch is not None
    assert name in record.arch["choices"].values()
    folder, proof = export(result.run_dir, trial=0)  # in all formats
    assert record.cost is not None
    assert [file.flops for file in proof.parity if file.flops is not None] == [record.cost.flops] * 2
    with pytest.raises(ValueError, match=f"the student may have operators of your own, {name}: build its space with"):
        load_bundle(folder)
    assert load(folder).backend.files == ("student.pt2",)  # which needs no code
    function = importlib.import_module("large_kernel").large_kernel
    space = SPACES["clip_cell"].make(record.arch["settings"], operators={name: function})
    student, info = load_bundle(folder, space)
    assert {m.kernel_size for m in student.modules() if isinstance(m, nn.Conv3d)} >= {(1, 13, 13)}
    assert student(torch.zeros(1, *info.input_shape)).shape == (1, len(info.class_names))


@pytest.mark.parametrize(
    ("ops", "sentence"),
    [
        (
            ["large_kernel:large_kernle"],
            "space.ops 'large_kernel:large_kernle': module 'large_kernel' has no function 'large_kernle'; did you mean "
            "'large_kernel'?",
        ),
        (["own_data:pooled"], "space: operator 'own_data:pooled' cannot be built with (4, 4, 1): TypeError: pooled()"),
    ],
)
def test_an_operator_that_cannot_be_had_is_told_before_training(
    tiny: Callable[..., CampaignConfig], outside: Path, ops: list[str], sentence: str
) -> None:
    config = tiny(space={"ops": ops})
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_fit(config, build_context(config, "cpu"))


def test_a_pose_task_runs_on_frames_with_key_frames(outside: Path) -> None:
    candidate = "own_package.ops:pooled"
    config = validate(
        {
            "task": "pose:Pose",
            "runs": str(outside / "runs"),
            "trials": 1,
            "data": {"source": "own", "function": "own_data:joints"},
            "teacher": {"settings": {"widths": [4, 8], "depths": [1, 1], "head_width": 8}, "fit": {"epochs": 1}},
            "space": {"keyframe_interval": [2], "candidates": ["zero", "full", candidate]},
            "budget": {"max_flops": ["1M"]},
            "search": {"epochs": 1, "local": {"steps": 2, "probes": 1}},
            "retrain": {"epochs": 1},
            "rehearse": False,
            "resources": {"executor": "inline", "max_concurrent": 1},
        },
        source="test",
    )
    result = search(config)
    (record,) = result.records
    assert record.state == "complete", record.error
    assert {"pck", "pck@0", "pck@1"} <= record.metrics["retrained"]["test"].keys()
    folder, _ = export(result.run_dir, formats=("safetensors",))
    with pytest.raises(ValueError, match=f"the student may have operators of your own, {candidate}"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "pose:Pase"}, "task 'pose:Pase': module 'pose' has no class 'Pase'; did you mean 'Pose'?"),
        ({"task": "nowhere:Task"}, "task 'nowhere:Task': importing 'nowhere' failed with ModuleNotFoundError"),
        ({"task": "own_data:Hearts"}, "'Hearts' in module 'own_data' is no subclass of Task; choose from"),
        ({"task": "own_data:Unknown"}, "outputs must be one of multiclass, multilabel, other, but is 'regression'"),
        ({"task": "own_data:Unnamed"}, "task 'own_data:Unnamed': the class must define metric, the name of its"),
        ({"task": "ejection_fraction:EjectionFraction", "task_options": {"a": 1}}, "task_options: a: unknown key 'a'"),
        (
            {"objective": {TERM: {**MODULES, "powr": 1}}},
            f"objective.{TERM}.powr: unknown key 'powr'; did you mean 'power'? choose from weight, power",
        ),
        ({"objective": {TERM: {**MODULES, "power": 0}}}, f"objective.{TERM}.power: input should be greater than 0"),
        (
            {"objective": {TERM: {"weight": True, **MODULES}}},
            f"objective.{TERM}.weight: must be a number, but got true",
        ),
        ({"objective": {TERM: {"student": "x"}}}, f"objective.{TERM}.teacher: missing; give it a value"),
        (
            {"objective": {"attention_transfer:Attention": {}}},
            "objective.attention_transfer:Attention: term 'attention_transfer:Attention': module "
            "'attention_transfer' has no class 'Attention'; did you mean 'AttentionTransfer'?",
        ),
        (
            {"search": {"objective": {"nowhere:Term": {}}}},
            "search.objective.nowhere:Term: term 'nowhere:Term': importing",
        ),
        (
            {"objective": {TERM: MODULES}, "knobs": {f"objective.{TERM}.powr": {"type": "choice", "values": [1]}}},
            f"knobs.objective.{TERM}.powr: there is no 'powr'; did you mean 'power'?",
        ),
        (
            {"objective": {TERM: MODULES}, "knobs": {f"objective.{TERM}.power": {"type": "choice", "values": [0, 1]}}},
            f"knobs.objective.{TERM}.power may not propose 0: {TERM}.power: input should be greater than 0",
        ),
    ],
)
def test_mistakes_are_sentences_as_for_the_packages_own(outside: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(change, source="f.yaml")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_of_ones_own_must_return_its_metric_and_have_outputs(
    tiny: Callable[..., CampaignConfig], outside: Path
) -> None:
    with pytest.raises(ValueError, match="task 'own_data:NoOutputs': models must have at least one output"):
        build_context(regression(tiny, task="own_data:NoOutputs"), "cpu")
    context = build_context(regression(tiny, task="own_data:Misnamed"), "cpu")
    with pytest.raises(ValueError, match="compute must return the primary metric 'rmse', but returns mae"):
        context.evaluate_teacher(context.splits.val)


def test_a_mistake_in_a_term_of_ones_own_hides_no_other(outside: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"objective": {TERM: {**MODULES, "powr": 1}, "delta": {"weight": -1}, "respons": {}}}, source="f")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any("objective.respons: unknown key 'respons'; did you mean 'response'?" in line for line in lines)


def test_a_module_that_a_term_of_ones_own_names_must_exist(tiny: Callable[..., CampaignConfig], outside: Path) -> None:
    config = tiny(objective={TERM: {"weight": 1, **MODULES, "student": "stages.9"}})
    with pytest.raises(ConfigError) as caught:
        check_fit(config, build_context(config, "cpu"))
    sentence = f"objective.{TERM}.student: module 'stages.9' of the student does not exist; did you mean 'stages"
    assert sentence in str(caught.value)
    assert f"set {TERM}.weight to 0" in str(caught.value)


def test_a_key_with_dots_of_its_own_is_one_part_of_a_path() -> None:
    assert split_path("objective.my.terms:Mine.weight") == ["objective", "my.terms:Mine", "weight"]
    assert split_path("search.objective.terms:Mine.weight") == ["search", "objective", "terms:Mine", "weight"]
    assert split_path("objective.delta.weight") == ["objective", "delta", "weight"]
