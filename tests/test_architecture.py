"""Imports run downwards only: nas_kd → analysis → trials; search_spaces imports none of the three."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from nas_kd.search_spaces import SPACES

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
FRONT_DOOR = (
    *("nas_kd/__init__.py", "nas_kd/cli/"),
    *("nas_kd/campaign/", "nas_kd/preflight/", "nas_kd/preparation/", "nas_kd/runs/"),
)
TYPES = {
    "nas_kd/config/campaign_file.py": {
        *("trials.knobs", "trials.objectives", "trials.passwords", "trials.record", "trials.resources"),
    },
    "nas_kd/config/reading.py": {"trials.passwords"},
    "nas_kd/settings/mistakes.py": {"trials.passwords"},  # a refused value may be a URL of a database
    "nas_kd/trial/context.py": {"trials.record"},  # what the evaluation of a split rests on
    "nas_kd/trial/trial.py": {"trials.record", "trials.objectives", "trials.TrialContext"},
    "nas_kd/trial/function.py": {"trials.record", "trials.context", "trials.TrialContext"},
    "nas_kd/trial/study_values.py": {"trials.record"},  # values of the study stand for an architecture
}
WITHOUT_TORCH = ("trials", "analysis")

# Generic modules ask the campaign's `InputType` and know no kind of input by name.
GENERIC = (
    *(
        path.relative_to(ROOT).as_posix()
        for part in ("cli", "config", "trial", "runs", "preparation", "preflight", "campaign", "settings", "deploy")
        for path in sorted((ROOT / "nas_kd" / part).glob("*.py"))
    ),
    *("nas_kd/files.py", "nas_kd/taps.py"),
    *(f"nas_kd/data/{name}.py" for name in ("augment", "loader", "splits", "views")),
    *(f"nas_kd/objectives/{name}.py" for name in ("config", "loss", "maps", "term")),
    *(f"nas_kd/teachers/{name}.py" for name in ("cache", "cache_files")),
    *(
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "nas_kd" / "training").glob("*.py"))
        if path.stem not in ("local_search", "measure", "streaming_cost")  # tools of the kinds
    ),
)
KINDS = {path.stem for path in (ROOT / "nas_kd" / "inputs").glob("*.py")} - {"__init__", "input_type", "registry"}
OF_ONE_KIND = (
    *(f"nas_kd.inputs.{kind}" for kind in KINDS),
    "nas_kd.data.frame_sampling",
    "nas_kd.teachers.stored_maps",
    "nas_kd.training.local_search",
    "nas_kd.training.streaming_cost",
    *(f"search_spaces.{path.parent.name}." for path in (ROOT / "search_spaces").glob("*/__init__.py")),
)
NAMES_OF_KINDS = {
    *("ClipInput", "FrameInput", "KeyFrameInput", "FeatureInput", "gives_features"),
    *(
        "ClipCellSpace",
        "FrameSequenceSpace",
        "SaliencySpace",
        "DeltaBlocksSpace",
        "DeltaNet",
        "Parted",
        "StoredMaps",
        "MultiBranch",
        "delta_net_of",
        "Edge",
        "on_frames",
    ),
    *("DeltaLayer", "LinearDelta", "PairDelta", "ResidualLayer", "residual_form", "state_bytes"),
    *("feature_size", "framewise", "has_keyframes", "input_key", "keyframe_interval", "random_frames", "random_pairs"),
}
# The format of bundles and exports has both names; a runtime needs the interval of its student.
EXCEPTIONS = {
    f"nas_kd/deploy/{name}.py": {"keyframe_interval", "state_bytes"}
    for name in (
        "backends",
        "bundle",
        "claims",
        "export_stream",
        "model_card",
        "record",
        "reduced_stream",
        "runtime_passes",
        "streaming",
    )
}

# Parts of nas_kd, from the bottom up: each imports those before it and itself.
LAYERS = (
    *("callbacks", "files", "settings", "data", "taps", "tasks", "objectives", "training", "teachers", "inputs"),
    *("config", "deploy", "trial", "runs", "preparation", "preflight", "campaign"),
    *("evaluation", "cli", "__main__", "testing"),
)

FILES = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def plain(module: str) -> str:
    """`trials.record` for `nas_kd.trials.record`: the folder that a module is in, and its name there."""
    inside = module.removeprefix("nas_kd.")
    return inside if inside.partition(".")[0] in OURS[1:] else module


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Dotted names of all imports of a file, at any depth; `from a import b` gives `a.b`.

    The packages are named by their folders: `trials.record` for `nas_kd.trials.record`.
    """
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += (plain(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*path.relative_to(ROOT).parts[: -node.level], *filter(None, [base])])
            found += (plain(f"{base}.{alias.name}") for alias in node.names)
    return tuple(found)


def defined(path: Path) -> Iterator[str]:
    """Names that a file defines at its top."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def identifiers(path: Path) -> set[str]:
    """All names that a file uses: variables, attributes, arguments, keywords, and what it imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword):
            found.add(node.arg or "")
        elif isinstance(node, ast.alias):
            found.update(node.name.split("."))
    return found


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


