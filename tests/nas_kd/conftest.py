from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., CampaignConfig]:
    """A campaign of seconds; keyword arguments replace or extend whole sections."""

    def make(**changes: Any) -> CampaignConfig:
        data: dict[str, Any] = {**TINY, "runs": str(tmp_path / "runs")}
        for key, value in changes.items():
            data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
        return validate(data, source="test")

    return make
