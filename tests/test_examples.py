"""The example of every public name runs, and so do the Python blocks of pages that need a finished run."""

from __future__ import annotations

import contextlib
import doctest
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import nas_kd
import nas_kd.tasks
from nas_kd.teachers import FrameNet, FrameNetSettings
from tests.data.small_sets import write_video
from tests.nas_kd.conftest import TINY
from tests.nas_kd.test_export_stream import IDENTITY, SETTINGS, SIZE, bundle, space_of

ROOT = Path(__file__).parent.parent
OWN = {"model": "mine:net", "settings": {}, "num_outputs": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a campaign file and its finished run, exported students, and a video."""
    made = tmp_path_factory.mktemp("examples")
    with contextlib.chdir(made):
        short = {"search": {"epochs": 1, "shared": False}, "retrain": {"epochs": 1}}
        Path("demo.yaml").write_text(yaml.safe_dump({**TINY, **short, "name": "demo", "runs": "runs", "trials": 1}))
        nas_kd.search(nas_kd.load_config("demo.yaml"))
        nas_kd.export("runs/demo", formats=("safetensors",))
        bundle(made / "runs/streams/export/trial-0000", space_of(IDENTITY))
        bundle(made / "runs/own/trials/0000", space_of(OWN))
        write_video(made / "video.mp4", [20, 80, 140], height=32, width=48)
    return made


@pytest.fixture
def names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples may name, in the folder above."""
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    return {"nas_kd": nas_kd, "np": np, "torch": torch, "nn": nn}


@pytest.mark.parametrize("name", nas_kd.__all__)
def test_the_example_of_each_public_name_runs(name: str, names: dict[str, Any]) -> None:
    value = nas_kd.tasks if name == "TASKS" else getattr(nas_kd, name)  # a mapping has no text of its own
    example = doctest.DocTestParser().get_doctest(inspect.cleandoc(value.__doc__ or ""), names, name, None, 0)
    assert example.examples, f"the docstring of {name} must show an example"
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.failed == 0, "".join(said)


def export(block: str) -> tuple[str, dict[str, Any]]:
    block = block.replace('"runs/demo")', '"runs/demo", formats=("safetensors",))')  # graphs take their time
    return block, {"clips": torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8)}


def predict(block: str) -> tuple[str, dict[str, Any]]:
    return re.sub("trial-000[23]", "trial-0000", block).replace('backend="onnx"', 'backend="safetensors"'), {}


def run(block: str) -> tuple[str, dict[str, Any]]:
    return block, {"run_dir": "runs/demo"}


def stream(block: str) -> tuple[str, dict[str, Any]]:
    return block.replace("runs/NAME/trials/0007", "runs/streams/export/trial-0000"), {
        "frames": torch.randn(4, 4, 3, *SIZE)
    }


def own_teacher(block: str) -> tuple[str, dict[str, Any]]:
    def build() -> nn.Module:
        return FrameNet(3, FrameNetSettings(**SETTINGS)).eval()

    given = {"build_my_teacher": build, "load_bundle": nas_kd.load_bundle}
    return block.replace("runs/NAME/trials/0007", "runs/own/trials/0000"), given


def boxes(block: str) -> tuple[str, dict[str, Any]]:
    return block, {"maps": torch.randn(2, 7, 4, 4), "height": 16, "width": 16}


def quickstart(block: str) -> tuple[str, dict[str, Any]]:
    return f"{block}\nassert heavy_net(3)(torch.zeros(1, 3, 4, 16, 16)).shape == (1, 3)\n", {}


def as_map(block: str) -> tuple[str, dict[str, Any]]:
    return f"{block}\nassert AsMap()(torch.zeros(2, 49, 8)).shape == (2, 8, 7, 7)\n", {}


HERE: dict[tuple[str, int], Callable[[str], tuple[str, dict[str, Any]]]] = {
    ("export.md", 0): export,
    ("export.md", 1): predict,
    ("report-and-export.md", 0): run,
    ("streaming.md", 0): stream,
    ("streaming.md", 1): own_teacher,
    ("tasks.md", 0): boxes,
    ("quickstart.md", 0): quickstart,
    ("cross-resolution.md", 0): as_map,
}
"""(page, number of its Python block) -> the block as it is run here, and what it names without making it."""

ELSEWHERE = {
    **{("README.md", number): "test_docs.py" for number in range(2)},
    **{("search.md", number): "test_docs.py" for number in range(5)},
    **{("extending.md", number): "test_extending.py, as the file of examples/ that it shows" for number in range(3)},
    ("streaming.md", 2): "test_export_stream.py",
    ("teachers.md", 0): "test_sequences.py",
    ("extending.md", 3): "not run: needs a bundle of a space with an operator of one's own, as test_extending.py has",
    ("report-and-export.md", 1): "not run: needs a campaign with a grid; test_grid.py makes the same calls",
}
"""(page, number) -> where a block is run, or why it is only compiled (test_doc_blocks.py)."""


def python_blocks() -> dict[tuple[str, int], str]:
    found = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.S | re.M)):
            found[page.name, number] = block
    return found


def test_every_python_block_is_run_or_has_a_reason() -> None:
    assert set(python_blocks()) == set(HERE) | set(ELSEWHERE)


@pytest.mark.parametrize("place", HERE, ids=lambda place: f"{place[0]}:{place[1]}")
def test_python_blocks_run(place: tuple[str, int], names: dict[str, Any]) -> None:
    text, given = HERE[place](python_blocks()[place])
    exec(compile(text, str(place), "exec"), names | given)
