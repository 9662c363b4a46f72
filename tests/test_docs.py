"""What the documentation shows, runs; what a campaign file takes, is documented."""

from __future__ import annotations

import importlib.util
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel, TypeAdapter

import nas_kd
from nas_kd.config import CampaignConfig, load_config, validate
from nas_kd.config.budget import BudgetConfig
from nas_kd.config.sections import EarlyStoppingConfig, EvaluationConfig, RetrainConfig, SearchConfig
from nas_kd.data import SOURCES, CameraConfig, DataConfig, SequencesConfig
from nas_kd.objectives import ObjectiveConfig, TaskLossConfig
from nas_kd.preflight.checks import check_fit
from nas_kd.search_spaces import SPACES
from nas_kd.search_spaces.frame_sequence.encoders import FAMILIES
from nas_kd.search_spaces.knapsack import cost_range
from nas_kd.search_spaces.saliency.settings import DecoderSettings, TrunkSettings
from nas_kd.settings.normalize import NormalizeConfig
from nas_kd.tasks import TASKS
from nas_kd.teachers import TEACHERS, TeacherConfig
from nas_kd.training.settings import GateConfig, LocalConfig
from nas_kd.trial import build_context
from nas_kd.trials import Resources

ROOT = Path(__file__).parent.parent
CAMPAIGN, STREAMS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)


def test_the_campaign_example_of_the_readme_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    sizes = ["data.num_train=48", "data.num_val=24", "data.num_test=24", "search.epochs=1", "retrain.epochs=1"]
    sizes += [
        "teacher.fit.epochs=1",
        "rehearse=false",
        "resources.executor=inline",
        "resources.max_concurrent=1",
        f"runs={tmp_path}",
    ]
    overrides = '["trials=4"]'
    assert CAMPAIGN.count(overrides) == 1
    names: dict[str, Any] = {"__name__": "readme"}
    exec(CAMPAIGN.replace(overrides, repr(["trials=1", *sizes])), names)
    assert Path(capsys.readouterr().out.splitlines()[0]).is_file()
    assert (names["folder"] / "student.pt2").is_file()

    run = str(names["result"].run_dir)  # as a person types it
    assert nas_kd.report(run, str(tmp_path / "report")).report.is_file()
    assert nas_kd.table(run, ["resolution"], out_dir=str(tmp_path / "table")).cells
    folder, _ = nas_kd.export(run, formats=("safetensors",), out_dir=str(tmp_path / "export"))
    again = nas_kd.export_student(str(folder), str(tmp_path / "again"), ())
    assert again.arch_id == nas_kd.load_bundle(str(tmp_path / "again"))[1].arch_id


def test_the_examples_of_the_search_page_run() -> None:
    names: dict[str, Any] = {"__name__": "search"}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/search.md").read_text(), flags=re.S):
        exec(block, names)
        if "BudgetController" in block:
            assert not any(isinstance(module, nas_kd.Edge) for module in names["student"].modules())
    assert names["maps"].shape == (1, 8, 5, 16, 24)
    assert names["least"] < names["most"]


