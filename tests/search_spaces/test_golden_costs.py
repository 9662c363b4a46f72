"""Costs and architectures of seeded samples, as stored in `golden/costs_v1.json`: they must never change.

For each space and two settings, 200 samples: the `arch_id`, which is a hash of the canonical JSON, and the cost. To add
a case: `python tests/search_spaces/test_golden_costs.py` writes those that the file lacks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_kd.search_spaces import SPACES, SearchSpace

GOLDEN = Path(__file__).parent / "golden" / "costs_v1.json"
SAMPLES = 200

CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "clip_cell": ("clip_cell", {"num_classes": 10}),
    "clip_cell, uneven": (
        "clip_cell",
        {
            "num_classes": 7, "stem_width": 6, "widths": [[4, 6], [8, 12, 20]], "depths": [[1, 3], [2]],
            "strides": [2, 1], "ops": ["conv3d_k1", "shift_separable_k5_e4", "identity", "zero", "conv2plus1d_k5"],
            "resolution": [27, 40], "frames": [3, 5],
        },
    ),
    "frame_sequence": ("frame_sequence", {"num_classes": 20, "feature_size": 64}),
    "frame_sequence, all families": (
        "frame_sequence",
        {
            "num_classes": 9, "feature_size": 24, "family": ["nextvlad", "h_rnn", "net_vlad"], "frames": [4, 7],
            "selector": ["uniform", "last"], "head": ["linear", "moe"], "experts": 3,
            "h_rnn": {"lower": [5, 8, 12], "upper": [6, 16], "block_length": [2, 3, 9]},
            "net_vlad": {"clusters": [3, 8], "hidden": [5, 16, 24]},
            "nextvlad": {"clusters": [3, 4, 8], "hidden": [8, 24], "groups": [2, 4], "expansion": [1, 2]},
        },
    ),
    "saliency": ("saliency", {}),
    "saliency, all nets": (
        "saliency",
        {
            "net": ["spatial", "temporal", "fused"], "side": [32, 52],
            "spatial": {"widths": [[2, 4], [3], [4, 6], [8, 10]], "depths": [1, 3], "ops": ["conv_k5", "conv_k1"]},
            "temporal": {"widths": [[2], [4, 6], [4, 8], [6]], "depths": [1, 2, 4], "ops": ["separable_k5"]},
        },
    ),
}  # fmt: skip


def samples(space: SearchSpace) -> list[list[Any]]:
    """[arch_id, cost] of seeded samples."""
    rng = np.random.default_rng(11)
    return [[arch.arch_id, space.cost(arch)] for arch in (space.sample(rng) for _ in range(SAMPLES))]


@pytest.mark.parametrize("case", CASES)
def test_costs_and_architectures_are_the_stored_ones(case: str) -> None:
    name, settings = CASES[case]
    assert samples(SPACES[name].make(settings)) == json.loads(GOLDEN.read_text(encoding="utf-8"))[case]


if __name__ == "__main__":
    stored = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    for case, (name, settings) in CASES.items():
        stored.setdefault(case, samples(SPACES[name].make(settings)))
    rows = [f'"{case}": {json.dumps(values, separators=(",", ":"))}' for case, values in stored.items()]
    GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
