"""Seeds hold (promise 8) for nets of few channels, in either memory format: a teacher and a space of the user."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nas_kd.campaign import search
from nas_kd.config import CampaignConfig
from nas_kd.trials import TrialRecord

# The stem reads three channels with a pointwise strided convolution, as shortcuts of residual nets do.
OWN_NETS = """
import torch
from torch import nn
from nas_kd.search_spaces import Edge, ModuleSpace

class Frames(nn.Module):
    def __init__(self, format):
        super().__init__()
        self.format = getattr(torch, format)
    def forward(self, clip):
        return clip.transpose(1, 2).flatten(0, 1).contiguous(memory_format=self.format)

class Clips(nn.Module):
    def __init__(self, frames):
        super().__init__()
        self.frames = frames
    def forward(self, x):
        return x.unflatten(0, (-1, self.frames)).mean((1, 3, 4))

def net(format, middle, width, num_classes):
    stem = nn.Conv2d(3, 4, 1, stride=2)
    return nn.Sequential(Frames(format), stem, nn.ReLU(), middle, nn.ReLU(), Clips(4), nn.Linear(width, num_classes))

def teacher(num_classes, format):
    return net(format, nn.Conv2d(4, 8, 1, stride=2), 8, num_classes)

def space(num_classes, format):
    def build():
        edge = Edge({"point": nn.Conv2d(4, 6, 1, stride=2), "square": nn.Conv2d(4, 6, 3, stride=2, padding=1)})
        return net(format, edge, 6, num_classes)
    return ModuleSpace(build, torch.zeros(1, 3, 4, 16, 16), name="few_channels")
"""


def content(record: TrialRecord) -> dict[str, object]:
    return record.model_dump(include={"arch", "metrics", "diagnostics", "warnings"})


@pytest.mark.parametrize("memory_format", ["contiguous_format", "channels_last"])
def test_the_same_seed_gives_the_same_trial(
    tiny: Callable[..., CampaignConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_format: str
) -> None:
    (tmp_path / "few_channels.py").write_text(OWN_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"format": memory_format}
    records = []
    for name in ("first", "second"):
        config = tiny(
            name=name,
            trials=1,
            teacher={"model": "few_channels:teacher", "settings": settings, "fit": {"epochs": 3}},
            objective={"feature": {"weight": 0.0}},
            search={"objective": {"feature": {"weight": 0.0}}},
            budget={"max_flops": ["20k"]},
        )
        space = type(config.space).model_validate({"name": "few_channels:space", **settings})
        records += search(config.model_copy(update={"space": space})).records
    assert len(records) == 2
    assert records[0].arch is not None
    assert content(records[0]) == content(records[1])


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="without AVX-512 all tests run with AVX2 or less anyway"
)
@pytest.mark.timeout(300)
def test_trials_hold_with_avx2_too() -> None:
    """oneDNN's faulty gradient was met with AVX2; a CPU with AVX-512 takes another one unless it is told not to."""
    tests = [f"{__file__}::test_the_same_seed_gives_the_same_trial"]
    tests += [str(Path(__file__).with_name("test_campaign.py")) + "::test_a_trial_keeps_the_promises"]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
