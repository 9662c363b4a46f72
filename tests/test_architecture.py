"""Imports run downwards only: nas_kd → analysis → trials, and search_spaces beside them with nothing of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("nas_kd", "analysis", "trials", "search_spaces")
ALLOWED = {
    "search_spaces": {"search_spaces"},
    "trials": {"trials"},
    "analysis": {"analysis", "trials"},
    "nas_kd": {"nas_kd", "search_spaces"},
}
# The front door of nas_kd composes all four packages. Beside it, the campaign file is typed with the knobs of a trial,
# and a trial fills in the record that the ledger keeps.
FRONT_DOOR = ("nas_kd/__init__.py", "nas_kd/cli.py", "nas_kd/campaign.py", "nas_kd/campaign/")
TYPES = {
    "nas_kd/config.py": {"trials.knobs", "trials.resources"},
    "nas_kd/trial.py": {"trials.record", "trials.TrialContext"},
}
WITHOUT_TORCH = ("trials", "analysis")

FILES = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all imports of a file, at any depth; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*path.relative_to(ROOT).parts[: -node.level], *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def defined(path: Path) -> Iterator[str]:
    """Names that a file defines at its top."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(OURS)
    assert "search_spaces.arch.ArchSpec" in set(imported(ROOT / "search_spaces" / "space.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    package = name.partition("/")[0]
    allowed = set(OURS) if name.startswith(FRONT_DOOR) else ALLOWED[package]
    types = set(TYPES.get(name, ()))
    if "trials.record" in types:  # the package gives the same names
        types |= {f"trials.{defined_name}" for defined_name in defined(ROOT / "trials" / "record.py")}
    for module in imported(path):
        top = module.partition(".")[0]
        if top in OURS and top not in allowed:
            assert any(module == t or module.startswith(f"{t}.") for t in types), f"{name} must not import {module}"
        assert not (package in WITHOUT_TORCH and top == "torch"), f"{name} must not import torch"


@pytest.mark.parametrize("package", ["search_spaces", "nas_kd/training"])
def test_whatever_trains_replaces_the_faulty_gradient(package: str) -> None:
    assert "search_spaces.cpu_convolutions" in set(imported(ROOT / package / "__init__.py"))
