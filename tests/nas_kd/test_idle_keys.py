"""Keys that change nothing are named, and the advice removes the sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from nas_kd.config import CampaignConfig
from nas_kd.preflight.idle_keys import idle_keys

TRAINING = {"batch_size": 8, "epochs": 5}  # of 40 items: 25 steps


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        ({"retrain": {"ema": 0.999}}, "retrain.ema: after 25 steps the average still has 98% of the weights"),
        ({"retrain": {"ema": 0.9, "accumulate": 5}}, "retrain.ema: after 5 steps the average still has 59%"),
        ({"retrain": {"accumulate": 6}}, "retrain.accumulate: an epoch has 5 batches, so a step takes no more"),
        ({"retrain": {"keep": "best", "patience": 5}}, "retrain.patience: 5 epochs cannot pass within 5"),
        ({"teacher": {"train": False, "fit": {"epochs": 9}}}, "teacher.fit: the teacher is taken as it is"),
    ],
)
def test_a_key_that_changes_nothing_is_named(
    sections: dict[str, Any], start: str, tiny: Callable[..., CampaignConfig]
) -> None:
    config = tiny(**sections)
    config = config.model_copy(update={"retrain": config.retrain.model_copy(update=TRAINING)})
    found = idle_keys(config, 40)
    assert [sentence for sentence in found if sentence.startswith(start)]
    if most := re.search(r"ema: .* at most ([\d.]+)$", found[0]):
        mended = config.retrain.model_copy(update={"ema": float(most[1])})
        assert idle_keys(config.model_copy(update={"retrain": mended}), 40) == found[1:]


def test_keys_that_do_what_they_say_are_not_named(tiny: Callable[..., CampaignConfig]) -> None:
    config = tiny(retrain={**TRAINING, "ema": 0.8, "accumulate": 2, "keep": "best", "patience": 4})
    assert idle_keys(config, 40) == []
