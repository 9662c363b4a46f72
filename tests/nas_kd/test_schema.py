"""What an editor and a shell know of nas-kd: the JSON schema of campaign files, and completion."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from commands import cli, succeed

from nas_kd.config import CampaignConfig
from nas_kd.preflight.schema import campaign_schema

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


class EditorLoader(yaml.SafeLoader):
    """YAML 1.2, as editors read it: 2e-3 is a number."""


EditorLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?e[-+]?\d+$"), list("0123456789")
)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    made = campaign_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return made


def mistakes(schema: dict[str, Any], given: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(given)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_schema_accepts_the_examples(schema: dict[str, Any], path: Path) -> None:
    assert mistakes(schema, yaml.load(path.read_text(), EditorLoader)) == []


@pytest.mark.parametrize(
    "given",
    [
        {"trails": 3},
        {"task": "tracking"},
        {"task": "classification", "task_options": {"smoothing": 0.1}},
        {"data": {"source": "folder", "root": "clips", "frame": 8}},
        {"data": {"root": "clips"}},  # of the source generated
        {"budget": {"max_flops": "12.5X"}},
        {"budget": {"max_flops": ["2M", 0]}},
        {"space": {"name": "clip_cell", "width": 3}},
        {"objective": {"respons": {"weight": 1}}},
        {"knobs": {"retrain.lr": {"type": "flot", "low": 1, "high": 2}}},
        {"retrain": {"augment": "rotate"}},
    ],
    ids=json.dumps,
)
def test_the_schema_refuses_what_the_sections_refuse(schema: dict[str, Any], given: dict[str, Any]) -> None:
    assert mistakes(schema, given)
    with pytest.raises(ValueError, match=r"\S"):
        CampaignConfig.model_validate(given)


@pytest.mark.parametrize(
    "given", [{"sampler": "best"}, {"teacher": {"model": "framenet", "settings": {"wide": 3}}}], ids=json.dumps
)
def test_the_schema_refuses_what_a_campaign_refuses_later(schema: dict[str, Any], given: dict[str, Any]) -> None:
    assert mistakes(schema, given)


@pytest.mark.parametrize(
    "given",
    [
        {"task": "mymodels:Task", "task_options": {"x": 1}, "space": {"name": "mine:space", "width": 3}},
        {"objective": {"mine:Term": {"weight": 1}}, "budget": {"max_flops": "12.5M", "max_params": 1_000_000}},
        {"budget": {"max_flops": {"low": "2M", "high": 4e6}}, "retrain": {"augment": {"flip": True}}},
        {"grid": [{"max_flops": "2M", "retrain.lr": [0.1, 0.2]}], "teacher": {"cache": {"max_bytes": "2G"}}},
    ],
    ids=json.dumps,
)
def test_the_schema_accepts_what_is_the_users_own(schema: dict[str, Any], given: dict[str, Any]) -> None:
    assert mistakes(schema, given) == []


def test_every_key_has_a_meaning(schema: dict[str, Any]) -> None:
    silent = []
    for name, section in {"": schema, **schema["$defs"]}.items():
        for key, value in section.get("properties", {}).items():
            if "description" not in value and not ("$ref" in value or "const" in value):
                silent.append(f"{name}.{key}")
    assert silent == []


def test_the_commands_print_schema_and_scripts(schema: dict[str, Any]) -> None:
    assert json.loads(succeed("schema")) == json.loads(json.dumps(schema))
    for shell in ("zsh", "fish"):
        assert "search" in succeed("completion", shell)
    code, output = cli("completion", "nix")
    assert code == 2
    assert "choose from bash, zsh, fish" in output


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("typed", "completed"), [("se", "search"), ("export runs/a --max-f", "--max-flops"), ("search camp", "")]
)
def test_bash_completes(typed: str, completed: str) -> None:
    words = ["nas-kd", *typed.split()]
    script = succeed("completion", "bash")
    asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _nas_kd; echo ${{COMPREPLY[@]}}"
    found = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True)
    assert (found.stdout.strip(), found.stderr) == (completed, "")
