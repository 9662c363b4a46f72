from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nas_kd.campaign import CampaignResult, search
from nas_kd.config import CampaignConfig, validate

TINY: dict[str, Any] = {
    "name": "tiny",
    "trials": 2,
    "data": {"num_train": 48, "num_val": 24, "num_test": 24, "frames": 4, "size": 16, "digits": [[3], [8]],
             "motions": ["up", "down"]},
    "teacher": {"settings": {"widths": [4, 8], "blocks": [1, 1], "strides": [1, 2]}, "fit": {"epochs": 1}},
    "space": {
        "name": "clip_cell", "stem_width": 4, "widths": [[4, 6], [6, 8]], "depths": [[1], [1, 2]], "strides": [1, 2],
        "ops": ["conv2d_k3", "shift_k1", "separable3d_k3_e1", "identity", "zero"],
        "resolution": [12, 16], "frames": [4],
    },
    "budget": {"max_flops": ["150k", "250k"]},
    "search": {"epochs": 2, "shared": False},  # a search a trial; test_shared_search.py has those that share one
    "retrain": {"epochs": 2},
    "rehearse": False,  # test_rehearsal.py has those that are
    "resources": {"executor": "inline", "max_concurrent": 1},
}  # fmt: skip


def tiny_campaign(folder: Path, **changes: Any) -> CampaignConfig:
    """A campaign of seconds with its runs in a folder; keyword arguments replace or extend whole sections."""
    data: dict[str, Any] = {**TINY, "runs": str(folder / "runs")}
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    return validate(data, source="test")


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., CampaignConfig]:
    """`tiny_campaign` in a folder of the test's own."""
    return partial(tiny_campaign, tmp_path)


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> CampaignResult:
    """A finished campaign whose three trials share a search; tests leave its folder as it is."""
    shared = {"shared": True, "paths": 1, "candidates": 2, "finish": 0.5, "gates": {"knots": 2}}
    folder = tmp_path_factory.mktemp("shared")
    config = tiny_campaign(folder, search=shared, trials=3, budget={"max_params": 1_200}, sampler="random")
    return search(config)
