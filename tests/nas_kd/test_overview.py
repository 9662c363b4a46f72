"""`nas-kd check`: what a campaign file means, told before anything is decoded or trained."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from nas_kd.campaign import Campaign
from nas_kd.cli import app
from nas_kd.cli.console import termination_is_interrupt
from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.preflight.overview import overview
from nas_kd.preparation.pairs import describe_left_out_layers
from nas_kd.training.measure import step_bytes


@pytest.fixture
def undecodable(tmp_path: Path) -> dict[str, Any]:
    """A folder of files that no decoder reads."""
    rows = ["path,label,split,person"]
    for number in range(16):
        (tmp_path / f"{number}.mp4").write_bytes(bytes([number]) * 64)
        split = ("train", "train", "val", "test")[number // 4]
        rows.append(f"{number}.mp4,{number % (3 if split == 'test' else 4)},{split},{number // 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return {
        "source": "folder", "root": str(tmp_path), "frames": 4, "size": 16, "group": "person",
        "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip


def test_the_overview_decodes_nothing(undecodable: dict[str, Any], tiny: Callable[..., CampaignConfig]) -> None:
    config = tiny().model_dump(mode="json")
    config["data"] = undecodable
    lines = overview(CampaignConfig.model_validate(config))
    name = Path(undecodable["root"]).name
    assert lines[0] == f"data: {name}, train 8 (weights 4, gates 4), val 4 of 2 groups, test 4 of 2 groups"
    assert "classes: 0 = 0, 1 = 1, 2 = 2, 3 = 3" in lines
    assert "data: no item of 3 in test; f1 and auc leave it out" in lines
    text = "\n".join(lines)
    assert "272,416 FLOPs a clip, trained for 1 epochs" in text
    highest = config["budget"]["max_flops"][-1]
    assert (f"{highest:,} is more than the 272,416 FLOPs of the teacher" in text) == (highest > 272_416)
    assert "\nobjective: task, " in text
    assert "  resolution 12: cheapest " in text
    assert "  resolution 16: cheapest " in text
    assert "student's modules from the teacher's: stages.0 from layers.0, stages.1 from layers.1" in text
    # 16 clips of 4 frames of 16² pixels; 8 training clips with 4 logits and maps of 4 · 4 · 8² and 8 · 4 · 4² numbers.
    assert lines[-2] == "caches on disk, at most: decoded files 49.2 kB, the teacher's outputs 24.6 kB"
    assert lines[-1].startswith("memory of a step, roughly: teacher.fit ")
    assert not (Path(undecodable["root"]) / "cache").exists()
    assert not config["runs"] or not Path(config["runs"]).exists()


def test_a_budget_below_the_cheapest_student_is_told_before_clips_are_decoded(
    undecodable: dict[str, Any], tiny: Callable[..., CampaignConfig]
) -> None:
    config = tiny(budget={"max_flops": ["1k"]}).model_dump(mode="json")
    config["data"] = undecodable
    read = CampaignConfig.model_validate(config)
    with (
        Campaign(read) as campaign,
        pytest.raises(ConfigError, match=r"^budget\.max_flops: the lowest budget is 1,000"),
    ):
        campaign.prepare()
    assert not (Path(undecodable["root"]) / "cache").exists()


def test_the_command_prints_the_overview_and_refuses_what_search_refuses(tmp_path: Path) -> None:
    small = ["--set", "data.num_train=24", "--set", "data.num_val=24", "--set", "data.num_test=24"]
    small += ["--set", "data.frames=4", "--set", "data.size=16", "--set", "space.frames=[4]"]
    small += ["--set", "space.resolution=[16]", "--set", f"runs={tmp_path}"]
    result = CliRunner().invoke(app, ["check", *small])
    assert result.exit_code == 0, result.output
    assert "students: " in result.output
    assert list(tmp_path.iterdir()) == []
    refused = CliRunner().invoke(app, ["check", *small, "--set", "budget.max_flops=1k"])
    assert refused.exit_code == 2


def test_layers_left_out_are_listed_by_reason() -> None:
    names = {**{f"stages.{i}.dw": "depthwise" for i in range(6)}, "stem": "among the first or the last layers"}
    assert describe_left_out_layers(names) == [
        "layers left out: stages.0.dw, stages.1.dw, stages.2.dw, stages.3.dw, … (6): depthwise",
        "layers left out: stem: among the first or the last layers",
    ]
    assert describe_left_out_layers({}) == []


def test_the_memory_of_a_step_is_what_is_kept_for_the_backward_pass() -> None:
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    weights = 16 * sum(p.numel() for p in net.parameters())
    kept = 4 * (10 + 20)  # the inputs of both layers; the ReLU keeps its output, which is the second one
    assert step_bytes(net, torch.zeros(1, 10), 6) == weights + 6 * kept


def test_termination_ends_a_campaign_as_an_interrupt() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        before = signal.signal(number, signal.SIG_DFL)
        with termination_is_interrupt(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, before)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as below `nohup`
    with termination_is_interrupt():
        signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)
