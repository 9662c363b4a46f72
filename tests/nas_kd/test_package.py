"""The distribution: public names, what is imported when, and the wheel away from the checkout."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from inspect import isfunction
from pathlib import Path
from types import ModuleType

import pytest

import nas_kd
from nas_kd import analysis, cli, search_spaces
from nas_kd.files import write_text_atomically
from nas_kd.trials.files import write_atomically

ROOT = Path(__file__).parents[2]


def test_every_public_name_is_there_and_no_other() -> None:
    assert sorted(nas_kd._HOME) == sorted(nas_kd.__all__)
    for name in nas_kd.__all__:
        value = getattr(nas_kd, name)
        assert getattr(value, "__name__", name) == name
    assert set(nas_kd.__all__) <= set(dir(nas_kd))
    with pytest.raises(AttributeError, match="no attribute 'Techer'; it has TASKS"):
        nas_kd.Techer  # noqa: B018


def test_help_states_the_convention_and_loads_nothing_heavy() -> None:
    assert cli.CONVENTION == search_spaces.CONVENTION
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom nas_kd.cli import app\n"
        "output = ''.join(CliRunner().invoke(app, ['--help']).output.split())\n"
        "assert 'onemultiply-accumulateisoneFLOP' in output, output\n"
        "print(*sorted({'torch', 'ray', 'pandas', 'matplotlib', 'optuna'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_the_version_is_that_of_the_package() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "nas_kd", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == f"nas-kd {nas_kd.__version__}" == f"nas-kd {version('nas-kd')}"


def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text_atomically(tmp_path / "a", "x")
        write_atomically(tmp_path / "b", "x")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o640]


@pytest.mark.parametrize("package", [nas_kd, analysis], ids=lambda package: package.__name__)
def test_what_takes_a_path_takes_a_string(package: ModuleType) -> None:
    seen = []
    for name in package.__all__:
        value = getattr(package, name)
        for part in inspect.signature(value, eval_str=False).parameters.values() if isfunction(value) else ():
            if "Path" in (annotation := str(part.annotation)):
                seen.append(f"{name}.{part.name}")
                assert "Path | str" in annotation, seen[-1]
    assert len(seen) >= 3


def test_modules_of_a_users_project_may_have_the_names_of_our_folders(tmp_path: Path) -> None:
    (tmp_path / "trials.py").write_text("OWN = 1\n")
    for name in ("analysis", "search_spaces"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OWN = 1\n")
    script = (
        "import analysis, search_spaces, trials\n"
        "import nas_kd.analysis, nas_kd.search_spaces, nas_kd.trials\n"
        "nas_kd.load_config(None)\n"
        "print(*(module.OWN for module in (analysis, search_spaces, trials)))\n"
        "print(*(hasattr(module, 'OWN') for module in (nas_kd.analysis, nas_kd.search_spaces, nas_kd.trials)))\n"
        "import sys, nas_kd.campaign\n"  # a driver, which asks for the front after each trial
        "nas_kd.analysis.ParetoFront\n"
        "print({'matplotlib', 'pandas', 'plotly', 'scipy.stats'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines() == ["1 1 1", "False False False", "set()"]


def test_the_wheel_works_away_from_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="the wheel is built with the setuptools that is here")
    copy = tmp_path / "source"  # setuptools writes build/ and egg-info beside what it builds
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "nas_kd", "search_spaces", "trials", "analysis", "tests"):
        (copy / name).symlink_to(ROOT / name)
    script = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    built = subprocess.run([sys.executable, "-c", script], cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    home = tmp_path / "home"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        wheel.extractall(home)
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert tops == {"nas_kd"}
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nas_kd").rglob("*.py") if not p.is_symlink()}
    for package in ("search_spaces", "trials", "analysis"):
        ours |= {f"nas_kd/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / package).rglob("*.py")}
    assert ours == {name for name in names if name.endswith(".py")}
    assert {"nas_kd/py.typed", "nas_kd/analysis/templates/report.html"} <= set(names)
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "nas-kd = nas_kd.cli:main" in (home / entry).read_text()
    check = (
        "import sys, nas_kd\n"
        "from nas_kd import search_spaces, trials, analysis\n"
        "for module in (nas_kd, search_spaces, trials, analysis):\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
        "nas_kd.load_config(None)\n"
        "sys.argv[1:] = ['--help']\n"
        "from nas_kd.cli import main\nmain()"
    )
    # -P keeps the folder of the script out of the path; PYTHONPATH comes before the editable installation.
    run = subprocess.run(
        [sys.executable, "-P", "-c", check, str(home.resolve())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(home.resolve())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Usage: nas-kd" in run.stdout
