"""Every block of YAML, shell and Python in README and docs works, as far as that can be told without training.

YAML is loaded as a campaign and its budgets compared with its space, commands are parsed by the command line, Python is
compiled and its imports made. Blocks that are run as a whole are in `test_docs.py`.
"""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from nas_kd.cli import app
from nas_kd.config import CampaignConfig, validate
from nas_kd.search_spaces.knapsack import cost_range

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LEAST: dict[str, float] = {}  # space as JSON -> FLOPs of its cheapest students; many pages show the same space
_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", flags=re.S | re.M)


@dataclass(frozen=True)
class Block:
    """One block of a page: its language, empty for plain text, and its text."""

    place: str
    language: str
    text: str


def blocks() -> list[Block]:
    """All blocks between fences, and all indented ones, which are shell."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCED.finditer(text):
            place = f"{page.name}:{text[: match.start()].count(chr(10)) + 1}"
            found.append(Block(place, match[2], match[3]))
        rest = _FENCED.sub("", text)
        indented = "".join(f"{line[4:]}\n" for line in rest.splitlines() if line.startswith("    "))
        found.append(Block(f"{page.name}:indented", "", indented))
    return found


BLOCKS = blocks()


def of(language: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language == language]


def commands() -> list[Any]:
    """Every `nas-kd` and `make` command line of a block, continued lines joined, without its comment."""
    found = []
    for block in BLOCKS:
        if block.language in ("python", "yaml"):
            continue
        for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
            words = shlex.split(line, comments=True) if re.match(r"\s*(\S*/)?(nas-kd|make)\s", line) else []
            if words:
                found.append(pytest.param(words, id=f"{block.place} {' '.join(words)}"[:80]))
    return found


def test_there_is_something_to_check() -> None:
    languages = {block.language for block in BLOCKS}
    assert languages <= {"yaml", "python", "", "sh", "bash", "text"}, languages
    assert len(of("yaml")) >= 10
    assert len(of("python")) >= 10
    assert len(commands()) >= 12


@pytest.mark.parametrize("block", of("yaml"))
def test_campaign_files_load_and_their_budgets_can_be_met(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")  # with the modules that pages name
    given = yaml.safe_load(block.text)
    assert isinstance(given, dict)
    if "apiVersion" in given:  # of Kubernetes
        pods = [given["spec"]["headGroupSpec"], *given["spec"]["workerGroupSpecs"]]
        mounted = [pod["template"]["spec"]["containers"][0]["volumeMounts"][0]["name"] for pod in pods]
        assert mounted == [pod["template"]["spec"]["volumes"][0]["name"] for pod in pods]
        return
    config = validate(given, source=block.place)
    if config.space.name != "clip_cell" or config.budget.is_latency:  # others follow from the data or the teacher
        return
    space, key = config.space.build(10), config.space.model_dump_json()
    if key not in LEAST:  # of the students that see the most frames and pixels
        widest = {name: max(values, key=float) for name, values in space.knobs.items()}
        LEAST[key] = cost_range(space.cost_table(widest))[0]
    assert LEAST[key] <= config.budget.lowest, f"the cheapest students cost up to {LEAST[key]:,}"
    assert float(max(space.knobs["frames"], key=float)) <= getattr(config.data, "frames", 10**6)


@pytest.mark.parametrize("words", commands())
def test_commands_and_their_options_exist(words: list[str]) -> None:
    if Path(words[0]).name == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
        assert {word for word in words[1:] if "=" not in word} <= targets
        return
    group: Any = typer.main.get_command(app)
    context = group.commands[words[1]].make_context(words[1], words[2:])
    file = context.params.get("file")
    if file is not None and str(file).startswith("examples/"):
        assert (ROOT / file).is_file()
    for override in context.params.get("overrides") or ():
        key = override.partition("=")[0].partition(".")[0]
        assert key in CampaignConfig.model_fields, override


@pytest.mark.parametrize("block", of("python"))
def test_python_blocks_compile_and_import_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    module = ast.Module([node for node in imports if not _is_the_readers(node)], [])
    exec(compile(module, block.place, "exec"), {})


def _is_the_readers(node: ast.stmt) -> bool:
    """Whether a module is one that the page tells its reader to write."""
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", ())]
    return any(name.partition(".")[0].startswith("my") for name in names)