@pytest.mark.parametrize("name", GENERIC)
def test_generic_modules_know_no_kind_of_input(name: str) -> None:
    """A module beside the kinds asks the campaign's input type, so that a new kind changes none of them."""
    path = ROOT / name
    imports = [module for module in imported(path) if module.startswith(OF_ONE_KIND)]
    assert not imports, f"{name} must ask the campaign's input type, but imports {', '.join(imports)}"
    known = (identifiers(path) & NAMES_OF_KINDS) - EXCEPTIONS.get(name, set())
    assert not known, f"{name} must ask the campaign's input type, but knows {', '.join(sorted(known))}"


def test_kinds_of_input_are_imported_through_their_package_alone() -> None:
    assert sorted(KINDS) == ["clips", "features", "frames", "key_frames"]
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("nas_kd/inputs/"):
            inner = [module for module in imported(path) if module.startswith("nas_kd.inputs.")]
            assert all(module.count(".") == 2 for module in inner), f"{name} reaches into nas_kd.inputs: {inner}"
            assert not {module.split(".")[2] for module in inner} & (KINDS | {"input_type", "registry"}), name


@pytest.mark.parametrize("layer", LAYERS)
def test_parts_of_nas_kd_import_those_below_them_alone(layer: str) -> None:
    above = tuple(f"nas_kd.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :])
    folder = ROOT / "nas_kd" / layer
    for path in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
        upward = [m for m in imported(path) if m in above or m.startswith(tuple(f"{name}." for name in above))]
        assert not upward, f"{path.relative_to(ROOT)} must not import {', '.join(upward)}"


def test_each_part_of_nas_kd_has_a_layer() -> None:
    parts = {
        path.stem for path in (ROOT / "nas_kd").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    parts = {name for name in parts if not (ROOT / "nas_kd" / name).is_symlink()}
    assert parts - {"__init__"} == set(LAYERS)


def space_imports() -> dict[str, set[str]]:
    """Module of search_spaces, as its path without ending -> those of search_spaces that it imports."""
    folder = ROOT / "search_spaces"
    modules = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for name in imported(path):
            _, found, inner = name.partition("search_spaces.")
            parts = inner.split(".")
            known = [
                candidate
                for end in range(len(parts), 0, -1)
                for candidate in ("/".join(parts[:end]), "/".join([*parts[:end], "__init__"]))
                if candidate in modules
            ]
            if found and known:
                graph[module].add(known[0])
    return graph


def test_shared_modules_of_search_spaces_import_no_space_and_a_space_imports_no_other() -> None:
    graph = space_imports()
    spaces = {module.partition("/")[0] for module in graph if "/" in module}
    assert spaces == set(SPACES), "a folder of search_spaces is a space with an entry in its registry"
    composing = ("__init__", "registry")
    assert "supernet" in graph["delta_blocks/net"], "there is something to check"
    for module, imports in graph.items():
        own = module.partition("/")[0]
        others = sorted(other for other in imports if "/" in other and other.partition("/")[0] != own)
        assert module in composing or not others, f"search_spaces/{module} must not import {', '.join(others)}"
        assert "registry" not in imports or module == "__init__", f"search_spaces/{module} must not know the registry"


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of the project that it imports, also in functions and for types alone."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for name in imported(path):
            target = name
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != module:
                graph[module].add(target)
    return graph


def test_there_is_no_import_circle() -> None:
    graph = import_graph()
    assert "trials.record" in graph["analysis.front"], "there is something to check"
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join((*above, module))}"
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


TERMS = {path.stem for path in (ROOT / "nas_kd" / "objectives").glob("*.py")} - {
    *("__init__", "config", "loss", "map_term", "maps", "term"),
}
OPTIONS_OF_TERMS = {
    *("active_share", "cross_resolution", "fewer_frames", "fusion_share", "soft_share", "spatiotemporal"),
    *("kd_temperature", "teacher_lr_scale", "teacher_norm"),
}


@pytest.mark.parametrize("path", sorted((ROOT / "nas_kd").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_outside_objectives_knows_a_term(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    if path.parent.name == "objectives":
        return
    modules = tuple(f"nas_kd.objectives.{term}" for term in TERMS)
    known = [module for module in imported(path) if module.startswith(tuple(f"{m}." for m in modules))]
    if name != "nas_kd/training/local_search.py":  # the start of a search over delta layers, with a constant of delta
        assert not known, f"{name} must not import {', '.join(known)}"
    assert not identifiers(path) & OPTIONS_OF_TERMS, f"{name} must ask a term by its hooks"


def test_the_packages_below_nas_kd_are_the_folders_beside_it() -> None:
    for package in OURS[1:]:
        assert (ROOT / "nas_kd" / package).readlink() == Path("..") / package


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_are_imported_below_nas_kd(path: Path) -> None:
    """A user's project may have modules of the folders' names, so ours are never imported by those."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {name.partition(".")[0] for name in names} & set(OURS[1:])
