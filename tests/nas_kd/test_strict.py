from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nas_kd.config import CampaignConfig, ConfigError


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"objective": {"fewer_frames": {"prediction": True}}}, "prediction: must be a number, but got true"),
        ({"objective": {"finetune_share": False}}, "objective.finetune_share: must be a number, but got false"),
        ({"retrain": {"epochs": True}}, "retrain.epochs: must be a number, but got true"),
        ({"search": {"gates": {"lr": True}}}, "search.gates.lr: must be a number, but got true"),
        ({"trials": True}, "trials: must be a number, but got true"),
        ({"budget": {"max_flops": True}}, "FLOPs must be a number such as 12.5M, but got true"),
        (
            {"objective": {"spatiotemporal": {"soft_share": float("nan")}}},
            "objective.spatiotemporal.soft_share: input should be a finite number, but got nan",
        ),
        ({"retrain": {"lr": float("inf")}}, "retrain.lr: input should be a finite number, but got inf"),
        (
            {
                "objective": {
                    "task": {"weight": 0},
                    "feature": {"weight": 0},
                    "fewer_frames": {"weight": 1, "representation": 0, "prediction": 0},
                }
            },
            "but fewer_frames has none with both its representation and its prediction at 0, and all others are 0",
        ),
    ],
)
def test_a_number_is_a_finite_number(
    tiny: Callable[..., CampaignConfig], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(**change)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