def test_the_streaming_example_of_the_readme_runs_what_its_campaign_exports(tmp_path: Path) -> None:
    tiny = load_config(ROOT / "examples/streams.yaml").model_dump(mode="json") | {
        "runs": str(tmp_path),
        "trials": 1,
        "data": {"num_train": 24, "num_val": 8, "num_test": 8, "frames": 12},
        "search": {
            "epochs": 1,
            "objective": {"delta": {"weight": 1}},
            "local": {"steps": 4, "probes": 1},
            "candidates": 2,
        },
        "retrain": {"epochs": 1},
        "rehearse": False,
        "resources": {"executor": "inline"},
    }
    tiny["teacher"]["fit"]["epochs"] = 1
    result = nas_kd.search(validate(tiny, source="streams"))
    (record,) = result.records
    assert record.state == "complete", record.error
    folder, _ = nas_kd.export(result.run_dir, formats=("safetensors",))
    bundle = "runs/streams/export/trial-0002"
    assert bundle in STREAMS
    names: dict[str, Any] = {"__name__": "readme", "frames": torch.randn(7, 4, 3, 32, 32)}
    exec(STREAMS.replace(bundle, str(folder)), names)
    assert names["output"].shape == (4, 4, 8, 8)
    assert names["state"].bytes_per_stream == record.cost.state_bytes


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda p: p.name)
def test_example_campaigns_are_valid(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_the_site_loads_nothing_from_a_network() -> None:
    scripts = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["extra"]["polyfills"]
    assert any("iframe-worker" in name for name in scripts), "else the plugin `offline` adds one from a network"
    assert all((ROOT / "docs" / name).is_file() for name in scripts)


def test_the_gallery_has_each_of_its_campaigns_with_command_and_picture() -> None:
    page = (ROOT / "docs" / "gallery.md").read_text()
    campaigns = sorted(path.stem for path in (ROOT / "examples" / "gallery").glob("*.yaml"))
    assert sorted(re.findall(r"^    nas-kd search examples/gallery/(\w+)\.yaml$", page, flags=re.M)) == campaigns
    assert sorted(re.findall(r"\]\(gallery/(\w+)\.png\)", page)) == campaigns
    for name in campaigns:
        assert (ROOT / "docs" / "gallery" / f"{name}.png").stat().st_size < 70_000


@pytest.mark.parametrize(
    ("page", "model"),
    [
        ("campaign", CampaignConfig),
        ("campaign", TeacherConfig),
        ("campaign", BudgetConfig),
        ("campaign", SearchConfig),
        ("campaign", GateConfig),
        ("campaign", LocalConfig),
        ("campaign", RetrainConfig),
        ("campaign", Resources),
        ("campaign", EarlyStoppingConfig),
        ("campaign", EvaluationConfig),
        ("campaign", NormalizeConfig),
        *(("search", entry.settings) for entry in SPACES.values()),
        *(("search", family.options) for family in FAMILIES.values()),
        ("search", TrunkSettings),
        ("search", DecoderSettings),
        *(("tasks", task.options) for task in TASKS.values()),
        *(("tasks", entry.settings) for entry in TEACHERS.values()),
        *(("tasks", family.sizes) for family in FAMILIES.values()),
        *(("data", source) for source in SOURCES.values()),
        ("data", CameraConfig),
        ("objectives", ObjectiveConfig),
        ("objectives", TaskLossConfig),
        *(("objectives", type(term)) for term in ObjectiveConfig().terms.values()),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_key_is_documented(page: str, model: type[BaseModel]) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    given_by_us = {"num_classes", "source", "root", "labels"}
    missing = [key for key in model.model_fields if f"`{key}`" not in text and key not in given_by_us]
    assert not missing


def campaign_of(page: str) -> dict[str, Any]:
    """The campaign that a page shows."""
    (block,) = re.findall(r"```yaml\n(task:.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.S)
    return dict(yaml.safe_load(block))


@pytest.mark.parametrize("given", [{}, campaign_of("fewer-frames")], ids=["defaults", "page"])
def test_campaigns_on_features_need_no_more_than_a_folder(given: dict[str, Any], tmp_path: Path) -> None:
    classes = 14
    np.save(tmp_path / "all.npy", np.random.default_rng(0).normal(size=(3 * classes, 25, 256)).astype(np.float32))
    rows = [f"all.npy#{i},c{i % classes:02},{('train', 'val', 'test')[i // classes]}" for i in range(3 * classes)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    data = {"source": "features", **given.get("data", {}), "root": str(tmp_path)}
    config = validate({**given, "data": data}, source="page")
    check_fit(config, build_context(config, "cpu"))


def test_the_default_budgets_hold_at_the_sizes_of_youtube_8m_and_for_short_clips() -> None:
    config = validate({"data": {"source": "youtube8m", "root": "x", "num_classes": 3862}}, source="defaults")
    space = config.space.build(3862, {"feature_size": 1152, "frames": 300})
    for frames in space.knobs["frames"]:
        least, most = cost_range(space.cost_table(space.knobs_with({"frames": frames})))
        assert least <= config.budget.lowest
        assert most >= 10_000_000
    assert config.space.build(2, {"feature_size": 8, "frames": 7}).knobs["frames"] == (6,)
    assert config.space.build(2, {"feature_size": 8, "frames": 4}).knobs["frames"] == (4,)


def test_the_budgets_of_the_saliency_page_can_be_met() -> None:
    config = validate(campaign_of("saliency"), source="page")
    space = config.space.build(1)
    least = [
        cost_range(space.cost_table({"net": net, "side": side}))[0]
        for net, side in product(space.knobs["net"], space.knobs["side"])
    ]
    assert max(least) <= config.budget.lowest


@pytest.mark.parametrize(
    "block",
    re.findall(r"```yaml\n(data:.*?)```", (ROOT / "docs/data.md").read_text(), flags=re.S),
    ids=["davis", "camvid"],
)
def test_the_data_sections_of_the_documentation_are_valid(block: str) -> None:
    section = yaml.safe_load(block)["data"]
    assert TypeAdapter[object](DataConfig).validate_python(section) == SequencesConfig.model_validate(section)


def test_messages_on_the_troubleshooting_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.M)
    fragments = [fragment for row in rows for fragment in re.findall(r"`([^`]+)`", row)]
    assert len(fragments) > 12
    packages = (ROOT / name for name in ("nas_kd", "analysis", "search_spaces", "trials"))
    code = "".join(path.read_text() for package in packages for path in sorted(package.rglob("*.py")))
    assert [fragment for fragment in fragments if fragment not in code] == []


def test_the_site_has_all_pages_and_all_names() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = re.findall(r"[\w-]+\.md", str(site["nav"]))
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    assert hooks.public_names() == nas_kd.__all__
